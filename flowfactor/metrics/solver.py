"""Is the model an ODE, or a property of the solver it was trained with?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from flowfactor.checks import check_type
from flowfactor.data import SequenceDataset
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import EquivarianceError, equivariance_error
from flowfactor.models import PotentialModel
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Table
from solvers import Dopri5, Method


@dataclasses.dataclass(frozen=True)
class SolverChange:
    """``E_k`` with the model's solver and with a reference, and the relative change.

    Attributes:
        trained: with the solver of the training.
        reference: with the accurate one.
        relative: ``(reference - trained) / trained``.
    """

    trained: float
    reference: float
    relative: float


def solver_independence(
    model: PotentialModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    reference: Method = Dopri5(rtol=1e-6, atol=1e-6),
    trained: dict[str, EquivarianceError] | None = None,
) -> dict[str, SolverChange]:
    """Return how ``E_k`` changes when the flow is solved accurately.

    A change of some percent says that training has fitted the errors of a coarse solver, so that
    the model is no ODE: flows for other times, backward or added up are then not to be trusted.

    Args:
        model: in evaluation mode.
        data: held-out images.
        indices: which images; None is all of them.
        frames: T of :func:`equivariance_error`.
        reference: an adaptive method at tight tolerance.
        trained: the errors with the trained solver, if they are known already.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> abs(solver_independence(model, data)["hue"].relative) < 0.01
        True
    """
    check_type("model", model, PotentialModel, "a model with potentials")
    before = trained or equivariance_error(model, data, indices, frames=frames)
    after = equivariance_error(model, data, indices, frames=frames, method=reference)
    changes = {}
    for name, error in before.items():
        old, new = error.error, after[name].error
        changes[name] = SolverChange(old, new, (new - old) / old)
    return changes


@dataclasses.dataclass(frozen=True)
class SolverChanges:
    """The change of each transformation's error."""

    changes: dict[str, SolverChange]


@METRICS.register("solver_independence")
class SolverIndependence(Metric):
    """How errors change with an accurate solver, see :func:`solver_independence`."""

    Result = SolverChanges
    default = True
    order = 50
    description = "errors with an accurate solver"
    needs = "a model whose latents flow along potentials"
    columns = (
        Column(
            "solver_change",
            "solver change",
            "lower",
            ".2%",
            lambda result: max((abs(c.relative) for c in result.changes.values()), default=None),
            summary="change with an accurate solver",
        ),
    )

    def applies(self, context: MetricContext) -> bool:
        """Return whether the model solves an ODE."""
        return isinstance(context.model, PotentialModel)

    def measure(self, context: MetricContext) -> SolverChanges:
        """Return the changes."""
        assert isinstance(context.model, PotentialModel)
        return SolverChanges(
            solver_independence(
                context.model,
                context.data,
                context.indices,
                frames=context.frames,
                trained=context.errors,
            )
        )

    @classmethod
    def tables(cls, result: SolverChanges, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return nothing: the changes are a column of the errors."""
        return {}
