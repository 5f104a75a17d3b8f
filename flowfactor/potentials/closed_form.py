"""Every derivative of ``f(A z, t) + c(t) . z + e(t) + 1/2 sum_r q_r(t) (p_r . z)^2``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowfactor.potentials.cached import cached_property
from flowfactor.potentials.query import Query, log_abs_det_of_identity_plus
from flowfactor.potentials.time_features import TimeFeatures


@dataclass(frozen=True, eq=False)
class StackedParameters(ABC):
    """The parameters of C potentials of one family; a family adds its own and :meth:`at`.

    Attributes:
        directions: A of each potential.
        coefficients: how each combines the R functions of time into its M coefficients: those of
            f, then c, e and q. With R = 1 they do not depend on time.
        axes: P of each potential, None without the quadratic term.
        features: the functions of time.
    """

    directions: Float[Tensor, "c h d"]
    coefficients: Float[Tensor, "c r m"]
    axes: Float[Tensor, "c q d"] | None
    features: TimeFeatures

    @abstractmethod
    def at(
        self,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> ClosedForm:
        """Return the closed forms at latents and times; ``t`` is ``()`` or ``(C, N)``."""

    def evaluate(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities, ``(C, N)`` or ``(C, N, D)``, or ``(C, N, D, D)``.

        Args:
            query: its latents are ``(C, N, D)``, its times ``()`` or ``(C, N)``.
        """
        form = self.at(query.z, query.t, query.vector)
        return tuple(getattr(form, quantity)() for quantity in query.quantities)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that hold the parameters."""
        axes = () if self.axes is None else (self.axes,)
        return (self.directions, self.coefficients, *axes)


class Coefficients(NamedTuple):
    """The coefficients at some time, each ``(C, 1 or N, size)``, or their time derivatives."""

    own: tuple[Tensor, ...]
    linear: Tensor
    offset: Tensor
    strengths: Tensor


class ClosedForm(ABC):
    r"""C potentials at the latents ``z (C, N, D)``: each quantity made when first asked, and once.

    .. math::

        \begin{aligned}
        u &= f(s, t) + c(t) \cdot z + e(t) + \tfrac{1}{2} \sum_r q_r(t)\, (p_r \cdot z)^2,
          \qquad s = A z, \\
        \nabla u &= A^\top f_s + c + P^\top (q \odot P z), \\
        \mathrm{Hess}\, u &= A^\top f_{ss} A + P^\top \mathrm{diag}(q)\, P
        \end{aligned}

    A subclass knows f: its value, time derivative and slope ``f_s (H,)``, how to multiply with its
    bend ``f_ss (H, H)``, and the trace of ``A^T f_ss A``. The rest follows here. The matrix
    ``f_ss`` itself is never made, and the ``(D, D)`` Hessian only where it is asked for, or where
    a determinant of the size of D is the smallest.

    Args:
        parameters: of the C potentials.
        z: latents ``(C, N, D)``.
        t: ``()`` or ``(C, N)``.
        vector: ``(C, N, D)``, what the Hessian is multiplied with, or None.

    Source for the quadratic term, and for derivatives of such potentials in closed form: Onken,
    Wu Fung, Li, Ruthotto, "OT-Flow", AAAI 2021, arXiv:2006.00104. Sylvester's identity,
    ``det(I + U V) = det(I + V U)``: Sylvester 1851.
    """

    def __init__(
        self,
        parameters: StackedParameters,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> None:
        self.directions = parameters.directions
        self.axes = parameters.axes
        self.z = z
        self.vector = vector
        self._combinations = parameters.coefficients
        self._features = parameters.features
        # One row for the batch, or one for every latent.
        self._t = t.unsqueeze(-1) if t.ndim else t.view(1, 1, 1)

    # ---- what a subclass knows of f

    @abstractmethod
    def own_sizes(self) -> tuple[int, ...]:
        """Return how many coefficients f has, in the groups that ``coefficients.own`` holds."""

    @abstractmethod
    def inner_value(self) -> Float[Tensor, "c n"]:
        """Return ``f(s, t)``."""

    @abstractmethod
    def inner_time(self, rates: tuple[Tensor, ...]) -> Float[Tensor, "c n"]:
        """Return ``df/dt`` at fixed s, from the rates of f's coefficients."""

    @property
    @abstractmethod
    def slope(self) -> Float[Tensor, "c n h"]:
        """``f_s``, the gradient of f in s."""

    def slope_product(self) -> tuple[Float[Tensor, "c n h"], Float[Tensor, "c h d"]]:
        """Return two matrices whose product is ``f_s^T A``, the inner part of the gradient."""
        return self.slope, self.directions

    @abstractmethod
    def inner_laplacian(self) -> Float[Tensor, "c n"]:
        """Return the trace of ``A^T f_ss A``."""

    @abstractmethod
    def bend(self, x: Float[Tensor, "c #n m h"]) -> Float[Tensor, "c n m h"]:
        """Return ``f_ss x``, for m vectors x of every latent, or m that all latents share."""

    def inner_hessian(self) -> Float[Tensor, "c n d d"]:
        """Return ``A^T f_ss A``."""
        return times(self.bend(self.directions.mT.unsqueeze(1)), self.directions)

    def inner_product(self, x: Float[Tensor, "c n h"]) -> Float[Tensor, "c n d"]:
        """Return ``A^T f_ss x``."""
        return torch.bmm(self.bend(x.unsqueeze(2)).squeeze(2), self.directions)

    # ---- what follows

    def value(self) -> Float[Tensor, "c n"]:
        """Return ``u``."""
        now = self.coefficients
        value = self.inner_value() + (now.linear * self.z).sum(-1) + now.offset.squeeze(-1)
        if self.axes is not None:
            value = value + 0.5 * (now.strengths * self._along_axes.square()).sum(-1)
        return value

    def time(self) -> Float[Tensor, "c n"]:
        """Return ``du/dt``."""
        if not self._moves:
            return torch.zeros_like(self.z[..., 0])
        rates = self._split(self._features.rates(self._t))
        time = self.inner_time(rates.own) + (rates.linear * self.z).sum(-1)
        time = time + rates.offset.squeeze(-1)
        if self.axes is not None:
            time = time + 0.5 * (rates.strengths * self._along_axes.square()).sum(-1)
        return time

    def velocity(self) -> Float[Tensor, "c n d"]:
        """Return ``grad u``."""
        velocity = torch.baddbmm(self.coefficients.linear, *self.slope_product())
        if self.axes is not None:
            pull = self.coefficients.strengths * self._along_axes
            velocity = torch.baddbmm(velocity, pull, self.axes)
        return velocity

    def divergence(self) -> Float[Tensor, "c n"]:
        """Return the trace of the Hessian."""
        divergence: Tensor = self.inner_laplacian()
        if self.axes is not None:
            squares = self.axes.square().sum(-1).unsqueeze(1)
            divergence = divergence + (self.coefficients.strengths * squares).sum(-1)
        return divergence

    def jacobian(self) -> Float[Tensor, "c n d d"]:
        """Return the matrix of second derivatives."""
        jacobian = self.inner_hessian()
        if self.axes is not None:
            q = self.coefficients.strengths.unsqueeze(2)
            jacobian = jacobian + times(q * self.axes.mT.unsqueeze(1), self.axes)
        return jacobian

    def jvp(self) -> Float[Tensor, "c n d"]:
        """Return the Hessian times the vector."""
        assert self.vector is not None
        P, v = self.axes, self.vector
        product = self.inner_product(torch.bmm(v, self.directions.mT))
        if P is not None:
            q = self.coefficients.strengths
            product = torch.baddbmm(product, q * torch.bmm(v, P.mT), P)
        return product

    def log_det(self, h: Float[Tensor, ""]) -> Float[Tensor, "c n"]:
        """Return ``log|det(I + h Hessian)|``, of the smaller of the matrices that have it.

        With E the rows of A and P together, ``Hessian = E^T N E``, N being f_ss and diag(q); by
        Sylvester's identity ``det(I + h E^T N E) = det(I + h E E^T N)``, of the size of N.
        """
        A, P = self.directions, self.axes
        rows = A if P is None else torch.cat([A, P], dim=1)
        if rows.shape[1] >= rows.shape[2]:
            return log_abs_det_of_identity_plus(h * self.jacobian())
        product = self.bend(torch.bmm(rows, A.mT).unsqueeze(1))
        if P is not None:
            ends = self.coefficients.strengths.unsqueeze(2) * torch.bmm(rows, P.mT).unsqueeze(1)
            product = torch.cat([product, ends.expand(*product.shape[:3], -1)], dim=-1)
        return log_abs_det_of_identity_plus(h * product)

    @cached_property
    def coefficients(self) -> Coefficients:
        """Return the coefficients at t."""
        if not self._moves:
            return self._grouped(self._combinations)
        return self._split(self._features.values(self._t))

    @cached_property
    def _along_axes(self) -> Tensor:
        """``P z (C, N, r)``."""
        assert self.axes is not None
        return torch.bmm(self.z, self.axes.mT)

    @property
    def _moves(self) -> bool:
        return self._combinations.shape[1] > 1

    def _split(self, features: Tensor) -> Coefficients:
        combinations = self._combinations
        return self._grouped(torch.bmm(features.expand(len(combinations), -1, -1), combinations))

    def _grouped(self, coefficients: Tensor) -> Coefficients:
        own = self.own_sizes()
        rank = 0 if self.axes is None else self.axes.shape[1]
        *inner, c, e, q = coefficients.split([*own, self.z.shape[-1], 1, rank], dim=-1)
        return Coefficients(tuple(inner), c, e, q)


def times(rows: Float[Tensor, "c #n m a"], matrix: Float[Tensor, "c a b"]) -> Tensor:
    """Return ``rows @ matrix``, ``(C, N, m, b)``: one product for all latents of a potential.

    A broadcast ``@`` would copy the matrix for every latent.
    """
    product = torch.bmm(rows.flatten(1, 2), matrix)
    return product.view(*rows.shape[:3], matrix.shape[2])
