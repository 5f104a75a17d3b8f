"""Plug-ins are loaded by the tests, not collected, and forgotten afterwards."""

import sys

import pytest

from experiments.config import REGISTRIES

collect_ignore_glob = ["my_*.py"]


@pytest.fixture(scope="module", autouse=True)
def forget_plugins():
    """Return a function that forgets all plug-ins, as a new process would know none."""
    known = [set(registry) for registry in REGISTRIES]

    def forget():
        for registry, names in zip(REGISTRIES, known, strict=True):
            for name in set(registry) - names:
                registry.unregister(name)
        for module in [name for name in sys.modules if name.startswith("flowfactor_plugin_")]:
            del sys.modules[module]

    yield forget
    forget()
