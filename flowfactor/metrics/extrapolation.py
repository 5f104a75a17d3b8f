"""Errors of flows beyond the last frame of the training."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

from flowfactor.data import Coverage
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import EquivarianceError, equivariance_error, mean_of
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table


@dataclasses.dataclass(frozen=True)
class FrameMean:
    """Mean errors of a frame: of the flow, of a latent that stays, and of frame 0 as it is."""

    error: float
    identity: float
    copy: float | None = None  # evaluations of earlier versions lack it

    @classmethod
    def of(cls, error: EquivarianceError, frames: slice) -> FrameMean | None:
        """Return the means over frames; None if there are none."""
        kinds = [each[:, frames].mean(0) for each in (error.flow, error.identity, error.copy)]
        return cls(*(float(kind.mean()) for kind in kinds)) if len(kinds[0]) else None


@dataclasses.dataclass(frozen=True)
class LaterErrors:
    """Errors of a transformation up to frames after those of the training, means over images.

    Attributes:
        within: of a frame that was trained on.
        beyond: of a later one; None if the data has none.
        per_frame, identity_per_frame: of every frame from t = 1.
        floor_per_frame: of decoding frame 0 from its own latent.
        seen: how many of the later frames have a state that training has shown in a certain way,
            see :data:`flowfactor.data.coverage.Seen`; empty if that is not known.
    """

    within: FrameMean | None
    beyond: FrameMean | None
    per_frame: list[float]
    identity_per_frame: list[float]
    floor_per_frame: float
    seen: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, error: EquivarianceError, horizon: int, coverage: Coverage | None = None
    ) -> LaterErrors:
        """Return the numbers of an error, of a model trained up to frame ``horizon``."""
        flow, identity = error.flow.mean(0).tolist(), error.identity.mean(0).tolist()
        later = range(horizon + 1, len(flow) + 1)
        return cls(
            FrameMean.of(error, slice(horizon)),
            FrameMean.of(error, slice(horizon, None)),
            flow,
            identity,
            float(error.reconstruction.mean()),
            {} if coverage is None else dict(Counter(map(coverage.seen, later))),
        )

    @property
    def over_identity(self) -> float | None:
        """The error of a later frame over that of a latent that stays where it is."""
        if self.beyond is None:
            return None
        return self.beyond.error / self.beyond.identity if self.beyond.identity else math.inf

    @property
    def states(self) -> str | None:
        """What is known of the later frames' states, in words."""
        if len(self.seen) == 1:
            return next(iter(self.seen))
        return ", ".join(f"{count} {how}" for how, count in self.seen.items()) or None


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
    """The error of every flow up to twice the last frame of the training.

    It is extrapolation where training has not shown the states of the later frames; with random
    starts it may have shown them, as those of sequences that began elsewhere.
    """

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
        Column(
            "beyond_over_identity",
            "later frames over identity",
            "lower",
            ".2f",
            value=lambda r: mean_of(e.over_identity for e in r.errors.values() if e.beyond),
            summary="later frames, over identity",
        ),
    )

    def measure(self, context: MetricContext) -> ExtrapolationErrors:
        """Return the errors of the longest sequences that the data has."""
        trained, data = context.model.horizon, context.data
        longer = data.extend_to(2 * trained)
        errors = equivariance_error(context.model, longer, context.indices, frames=longer.horizon)
        return ExtrapolationErrors(
            trained,
            longer.horizon,
            {
                name: LaterErrors.of(error, trained, data.coverage(data.names.index(name)))
                for name, error in errors.items()
            },
        )

    @classmethod
    def tables(cls, result: ExtrapolationErrors, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the errors of a frame within the training and beyond."""
        last = result.trained_horizon
        columns = [
            Column("within", f"E, t = 1..{last}"),
            Column("within_identity", "identity"),
            Column("within_copy", "pixel copy"),
            Column("beyond", f"E, t = {last + 1}..{result.horizon}"),
            Column("beyond_identity", "identity"),
            Column("beyond_copy", "pixel copy"),
            Column("over identity", format=".2f"),
            Column("later states"),
        ]
        rows = []
        for name, error in result.errors.items():
            numbers = [
                number
                for mean in (error.within, error.beyond)
                for number in ((mean.error, mean.identity, mean.copy) if mean else [None] * 3)
            ]
            rows.append(Row(name, [*numbers, error.over_identity, error.states]))
        title = "Error of a frame, within the training and beyond"
        table = Table(columns, rows, title, "transformation")
        return {"extrapolation": table.without_empty_columns()}
