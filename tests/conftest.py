"""Fixtures that several folders of tests use, and the second pass that checks types at run time.

``pytest --jaxtyping-packages=flowfactor,solvers,checking.check`` runs the same tests with every
annotated call checked. Two marks leave tests out of that pass: ``wrong_types``, where the checker
would refuse the arguments before our own messages could, and ``traced``, where the checks would
stand in a graph that is counted or exported.
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import logging
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import flowfactor
    from flowfactor.data import TransformedImages

# Of the processes that tests start, too: threads that wait for tiny tensors cost more than they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every Fabric asks for them, which reads the metadata of all packages.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)

# Half a million objects of modules and tests come to stay: none of them is looked at for garbage.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "wrong_types: passes arguments against their annotations")
    config.addinivalue_line("markers", "traced: counts or exports traced graphs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--jaxtyping-packages", None):
        skip = pytest.mark.skip(reason="not for the pass that checks types")
        for item in items:
            if any(item.get_closest_marker(name) for name in ("wrong_types", "traced")):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    # In each phase of each test pytest adds its handlers to every logger that does not propagate,
    # of which torch has many.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _torch():
    """Share no tensors of the tests between threads: they are too small. Seed the CPU only."""
    import torch

    torch.set_num_threads(1)
    # Of an accelerator that is not there, torch keeps each seed, with the stack as a text.
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        if not kind.is_available():
            kind.manual_seed_all = lambda seed: None


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture
def empty_figures(monkeypatch):
    """Make figures as always, but lay none out, and save empty ones, where nobody looks at them."""
    from matplotlib.figure import Figure

    save = Figure.savefig
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda _: None)
    monkeypatch.setattr(
        Figure, "savefig", lambda _, file, **options: save(Figure((1, 1), dpi=10), file)
    )


@pytest.fixture(scope="session")
def digits() -> TransformedImages:
    """Return twelve made-up digits: bright strokes on black, each one different."""
    import torch

    from flowfactor.data import TransformedImages

    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(12, 1, 28, 28, dtype=torch.uint8)
    for image in images:
        row, column = torch.randint(8, 18, (2,), generator=generator).tolist()
        image[0, row - 4 : row + 5, column - 1 : column + 2] = 255
        image[0, row : row + 3, column - 4 : column + 4] = 180
    return TransformedImages(images)


@pytest.fixture
def model(digits) -> flowfactor.FlowVAE:
    """Return a small untrained model whose flows move noticeably."""
    import torch

    import flowfactor

    small = flowfactor.FlowVAE.build(
        digits.names,
        latent_dim=6,
        width=16,
        encoder={"channels": [4, 8], "hidden": 16},
        decoder={"hidden": [16]},
    )
    with torch.no_grad():
        small.potentials.coefficients[:, 0].mul_(3)
    return small.eval()
