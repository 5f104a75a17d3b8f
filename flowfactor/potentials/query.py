"""What a field is asked for, and checks of what it is asked with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Quantity = Literal["velocity", "divergence", "jacobian", "jvp", "value", "time"]
"""What a field can be asked for; ``value`` and ``time`` are those of a potential."""

Time = float | int | Tensor
"""A time: one number for the whole batch, or a tensor of shape ``()`` or ``(B,)``."""


class Query(NamedTuple):
    """What a field is asked for, checked by :meth:`VectorField.evaluate`.

    Attributes:
        z: latents ``(B, D)``.
        t: ``()`` or ``(B,)``, of the dtype and device of ``z``.
        quantities: their names, in the order of the answer.
        vector: ``(B, D)`` for a product with the Jacobian, else None.
    """

    z: Float[Tensor, "b d"]
    t: Float[Tensor, "*b"]
    quantities: Sequence[Quantity]
    vector: Float[Tensor, "b d"] | None

    def map(self, rearrange: Callable[[Tensor], Tensor]) -> Query:
        """Return the query with the rows of latents, vector and times rearranged."""
        return Query(
            rearrange(self.z),
            rearrange(self.t) if self.t.ndim else self.t,
            self.quantities,
            None if self.vector is None else rearrange(self.vector),
        )


def as_time(t: Time, z: Tensor) -> Tensor:
    """Return ``t`` as a tensor ``()`` or ``(B,)`` of the dtype and device of ``z``.

    Raises:
        ValueError: ``t`` has another shape than ``()`` or ``(B,)``.
    """
    time = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    if time.ndim > 1 or (time.ndim == 1 and time.shape[0] != z.shape[0]):
        raise ValueError(
            f"t has the shape {tuple(time.shape)}; give one time for the whole batch, shape (), "
            f"or one per latent, shape ({z.shape[0]},)"
        )
    return time


def check_latents(z: Tensor, dim: int, size: int | None = None) -> None:
    """Refuse latents that are not a floating-point batch ``(B, dim)``.

    Args:
        z: the latents.
        dim: D.
        size: B; None: any.

    Raises:
        ValueError: another shape.
        TypeError: ``z`` is no tensor of floating-point numbers.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = str(z.dtype) if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"z must be a tensor of floating-point numbers (B, {dim}); it is {kind}")
    if z.ndim != 2 or z.shape[1] != dim:
        raise ValueError(f"z has the shape {tuple(z.shape)}; it must be (B, {dim})")
    if size is not None and z.shape[0] != size:
        raise ValueError(f"z holds {len(z)} latents, but k chooses fields for {size} samples")


def as_vector(vector: Tensor | None, z: Tensor) -> Tensor:
    """Return the vector of a product with the Jacobian.

    Raises:
        ValueError: it is missing or shaped unlike ``z``.
    """
    if vector is None:
        raise ValueError(f"a product needs a vector of the shape {tuple(z.shape)}")
    if vector.shape != z.shape:
        raise ValueError(
            f"the vector has the shape {tuple(vector.shape)}; that of z is {tuple(z.shape)}"
        )
    return vector.to(z.dtype)


def as_step(h: float | Tensor, z: Tensor) -> Tensor:
    """Return a step size as a tensor ``()`` of the dtype and device of ``z``.

    Raises:
        ValueError: ``h`` is a tensor of another shape.
    """
    step = torch.as_tensor(h, dtype=z.dtype, device=z.device)
    if step.ndim:
        raise ValueError(
            f"h has the shape {tuple(step.shape)}; a step is one number for the whole batch"
        )
    return step


def log_abs_det_of_identity_plus(matrices: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b"]:
    """Return ``log|det(I + M)|`` of a batch of square matrices M."""
    size = matrices.shape[-1]
    identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    determinant: Tensor = torch.linalg.slogdet(identity + matrices).logabsdet
    return determinant
