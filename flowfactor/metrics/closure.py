"""Does a flow that is run once around its circle come back?"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import (
    batches,
    check_comparable,
    frame_errors,
    mean_of,
)
from flowfactor.models import SequenceModel
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table
from solvers import Method


@dataclasses.dataclass(frozen=True)
class Closure:
    """The error of a flow that has run once around its circle; means over images.

    Attributes:
        period: how long that takes, in frames.
        error: of the decoded latent against frame 0.
        floor: of decoding frame 0 from its own latent.
    """

    period: float
    error: float
    floor: float

    @property
    def over_floor(self) -> float:
        """The error over the floor: 1 for a flow that comes back to where it began."""
        return self.error / self.floor if self.floor else math.inf


def periods(data: SequenceDataset) -> dict[str, float]:
    """Return the periods in frames, by name, of transformations that are cyclic.

    Example:
        >>> import torch
        >>> from flowfactor.data import TransformedImages
        >>> periods(TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)))
        {'rotation': 36.0, 'hue': 18.0}
    """
    found = {name: data.coverage(k) for k, name in enumerate(data.names)}
    return {
        name: coverage.period
        for name, coverage in found.items()
        if coverage is not None and coverage.period is not None
    }


@torch.no_grad()
def closure_error(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    method: Method | None = None,
    batch_size: int = 250,
) -> dict[str, Closure]:
    r"""Return the error of every cyclic transformation's flow after one period P.

    .. math::

        E = \mathrm{mean}_{\text{images}} \sum_{\text{channels, pixels}}
          |x_0 - \mathrm{decode}(\mathrm{flow}(z_0, k, P))|

    A flow along the gradient of a potential that does not depend on time never returns, as the
    potential grows along it; what it may do is come close, or leave the image unchanged.

    Args:
        model: in evaluation mode.
        data: held-out images.
        indices: which images; None is all of them.
        method: another solver than the model's.
        batch_size: images at a time.

    Returns:
        The error by the name of the transformation; those that are not cyclic are left out.

    Raises:
        ValueError: the data has other transformations than the model.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> list(closure_error(model, data))
        ['rotation', 'hue']
    """
    check_comparable(model, data, 1)
    cycles, parts = periods(data), defaultdict(list)
    for k, batch in batches(data, indices, batch_size, 1):
        if (period := cycles.get(data.names[k])) is None:
            continue
        first = torch.zeros(len(batch), 1, dtype=torch.long)
        x = data.sample(batch, k, first).frames.to(model.device)
        z = model.represent(x[:, 0])
        path = torch.stack([z, model.flow(z, k, period, method=method)])
        parts[data.names[k]].append(frame_errors(model, x.expand(-1, 2, -1, -1, -1), path))
    return {
        name: Closure(
            cycles[name],
            float(torch.cat([part.flow for part in errors]).mean()),
            float(torch.cat([part.reconstruction for part in errors]).mean()),
        )
        for name, errors in parts.items()
    }


@dataclasses.dataclass(frozen=True)
class Closures:
    """The errors by transformation."""

    closures: dict[str, Closure]


@METRICS.register("closure")
class ClosureMetric(Metric):
    """The error of cyclic flows after one period, see :func:`closure_error`."""

    Result = Closures
    order = 120
    description = "cyclic flows, once around"
    needs = "a transformation that is cyclic, such as a rotation"
    columns = (
        Column(
            "closure",
            "closure over floor",
            "lower",
            ".2f",
            lambda result: mean_of(each.over_floor for each in result.closures.values()),
            summary="closure, over floor",
        ),
    )

    def applies(self, context: MetricContext) -> bool:
        """Return whether a transformation is cyclic."""
        return bool(periods(context.data))

    def measure(self, context: MetricContext) -> Closures:
        """Return the errors."""
        return Closures(closure_error(context.model, context.data, context.indices))

    @classmethod
    def tables(cls, result: Closures, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the errors after one period."""
        columns = [
            Column("period", "period in frames", format=".4g"),
            Column("E after a period", bold=True),
            Column("floor"),
            Column("over floor", format=".2f"),
        ]
        rows = [
            Row(name, [each.period, each.error, each.floor, each.over_floor])
            for name, each in result.closures.items()
        ]
        title = "Cyclic flows once around, against frame 0"
        return {"closure": Table(columns, rows, title, "transformation")}
