"""Tiny models of every kind, and sequences for them."""

import dataclasses

import torch

from flowfactor.data import SequenceBatch
from flowfactor.registries import MODELS

NAMES = ("left", "right")
SHAPE = (1, 8, 8)
HORIZON = 3
OPTIONS = {
    "flow_vae": {"width": 8},
    "weak_flow_vae": {"width": 8, "inference": {"warmup": 1, "anneal": 0}},
    "poflow": {"width": 8},
    "sparse_flow_vae": {
        "width": 8,
        "stages": {"autoencoder": 1, "fields": 0, "anneal": 0},
    },
    "factor_vae": {"discriminator_width": 16, "discriminator_layers": 2},
    "topographic_vae": {"latent_dim": 12, "capsules": 2, "window": 1},
}


def small(kind, names=NAMES, image_shape=SHAPE, horizon=HORIZON, **options):
    """Return a model of a kind, the same at every call."""
    torch.default_generator.manual_seed(0)
    networks = {
        "latent_dim": 4,
        "encoder": {"channels": [4], "hidden": 16},
        "decoder": {"kind": "mlp", "hidden": [16]},
    }
    options = {**networks, **OPTIONS.get(kind, {}), **options}
    return MODELS[kind].build(names, image_shape, horizon=horizon, **options)


def films(count=6, horizon=HORIZON, labels=None):
    """Return random sequences whose transformations alternate, or have given labels."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(count, horizon + 1, *SHAPE, generator=generator)
    given = torch.arange(count) % len(NAMES) if labels is None else torch.as_tensor(labels)
    return SequenceBatch.full(frames, given)


def choose_frames(batch, times, **weights):
    """Return some frames of complete sequences; the first is the one to be encoded."""
    times = torch.as_tensor(times).expand(len(batch), -1)
    rows = torch.arange(len(batch))[:, None]
    return dataclasses.replace(batch, frames=batch.frames[rows, times], times=times, **weights)


def sharpen(model):
    """Give the posterior of a model almost no width, so that losses have little noise."""
    with torch.no_grad():
        head = model.encoder.network[-1]
        head.weight[model.latent_dim :] = 0
        head.bias[model.latent_dim :] = -8
