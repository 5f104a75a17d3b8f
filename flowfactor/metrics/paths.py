"""How straight the paths of the latent are, and what moving along them costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.flow import Path, full_precision, trace
from flowfactor.metrics.equivariance import check_comparable, rows_undergoing
from flowfactor.models import SequenceModel
from flowfactor.transport import straightness
from solvers import Method, Stats


class PathMeasures(NamedTuple):
    """Means over images for one transformation.

    Attributes:
        straightness: ``|z_T - z_0|`` over the length of the path: 1 for straight lines, and for a
            latent that does not move.
        kinetic_energy: ``1/T`` times the integral of ``1/2 |dz/dt|^2`` over ``[0, T]``; time in
            frames.
        distance: ``|z_T - z_0|``. Of all paths that go so far in the time T, those at constant
            speed along a line have the least energy, ``distance^2 / (2 T^2)``.
    """

    straightness: float
    kinetic_energy: float
    distance: float


@torch.no_grad()
def path_measures(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int | None = None,
    per_frame: int = 4,
    method: Method | None = None,
    batch_size: int = 250,
) -> dict[str, PathMeasures]:
    r"""Return straightness and kinetic energy of the latent's paths for every transformation.

    .. code-block:: text

        dz/dt = grad u^k(z, t) from z_0, the encoder mean of x_0
        straightness    = mean_{images}  |z_T - z_0| / length
        kinetic energy  = mean_{images}  1/T int_0^T 1/2 |grad u^k(z_t, t)|^2 dt

    The integral is by the trapezoidal rule, the length that of the polygon through the same times.
    A model that moves its latent by a rule has no potential: its path is taken to be the polygon
    through the latents at the frames.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's.
        indices: which images; None is all of them.
        frames: T; None is the last frame that the model was trained on.
        per_frame: times for each frame at which a flow is looked at.
        method: another solver than the model's.
        batch_size: images at a time; it does not change the result.

    Raises:
        ValueError: the data has other transformations or images than the model, or a number that
            is not positive.

    Source: Benamou and Brenier, "A computational fluid mechanics solution to the Monge-Kantorovich
    mass transfer problem", Numerische Mathematik 84 (2000).

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> 0 < path_measures(model, data)["hue"].straightness <= 1
        True
    """
    check_comparable(model, data, 1)
    horizon = model.horizon if frames is None else frames
    for name, number in (("frames", horizon), ("per_frame", per_frame), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1; it is {number}")
    device = next(model.parameters()).device
    chosen = torch.arange(len(data)) if indices is None else torch.as_tensor(indices)
    measures = {}
    for k, rows in rows_undergoing(data, chosen).items():
        able = chosen[rows]
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in able.split(batch_size):
            first = torch.zeros(len(batch), 1, dtype=torch.long)
            x = data.sample(batch, k, first).frames[:, 0].to(device)
            path, energy = _path(model, model.represent(x), k, horizon, per_frame, method)
            distance = (path.z[-1] - path.z[0]).norm(dim=-1)
            parts = (straightness(path).clamp(max=1), energy, distance)
            sums += torch.stack([part.double().sum().cpu() for part in parts])
        measures[data.names[k]] = PathMeasures(*(sums / len(able)).tolist())
    return measures


def _path(
    model: SequenceModel, z0: Tensor, k: int, horizon: int, per_frame: int, method: Method | None
) -> tuple[Path, Tensor]:
    """The path of each latent, and the mean of its kinetic energy over time."""
    if hasattr(model, "potentials"):
        count = horizon * per_frame
        times = torch.arange(count + 1, dtype=z0.dtype, device=z0.device) / per_frame
        path = trace(z0, k, times, model, method=method)
        potential = model.potentials[k]
        with full_precision(z0):
            speeds = [potential.gradient(z, t) for t, z in zip(path.times, path.z, strict=True)]
        energies = 0.5 * torch.stack(speeds).square().sum(-1)
        return path, torch.trapezoid(energies, times, dim=0) / horizon
    times = torch.arange(horizon + 1, dtype=z0.dtype, device=z0.device)
    z = model.flow(z0, k, times)
    return Path(z, None, times, Stats()), 0.5 * z.diff(dim=0).square().sum(-1).mean(0)
