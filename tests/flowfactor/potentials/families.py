"""The banks and the choices of potentials that closed forms are checked on."""

from typing import Any

import torch
from torch import Tensor

from flowfactor import MLPPotential, RidgePotential
from flowfactor.potentials import StackedPotentials

DIM, BATCH = 5, 7
NAMES = ("scaling", "rotation", "hue")

# With fewer rows than latents other forms are the cheapest: of the Laplacian and of determinants.
FAMILIES: dict[str, tuple[type[StackedPotentials], dict[str, Any]]] = {
    "ridge": (RidgePotential, {"width": 12}),
    "ridge, rank 3": (RidgePotential, {"width": 12, "rank": 3}),
    "narrow ridge": (RidgePotential, {"width": 3}),
    "narrow ridge, rank 2": (RidgePotential, {"width": 2, "rank": 2}),
    "mlp": (MLPPotential, {"width": 6}),
    "mlp, rank 3": (MLPPotential, {"width": 6, "rank": 3}),
    "narrow mlp": (MLPPotential, {"width": 3}),
    "narrow mlp, rank 1": (MLPPotential, {"width": 3, "rank": 1}),
    "bounded mlp, rank 3": (MLPPotential, {"width": 6, "rank": 3, "bounded": True}),
    "narrow bounded mlp": (MLPPotential, {"width": 3, "bounded": True}),
}

CHOICES: dict[str, Any] = {
    "name": "rotation",
    "index": 2,
    "negative index": -1,
    "per sample": torch.tensor([2, 0, 1, 1, 0, 2, 2]),
    "per sample, sorted and even": torch.tensor([0, 0, 1, 1, 2, 2]),
    "per sample, one missing": torch.tensor([2, 0, 0, 2, 0, 0, 0]),
    "per sample, very uneven": torch.tensor([0] * 12 + [1, 2]),
    "weights": torch.rand(BATCH, 3, generator=torch.Generator().manual_seed(0)).double(),
}


def make_bank(family: str = "ridge", autonomous: bool = False) -> StackedPotentials:
    """Return a bank in float64 all of whose parameters matter."""
    torch.default_generator.manual_seed(1)
    kind, options = FAMILIES[family]
    bank = kind(NAMES, DIM, autonomous=autonomous, **options).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return bank


def latents(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, DIM, dtype=torch.float64)


def latents_for(k: Any) -> Tensor:
    """Return as many latents as a choice is made for."""
    return latents(len(k) if isinstance(k, Tensor) else BATCH)
