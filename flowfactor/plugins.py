"""Plug-ins: a file or module of one's own whose data sets, models, metrics and terms have names.

A plug-in registers what it defines with the decorators of :mod:`flowfactor.registries`. Once it is
loaded, a configuration can name it like anything built in. Distributions announce theirs by an
entry point in the group ``flowfactor.plugins``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType

from flowfactor.errors import ConfigError
from solvers.registry import registering_for

GROUP = "flowfactor.plugins"

logger = logging.getLogger(__name__)

_installed_are_loaded = False


def resolve(name: str, folder: Path | None = None) -> str:
    """Return the name under which a plug-in is stored: an absolute path, or a module's name.

    Args:
        name: a ``.py`` file or a module.
        folder: what a relative path is relative to; None is the working directory.

    Example:
        >>> from pathlib import Path
        >>> resolve("my_data.py", Path("/home/me")), resolve("my_package.data")
        ('/home/me/my_data.py', 'my_package.data')
    """
    if not is_file(name):
        return name
    return str(((folder or Path()) / Path(name).expanduser()).resolve())


def load(name: str, folder: Path | None = None) -> str:
    """Import a plug-in, whose definitions then have names; doing so twice is harmless.

    Args:
        name: a ``.py`` file or a module.
        folder: what a relative path is relative to; None is the working directory.

    Returns:
        The name under which it is stored: an absolute path, or the module's name.

    Raises:
        ConfigError: there is no such file or module, or it fails to import.
    """
    name = resolve(name, folder)
    if is_file(name) and not Path(name).is_file():
        raise ConfigError(
            f"plug-in {name}: there is no such file. If it has moved, name its new place with "
            f"--plugin."
        )
    with registering_for(name):
        try:
            _import_file(Path(name)) if is_file(name) else importlib.import_module(name)
        except ModuleNotFoundError as error:
            if is_file(name) or not f"{name}.".startswith(f"{error.name}."):
                raise _broken(name, error) from error
            raise ConfigError(
                f"plug-in {name}: there is no such module. Install the distribution that has it, "
                f"or name a file: {name.replace('.', '/')}.py."
            ) from error
        except Exception as error:
            raise _broken(name, error) from error
    return name


def load_installed() -> None:
    """Import the plug-ins of installed distributions; one that fails is reported, not raised."""
    global _installed_are_loaded
    if _installed_are_loaded:
        return
    _installed_are_loaded = True
    for entry in metadata.entry_points(group=GROUP):
        try:
            load(entry.module)
        except ConfigError as error:
            logger.warning("%s", error)


def check_outside(names: Iterable[str], folder: Path) -> None:
    """Refuse plug-ins whose code lies inside a folder: a run from elsewhere is data, not code.

    Args:
        names: of plug-ins as the folder's configuration has them.
        folder: of a run.

    Raises:
        ConfigError: one of them is a relative path, or lies inside the folder.
    """
    for name in names:
        inside = _file_is_inside if is_file(name) else _module_is_inside
        if inside(name, folder.resolve()):
            raise ConfigError(
                f"plug-in {name} belongs to the run folder {folder}, so its code is not executed. "
                f"If you trust it, name it: --plugin {name}"
            )


def is_file(name: str) -> bool:
    """Return whether a plug-in is a file rather than a module."""
    return name.endswith(".py") or "/" in name


def _file_is_inside(name: str, folder: Path) -> bool:
    path = Path(name)
    return not path.is_absolute() or path.resolve().is_relative_to(folder)


def _module_is_inside(name: str, folder: Path) -> bool:
    # One package after the other: looking up a submodule executes the package around it.
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return False
        if spec is None:
            return False
        if spec.origin is not None and Path(spec.origin).resolve().is_relative_to(folder):
            return True
    return False


def _import_file(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"flowfactor_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _broken(name: str, error: Exception) -> ConfigError:
    last = traceback.format_exception_only(error)[-1].strip()
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name
    ]
    line = f", line {frames[-1].lineno}" if frames else ""
    return ConfigError(f"plug-in {name}{line}: {last}")
