"""Errors on a kind of sequences that the training has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import ErrorSummaries, equivariance_error, error_table
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Table


@dataclasses.dataclass(frozen=True)
class HeldOutErrors(ErrorSummaries):
    """Errors of what was held out.

    Attributes:
        values: what was held out.
        images: number of samples.
    """

    values: str
    images: int


@METRICS.register("held_out")
class HeldOut(Metric):
    """The equivariance error on sequences of a kind that was held out of the training."""

    Result = HeldOutErrors
    default = True
    order = 100
    description = "what was held out of the training"
    needs = "data of which some values are held out of the training"
    columns = (Column("held_out", "mean E, held out", "lower", value=lambda r: r.mean_error),)

    def applies(self, context: MetricContext) -> bool:
        """Return whether something was held out."""
        return context.held_out is not None

    def measure(self, context: MetricContext) -> HeldOutErrors:
        """Return the errors."""
        assert context.held_out is not None
        indices = torch.arange(min(context.images, len(context.held_out)))
        errors = equivariance_error(context.model, context.held_out, indices, frames=context.frames)
        summaries = ErrorSummaries.of(errors)
        return HeldOutErrors(
            summaries.mean_error, summaries.errors, context.held_out_values, len(indices)
        )

    @classmethod
    def tables(cls, result: HeldOutErrors, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the errors."""
        title = f"Held out of the training: {result.values} ({result.images} samples)"
        return {"held_out": error_table(result, title)}
