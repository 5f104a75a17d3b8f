"""Pages of the Python reference: one for each package, from ``__all__`` and the docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sphinx.pycode import ModuleAnalyzer

from solvers.registry import Registry

PACKAGES = {
    "flowfactor.data": (),
    "flowfactor.models": (),
    "flowfactor.potentials": (),
    "flowfactor.metrics": (),
    "flowfactor.diagnostics": (),
    "flowfactor": (
        "activity",
        "checkpoints",
        "errors",
        "evaluation",
        "export",
        "flow",
        "hub",
        "inference",
        "machine",
        "networks",
        "observation",
        "options",
        "plugins",
        "pretrained",
        "priors",
        "records",
        "registries",
        "tables",
        "training",
        "transport",
    ),
    "solvers": ("registry",),
}
"""The packages, and modules whose other public names stand on the page of the package."""


def public_names(module: ModuleType) -> list[str]:
    """Return what a module offers: ``__all__``, or what it defines without an underscore."""
    own = (
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    )
    return list(getattr(module, "__all__", None) or own)


def entries() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each package, the full names that its page describes, and those described elsewhere."""
    pages: dict[int, str] = {}
    for package, modules in PACKAGES.items():
        here, elsewhere = [], []
        for name in (package, *(f"{package}.{module}" for module in modules)):
            module = importlib.import_module(name)
            for public in public_names(module):
                value = getattr(module, public)
                if inspect.ismodule(value):
                    continue
                owner = pages.setdefault(id(value), f"{name}.{public}")
                (here if owner == f"{name}.{public}" else elsewhere).append(f"{name}.{public}")
                if owner != f"{name}.{public}" and name == package:
                    elsewhere[-1] = owner
        yield package, here, sorted(set(elsewhere) - set(here), key=elsewhere.index)


def directive(name: str) -> str:
    """Return the directive that describes a public name: autodoc's, or one with its text."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        return f"{kind}:: {name}"
    if inspect.isroutine(value):
        return f"autofunction:: {name}"
    head = f"data:: {attribute}\n   :module: {module}\n"
    if isinstance(value, Registry):
        names = ", ".join(f"``{key}``" for key in value)
        return f"{head}\n   :class:`~solvers.registry.Registry` of {names}."
    source = defining_module(module, attribute)
    text = ModuleAnalyzer.for_module(source).find_attr_docs().get(("", attribute), [])
    canonical = f"   :canonical: {source}.{attribute}\n" if source != module else ""
    return f"{head}{canonical}\n" + "\n".join(f"   {line}" for line in text)


def defining_module(package: str, constant: str) -> str:
    """Return the module that assigns a constant, below which its documentation stands."""
    assignment = re.compile(rf"^{constant}\b.*=", re.MULTILINE)
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{package}.") and assignment.search(inspect.getsource(module)):
            return name
    return package


def page(package: str, here: list[str], elsewhere: list[str]) -> str:
    """Return the page of a package in reStructuredText."""
    lines = [package, "=" * len(package), "", f".. automodule:: {package}", "   :no-members:", ""]
    if elsewhere:
        links = ", ".join(f":py:obj:`~{name}`" for name in elsewhere)
        lines += [f"Described with their packages: {links}.", ""]
    for name in here:
        lines += [f".. {directive(name)}", ""]
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Write the page of each package, where it has changed."""
    folder.mkdir(exist_ok=True)
    for package, here, elsewhere in entries():
        path, text = folder / f"{package}.rst", page(package, here, elsewhere)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
