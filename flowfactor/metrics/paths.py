"""How straight the paths of the latent are, and what moving along them costs."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowfactor.checks import check_integer
from flowfactor.data import SequenceDataset
from flowfactor.flow import Path, full_precision
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import batches, check_comparable, frame_times
from flowfactor.models import PotentialModel, SequenceModel
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table
from flowfactor.transport import straightness
from solvers import Method, Stats

# Sequences that the metric is measured on, at most.
_IMAGES = 250


@dataclasses.dataclass(frozen=True)
class PathMeasures:
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

    .. math::

        \begin{aligned}
        \text{straightness} &= \mathrm{mean}_{\text{images}}\, \frac{|z_T - z_0|}{\text{length}}, \\
        \text{kinetic energy} &= \mathrm{mean}_{\text{images}}\,
          \frac{1}{T} \int_0^T \tfrac{1}{2} |v^k(z_t, t)|^2\, dt
        \end{aligned}

    where ``z_t`` follows ``dz/dt = v^k(z, t)`` from ``z_0``, the encoder mean of ``x_0``. The
    integral is by the trapezoidal rule, the length that of the polygon through the same times. A
    model without fields has paths, too: the polygons through its latents at the frames.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's.
        indices: which images; None is all of them.
        frames: T; None is the last frame that the model was trained on. At most twice that one, or
            the last one of the data.
        per_frame: points of the path for each frame of a flow.
        method: another solver than the model's.
        batch_size: images at a time; it does not change the result.

    Raises:
        ValueError: the data has other transformations or images than the model, or a number that
            is out of range.

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
    if frames is not None:
        check_integer("frames", frames, 1, max(2 * model.horizon, data.horizon))
    check_integer("per_frame", per_frame)
    parts = defaultdict(list)
    for k, batch in batches(data, indices, batch_size):
        first = torch.zeros(len(batch), 1, dtype=torch.long)
        z0 = model.represent(data.sample(batch, k, first).frames[:, 0].to(model.device))
        path, energy = _path(model, z0, k, horizon, per_frame, method)
        distance = (path.z[-1] - path.z[0]).norm(dim=-1)
        measures = torch.stack([straightness(path).clamp(max=1), energy, distance])
        parts[data.names[k]].append(measures.cpu().double())
    return {
        name: PathMeasures(*torch.cat(measures, dim=1).mean(1).tolist())
        for name, measures in parts.items()
    }


def _path(
    model: SequenceModel, z0: Tensor, k: int, horizon: int, per_frame: int, method: Method | None
) -> tuple[Path, Tensor]:
    """Return the path of each latent, and the mean of its kinetic energy over time."""
    if isinstance(model, PotentialModel):
        count = horizon * per_frame
        times = torch.arange(count + 1, dtype=z0.dtype, device=z0.device) / per_frame
        path = model.trace(z0, k, times, method=method)
        field = model.potentials[k]
        with full_precision(z0):
            speeds = [field.velocity(z, t) for t, z in zip(path.times, path.z, strict=True)]
        energies = 0.5 * torch.stack(speeds).square().sum(-1)
        return path, torch.trapezoid(energies, times, dim=0) / horizon
    times = frame_times(horizon, z0)
    z = model.flow(z0, k, times)
    return Path(z, None, times, Stats()), 0.5 * z.diff(dim=0).square().sum(-1).mean(0)


@dataclasses.dataclass(frozen=True)
class PathSummary:
    """Measures of each transformation, and their mean without that of flows to spare."""

    mean: PathMeasures
    paths: dict[str, PathMeasures]


@METRICS.register("paths")
class Paths(Metric):
    """Straightness and kinetic energy of the latents' paths, see :func:`path_measures`."""

    Result = PathSummary
    order = 80
    description = "paths of the latents"
    columns = (
        Column("straightness", "straightness", "higher", ".3f", lambda r: r.mean.straightness),
        Column("kinetic_energy", "kinetic energy", None, ".3g", lambda r: r.mean.kinetic_energy),
    )

    def measure(self, context: MetricContext) -> PathSummary:
        """Return the measures."""
        paths = path_measures(
            context.model, context.data, context.indices[:_IMAGES], frames=context.frames
        )
        named = [paths[name] for name in context.transformations if name in paths]
        columns = zip(*(dataclasses.astuple(path) for path in named), strict=True)
        return PathSummary(PathMeasures(*map(statistics.fmean, columns)), paths)

    @classmethod
    def tables(cls, result: PathSummary, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the measures of each transformation."""
        columns = [
            Column(key, format=".3g") for key in ("straightness", "kinetic energy", "distance")
        ]
        rows = [Row(name, dataclasses.astuple(path)) for name, path in result.paths.items()]
        return {"paths": Table(columns, rows, "Paths of the latents", "transformation")}
