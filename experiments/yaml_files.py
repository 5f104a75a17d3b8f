"""YAML files of the user, or that ship with the package, and changes to their keys."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from flowfactor.errors import ConfigError
from solvers.registry import suggest


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
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as text: {error}.") from error
        return YamlFile(path.stem, path.resolve().parent, _mapping(text, name))
    title = name.removesuffix(".yaml")
    candidate = _shipped(kind) / f"{title}.yaml"
    if "/" in title or not candidate.is_file():
        raise ConfigError(
            f"There is no file {name}, and none of that name ships: "
            f"{suggest(title, descriptions(kind))} `flowfactor configs` lists those that ship."
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
    """Return what YAML says; a key that occurs twice is an error.

    Raises:
        ConfigError: it is no YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from error


def apply_override(content: dict[str, Any], override: str) -> None:
    """Apply ``key.path=value`` to a mapping in place; the value is YAML.

    Raises:
        ConfigError: it has another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {override}: expected key.path=value, for instance `--set training.steps=2000`."
        )
    try:
        set_key(content, key.strip(), parse_yaml(text))
    except ConfigError as error:
        raise ConfigError(f"--set {override}: {error}") from error


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
    """YAML in which a key that occurs twice is an error, where the first would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        values = [key.value for key in keys]
        for i, key in enumerate(keys):
            if values[i] in values[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


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
