"""The YAML file of a table: what it may say."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from experiments.datasets import Natural, Positive, Section
from experiments.shipped_files import complaint, descriptions, find
from flowfactor.errors import ConfigError


class MethodConfig(Section):
    """A row of a table: what it has of its own."""

    config: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


def _empty_if_none(value: Any) -> Any:
    """Let `VAE:` with nothing behind it stand for `VAE: {}`."""
    return {} if value is None else value


Method = Annotated[MethodConfig, BeforeValidator(_empty_if_none)]


class TableConfig(Section):
    """A whole table."""

    title: str = ""
    description: str = ""
    config: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0,)
    processes: Positive | None = None
    threads: Positive = 1
    columns: tuple[str, ...] | None = None
    methods: Annotated[dict[str, Method], Field(min_length=1)]

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("every seed may be there once")
        return seeds

    @field_validator("methods")
    @classmethod
    def _have_folders(cls, methods: dict[str, MethodConfig]) -> dict[str, MethodConfig]:
        folders: dict[str, str] = {}
        for label in methods:
            if not (folder := slug(label)):
                raise ValueError(f"the name {label!r} needs a letter or a digit")
            if folder in folders:
                raise ValueError(
                    f"{folders[folder]!r} and {label!r} would share the folder {folder}; give one "
                    f"another name"
                )
            folders[folder] = label
        return methods

    @model_validator(mode="after")
    def _have_configurations(self) -> TableConfig:
        if self.config is None:
            for label, method in self.methods.items():
                if method.config is None:
                    raise ValueError(
                        f"the method {label!r} has no `config`, and neither has the table; give "
                        f"one the name of a configuration"
                    )
        return self


def slug(label: str) -> str:
    """Return the name of a method's folder: ``flow model, weak`` is in ``flow_model_weak``.

    Example:
        >>> slug("β-VAE (4)")
        'β_vae_4'
    """
    return re.sub(r"\W+", "_", label.lower()).strip("_")


def shipped_tables() -> dict[str, str]:
    """Return the names of the tables that ship, and what each is for."""
    return descriptions("tables")


def read_table(name: str) -> tuple[str, TableConfig]:
    """Read the YAML file of a table.

    Args:
        name: the file, or the name of a table that ships.

    Returns:
        The table's name and its content.

    Raises:
        ConfigError: no such file, no YAML, a key that is unknown or a value that is not allowed.
    """
    title, text = _find(name)
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name} must hold keys such as `methods:`; it holds a {type(content).__name__}."
        )
    try:
        return title, TableConfig.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(problem)}" for problem in error.errors())
        raise ConfigError(f"{name} is no valid table:\n{problems}") from error


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is there twice is an error; the first would be lost silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _find(name: str) -> tuple[str, str]:
    title, text = find(name, "tables")
    if text is not None:
        return title, text
    ships = list(shipped_tables())
    raise ConfigError(
        f"There is no table {name}: neither a file of that name nor one that ships"
        f"{hint(title, ships)}."
    )


def _describe(problem: Any) -> str:
    location = [str(part) for part in problem["loc"] if part != "[key]"]
    path = ".".join(location) or "table"
    if problem["type"] == "extra_forbidden":
        section = MethodConfig if location[0] == "methods" else TableConfig
        return f"{path}: unknown key{hint(location[-1], section.model_fields)}"
    return f"{path}: {complaint(problem)}"


def hint(word: str, known: Any) -> str:
    """Return what to say of a word that is not known: the nearest known one, or all."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(known)}"
