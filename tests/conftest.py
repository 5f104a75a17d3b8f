"""Shapes in signatures are checked while the tests run; fixtures that several rooms use."""

from jaxtyping import install_import_hook

# Before anything of the packages is imported.
install_import_hook(["flowfactor", "solvers"], "checking.check")

import pytest
import torch

import flowfactor
from flowfactor.data import TransformedImages

# The tensors of the tests are too small to share between threads.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> TransformedImages:
    """Return twelve made-up digits: bright strokes on black, each one different."""
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
