"""Film strips of two transformations: both at once, or one and then the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from flowfactor.data import SequenceBatch
from flowfactor.diagnostics.film_strips import Strip, draw_strips
from flowfactor.diagnostics.sampling import (
    chosen_names,
    decode_all,
    encode_means,
    evaluating,
    positions,
)
from flowfactor.diagnostics.style import PAGE_WIDTH, styled
from flowfactor.models.base import SequenceModel

Pair = tuple[str, str]

# Letters that find room along a strip with many columns.
_ONE_LINE = 12


@dataclasses.dataclass(frozen=True, eq=False)
class CompositionStrips:
    """True and decoded frames of some sequences that undergo two transformations.

    Sizes: B sequences, N times.

    Attributes:
        pair: the two transformations.
        turn: the frame at which the second takes over from the first; None if both act at once.
        times: in frames, ``(N,)``.
        truth: true frames ``(B, N, C, H, W)``.
        flow: frames decoded along the composed flow, ``(B, N, C, H, W)``.
        horizon: the last frame that the model was trained on.
    """

    pair: Pair
    turn: int | None
    times: Float[np.ndarray, "n"]
    truth: Float[Tensor, "b n c h w"]
    flow: Float[Tensor, "b n c h w"]
    horizon: int

    @property
    def label(self) -> str:
        """What happens to the images, in words."""
        return " ".join(self.words)

    @property
    def words(self) -> tuple[str, str]:
        """The label in two parts, for two lines."""
        a, b = self.pair
        return (a, f"+ {b}") if self.turn is None else (f"{a},", f"then {b}")


def composition_data(
    model: SequenceModel,
    sequences: SequenceBatch,
    pair: Pair,
    *,
    turn: int | None = None,
) -> CompositionStrips:
    r"""Encode frame 0 of each sequence and decode two flows put together at every frame.

    .. code-block:: text

        both at once           dz/dt = grad u^a(z, t) + grad u^b(z, t)
        a up to s, then b      z_t = flow(z_0, a, t) for t <= s,
                               z_t = flow(z_s, b, t - s) for t > s; each clock begins at 0

    Args:
        model: any sequence model.
        sequences: what truly happens, with all frames from 0 on, as ``compose`` of a data set
            makes it.
        pair: the names of the two transformations.
        turn: s, how many frames belong to the first alone; None for both at once.

    Raises:
        ValueError: frames are missing or of another shape, the sequences undergo a single
            transformation, the names are not two of the model's, or s is not within the sequence.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> _ = torch.manual_seed(0)
        >>> digits = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(digits.names, latent_dim=8, width=16)
        >>> both = digits.compose([0, 1], ("rotation", "hue"))
        >>> data = composition_data(model, both, ("rotation", "hue"))
        >>> data.flow.shape, data.label
        (torch.Size([2, 9, 3, 28, 28]), 'rotation + hue')
    """
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(f"a composition takes two different transformations, not {tuple(pair)}")
    a, b = chosen_names(model, pair)
    frames = sequences.frames
    count = frames.shape[1]
    known = torch.arange(count, device=sequences.times.device)
    if not len(sequences) or not bool((sequences.times == known).all()):
        raise ValueError(
            "a composition strip needs at least one sequence, with all frames from t = 0 on"
        )
    if bool((sequences.labels >= 0).any()):
        raise ValueError(
            "the sequences undergo a single transformation each; those of two, from `compose` of "
            "a data set, have the factor -1"
        )
    if turn is not None and not 0 < turn < count - 1:
        raise ValueError(
            f"turn, the frame at which the second flow takes over, must be in 1..{count - 2}, "
            f"within the sequences; it is {turn}"
        )
    with evaluating(model):
        z0 = encode_means(model, frames[:, 0])
        times = torch.arange(count).to(z0)
        if turn is None:
            path = positions(model, z0, model.potentials[a] + model.potentials[b], times)
        else:
            first = positions(model, z0, model.potentials[a], times[: turn + 1])
            then = positions(model, first[-1], model.potentials[b], times[: count - turn])
            path = torch.cat([first, then[1:]])
        decoded = decode_all(model, path).transpose(0, 1).float().cpu()
    return CompositionStrips(
        (a, b),
        turn,
        np.asarray(times.double().cpu()),
        frames.float().cpu(),
        decoded,
        model.horizon,
    )


def plot_composition(
    model: SequenceModel,
    sequences: SequenceBatch,
    pair: Pair,
    *,
    switched: SequenceBatch | None = None,
    turn: int | None = None,
    width: float = PAGE_WIDTH,
) -> Figure:
    """Draw true frames of two transformations above those that the composed flows give.

    Each sequence has a strip of two rows. Frames past the last one of the training have a
    coloured rim.

    Args:
        model: any sequence model.
        sequences: undergo both transformations at once, all frames of each.
        pair: the names of the two transformations.
        switched: sequences that undergo first the one, then the other; each has another strip,
            below that of the sequence of the same number.
        turn: the frame at which the second takes over in ``switched``.
        width: of the figure in inches.

    Raises:
        ValueError: as of :func:`composition_data` and :func:`draw_composition`; one of ``switched``
            and ``turn`` without the other.
    """
    if (switched is None) != (turn is None):
        raise ValueError("switched and turn belong together: give both of them, or neither")
    parts = [composition_data(model, sequences, pair)]
    if switched is not None:
        parts.append(composition_data(model, switched, pair, turn=turn))
    return draw_composition(parts, width=width)


@styled
def draw_composition(parts: Sequence[CompositionStrips], *, width: float = PAGE_WIDTH) -> Figure:
    """Draw computed strips in one figure; see :func:`plot_composition`.

    Args:
        parts: of any pairs, at the same times; the first sequence of every part comes before the
            second one of any.
        width: of the figure in inches.

    Raises:
        ValueError: no part, or parts with other times or images than the first.
    """
    if not parts:
        raise ValueError("there are no strips to draw")
    first = parts[0]
    for part in parts:
        if (
            not np.array_equal(part.times, first.times)
            or part.flow.shape[2:] != (first.flow.shape[2:])
        ):
            raise ValueError(
                "the strips of one figure must have the same times and images of one shape"
            )
    strips = [
        Strip(
            part.label if len(part.label) <= _ONE_LINE else "\n".join(part.words),
            [("truth", part.truth[i]), ("flow", part.flow[i])],
            part.turn,
        )
        for i in range(max(len(part.flow) for part in parts))
        for part in parts
        if i < len(part.flow)
    ]
    return draw_strips(strips, first.times, first.horizon, width=width, left=0.86)
