"""Errors of flows beyond the last frame of the training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import EquivarianceError, equivariance_error, mean_of
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table


@dataclasses.dataclass(frozen=True)
class FrameMean:
    """Mean errors of a frame: of the flow, and of a latent that stays where it is."""

    error: float
    identity: float

    @classmethod
    def of(cls, flow: Tensor, identity: Tensor) -> FrameMean | None:
        """Return the means over frames; None if there are none."""
        return cls(float(flow.mean()), float(identity.mean())) if len(flow) else None


@dataclasses.dataclass(frozen=True)
class LaterErrors:
    """Errors of a transformation up to frames after those of the training, means over images.

    Attributes:
        within: of a frame that was trained on.
        beyond: of a later one; None if the data has none.
        per_frame, identity_per_frame: of every frame from t = 1.
        floor_per_frame: of decoding frame 0 from its own latent.
    """

    within: FrameMean | None
    beyond: FrameMean | None
    per_frame: list[float]
    identity_per_frame: list[float]
    floor_per_frame: float

    @classmethod
    def of(cls, error: EquivarianceError, horizon: int) -> LaterErrors:
        """Return the numbers of an error, of a model trained up to frame ``horizon``."""
        flow, identity = error.flow.mean(0), error.identity.mean(0)
        return cls(
            FrameMean.of(flow[:horizon], identity[:horizon]),
            FrameMean.of(flow[horizon:], identity[horizon:]),
            flow.tolist(),
            identity.tolist(),
            float(error.reconstruction.mean()),
        )


@dataclasses.dataclass(frozen=True)
class ExtrapolationErrors:
    """Errors by transformation.

    Attributes:
        trained_horizon: the last frame that the model was trained on.
        horizon: the last frame that there is truth for.
        errors: by transformation.
    """

    trained_horizon: int
    horizon: int
    errors: dict[str, LaterErrors]


@METRICS.register("extrapolation")
class Extrapolation(Metric):
    """The error of every flow up to twice the last frame of the training."""

    Result = ExtrapolationErrors
    order = 110
    description = "frames after those of the training"
    columns = (
        Column(
            "beyond",
            "E of a later frame",
            "lower",
            value=lambda r: mean_of(e.beyond.error for e in r.errors.values() if e.beyond),
        ),
        Column(
            "beyond_identity",
            "E of a later frame, identity",
            value=lambda r: mean_of(e.beyond.identity for e in r.errors.values() if e.beyond),
            shown=False,
        ),
    )

    def measure(self, context: MetricContext) -> ExtrapolationErrors:
        """Return the errors of the longest sequences that the data has."""
        trained = context.model.horizon
        longer = context.data.extend_to(2 * trained)
        errors = equivariance_error(context.model, longer, context.indices, frames=longer.horizon)
        return ExtrapolationErrors(
            trained,
            longer.horizon,
            {name: LaterErrors.of(error, trained) for name, error in errors.items()},
        )

    @classmethod
    def tables(cls, result: ExtrapolationErrors, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the errors of a frame within the training and beyond."""
        last = result.trained_horizon
        columns = [Column("within", f"E, t = 1..{last}"), Column("within_identity", "identity")]
        if result.horizon > last:
            later = f"E, t = {last + 1}..{result.horizon}"
            columns += [Column("beyond", later), Column("beyond_identity", "identity")]
        rows = []
        for name, error in result.errors.items():
            means = (error.within, error.beyond)
            numbers = [n for mean in means if mean for n in (mean.error, mean.identity)]
            rows.append(Row(name, numbers))
        title = "Error of a frame, within the training and beyond"
        return {"extrapolation": Table(columns, rows, title, "transformation")}
