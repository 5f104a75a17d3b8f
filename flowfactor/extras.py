"""Packages that not everybody needs: those that the extras of the distribution install."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from flowfactor.errors import MissingExtraError


def import_extra(module: str, extra: str) -> Any:
    """Return a module of a package that an extra installs.

    Raises:
        MissingExtraError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module.partition(".")[0], extra) from error


def find_extra(package: str, extra: str) -> Path:
    """Return the folder of a package that an extra installs, without importing it.

    Raises:
        MissingExtraError: it is not installed; the message says how to.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package, extra)
    return Path(spec.submodule_search_locations[0])


def _missing(package: str, extra: str) -> MissingExtraError:
    return MissingExtraError(
        f"This needs the package {package}. Install it with `pip install 'flowfactor[{extra}]'`."
    )
