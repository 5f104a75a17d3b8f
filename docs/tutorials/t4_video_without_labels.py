"""
Your own video without labels
=============================

Short films, nobody says what happens in them: which transformations are there, and which film
shows which? The weakly supervised model infers one flow for each film.
"""

# %%
# Films
# -----
#
# Replace this part by films of your own: a folder of videos, of folders with frames, or an array
# ``(films, frames, height, width, channels)`` of bytes. These films show coloured shapes of which
# one grows, turns or moves, and are written as such an array.

import tempfile
from pathlib import Path

import numpy as np
import torch

import flowfactor
from flowfactor.data import RecordingsOptions, Sprites
from flowfactor.diagnostics import plot_film_strips
from flowfactor.metrics import infer_labels
from flowfactor.models import WeakFlowVAE

STEPS = 600
folder = Path(tempfile.mkdtemp())
sprites = Sprites(600, size=16)
names = ("scaling", "x", "hue")
truth = torch.arange(600) % 3
labels = torch.tensor([sprites.names.index(name) for name in names])
films = sprites.sample(range(600), labels[truth]).frames
pixels = (films.movedim(2, -1) * 255).round().to(torch.uint8)
np.save(folder / "films.npy", pixels.numpy())
print(pixels.shape)

# %%
# Recordings
# ----------
#
# No labels, three flows. A tenth of the films is held out for validation and a tenth for testing.

recordings = RecordingsOptions(path=folder / "films.npy", labels=None)
train, validation, test = (recordings.load(s, 0) for s in ("train", "validation", "test"))
print(len(train), len(validation), len(test))

torch.manual_seed(0)
model = WeakFlowVAE.build(
    train.names,
    train.image_shape,
    horizon=train.horizon,
    flows=3,
    latent_dim=16,
    width=64,
    inference={"warmup": STEPS // 5, "anneal": STEPS // 5},
)
options = flowfactor.TrainingOptions(
    steps=STEPS, batch_size=32, frames_per_sequence=1, learning_rate=3e-3
)
with tempfile.TemporaryDirectory() as run:
    flowfactor.fit(model, train, validation, options, run)
    model = flowfactor.load(run)

# %%
# What happens in each film?
# --------------------------
#
# :func:`~flowfactor.metrics.infer_labels` gives every film the flow that explains it best. The
# truth is known here, so that a table can say which flow is which transformation.

found = infer_labels(model, test)
batch = found.sample(range(len(found)))
table = torch.zeros(3, 3, dtype=torch.long)
for film, flow in zip(batch.frames, batch.labels.tolist(), strict=True):
    original = int((films - film).abs().flatten(1).amax(1).argmin())
    table[truth[original], flow] += 1
print("rows:", names, "columns:", model.names)
print(table)

# %%
# Each flow draws its film from the first frame alone. The upper row of each strip is the film.

shown = [int((batch.labels == flow).nonzero()[0]) for flow in batch.labels.unique()]
figure = plot_film_strips(model, found.sample(shown), identity=True)
