"""
Your own networks and training loop
===================================

Any ``nn.Module`` can be the encoder or the decoder of a flow model. Training is a function, or a
loop of your own of eight lines.
"""

# %%
# Networks
# --------
#
# The encoder maps images ``(B, C, H, W)`` to the mean and the log standard deviation of the latent,
# ``(B, 2 D)``; the decoder maps latents ``(B, D)`` to logits of pixels ``(B, C, H, W)``.

import tempfile

import matplotlib.pyplot as plt
import torch
from torch import nn

import flowfactor
from flowfactor.data import SequenceLoader, Sprites
from flowfactor.evaluation import EvaluationOptions, evaluate

STEPS = 300
SIZE, LATENT = 16, 12
train, validation, test = (
    Sprites(500, split=s, size=SIZE) for s in ("train", "validation", "test")
)


def make_model():
    """Return a flow model with fully connected networks, with weights from a fixed seed."""
    torch.manual_seed(0)
    pixels = 3 * SIZE * SIZE
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 256), nn.SiLU(), nn.Linear(256, 2 * LATENT)
    )
    decoder = nn.Sequential(
        nn.Linear(LATENT, 256), nn.SiLU(), nn.Linear(256, pixels), nn.Unflatten(1, (3, SIZE, SIZE))
    )
    return flowfactor.FlowVAE.build(
        train.names,
        train.image_shape,
        latent_dim=LATENT,
        width=64,
        encoder=encoder,
        decoder=decoder,
    )


# %%
# The loop
# --------
#
# A loader gives the batch of a step; it is a function of the step, so that a training can go on
# where it stopped. ``loss`` returns the terms of the objective, which add up.

model = make_model()
loader = SequenceLoader(train, batch_size=32, frames_per_sequence=1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for step in range(STEPS):
    model.on_step(step)
    loss = torch.stack(list(model.loss(loader.batch(step)).values())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

figure, axes = plt.subplots(figsize=(6, 2.5))
axes.plot(losses)
axes.set(xlabel="step", ylabel="loss (nats)", yscale="log")
figure.tight_layout()

# %%
# Or ``fit``
# ----------
#
# :func:`flowfactor.fit` does the same and adds validation, a learning-rate schedule, files that
# survive an interruption, and the best weights. The folder holds tensors and plain data; networks
# of your own are not described there, so that you hand over a model of the same form when you load.

with tempfile.TemporaryDirectory() as run:
    options = flowfactor.TrainingOptions(steps=STEPS, batch_size=32, validation_sequences=64)
    result = flowfactor.fit(make_model(), train, validation, options, run)
    trained = flowfactor.load(run, model=make_model())

evaluation = evaluate(
    trained, test, EvaluationOptions(images=100, metrics={"log_likelihood": False})
)
print(evaluation.tables()["errors"].to_markdown())
