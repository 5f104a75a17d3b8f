"""YAML files of the user, or that ship with the package, and changes to their keys."""

from __future__ import annotations

import copy
import dataclasses
import functools
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from flowfactor.errors import ConfigError
from flowfactor.options import shorten
from solvers.registry import suggest

# What a file may hold, so that one of a stranger's is refused before it takes time or memory.
_MAX_BYTES = 200_000
_MAX_VALUES = 5000
_MAX_DEPTH = 32
_MAX_KEY = 500
_MAX_NUMBER = 100
_TOO_MANY = f"it has more than {_MAX_VALUES:,} values"


@dataclasses.dataclass(frozen=True)
class YamlFile:
    """A YAML file that holds a mapping.

    Attributes:
        title: its name without folder and ending.
        folder: what paths in it are relative to; None for a file that ships.
        content: the mapping.
    """

    title: str
    folder: Path | None
    content: dict[str, Any]


def read_yaml(name: str, *, kind: str = "", folder: Path | None = None) -> YamlFile:
    """Read a YAML file of the user's, or one that ships.

    Args:
        name: a path, or the name of a file that ships, with or without its ending.
        kind: the folder of those that ship, below ``configs``.
        folder: where a relative path is looked for before the working directory.

    Raises:
        ConfigError: there is no such file, or it is no YAML, or holds no mapping.
    """
    path = Path(name)
    if folder is not None and (folder / name).is_file():
        path = folder / name
    if path.is_file():
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_BYTES + 1).decode("utf-8-sig", "strict")
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is no text in UTF-8: {error.reason}.") from error
        return YamlFile(path.stem, path.resolve().parent, _mapping(text, name))
    title = name.removesuffix(".yaml")
    candidate = _shipped(kind) / f"{title}.yaml"
    if "/" in title or not candidate.is_file():
        raise ConfigError(
            f"There is no file {name}, and `flowfactor configs` lists none of that name; "
            f"{suggest(title, descriptions(kind))}"
        )
    return YamlFile(title, None, _mapping(candidate.read_text(encoding="utf-8"), name))


def descriptions(kind: str = "") -> dict[str, str]:
    """Return the names of the files that ship, and what each is for."""
    files = (file for file in _shipped(kind).iterdir() if file.name.endswith(".yaml"))
    return {
        file.name.removesuffix(".yaml"): parse_yaml(file.read_text(encoding="utf-8"))["description"]
        for file in sorted(files, key=lambda file: file.name)
    }


def parse_yaml(text: str) -> Any:
    """Return what YAML says.

    Keys are names, and one that occurs twice is an error. Anchors and aliases are expanded; size,
    depth and the number of values, as expanded, are limited.

    Raises:
        ConfigError: it is no YAML, or too large.
    """
    return copy.deepcopy(_parse(text))  # of many cells, the files are the same


@functools.lru_cache(64)
def _parse(text: str) -> Any:
    if len(text.encode("utf-8", "replace")) > _MAX_BYTES:
        raise ConfigError(f"not valid YAML: it has more than {_MAX_BYTES:,} bytes")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"not valid YAML: {shorten(_reason(error), 300)}") from error


def _reason(error: Exception) -> str:
    """Return what is wrong with a text, and where."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    parts = (getattr(error, "context", None), getattr(error, "problem", None))
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join(filter(None, parts))}"


def apply_override(content: dict[str, Any], override: str) -> None:
    """Apply ``key.path=value`` to a mapping in place; the value is YAML.

    Raises:
        ConfigError: it has another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {shorten(override)}: expected key.path=value, for instance "
            "`--set training.steps=2000`."
        )
    try:
        set_key(content, key.strip(), parse_yaml(text))
    except ConfigError as error:
        raise ConfigError(f"--set {shorten(override)}: {error}") from error


def set_key(content: dict[str, Any], path: str, value: Any) -> None:
    """Set the key at a path such as ``training.steps``, making the sections above it.

    Raises:
        ConfigError: something above it is a value.
    """
    *parents, leaf = path.split(".")
    for parent in parents:
        if content.get(parent) is None:
            content[parent] = {}
        content = content[parent]
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: {parent} is a value, not a section")
    content[leaf] = value


class _Loader(yaml.SafeLoader):
    """YAML whose keys are distinct names, with limits that hold while it is read."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._composed = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._composed += 1
        if self._depth > _MAX_DEPTH:
            raise _refuse(f"it is nested more than {_MAX_DEPTH} deep", self.peek_event())
        if self._composed > _MAX_VALUES:
            raise _refuse(_TOO_MANY, self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _count(node, {}) > _MAX_VALUES:
            raise _refuse(f"{_TOO_MANY}, as aliases expand", node)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            if isinstance(node, yaml.ScalarNode):
                node.value.encode()  # half of a surrogate pair cannot be written anywhere
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            # Dates, numbers and tags that PyYAML takes for granted.
            raise _refuse(f"{_show(node)} is no {node.tag.rpartition(':')[2]}", node) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        known: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str" or not isinstance(key.value, str):
                raise _refuse(f"the key {_show(key)} is no name; put it in quotes", key)
            if not 0 < len(key.value) <= _MAX_KEY:
                raise _refuse(f"a key must have 1 to {_MAX_KEY} characters", key)
            if key.value in known:
                raise _refuse(f"the key {key.value!r} occurs twice", key)
            known.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        if len(node.value) > _MAX_NUMBER:
            raise _refuse(f"a number has {len(node.value):,} characters", node)
        integer = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if integer else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _refuse(problem: str, place: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


def _show(node: Any) -> str:
    plain = isinstance(node.value, str)
    return shorten(repr(node.value)) if plain else f"of several {node.id} parts"


def _count(node: Any, counts: dict[int, int]) -> int:
    """Return how many values a node has when its aliases are expanded."""
    if id(node) not in counts:
        counts[id(node)] = _MAX_VALUES + 1  # what holds itself never ends
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        counts[id(node)] = 1 + sum(_count(part, counts) for pair in pairs for part in pair)
    return counts[id(node)]


def _mapping(text: str, name: str) -> dict[str, Any]:
    try:
        content = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{name} is {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name} must hold keys such as `description:` with values behind or below them; it "
            f"holds a {type(content).__name__}."
        )
    return content


def _shipped(kind: str) -> Any:
    return resources.files("experiments").joinpath("configs", *filter(None, [kind]))
