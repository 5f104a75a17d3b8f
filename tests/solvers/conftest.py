"""The solver layer as its tests import it: annotations checked in every call, or not."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
from jaxtyping import install_import_hook

if "solvers" not in sys.modules:  # when these tests run alone
    install_import_hook("solvers", "beartype.beartype")


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """The package as users import it, so that its own messages are seen for wrong types."""
    return _import_unchecked()


def _import_unchecked() -> ModuleType:
    """A second copy of the package, without the checks of its annotations at run time."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}
    finders = list(sys.meta_path)
    try:
        sys.meta_path[:] = [f for f in finders if "jaxtyping" not in type(f).__module__]
        return importlib.import_module("solvers")
    finally:
        for name in [name for name in sys.modules if _is_ours(name)]:
            del sys.modules[name]
        sys.modules.update(ours)
        sys.meta_path[:] = finders


def _is_ours(name: str) -> bool:
    return name == "solvers" or name.startswith("solvers.")
