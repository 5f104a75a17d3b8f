"""Are decoded frames as sharp as true ones?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import batches, check_comparable, mean_of
from flowfactor.models import SequenceModel
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """Squared differences of neighbouring pixels, decoded over true; 1 is as sharp as the truth.

    Attributes:
        flow: of frames along the flow, the mean over t = 1..T.
        reconstruction: of frame 0, decoded from its own latent.
    """

    flow: float
    reconstruction: float


@torch.no_grad()
def relative_sharpness(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    batch_size: int = 250,
) -> dict[str, Sharpness]:
    r"""Return how sharp decoded frames are of each transformation.

    .. math::

        \begin{aligned}
        G(x) &= \sum_{\text{channels}} \sum_{p, q} (x_p - x_q)^2, \\
        \text{sharpness}_t &= \frac
          {\sum_{\text{images}} G(\mathrm{decode}(\mathrm{flow}(z_0, k, t)))}
          {\sum_{\text{images}} G(x_t)}
        \end{aligned}

    over all neighbouring pixels p and q. Blurry frames can have small absolute or squared errors;
    their sharpness is small too.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's first ones.
        indices: which images; None is all of them.
        frames: T.
        batch_size: images at a time.

    Raises:
        ValueError: the data has other transformations than the model, or too few frames; true
            frames without any contrast.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> 0 < relative_sharpness(model, data)["hue"].flow < 0.1
        True
    """
    check_comparable(model, data, frames)
    energies: dict[str, Tensor] = {}
    for k, batch in batches(data, indices, batch_size, frames):
        numbers = torch.arange(frames + 1).expand(len(batch), -1)
        sequences = data.sample(batch, k, numbers).to(model.device)
        x = sequences.frames
        z0 = model.represent(x[:, 0])
        path = model.flow(z0, k, sequences.shared_times.to(z0))
        decoded = model.decode(path.flatten(0, 1)).unflatten(0, path.shape[:2])
        pair = torch.stack([_energy(decoded).sum(1), _energy(x).sum(0)])
        energies[data.names[k]] = energies.get(data.names[k], 0) + pair.cpu().double()
    if any(bool((pair[1] == 0).any()) for pair in energies.values()):
        raise ValueError("sharpness: a true frame has no contrast in any image")
    ratios = {name: decoded / true for name, (decoded, true) in energies.items()}
    return {
        name: Sharpness(float(ratio[1:].mean()), float(ratio[0])) for name, ratio in ratios.items()
    }


def _energy(x: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b"]:
    """Return the sum of squared differences of neighbouring pixels."""
    vertical, horizontal = x.diff(dim=-2).square(), x.diff(dim=-1).square()
    return vertical.sum((-3, -2, -1)) + horizontal.sum((-3, -2, -1))


@dataclasses.dataclass(frozen=True)
class Sharpnesses:
    """The sharpness by transformation."""

    sharpness: dict[str, Sharpness]


@METRICS.register("sharpness")
class SharpnessMetric(Metric):
    """How sharp decoded frames are, see :func:`relative_sharpness`."""

    Result = Sharpnesses
    order = 130
    description = "sharpness of decoded frames"
    columns = (
        Column(
            "sharpness",
            better="higher",
            format=".2f",
            value=lambda result: mean_of(each.flow for each in result.sharpness.values()),
            summary="sharpness",
        ),
    )

    def measure(self, context: MetricContext) -> Sharpnesses:
        """Return the sharpness of each transformation."""
        model, data, frames = context.model, context.data, context.frames
        return Sharpnesses(relative_sharpness(model, data, context.indices, frames=frames))

    @classmethod
    def tables(cls, result: Sharpnesses, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the sharpness along each flow, and of frame 0."""
        columns = [
            Column("flow", f"t = 1..{evaluation.frames}", "higher", ".3f"),
            Column("reconstruction", "frame 0", "higher", ".3f"),
        ]
        rows = [
            Row(name, [each.flow, each.reconstruction]) for name, each in result.sharpness.items()
        ]
        title = "Squared differences of neighbouring pixels, decoded over true"
        return {"sharpness": Table(columns, rows, title, "transformation")}
