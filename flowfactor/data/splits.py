"""How many of what exists are held out, and which."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from flowfactor.errors import DataError
from flowfactor.options import OpenFraction, PositiveInt

SPLITS = ("train", "validation", "test")
"""The splits that every data set has."""

Part = Annotated[PositiveInt, Field(le=10**9)] | OpenFraction
"""A number of samples, or a part of all of them."""


def part_size(part: float, total: int) -> int:
    """Return how many samples a part is: itself if it is whole, else rounded, and at least one.

    Example:
        >>> part_size(4, 40), part_size(0.25, 40), part_size(0.01, 40), part_size(0, 40)
        (4, 10, 1, 0)
    """
    return int(part) if part >= 1 or part == 0 else max(1, round(part * total))


def split_indices(
    total: int, validation: float, test: float, seed: int, what: str = "samples"
) -> dict[str, Int[Tensor, "n"]]:
    """Return which of ``total`` samples are in each split, drawn at random.

    Args:
        total: how many there are.
        validation, test: how many to hold out, whole numbers, or below 1 a part of all.
        seed: of the draw.
        what: they are, for messages.

    Raises:
        DataError: none is left for training.

    Example:
        >>> {name: len(part) for name, part in split_indices(40, 0.1, 8, seed=0).items()}
        {'train': 28, 'validation': 4, 'test': 8}
    """
    sizes = split_sizes(total, validation, test, what)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return dict(zip(SPLITS, order.split(sizes), strict=True))


def split_sizes(total: int, validation: float, test: float, what: str) -> tuple[int, int, int]:
    """Return how many samples are for training, validation and the test; see above."""
    for name, part in (("validation", validation), ("test", test)):
        if part < 0 or (part > 1 and part != int(part)):
            raise DataError(f"{name} must be a whole number, or a part between 0 and 1: {part}.")
    held = [part_size(part, total) for part in (validation, test)]
    if sum(held) >= total:
        raise DataError(
            f"validation, test: of {total} {what}, {held[0]} for validation and {held[1]} for the "
            "test leave none for training. Hold out fewer, or parts such as 0.1."
        )
    return total - sum(held), held[0], held[1]
