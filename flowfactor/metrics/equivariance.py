"""The equivariance error: does the decoded flow show what the transformation does?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data import SequenceDataset, samples_undergoing
from flowfactor.models import SequenceModel, WeakFlowVAE
from solvers import Method


@dataclasses.dataclass(frozen=True, eq=False)
class EquivarianceError:
    """Errors of one transformation, or of several; sums of absolute pixel errors, pixels in [0, 1].

    Attributes:
        flow: ``(images, T)``: ``sum_{channels, pixels} |x_t - decode(z_t)|`` for t = 1..T, where
            ``z_t = flow(z_0, k, t)``.
        identity: ``(images, T)``: the same with ``z_t = z_0``, a model that moves nothing.
        reconstruction: ``(images,)``: the error of decoding frame 0 from its own latent.
        pixels: channels times pixels of a frame.
    """

    flow: Float[Tensor, "n t"]
    identity: Float[Tensor, "n t"]
    reconstruction: Float[Tensor, "n"]
    pixels: int

    @property
    def error(self) -> float:
        """``E_k``: the mean over images of the sum over t."""
        return float(self.flow.sum(1).mean())

    @property
    def standard_error(self) -> float:
        """Of ``E_k``, from its spread over images; 0 for a single image."""
        totals = self.flow.sum(1)
        return float(totals.std() / len(totals) ** 0.5) if len(totals) > 1 else 0.0

    @property
    def identity_error(self) -> float:
        """``E_k`` of a model whose latent stays where it is."""
        return float(self.identity.sum(1).mean())

    @property
    def floor(self) -> float:
        """T times the error of decoding ``x_0`` from ``z_0``: what the autoencoder alone costs."""
        return float(self.reconstruction.mean()) * self.flow.shape[1]

    @property
    def per_frame_and_pixel(self) -> float:
        """``E_k`` per frame, channel and pixel: the mean absolute error of a pixel."""
        return self.error / (self.flow.shape[1] * self.pixels)

    def summary(self) -> dict[str, float | list[float]]:
        """Return the figures above as plain numbers."""
        return {
            "error": self.error,
            "standard_error": self.standard_error,
            "identity": self.identity_error,
            "floor": self.floor,
            "per_frame_and_pixel": self.per_frame_and_pixel,
            "per_frame": self.flow.mean(0).tolist(),
            "identity_per_frame": self.identity.mean(0).tolist(),
        }


@torch.no_grad()
def equivariance_error(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    method: Method | None = None,
    choose: Literal["given", "inferred"] = "given",
    batch_size: int = 250,
) -> dict[str, EquivarianceError]:
    r"""Return the equivariance error of every transformation.

    .. code-block:: text

        E_k = mean_{images} sum_{t=1..T} sum_{channels, pixels} |x_t - decode(flow(z_0, k, t))|

    with ``z_0`` the mean of ``q(z_0 | x_0)``. ``T = 7`` and a training to ``t = 8`` is the protocol
    of Song et al., arXiv:2309.13167.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's, which may have spare flows.
        indices: which images; None is all of them.
        frames: T.
        method: another solver than the model's.
        choose: take the flow of each transformation, or let a
            :class:`~flowfactor.models.WeakFlowVAE` infer that of each sequence from its frames.
        batch_size: images at a time; it does not change the result.

    Returns:
        The error by the name of the transformation; one that none of the recordings undergoes is
        left out.

    Raises:
        ValueError: the data has other transformations than the model, or too few frames.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> errors = equivariance_error(model, data)
        >>> errors["rotation"].flow.shape
        torch.Size([4, 7])
    """
    check_comparable(model, data, frames)
    if choose == "inferred" and not isinstance(model, WeakFlowVAE):
        raise ValueError(f"a {type(model).__name__} does not infer transformations; they are given")
    device = next(model.parameters()).device
    chosen = torch.arange(len(data)) if indices is None else torch.as_tensor(indices)
    errors = {}
    for k, rows in rows_undergoing(data, chosen).items():
        parts = []
        for batch in chosen[rows].split(batch_size):
            sequences = data.sample(batch, k).to(device)
            flows: int | Tensor = k
            if choose == "inferred":
                assert isinstance(model, WeakFlowVAE)
                flows = model.infer(sequences).argmax(-1)
            x = sequences.frames[:, : frames + 1]
            z0 = model.represent(x[:, 0])
            times = torch.arange(frames + 1, dtype=z0.dtype, device=device)
            parts.append(frame_errors(model, x, model.flow(z0, flows, times, method=method)))
        errors[data.names[k]] = joined(parts)
    return errors


def rows_undergoing(data: SequenceDataset, chosen: Int[Tensor, "n"]) -> dict[int, Int[Tensor, "_"]]:
    """Return which of the chosen samples can be had under each transformation: all, if rendered.

    Transformations that none of the chosen recordings undergoes are left out.

    Raises:
        ValueError: that is so of all.
    """
    found = {}
    for k in range(len(data.names)):
        rows = torch.isin(chosen, samples_undergoing(data, k).cpu()).nonzero().flatten()
        if len(rows):
            found[k] = rows
    if not found:
        raise ValueError(f"none of the samples undergoes {' or '.join(data.names)}")
    return found


def check_comparable(model: SequenceModel, data: SequenceDataset, frames: int) -> None:
    """Refuse data that a model cannot be measured on.

    Raises:
        ValueError: other transformations than the model's, another image shape, too few frames.
    """
    # Weak supervision may have left flows to spare, which come last.
    known = model.names[: len(data.names)] if isinstance(model, WeakFlowVAE) else model.names
    if data.names != known:
        raise ValueError(
            f"the data undergoes {', '.join(data.names)}, but the model knows "
            f"{', '.join(model.names)}; they must be the same, in the same order"
        )
    if tuple(data.image_shape) != tuple(model.image_shape):
        raise ValueError(
            f"the images of the data have the shape {tuple(data.image_shape)}, but the model takes "
            f"{tuple(model.image_shape)}"
        )
    if not 1 <= frames <= data.horizon:
        raise ValueError(
            f"frames must be in 1..{data.horizon}, the frames of the data; it is {frames}"
        )


def frame_errors(
    model: SequenceModel, x: Float[Tensor, "b f c h w"], z: Float[Tensor, "f b d"]
) -> EquivarianceError:
    """Return the errors of frames that are decoded from a path against the true ones.

    Args:
        model: decodes.
        x: the true frames.
        z: the path; it starts at the latent of the first frame, which is what an unmoved latent
            decodes to.
    """
    moved = model.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2]).transpose(0, 1)
    flow = (x - moved).abs().flatten(2).sum(-1).double().cpu()
    identity = (x - moved[:, :1]).abs().flatten(2).sum(-1).double().cpu()
    return EquivarianceError(flow[:, 1:], identity[:, 1:], flow[:, 0], x[0, 0].numel())


def joined(parts: Sequence[EquivarianceError]) -> EquivarianceError:
    """Return the errors of all images of some batches."""
    return EquivarianceError(
        torch.cat([part.flow for part in parts]),
        torch.cat([part.identity for part in parts]),
        torch.cat([part.reconstruction for part in parts]),
        parts[0].pixels,
    )


def mean_error(errors: Mapping[Any, EquivarianceError]) -> float:
    """Return the mean of ``E_k`` over the transformations, or over pairs of them."""
    return sum(error.error for error in errors.values()) / len(errors)
