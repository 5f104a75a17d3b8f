"""The equivariance error of a model, and of the traversals that it might take instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.mean_film import mean_film_column
from flowfactor.metrics.pixel_errors import (
    ErrorSummaries,
    equivariance_error,
    error_table,
    mean_errors,
)
from flowfactor.metrics.solver import SolverIndependence
from flowfactor.models import TraversalModel
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table


@METRICS.register("equivariance")
class Equivariance(Metric):
    """The equivariance error of each transformation, see :func:`equivariance_error`."""

    Result = ErrorSummaries
    default = True
    order = 10
    description = "equivariance errors"

    def measure(self, context: MetricContext) -> ErrorSummaries:
        """Return the errors."""
        return ErrorSummaries.of(context.errors)

    @classmethod
    def columns_for(cls, evaluations: Sequence[Evaluation]) -> Sequence[Column]:
        """Return a column ``error.NAME`` for each transformation, and the mean."""
        names = dict.fromkeys(name for each in evaluations for name in each.transformations)
        mean = Column("mean_error", "mean E", "lower", value=lambda result: result.mean_error)
        return [*map(error_column, names), mean]

    @classmethod
    def properties(cls, result: ErrorSummaries, evaluation: Evaluation) -> Sequence[Row]:
        """Return the mean error."""
        return [Row("one transformation", mean_errors(result.errors.values()))]

    @classmethod
    def tables(cls, result: ErrorSummaries, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the table of errors, with the effect of an accurate solver if it was measured."""
        changes = evaluation.result(SolverIndependence)
        extra = mean_film_column(evaluation)
        if changes is not None:
            relative = {name: change.relative for name, change in changes.changes.items()}
            extra[Column("with dopri5", format="+.2%")] = relative
        title = (
            f"Equivariance error on {evaluation.images} {evaluation.split} samples, "
            f"sum over t=1..{evaluation.frames}"
        )
        return {"errors": error_table(result, title, extra=extra)}


def error_column(name: str) -> Column:
    """Return the column of the error of a transformation."""

    def value(result: ErrorSummaries) -> float | None:
        return result.errors[name].error if name in result.errors else None

    return Column(f"error.{name}", f"E {name}", "lower", value=value)


@dataclasses.dataclass(frozen=True)
class TraversalErrors:
    """Errors of all traversals of a model.

    Attributes:
        chosen: the one that the model takes.
        traversals: the errors of each.
    """

    chosen: str
    traversals: dict[str, ErrorSummaries]


@METRICS.register("traversals")
class Traversals(Metric):
    """The equivariance error of every traversal by which the latents of a model could move."""

    Result = TraversalErrors
    default = True
    order = 20
    description = "errors of other traversals"
    needs = "a model that moves its latents by traversals"

    def applies(self, context: MetricContext) -> bool:
        """Return whether the model is a :class:`~flowfactor.models.TraversalModel`."""
        return isinstance(context.model, TraversalModel)

    def measure(self, context: MetricContext) -> TraversalErrors:
        """Return the errors by traversal; the model is left as it was."""
        model: Any = context.model
        chosen, errors = model.traversal, {}
        try:
            for traversal in model.TRAVERSALS:
                model.traversal = traversal
                measured = (
                    context.errors
                    if traversal == chosen
                    else equivariance_error(
                        model, context.data, context.indices, frames=context.frames
                    )
                )
                errors[traversal] = ErrorSummaries.of(measured)
        finally:
            model.traversal = chosen
        return TraversalErrors(chosen, errors)

    @classmethod
    def tables(cls, result: TraversalErrors, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the errors of each traversal."""
        names = list(next(iter(result.traversals.values())).errors)
        rows = [
            Row(traversal, [*(each.errors[name].error for name in names), each.mean_error])
            for traversal, each in result.traversals.items()
        ]
        title = f"E by each traversal; {result.chosen} was the best on training sequences"
        columns = [*map(Column, names), Column("mean")]
        return {"traversals": Table(columns, rows, title, "traversal")}
