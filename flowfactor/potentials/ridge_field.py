"""Fields of ridge functions: a gradient and an exactly divergence-free part, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.potentials.bank import FieldBank, bank_at_rest
from flowfactor.potentials.base import Potential, VectorField
from flowfactor.potentials.cached import cached_property
from flowfactor.potentials.closed_form import ClosedForm, times
from flowfactor.potentials.query import log_abs_det_of_identity_plus
from flowfactor.potentials.ridge import (
    RidgeForm,
    RidgeParameters,
    RidgePotential,
    gradient_parameters,
)
from flowfactor.potentials.stacked import StackedFields, StackedPotentialChoices, TimedFields
from flowfactor.potentials.time_features import TimeFeatures
from flowfactor.registries import FIELDS

Parts = Literal["both", "gradient", "solenoidal"]
"""The parts that a field of ridge functions has."""

_TURN = 1 / 20
"""The vectors r_h over the parameters that they are projections of. Adam moves every parameter by
its learning rate, whatever the gradient: at 0.006, parameters as small as r_h itself would be
noise."""


class RidgeField(TimedFields[VectorField]):
    r"""K fields, each the gradient of a sum of ridge functions and a part without divergence.

    .. math::

        \begin{aligned}
        v(z, t) &= \sum_h V_h(t) \tanh(s_h) + c(t), \qquad s_h = a_h \cdot z + b_h(t), \\
        V_h(t) &= w_h(t)\, a_h + r_h, \qquad r_h \cdot a_h = 0, \\
        \text{gradient part} &= \nabla u, \qquad u = \sum_h w_h \log\cosh(s_h) + c \cdot z + e, \\
        \text{solenoidal part} &= \sum_h r_h \tanh(s_h), \\
        \nabla \cdot v &= \sum_h w_h\, \mathrm{sech}^2(s_h)\, |a_h|^2, \\
        \frac{\partial v}{\partial z} &= \sum_h \mathrm{sech}^2(s_h)\, V_h a_h^\top
        \end{aligned}

    The two parts share the directions a_h, so that both cost as much as one. The Jacobian of the
    second has the trace ``sum_h sech^2(s_h) r_h . a_h = 0``, whatever its parameters: it carries
    densities along unchanged. A potential without time grows along its gradient, whose flow
    therefore never returns; with a solenoidal part it can turn.

    The coefficients ``(w, b, c, e)(t)`` are those of a :class:`~flowfactor.RidgePotential`, the
    vectors r_h do not depend on time: they are ``turns_h / 20`` without what lies along a_h. The
    parameters of the K fields are stacked, and a choice of one field per sample evaluates only
    those chosen.

    Args:
        names: the names of the K transformations.
        dim: the latent size D.
        width: the number H of ridge functions of each field.
        parts: ``both``; ``gradient``, a ridge potential; or ``solenoidal``, without w, and c counts
            as a part of it.
        horizon: the time T up to which the coefficients are resolved: the last frame.
        frequencies: the number F of frequencies of the coefficients, see
            :class:`~flowfactor.RidgePotential`.
        autonomous: the field does not depend on time.
        rank: the number r of squares of a quadratic term in u; 0 leaves it out.

    Raises:
        ValueError: a size that is not positive, names that repeat, another word for ``parts``, or
            a quadratic term without a gradient part.

    Source: Song, Keller, Yue, Perona, Welling, "Unsupervised Representation Learning from Sparse
    Transformation Analysis", arXiv:2410.05564, for flows with a divergence-free part, there by a
    penalty.

    Example:
        >>> import torch
        >>> bank = RidgeField(("scaling", "rotation"), dim=3, width=16)
        >>> z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        >>> v = bank["rotation"]
        >>> u, r = v.gradient_part, v.solenoidal_part
        >>> torch.allclose(u.gradient(z, 2.0) + r.velocity(z, 2.0), v.velocity(z, 2.0), atol=1e-6)
        True
        >>> r.divergence(z, 2.0).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]
        >>> bank.velocities(z, 2.0).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        names: Sequence[str],
        dim: int,
        width: int = 256,
        *,
        parts: Parts = "both",
        horizon: float = 8.0,
        frequencies: int = 4,
        autonomous: bool = False,
        rank: int = 0,
    ) -> None:
        if parts not in get_args(Parts):
            raise ValueError(f"parts must be one of {', '.join(get_args(Parts))}; it is {parts!r}")
        if rank and parts == "solenoidal":
            raise ValueError(f"rank must be 0 without a gradient part; it is {rank}")
        own = [(width, 1.0)] if parts == "solenoidal" else [(width, 20.0), (width, 1.0)]
        super().__init__(
            names,
            dim,
            width,
            own,
            horizon=horizon,
            frequencies=frequencies,
            autonomous=autonomous,
            rank=rank,
        )
        self.parts = parts
        # r_h is at the start as long as w_h a_h.
        turns = torch.randn(len(self.names), width, dim) / math.sqrt(dim)
        self.register_parameter("turns", None if parts == "gradient" else nn.Parameter(turns))
        self.turns: nn.Parameter | None

    def parameters_of(self, which: slice | Int[Tensor, "c"]) -> RidgeParameters:
        """Return the stacked parameters of some of the fields."""
        if self.parts == "gradient":
            return gradient_parameters(self, which)
        features = TimeFeatures(self.frequencies, self.horizon)
        weighted = r = None
        if self.parts == "solenoidal":
            weighted = self.turns_of(which)
        elif self.autonomous:
            w = self.coefficients[which][:, 0, : self.width]
            weighted = torch.addcmul(self.turns_of(which), w.unsqueeze(-1), self.directions[which])
        else:
            r = self.turns_of(which)
        axes = None if self.axes is None else self.axes[which]
        return RidgeFieldParameters(
            self.directions[which],
            self.coefficients[which],
            axes,
            features,
            weighted,
            r,
            solenoidal=self.parts == "solenoidal",
        )

    def turns_of(self, which: slice | Int[Tensor, "c"]) -> Float[Tensor, "c h d"]:
        """Return the vectors r_h of some of the fields, orthogonal to the directions a_h."""
        assert self.turns is not None
        a, free = self.directions[which], self.turns[which]
        squares = a.square().sum(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
        along = (a * free).sum(-1, keepdim=True) / squares
        return _TURN * torch.addcmul(free, along, a, value=-1)

    @property
    def gradient_part(self) -> FieldBank[Potential]:
        """The bank of the gradient parts, which are potentials."""
        if self.parts == "solenoidal":
            return bank_at_rest(self.names, self.dim)
        return _GradientParts(self)

    @property
    def solenoidal_part(self) -> FieldBank[VectorField]:
        """The bank of the parts without divergence."""
        if self.parts == "gradient":
            return bank_at_rest(self.names, self.dim)
        return self if self.parts == "solenoidal" else _SolenoidalParts(self)

    @torch.no_grad()
    def scale_(self, factors: Float[Tensor, "k"]) -> None:
        """Multiply each field by a number, in place."""
        K, H, _ = self.directions.shape
        scale = factors.to(self.coefficients).reshape(K, 1, 1)
        if self.turns is not None:
            self.turns.mul_(scale)
        first = 0 if self.parts == "solenoidal" else H
        self.coefficients[:, :, :first].mul_(scale)
        self.coefficients[:, :, first + H :].mul_(scale)


@FIELDS.register("ridge")
def make_ridge(
    names: Sequence[str], dim: int, width: int, *, parts: Parts = "gradient", **options: Any
) -> RidgePotential | RidgeField:
    """Return a bank of ridge potentials, or of fields with a solenoidal part."""
    if parts == "gradient":
        return RidgePotential(names, dim, width, **options)
    return RidgeField(names, dim, width, parts=parts, **options)


class _GradientParts(StackedPotentialChoices):
    """The gradient parts of a bank of fields: ridge potentials with the parameters of the bank."""

    def __init__(self, bank: RidgeField) -> None:
        super().__init__(bank.names, bank.dim)
        self.bank = bank

    def parameters_of(self, which: slice | Int[Tensor, "c"]) -> RidgeParameters:
        return gradient_parameters(self.bank, which)


class _SolenoidalParts(StackedFields[VectorField]):
    """The parts without divergence of a bank of fields that have both."""

    def __init__(self, bank: RidgeField) -> None:
        super().__init__(bank.names, bank.dim)
        self.bank = bank

    @property
    def gradient_part(self) -> FieldBank[Potential]:
        return bank_at_rest(self.names, self.dim)

    @property
    def solenoidal_part(self) -> FieldBank[VectorField]:
        return self

    def parameters_of(self, which: slice | Int[Tensor, "c"]) -> RidgeParameters:
        bank, H = self.bank, self.bank.width
        own = bank.coefficients[which][:, :, H : 2 * H]
        return RidgeFieldParameters(
            bank.directions[which],
            F.pad(own, (0, bank.dim + 1)),  # b; c and e are of the other part
            None,
            TimeFeatures(bank.frequencies, bank.horizon),
            bank.turns_of(which),
            solenoidal=True,
        )


@dataclass(frozen=True, eq=False)
class RidgeFieldParameters(RidgeParameters):
    """Stacked parameters of C fields.

    Attributes:
        weighted: the vectors V_h, where they do not depend on time.
        turns: the vectors r_h, where the V_h do.
        solenoidal: the fields have no gradient part, and no coefficients w.
    """

    turns: Float[Tensor, "c h d"] | None = None
    solenoidal: bool = False

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that hold the parameters."""
        own = () if self.turns is None else (self.turns,)
        return (*super().tensors(), *own)

    def at(
        self,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> ClosedForm:
        """Return the closed forms at latents and times."""
        return _RidgeFieldForm(self, z, t, vector)


class _RidgeFieldForm(RidgeForm):
    """The gradient of ``sum_h w_h logcosh(s_h + b_h)``, and ``sum_h r_h tanh(s_h + b_h)``."""

    def __init__(
        self,
        parameters: RidgeFieldParameters,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> None:
        self._solenoidal = parameters.solenoidal
        self._turns = parameters.turns
        super().__init__(parameters, z, t, vector)

    def own_sizes(self) -> tuple[int, ...]:
        H = self.directions.shape[1]
        return (H,) if self._solenoidal else (H, H)

    @property
    def w(self) -> Float[Tensor, "c #n h"]:
        own = self.coefficients.own
        return torch.zeros_like(own[0]) if self._solenoidal else own[0]

    def velocity(self) -> Float[Tensor, "c n d"]:
        velocity = super().velocity()
        if self._outer is None:
            assert self._turns is not None
            velocity = torch.baddbmm(velocity, self.tanh, self._turns)
        return velocity

    def slope_product(self) -> tuple[Float[Tensor, "c n h"], Float[Tensor, "c h d"]]:
        if self._outer is None:
            return self.slope, self.directions
        return self.tanh, self._outer

    def inner_laplacian(self) -> Float[Tensor, "c n"]:
        # Nothing is lost by rounding: r_h is orthogonal to a_h.
        return self.z.new_zeros(self.z.shape[:2]) if self._solenoidal else super().inner_laplacian()

    def inner_hessian(self) -> Float[Tensor, "c n d d"]:
        # Sums over h of tanh'(s_h) V_h a_h^T; the V_h of each latent are not made.
        if self._outer is None:
            assert self._turns is not None
            columns = self._bends.unsqueeze(2) * self.directions.mT.unsqueeze(1)
            columns = columns + self._slopes.unsqueeze(2) * self._turns.mT.unsqueeze(1)
        else:
            columns = self._slopes.unsqueeze(2) * self._outer.mT.unsqueeze(1)
        return times(columns, self.directions)

    def inner_product(self, x: Float[Tensor, "c n h"]) -> Float[Tensor, "c n d"]:
        if self._outer is not None:
            return torch.bmm(self._slopes * x, self._outer)
        assert self._turns is not None
        return torch.baddbmm(super().inner_product(x), self._slopes * x, self._turns)

    def log_det(self, h: Float[Tensor, ""]) -> Float[Tensor, "c n"]:
        return log_abs_det_of_identity_plus(h * self.jacobian())

    @cached_property
    def _outer(self) -> Tensor | None:
        """Return the vectors V_h, unless they are others for each latent."""
        if self._turns is None:
            return self._weighted
        if self.w.shape[1] > 1:
            return None
        return torch.addcmul(self._turns, self.w.mT, self.directions)

    @cached_property
    def _slopes(self) -> Tensor:
        """``tanh'(s)``."""
        return 1 - self.tanh.square()
