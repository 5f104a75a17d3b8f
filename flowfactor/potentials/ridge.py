"""The default bank: sums of ridge functions with every derivative in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.potentials.base import VectorField
from flowfactor.potentials.cached import cached_property
from flowfactor.potentials.closed_form import ClosedForm, StackedParameters
from flowfactor.potentials.stacked import StackedPotentials, TimedFields
from flowfactor.potentials.time_features import TimeFeatures


class RidgePotential(StackedPotentials):
    r"""K potentials, each a sum of H ridge functions with coefficients that move in time.

    .. math::

        \begin{aligned}
        u(z, t) &= \sum_h w_h(t) \log\cosh(s_h) + c(t) \cdot z + e(t),
          \qquad s_h = a_h \cdot z + b_h(t), \\
        \nabla u &= A^\top (w \odot \tanh(s)) + c, \\
        \Delta u &= \sum_h w_h\, \mathrm{sech}^2(s_h)\, |a_h|^2, \\
        \mathrm{Hess}\, u &= A^\top \mathrm{diag}(w \odot \mathrm{sech}^2(s))\, A, \\
        \partial_t u &= \sum_h \bigl( w_h' \log\cosh(s_h) + w_h b_h' \tanh(s_h) \bigr)
          + c' \cdot z + e'
        \end{aligned}

    The coefficients ``(w, b, c, e)(t)`` are learned combinations of 1, t, and sines and cosines of
    t, so that their derivatives w', b', c', e' are exact. The offset e moves no latent, but the
    Hamilton-Jacobi equation needs it: a constant velocity v has the potential
    ``v . z - ||v||^2 t / 2``. With a ``rank`` r there is another term, ``1/2 sum_r q_r(t)
    (p_r . z)^2``, whose flow, growth and decay along the axes p_r, does not saturate.

    An evaluation costs two matrix products, whatever is asked for, and no automatic
    differentiation; a Hessian-vector product one more, and the Hessian the ``B D^2 H`` that it
    has entries for. The parameters of the K potentials are stacked, and a choice of one potential
    per sample evaluates only those chosen.

    Args:
        names: the names of the K transformations.
        dim: the latent size D.
        width: the number H of ridge functions of each potential.
        horizon: the time T up to which the coefficients are resolved: the last frame.
        frequencies: the number F of frequencies of the coefficients: ``pi / (2 T) * 2^i`` radians
            per frame for i = 0..F-1, slow enough that a frame is a small step.
        autonomous: the coefficients do not depend on time; the flow of such a potential is a
            one-parameter group, ``flow(s) after flow(t) = flow(s + t)``.
        rank: the number r of squares in the quadratic term; 0 leaves it out.

    Raises:
        ValueError: a size that is not positive, or names that repeat.

    Example:
        >>> import torch
        >>> bank = RidgePotential(("scaling", "rotation"), dim=3, width=16)
        >>> z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        >>> value, time, gradient, laplacian = bank["rotation"].derivatives(z, 2.0)
        >>> gradient.shape, laplacian.shape
        (torch.Size([5, 3]), torch.Size([5]))
        >>> bank.select(torch.tensor([0, 1, 1, 0, 1])).gradient(z, 2.0).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        names: Sequence[str],
        dim: int,
        width: int = 256,
        *,
        horizon: float = 8.0,
        frequencies: int = 4,
        autonomous: bool = False,
        rank: int = 0,
    ) -> None:
        super().__init__(
            names,
            dim,
            width,
            ((width, 20.0), (width, 1.0)),
            horizon=horizon,
            frequencies=frequencies,
            autonomous=autonomous,
            rank=rank,
        )

    def parameters_of(self, which: slice | Int[Tensor, "c"]) -> RidgeParameters:
        """Return the stacked parameters of some of the potentials, views for a slice."""
        return gradient_parameters(self, which)


def gradient_parameters(
    bank: TimedFields[VectorField], which: slice | Int[Tensor, "c"]
) -> RidgeParameters:
    """Return the parameters of potentials from those of a bank whose coefficients begin with w."""
    weighted = None
    if bank.autonomous:
        # Not from the tensors below: a gradient with respect to one must not reach another.
        w = bank.coefficients[which][:, 0, : bank.width]
        weighted = w.unsqueeze(-1) * bank.directions[which]
    return RidgeParameters(
        bank.directions[which],
        bank.coefficients[which],
        None if bank.axes is None else bank.axes[which],
        TimeFeatures(bank.frequencies, bank.horizon),
        weighted,
    )


@dataclass(frozen=True, eq=False)
class RidgeParameters(StackedParameters):
    """Stacked parameters of C sums of ridge functions; ``weighted`` is ``w A``, if w is constant.

    With it a gradient is two matrix products and a tanh.
    """

    weighted: Float[Tensor, "c h d"] | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that hold the parameters."""
        own = () if self.weighted is None else (self.weighted,)
        return (*super().tensors(), *own)

    def at(
        self,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> ClosedForm:
        """Return the closed forms at latents and times."""
        return RidgeForm(self, z, t, vector)


class RidgeForm(ClosedForm):
    """``f(s) = sum_h w_h logcosh(s_h + b_h)``."""

    def __init__(
        self,
        parameters: RidgeParameters,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> None:
        super().__init__(parameters, z, t, vector)
        self._weighted = parameters.weighted

    def own_sizes(self) -> tuple[int, ...]:
        """Return the numbers of w and b."""
        H = self.directions.shape[1]
        return H, H

    @property
    def w(self) -> Float[Tensor, "c #n h"]:
        """The weights of the ridge functions."""
        return self.coefficients.own[0]

    @cached_property
    def tanh(self) -> Float[Tensor, "c n h"]:
        """``tanh(s_h + b_h)``."""
        return self._s.tanh()

    def inner_value(self) -> Float[Tensor, "c n"]:
        """Return ``f``."""
        return (self.w * self._log_cosh).sum(-1)

    def inner_time(self, rates: tuple[Tensor, ...]) -> Float[Tensor, "c n"]:
        """Return ``df/dt``."""
        dw, db = rates
        return (dw * self._log_cosh + self.slope * db).sum(-1)

    @cached_property
    def slope(self) -> Float[Tensor, "c n h"]:
        """``w tanh(s)``."""
        return self.w * self.tanh

    def slope_product(self) -> tuple[Float[Tensor, "c n h"], Float[Tensor, "c h d"]]:
        """Return two matrices whose product is the inner part of the gradient."""
        if self._weighted is None:
            return super().slope_product()
        return self.tanh, self._weighted

    def inner_laplacian(self) -> Float[Tensor, "c n"]:
        """Return ``sum_h w_h sech^2(s_h) ||a_h||^2``."""
        squares = self.directions.square().sum(-1, keepdim=True)
        return torch.bmm(self._bends, squares).squeeze(-1)

    def bend(self, x: Float[Tensor, "c #n m h"]) -> Float[Tensor, "c n m h"]:
        """Return ``w sech^2(s) * x``."""
        return self._bends.unsqueeze(2) * x

    @cached_property
    def _s(self) -> Tensor:
        return torch.baddbmm(self.coefficients.own[-1], self.z, self.directions.mT)

    @cached_property
    def _log_cosh(self) -> Tensor:
        return _log_cosh(self._s)

    @cached_property
    def _bends(self) -> Tensor:
        """``w sech^2(s)``, the diagonal of f_ss."""
        return self.w * (1 - self.tanh.square())


def _log_cosh(x: Tensor) -> Tensor:
    """Return ``log cosh x`` without overflow: ``|x| + log1p(exp(-2 |x|)) - log 2``."""
    magnitude = x.abs()
    return magnitude + F.softplus(-2 * magnitude) - math.log(2.0)
