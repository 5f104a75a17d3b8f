"""How far a trained model reaches beyond its training: composed flows, later frames, other data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.errors import DataError
from flowfactor.metrics import (
    EquivarianceError,
    commutation_error,
    equivariance_error,
    mean_error,
    reversal_error,
    superposition_error,
    switching_error,
)
from flowfactor.models import SequenceModel


def composition(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor,
    *,
    frames: int = 7,
    random_starts: bool = False,
) -> dict[str, Any]:
    """Measure flows at once, in turn, backwards and in either order.

    Args:
        model: in evaluation mode.
        data: held-out images.
        indices: which of them.
        frames: T.
        random_starts: of superposition and switching.

    Returns:
        Plain data: ``superposition`` by ``a + b``, ``switching`` by ``a, b``, ``reversal`` by
        ``a`` and ``commutation`` by ``a, b``, with the mean error of each.

    Raises:
        ValueError: data that the model cannot be measured on.
        DataError: recordings, which cannot undergo anything else.
    """
    options: dict[str, Any] = {"frames": frames, "random_starts": random_starts}
    together = superposition_error(model, data, indices=indices, **options)
    round_robin = switching_error(model, data, indices=indices, **options)
    backwards = reversal_error(model, data, indices, frames=frames)
    either = commutation_error(model, data, indices=indices)
    return {
        "images": len(indices),
        "frames": frames,
        "random_starts": random_starts,
        "superposition": summaries({" + ".join(pair): e for pair, e in together.items()}),
        "switching": summaries({", ".join(pair): e for pair, e in round_robin.items()}),
        "reversal": summaries(backwards),
        "commutation": {", ".join(pair): each._asdict() for pair, each in either.items()},
        "means": {
            "superposition": mean_error(together) if together else None,
            "switching": mean_error(round_robin) if round_robin else None,
            "reversal": mean_error(backwards),
        },
    }


def extrapolation(model: SequenceModel, data: SequenceDataset, indices: Tensor) -> dict[str, Any]:
    """Measure every flow up to twice the last frame of the training.

    Args:
        model: in evaluation mode.
        data: held-out images.
        indices: which of them.

    Returns:
        Plain data: the last frame that there is truth for, and for each transformation the errors
        of each frame, with those of the trained frames (``within``) and of the later ones
        (``beyond``) as means of a frame. ``beyond`` is None where the data has no later frames.
    """
    longer = _longest(data, 2 * model.horizon)
    errors = equivariance_error(model, longer, indices, frames=longer.horizon)
    return {
        "images": len(indices),
        "trained_last": model.horizon,
        "last": longer.horizon,
        "errors": {name: _parts(error, model.horizon) for name, error in errors.items()},
    }


def _longest(data: SequenceDataset, horizon: int) -> SequenceDataset:
    """The same data in the longest sequences up to a last frame that it has."""
    for candidate in range(horizon, data.horizon, -1):
        try:
            return data.with_last(candidate)
        except DataError:  # the grid or the recordings end before
            continue
    return data


def _parts(error: EquivarianceError, horizon: int) -> dict[str, Any]:
    flow, identity = error.flow.mean(0), error.identity.mean(0)

    def means(part: slice) -> dict[str, float] | None:
        if not len(flow[part]):
            return None
        return {"error": float(flow[part].mean()), "identity": float(identity[part].mean())}

    return {
        "within": means(slice(0, horizon)),
        "beyond": means(slice(horizon, None)),
        "per_frame": flow.tolist(),
        "identity_per_frame": identity.tolist(),
        "floor_per_frame": float(error.reconstruction.mean()),
    }


def summaries(errors: dict[str, EquivarianceError]) -> dict[str, Any]:
    """Return the figures of each error as plain data."""
    return {name: error.summary() for name, error in errors.items()}
