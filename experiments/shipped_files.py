"""YAML files that ship with the package, or are a user's: found, listed, and complained of."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from experiments.datasets import Section
from flowfactor.errors import ConfigError


def descriptions(*folder: str) -> dict[str, str]:
    """Return the names of the files in a folder of the configurations, and what each is for."""
    found = {}
    for file in sorted(_configs(folder).iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            found[file.name.removesuffix(".yaml")] = str(content.get("description", "")).strip()
    return found


def find(name: str, *folder: str) -> tuple[str, str | None]:
    """Return the title and the text of a file of the user's, or of one that ships.

    Args:
        name: a path, or the name of a file in the folder, with or without its ending.
        folder: below that of the configurations.

    Returns:
        The text is None if there is no such file.

    Raises:
        ConfigError: the user's file cannot be read as text.
    """
    path = Path(name)
    if path.is_file():
        try:
            return path.stem, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as text: {error}.") from error
    title = name.removesuffix(".yaml")
    candidate = _configs(folder) / f"{title}.yaml"
    if "/" not in title and candidate.is_file():
        return title, candidate.read_text(encoding="utf-8")
    return title, None


def complaint(problem: Any) -> str:
    """Return what a schema has against a value, and the value, from one of pydantic's errors."""
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = problem.get("input")
    shown = "" if isinstance(given, (dict, Section)) else f" (it is {given!r})"
    return f"{message}{shown}"


def _configs(folder: tuple[str, ...]) -> Any:
    return resources.files("experiments").joinpath("configs", *folder)
