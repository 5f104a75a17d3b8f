"""Is the model an ODE, or a property of the solver it was trained with?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.metrics.equivariance import EquivarianceError, equivariance_error
from flowfactor.models import SequenceModel
from solvers import Dopri5, Method


class SolverChange(NamedTuple):
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
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    reference: Method = Dopri5(rtol=1e-6, atol=1e-6),
    trained: dict[str, EquivarianceError] | None = None,
) -> dict[str, SolverChange]:
    """Return how ``E_k`` changes when the flow is solved accurately.

    A change of some percent says that training has fitted the errors of a coarse solver, so that
    the model is no ODE: flows for other times, backwards or added up are then not to be trusted.

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
    before = trained or equivariance_error(model, data, indices, frames=frames)
    after = equivariance_error(model, data, indices, frames=frames, method=reference)
    changes = {}
    for name, error in before.items():
        old, new = error.error, after[name].error
        changes[name] = SolverChange(old, new, (new - old) / old)
    return changes
