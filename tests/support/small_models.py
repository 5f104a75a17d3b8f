"""Tiny models of every kind, and films for them."""

import torch

from flowfactor.data import SequenceBatch
from flowfactor.models import MODELS

NAMES = ("left", "right")
SHAPE = (1, 8, 8)
LAST = 3
OWN = {
    "flow_vae": {"width": 8},
    "weak_flow_vae": {"width": 8},
    "poflow": {"width": 8},
    "factor_vae": {"discriminator_width": 16, "discriminator_layers": 2},
    "topographic_vae": {"latent_dim": 12, "capsules": 2, "window": 1},
}


def small(kind, names=NAMES, image_shape=SHAPE, horizon=LAST, **options):
    torch.manual_seed(0)
    networks = {
        "encoder": {"channels": [4], "hidden": 16},
        "decoder": {"kind": "mlp", "hidden": [16]},
    }
    return MODELS[kind].build(
        names,
        image_shape,
        horizon=horizon,
        **{"latent_dim": 4, **networks, **OWN.get(kind, {}), **options},
    )


def films(count=6, horizon=LAST):
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(count, horizon + 1, *SHAPE, generator=generator)
    return SequenceBatch.full(frames, torch.arange(count) % len(NAMES))
