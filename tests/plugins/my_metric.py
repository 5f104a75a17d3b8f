"""A metric in one file: how far a latent moves along a flow."""

import dataclasses

import torch

from flowfactor.metrics import Metric
from flowfactor.options import PositiveFloat, options
from flowfactor.registries import METRICS
from flowfactor.tables import Column


@options
class TravelOptions:
    """How far latents move."""

    time: PositiveFloat = 1.0
    """In frames."""


@dataclasses.dataclass(frozen=True)
class Travel:
    """How far latents move.

    Attributes:
        distance: the mean over samples and flows.
    """

    distance: float


@METRICS.register("travel")
class TravelMetric(Metric):
    """The mean distance of a latent before and after its flow."""

    Options = TravelOptions
    Result = Travel
    description = "Distance travelled"
    columns = (Column("travel", "distance", "lower", ".3f", value=lambda result: result.distance),)

    @torch.no_grad()
    def measure(self, context):
        model = context.model
        frames = context.data.sample(context.indices).frames[:, 0]
        z = model.represent(frames)
        moved = [model.flow(z, k, self.options.time) - z for k in range(len(model.names))]
        return Travel(float(torch.stack(moved).norm(dim=-1).mean()))
