"""
Your own data set, model and metric as a plug-in
================================================

A data set, a model or a metric is a class that registers itself, in a file of your own. YAML then
names it as if it had come with the package: this very page is a plug-in.
"""

# %%
# A data set
# ----------
#
# Squares that move to the right or down. ``render_frames`` is the one method that a data set must
# write: it gets the time that each transformation has had, ``(K, B, F)``, and which of them are
# active, ``(K, B)``. Random times, batches and held-out splits come with the base class.

import dataclasses
import tempfile

import torch
from torch import nn

import flowfactor
from flowfactor.data import DataOptions, SequenceDataset
from flowfactor.diagnostics import plot_film_strips
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.metrics import Metric, MetricOptions
from flowfactor.models import FlowVAE
from flowfactor.options import PositiveInt, options
from flowfactor.registries import DATA, METRICS, MODELS
from flowfactor.tables import Column

STEPS = 400


class MovingSquares(SequenceDataset):
    """Grey squares that move by a pixel a frame."""

    def __init__(self, positions, **kwargs):
        super().__init__(("right", "down"), 4, (1, 16, 16), **kwargs)
        self.positions = positions

    def __len__(self):
        return len(self.positions)

    def render_frames(self, indices, elapsed, active, starts):
        moved = (elapsed * active[..., None]).permute(1, 2, 0)
        corner = self.positions[indices, None] + moved
        pixel = torch.arange(16)
        inside = (pixel >= corner[..., None]) & (pixel < corner[..., None] + 4)
        columns, rows = inside.unbind(2)
        return (rows[..., None] & columns[..., None, :])[:, :, None].float()


@DATA.register("gliding_squares")
@options
class SquaresOptions(DataOptions):
    """Squares that move to the right or down."""

    count: PositiveInt = 64
    """How many samples each split has."""

    def load(self, split, seed):
        generator = torch.Generator().manual_seed(["train", "validation", "test"].index(split))
        positions = torch.randint(8, (self.count, 2), generator=generator)
        return MovingSquares(positions, initial_state=self.initial_state)


train, validation, test = (SquaresOptions().load(s, 0) for s in ("train", "validation", "test"))
print(test.names, test.sample([0], "right").frames.shape)

# %%
# A model
# -------
#
# A subclass of a shipped model changes a part of it. This one has a loss per frame.


@MODELS.register("flow_vae_per_frame")
class PerFrame(FlowVAE):
    """The flow model, its objective divided by the number of frames."""

    def loss(self, sequences):
        return {name: value / 5 for name, value in super().loss(sequences).items()}


# %%
# A metric
# --------
#
# What it measures is a dataclass; its columns say how they are called and which way is better.


@dataclasses.dataclass(frozen=True)
class Travel:
    """The mean distance of a latent before and after its flow."""

    distance: float


@METRICS.register("travel_per_frame")
class TravelMetric(Metric):
    """How far latents move in one frame."""

    Options = MetricOptions
    Result = Travel
    description = "Distance travelled"
    columns = (Column("travel", "distance", "lower", ".3f", value=lambda found: found.distance),)

    @torch.no_grad()
    def measure(self, context):
        z = context.model.represent(context.data.sample(context.indices).frames[:, 0])
        moved = [context.model.flow(z, k, 1.0) - z for k in context.model.names]
        return Travel(float(torch.stack(moved).norm(dim=-1).mean()))


# %%
# Train, load, measure
# --------------------

torch.manual_seed(0)
network = {"encoder": nn.Sequential(nn.Flatten(), nn.Linear(256, 16)), "latent_dim": 8, "width": 32}
model = PerFrame.build(train.names, train.image_shape, horizon=train.horizon, **network)
training = flowfactor.TrainingOptions(
    steps=STEPS, batch_size=32, learning_rate=5e-3, validation_sequences=32
)
with tempfile.TemporaryDirectory() as run:
    flowfactor.fit(model, train, validation, training, run)
    model = flowfactor.load(run, model=model)

metrics = {"travel_per_frame": {}, "log_likelihood": False}
evaluation = evaluate(model, test, EvaluationOptions(images=64, metrics=metrics))
for table in evaluation.tables().values():
    print(table.to_markdown(), "\n")

figure = plot_film_strips(model, test.sample([0, 1], torch.tensor([0, 1])))

# %%
# From YAML
# ---------
#
# The same in a configuration, with this page as the plug-in:
#
# .. code-block:: yaml
#
#    plugins: [t6_plugin.py]
#    data: {source: gliding_squares, count: 200}
#    model: {kind: flow_vae_per_frame, latent_dim: 8, width: 32}
#    evaluation: {metrics: {travel_per_frame: {}}}
#
# ``flowfactor run squares.yaml`` trains, measures and draws; ``flowfactor table`` puts your model
# beside the others. An installed package announces its plug-in by an entry point, see
# :doc:`/extending`.
