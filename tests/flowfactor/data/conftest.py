"""Small data shared by the tests of flowfactor.data."""

from __future__ import annotations

import pytest
import torch

from flowfactor.data import TransformedImages


@pytest.fixture(scope="session")
def dataset() -> TransformedImages:
    """Return thirty random images of 12 by 12 pixels in sequences of frames 0..8."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (30, 1, 12, 12), dtype=torch.uint8, generator=generator)
    return TransformedImages(images, torch.arange(30) % 10)
