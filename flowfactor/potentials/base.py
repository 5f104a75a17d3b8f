"""What a potential offers, and the algebra that makes potentials a vector space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Quantity = Literal["value", "time", "gradient", "laplacian", "hessian", "hvp"]
DERIVATIVES: tuple[Quantity, ...] = ("value", "time", "gradient", "laplacian")

Time = float | int | Tensor
"""A time: one number for the whole batch, or a tensor of shape ``()`` or ``(B,)``."""


class Derivatives(NamedTuple):
    """Everything the method needs of a potential at ``(z, t)``, from one evaluation.

    Shapes for a batch of ``B`` latents of size ``D``: ``value (B,)``, ``time (B,)`` (the partial
    derivative du/dt), ``gradient (B, D)`` and ``laplacian (B,)`` (the trace of the Hessian).
    """

    value: Float[Tensor, "b"]
    time: Float[Tensor, "b"]
    gradient: Float[Tensor, "b d"]
    laplacian: Float[Tensor, "b"]


class Query(NamedTuple):
    """What a potential is asked for, checked by :meth:`Potential.evaluate`.

    Attributes:
        z: latents ``(B, D)``.
        t: ``()`` or ``(B,)``, of the dtype and device of ``z``.
        quantities: their names, in the order of the answer.
        vector: ``(B, D)`` for a Hessian-vector product, else None.
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


class Potential(nn.Module, ABC):
    r"""A scalar function ``u(z, t)`` whose gradient moves the latent: ``dz/dt = grad u(z, t)``.

    A subclass has a ``dim`` and implements :meth:`compute`; the rest follows. Potentials form a
    vector space: ``u + w``, ``u - w``, ``a * u``, ``u / a`` and ``-u`` are potentials, evaluated at
    the cost of their terms and never by automatic differentiation.

    Latents have the shape ``(B, D)`` with ``D == dim``. A time is one number for the batch or a
    tensor ``(B,)`` of one time per sample; one frame of a sequence is one unit of time.

    Source: Song, Keller, Sebe, Welling, "Flow Factorized Representation Learning",
    NeurIPS 2023, arXiv:2309.13167.
    """

    dim: int
    size: int | None = None
    """The only size of a batch that it can be evaluated for; None: any."""

    @abstractmethod
    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities in the asked order, computing nothing else.

        This is what a new potential implements. Every quantity is linear in the potential.
        """

    def evaluate(
        self,
        z: Float[Tensor, "b d"],
        t: Time,
        quantities: Sequence[Quantity],
        vector: Float[Tensor, "b d"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the asked ``quantities`` in the asked order, computing nothing else.

        Every quantity is linear in the potential, so that sums and mixtures add them.

        Args:
            z: latents ``(B, D)``.
            t: a number, or a tensor ``()`` or ``(B,)``.
            quantities: any of ``"value" (B,)``, ``"time" (B,)``, ``"gradient" (B, D)``,
                ``"laplacian" (B,)``, ``"hessian" (B, D, D)``, ``"hvp" (B, D)``.
            vector: ``(B, D)``, what the Hessian is multiplied with in ``"hvp"``.

        Raises:
            ValueError: shapes that do not fit, a quantity that does not exist, or ``"hvp"`` without
                a vector.
        """
        check_latents(z, self.dim, self.size)
        vector = as_vector(vector, z, quantities)
        return self.compute(Query(z, as_time(t, z), quantities, vector))

    def forward(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b"]:
        """Return the value ``u(z, t)``, shape ``(B,)``; a potential is called: ``u(z, t)``."""
        return self.evaluate(z, t, ("value",))[0]

    def gradient(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b d"]:
        """Return ``grad u(z, t)``, the velocity of the latent, shape ``(B, D)``."""
        return self.evaluate(z, t, ("gradient",))[0]

    def laplacian(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b"]:
        """Return ``sum_i d2u/dz_i2``, the trace of the Hessian, shape ``(B,)``."""
        return self.evaluate(z, t, ("laplacian",))[0]

    def hessian(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b d d"]:
        """Return the matrix of second derivatives, shape ``(B, D, D)``.

        To multiply it with a vector, :meth:`hvp` is cheaper; for the determinant of an Euler step,
        :meth:`log_det`.
        """
        return self.evaluate(z, t, ("hessian",))[0]

    def hvp(
        self, z: Float[Tensor, "b d"], v: Float[Tensor, "b d"], t: Time
    ) -> Float[Tensor, "b d"]:
        """Return the Hessian times a vector, ``Hessian u(z, t) v``, shape ``(B, D)``.

        Along a path it is the acceleration that the bending of the potential causes: the second
        derivative of ``z_t`` is ``hvp(z, grad u, t)`` plus the time derivative of the gradient.

        Raises:
            ValueError: ``v`` has another shape than ``z``.
        """
        return self.evaluate(z, t, ("hvp",), v)[0]

    def log_det(self, z: Float[Tensor, "b d"], t: Time, h: float | Tensor) -> Float[Tensor, "b"]:
        """Return ``log|det(I + h Hessian u(z, t))|``, shape ``(B,)``.

        This is the exact change of volume by the discrete Euler step ``z -> z + h grad u(z, t)``;
        its first order in h is ``h laplacian u``. Minus infinity where the step folds space.

        Args:
            z: latents ``(B, D)``.
            t: a number, or a tensor ``()`` or ``(B,)``.
            h: the step, a number or a tensor ``()``; negative for a step back in time.

        Raises:
            ValueError: ``h`` is a tensor of another shape.
        """
        size = as_step(h, z)
        return log_abs_det_of_identity_plus(size * self.hessian(z, t))

    def derivatives(self, z: Float[Tensor, "b d"], t: Time) -> Derivatives:
        """Return value, time derivative, gradient and Laplacian together."""
        return Derivatives(*self.evaluate(z, t, DERIVATIVES))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the value depends on, for the continuous adjoint."""
        return tuple(self.parameters())

    def __add__(self, other: Potential) -> Potential:
        combined: Potential = _combine((1.0, self), (1.0, other))
        return combined

    def __radd__(self, other: object) -> Potential:
        # sum([u, w]) starts from 0.
        if isinstance(other, (int, float)) and other == 0:
            return self
        return NotImplemented

    def __sub__(self, other: Potential) -> Potential:
        combined: Potential = _combine((1.0, self), (-1.0, other))
        return combined

    def __mul__(self, factor: float | Tensor) -> Potential:
        combined: Potential = _combine((factor, self))
        return combined

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> Potential:
        combined: Potential = _combine((1.0 / divisor, self))
        return combined

    def __neg__(self) -> Potential:
        combined: Potential = _combine((-1.0, self))
        return combined


class LinearCombination(Potential):
    """``sum_i a_i u_i``: what the operators ``+ - *`` on potentials return.

    Args:
        terms: pairs ``(a_i, u_i)`` of a factor and a potential, all of the same ``dim``.

    Raises:
        ValueError: there is no term, or the potentials act on latents of different sizes.

    Example:
        >>> import torch
        >>> from flowfactor import RidgePotential
        >>> bank = RidgePotential(("rotation", "hue"), dim=4, width=8)
        >>> both = bank["rotation"] + 0.5 * bank["hue"]
        >>> z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> expected = bank["rotation"].gradient(z, 1.0) + 0.5 * bank["hue"].gradient(z, 1.0)
        >>> torch.allclose(both.gradient(z, 1.0), expected)
        True
    """

    def __init__(self, terms: Iterable[tuple[float | Tensor, Potential]]) -> None:
        super().__init__()
        pairs = list(terms)
        if not pairs:
            raise ValueError("a linear combination of potentials needs at least one term")
        sizes = {potential.dim for _, potential in pairs}
        if len(sizes) > 1:
            raise ValueError(
                f"potentials on latents of different sizes cannot be added: dim is "
                f"{', '.join(map(str, sorted(sizes)))}; all must act on the same latent space"
            )
        self.dim = sizes.pop()
        self.factors = [factor for factor, _ in pairs]
        self.potentials = nn.ModuleList([potential for _, potential in pairs])

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities: every one of them is linear in the potential."""
        total: list[Tensor] | None = None
        for factor, potential in zip(self.factors, self.potentials, strict=True):
            assert isinstance(potential, Potential)
            parts = [factor * part for part in potential.evaluate(*query)]
            total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
        assert total is not None
        return tuple(total)

    def log_det(self, z: Float[Tensor, "b d"], t: Time, h: float | Tensor) -> Float[Tensor, "b"]:
        """Return ``log|det(I + h Hessian)|``; of a single term as cheaply as the term itself."""
        if len(self.factors) == 1:
            (potential,) = self.potentials
            assert isinstance(potential, Potential)
            return potential.log_det(z, t, as_step(h, z) * self.factors[0])
        return super().log_det(z, t, h)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of all terms, and the factors that are tensors, each once."""
        found: dict[int, Tensor] = {}
        for factor, potential in zip(self.factors, self.potentials, strict=True):
            assert isinstance(potential, Potential)
            owned = potential.tensors() + ((factor,) if isinstance(factor, Tensor) else ())
            found.update((id(tensor), tensor) for tensor in owned)
        return tuple(found.values())

    def terms(self) -> list[tuple[float | Tensor, Potential]]:
        """Return the pairs ``(a_i, u_i)``."""
        return list(zip(self.factors, self.potentials, strict=True))  # type: ignore[arg-type]


def _combine(*weighted: tuple[float | Tensor, Potential]) -> Any:
    """Build a flat combination, so that ``(u + w) - v`` has three terms and no nesting."""
    terms: list[tuple[float | Tensor, Potential]] = []
    for factor, potential in weighted:
        if not isinstance(potential, Potential):
            return NotImplemented
        if not (
            isinstance(factor, (int, float)) or (isinstance(factor, Tensor) and factor.ndim == 0)
        ):
            return NotImplemented
        if isinstance(potential, LinearCombination):
            terms += [(factor * inner, part) for inner, part in potential.terms()]
        else:
            terms.append((factor, potential))
    return LinearCombination(terms)


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
    if size is not None and len(z) != size:
        raise ValueError(f"z holds {len(z)} latents, but k chooses potentials for {size} samples")


def as_vector(vector: Tensor | None, z: Tensor, quantities: Sequence[str]) -> Tensor | None:
    """Return the vector of a Hessian-vector product, or None where none is asked for.

    Raises:
        ValueError: ``"hvp"`` is asked for and the vector is missing or shaped unlike ``z``; or
            there is no such quantity.
    """
    known = get_args(Quantity)
    for quantity in quantities:
        if quantity not in known:
            raise ValueError(
                f"a potential has no quantity {quantity!r}; there are {', '.join(known)}"
            )
    if "hvp" not in quantities:
        return None
    if vector is None:
        raise ValueError(f"the quantity 'hvp' needs a vector of the shape {tuple(z.shape)}")
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
