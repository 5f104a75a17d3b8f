"""Options: frozen dataclasses that are arguments in Python, keys in YAML and specs in checkpoints.

An option is one field: its name is the key, its annotation says which values are allowed, its
default is the default everywhere, and the string below it is its documentation everywhere::

    @options
    class DriftOptions:
        speed: PositiveFloat = 1.0
        \"\"\"Pixels per frame.\"\"\"

Values are validated by pydantic, once, when the object is made, from Python or from YAML.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import CoreSchema, PydanticCustomError, PydanticUndefined, core_schema

from flowfactor.errors import ConfigError
from solvers.registry import Registry, suggest

T = TypeVar("T")


def _check_number(value: Any) -> Any:
    """Refuse ``true``, ``yes`` and ``on`` where a number is asked for, and what has no 64 bits."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not a truth value")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("expected a number of 64 bits")
    return value


NUMBER = BeforeValidator(_check_number)
"""Refuses truth values where a number is asked for: ``Annotated[int, Field(le=9), NUMBER]``."""
Int = Annotated[int, NUMBER]
PositiveInt = Annotated[int, Field(ge=1), NUMBER]
NonNegativeInt = Annotated[int, Field(ge=0), NUMBER]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False), NUMBER]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), NUMBER]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False), NUMBER]
"""The weight of a term of an objective: finite and at least 0."""
Fraction = Annotated[float, Field(ge=0, le=1), NUMBER]
"""A number in [0, 1]."""
OpenFraction = Annotated[float, Field(gt=0, lt=1), NUMBER]
"""A number in (0, 1)."""

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def options(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose values are checked when it is made.

    Raises:
        ConfigError: (when the class is called) a value that is not allowed; the message names it.

    Example:
        >>> from flowfactor.options import PositiveInt, options
        >>> @options
        ... class Size:
        ...     width: PositiveInt = 3
        >>> Size(width=0)
        Traceback (most recent call last):
        flowfactor.errors.ConfigError: Size: width: input should be greater than or equal to 1 ...
    """
    made = pydantic_dataclass(frozen=True, config=_CONFIG)(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            validate(self, *map(_as_text, args), **{k: _as_text(v) for k, v in kwargs.items()})
        except ValidationError as error:
            problems = "; ".join(describe(problem, made) for problem in error.errors())
            raise ConfigError(f"{type(self).__name__}: {problems}") from None

    made.__init__ = __init__  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


def _as_text(value: Any) -> Any:
    """Return a path as the text that YAML has, anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def parse(cls: type[T], content: Any, where: str = "") -> T:
    """Return options from plain data, such as a section of a YAML file.

    Args:
        cls: decorated by :func:`options`.
        content: a mapping of keys to values; None stands for an empty one.
        where: the path of the section, for error messages.

    Raises:
        ConfigError: with the path of every key that is wrong and what is allowed there.
    """
    try:
        section = {} if content is None else content
        parsed: T = adapter(cls).validate_python(section)  # type: ignore[arg-type]
        return parsed
    except ValidationError as error:
        problems = [describe(problem, cls, where) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def dump(value: Any) -> dict[str, Any]:
    """Return options as plain data: the inverse of :func:`parse`."""
    cls: Any = type(value)
    content: dict[str, Any] = adapter(cls).dump_python(value, mode="json")
    return content


@functools.cache
def adapter(cls: Any) -> TypeAdapter[Any]:
    """Return what validates and serialises a class of options."""
    return TypeAdapter(cls)


@dataclasses.dataclass(frozen=True)
class NameIn:
    """Annotates an option that holds a name in a registry: ``Annotated[str, NameIn(METHODS)]``.

    Args:
        registry: what has the names.
        objects: a type whose objects, made in Python, may stand there instead.
    """

    registry: Registry[Any]
    objects: type[Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Return the schema of a name that is looked up."""
        return core_schema.no_info_plain_validator_function(self._validate)

    def _validate(self, value: Any) -> Any:
        if self.objects is None or not isinstance(value, self.objects):
            self.registry[value]
        return value


@dataclasses.dataclass(frozen=True)
class KindIn:
    """Annotates an option that holds options of one of several kinds, ``{kind: conv, ...}``.

    Args:
        registry: classes of options by the name of the kind.
        default: the kind where none is given.
        objects: a type whose objects, made in Python, may stand there instead.
    """

    registry: Registry[Any]
    default: str
    objects: type[Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Return the schema of a section whose keys depend on its kind."""
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(self._dump),
        )

    def _validate(self, value: Any) -> Any:
        kinds = [cls for _, cls in self.registry.items()]
        if isinstance(value, tuple(filter(None, [*kinds, self.objects]))):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"expected keys such as {{kind: {self.default}, ...}}")
        cls = self.registry[value.get("kind", self.default)]
        content = {key: each for key, each in value.items() if key != "kind"}
        try:
            return adapter(cls).validate_python(content)
        except ValidationError as error:
            raise nest(error, cls) from None

    def _dump(self, value: Any) -> dict[str, Any]:
        return {"kind": self.registry.name_of(type(value)), **dump(value)}


def nest(error: ValidationError, cls: Any) -> ValidationError:
    """Return the problems of a section so that the section around it can report them.

    Hints for unknown keys are made here, where it is known which keys the section has.
    """
    problems: list[Any] = []
    for problem in error.errors():
        *parents, key = problem["loc"] or ("",)
        path = ".".join(shorten(str(part)) for part in problem["loc"])
        message = describe(problem, cls).removeprefix(f"{path}: ")
        custom = PydanticCustomError("nested", "{message}", {"message": message})
        problems.append({"type": custom, "loc": (*parents, key), "input": None})
    return ValidationError.from_exception_data(cls.__name__, problems)


def describe(problem: Any, cls: Any = None, where: str = "") -> str:
    """Return one of pydantic's errors as ``path: what is allowed (it is ...)``."""
    location = [shorten(str(part)) for part in problem["loc"]]
    path = ".".join(filter(None, [where, *location]))
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: unknown key; {suggest(location[-1], _keys(cls, location[:-1]))}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    value = problem.get("input")
    plain = value is None or isinstance(value, str | int | float | bool)
    telling = plain and problem["type"] not in ("missing", "nested")
    shown = f" (it is {_short(value)})" if telling else ""
    return shorten(f"{path}: {message}{shown}" if path else f"{message}{shown}", 1000)


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of options, as documentation shows it.

    Attributes:
        key: its name.
        type: its annotation.
        default: its default; ``dataclasses.MISSING`` if it must be given.
        description: what it means.
    """

    key: str
    type: Any
    default: Any
    description: str


def fields_of(cls: Any) -> Iterator[Option]:
    """Yield the fields of a class of options with their documentation."""
    for name, field in cls.__pydantic_fields__.items():
        factory: Callable[[], Any] | None = field.default_factory
        default = factory() if factory is not None else field.default
        if default is PydanticUndefined:
            default = dataclasses.MISSING
        # An inherited field has its description in the class that defines it.
        descriptions = (
            base.__pydantic_fields__[name].description
            for base in cls.__mro__
            if name in base.__dict__.get("__pydantic_fields__", {})
        )
        yield Option(name, field.annotation, default, next(filter(None, descriptions), ""))


def _keys(cls: Any, location: list[str]) -> list[str]:
    """Return the keys that are known below a class of options at a location."""
    for part in location:
        hints = get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        cls = hints.get(part)
    return (
        [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    )


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 500:
        return f"a number of {value.bit_length():,} bits"
    return shorten(repr(value))


def shorten(text: str, length: int = 80) -> str:
    """Return a text of a stranger's for a message: the beginning of one that is long.

    Example:
        >>> shorten("flow" * 100, 8)
        'flowflow...'
    """
    return text if len(text) <= length else f"{text[:length]}..."
