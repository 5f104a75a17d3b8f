"""A bank of networks with two hidden layers, with every derivative in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.potentials.cached import cached_property
from flowfactor.potentials.closed_form import ClosedForm, Coefficients, StackedParameters, times
from flowfactor.potentials.stacked import StackedPotentials
from flowfactor.potentials.time_features import TimeFeatures
from flowfactor.registries import FIELDS


@FIELDS.register("mlp")
class MLPPotential(StackedPotentials):
    r"""K potentials, each a network of two hidden layers of H units and one output.

    .. math::

        \begin{aligned}
        u(z, t) &= \sum_j w_j(t) \tanh(s_{2,j}) + c(t) \cdot z + e(t), \\
        s_1 &= A z + b_1(t), \qquad s_2 = W \tanh(s_1) + b_2(t), \\
        \nabla u &= A^\top g_1 + c, \qquad
          g_2 = w \odot \mathrm{sech}^2(s_2), \qquad g_1 = \mathrm{sech}^2(s_1) \odot W^\top g_2, \\
        \Delta u &= \sum_h (W^\top g_2)_h \tanh''(s_{1,h})\, |a_h|^2
          + \sum_j w_j \tanh''(s_{2,j})\, |(W\, \mathrm{diag}(\mathrm{sech}^2(s_1))\, A)_j|^2
        \end{aligned}

    This is the network that the authors of flow factorized representation learning train, in which
    the time enters by ``b_2(t)`` only: they add an embedding of the time to the first hidden
    layer, which W makes a bias of the second. With ``bounded`` a tanh follows the sum over j, as
    it does there; it also bounds how far a potential can be climbed. All coefficients may move in
    time here, as those of a :class:`~flowfactor.potentials.RidgePotential` do, of the same
    functions of time.

    A gradient costs four matrix products: there and back again. The Laplacian pushes the D unit
    vectors through the second layer together, ``B D H^2``, against D passes forth and back by
    automatic differentiation; with H < D it contracts the Gram matrix ``A A^T`` instead,
    ``B H^3``. No ``(B, D, D)`` tensor is made but for the Hessian itself.

    Args:
        names: the names of the K transformations.
        dim: the latent size D.
        width: the size H of both hidden layers.
        horizon: the time T up to which the coefficients are resolved: the last frame.
        frequencies: the number F of frequencies of the coefficients: ``pi / (2 T) * 2^i`` radians
            per frame for i = 0..F-1.
        autonomous: the coefficients do not depend on time.
        rank: the number r of squares of a quadratic term ``1/2 sum_r q_r(t) (p_r . z)^2``; 0
            leaves it out.
        bounded: a tanh of the network's output, before the linear and quadratic terms.

    Raises:
        ValueError: a size that is not positive, or names that repeat.

    Sources: Song, Keller, Sebe, Welling, arXiv:2309.13167, and their code,
    https://github.com/KingJamesSong/latent-flow, for the network; Onken, Wu Fung, Li, Ruthotto,
    "OT-Flow", AAAI 2021, arXiv:2006.00104, for exact Laplacians of networks in one pass.

    Example:
        >>> import torch
        >>> bank = MLPPotential(("scaling", "rotation"), dim=3, width=16)
        >>> z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        >>> value, time, gradient, laplacian = bank["rotation"].derivatives(z, 2.0)
        >>> hessian = bank["rotation"].hessian(z, 2.0)
        >>> torch.allclose(laplacian, hessian.diagonal(dim1=1, dim2=2).sum(-1), atol=1e-5)
        True
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
        bounded: bool = False,
    ) -> None:
        super().__init__(
            names,
            dim,
            width,
            ((width, 1.0), (width, 1.0), (width, 20.0)),
            horizon=horizon,
            frequencies=frequencies,
            autonomous=autonomous,
            rank=rank,
        )
        self.bounded = bounded
        self.mixing = nn.Parameter(torch.randn(len(self.names), width, width) / math.sqrt(width))

    def parameters_of(self, which: slice | Int[Tensor, "c"]) -> MLPParameters:
        """Return the stacked parameters of some of the potentials, views for a slice."""
        return MLPParameters(
            self.directions[which],
            self.coefficients[which],
            None if self.axes is None else self.axes[which],
            TimeFeatures(self.frequencies, self.horizon),
            self.mixing[which],
            self.bounded,
        )


@dataclass(frozen=True, eq=False)
class MLPParameters(StackedParameters):
    """Stacked parameters of C networks; ``mixing`` is W, from the first layer to the second."""

    mixing: Float[Tensor, "c h h"]
    bounded: bool

    def at(
        self,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> ClosedForm:
        """Return the closed forms at latents and times."""
        form = _BoundedForm if self.bounded else _MLPForm
        return form(self, z, t, vector)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that hold the parameters."""
        return (*super().tensors(), self.mixing)


class _MLPForm(ClosedForm):
    """``f(s) = sum_j w_j tanh(s2_j)`` with ``s2 = W tanh(s1) + b2`` and ``s1 = s + b1``."""

    def __init__(
        self,
        parameters: MLPParameters,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> None:
        super().__init__(parameters, z, t, vector)
        self.mixing = parameters.mixing

    def own_sizes(self) -> tuple[int, ...]:
        H = self.directions.shape[1]
        return H, H, H

    def inner_value(self) -> Float[Tensor, "c n"]:
        return (self._w * self._tanh2).sum(-1)

    def inner_time(self, rates: tuple[Tensor, ...]) -> Float[Tensor, "c n"]:
        db1, db2, dw = rates
        return (dw * self._tanh2 + self._g2 * db2).sum(-1) + (self.slope * db1).sum(-1)

    @cached_property
    def slope(self) -> Float[Tensor, "c n h"]:
        return self._back * self._d1

    def inner_laplacian(self) -> Float[Tensor, "c n"]:
        A, W = self.directions, self.mixing
        first = torch.bmm(self._bend1, A.square().sum(-1, keepdim=True)).squeeze(-1)
        if A.shape[1] < A.shape[2]:
            # Row j of W diag(tanh'(s1)) A has the squared length x_j . G x_j, x_j being row j of
            # W diag(tanh'(s1)) and G = A A^T, which has fewer columns than A.
            rows = self._d1.unsqueeze(2) * W.unsqueeze(1)
            lengths = (times(rows, torch.bmm(A, A.mT)) * rows).sum(-1)
        else:
            # A product with itself differentiates faster than a power.
            lengths = (self._pushed * self._pushed).sum(2)
        return first + (self._bend2 * lengths).sum(-1)

    def inner_hessian(self) -> Float[Tensor, "c n d d"]:
        A, pushed = self.directions, self._pushed
        first = times(self._bend1.unsqueeze(2) * A.mT.contiguous().unsqueeze(1), A)
        return first + (self._bend2.unsqueeze(2) * pushed) @ pushed.mT

    def bend(self, x: Float[Tensor, "c #n m h"]) -> Float[Tensor, "c n m h"]:
        W, d1 = self.mixing, self._d1.unsqueeze(2)
        second = times(self._bend2.unsqueeze(2) * times(d1 * x, W.mT), W)
        return self._bend1.unsqueeze(2) * x + d1 * second

    @property
    def _w(self) -> Tensor:
        return self.coefficients.own[2]

    @cached_property
    def _tanh1(self) -> Tensor:
        return torch.baddbmm(self.coefficients.own[0], self.z, self.directions.mT).tanh()

    @cached_property
    def _tanh2(self) -> Tensor:
        return torch.baddbmm(self.coefficients.own[1], self._tanh1, self.mixing.mT).tanh()

    @cached_property
    def _d1(self) -> Tensor:
        """``tanh'(s1)``."""
        return 1 - self._tanh1.square()

    @cached_property
    def _g2(self) -> Tensor:
        """Return the derivative of f in s2."""
        return self._w * (1 - self._tanh2.square())

    @cached_property
    def _back(self) -> Tensor:
        """Return the derivative of f in the first hidden layer, ``tanh(s1)``."""
        return torch.bmm(self._g2, self.mixing)

    @cached_property
    def _pushed(self) -> Tensor:
        """``(C, N, D, H)``, the derivative of s2 in z: the unit vectors pushed forward at once."""
        # A copy of A^T keeps the large tensors in order.
        directions = self.directions.mT.contiguous().unsqueeze(1)
        return times(self._d1.unsqueeze(2) * directions, self.mixing.mT)

    @cached_property
    def _bend1(self) -> Tensor:
        """``W^T g2 * tanh''(s1)``, with ``tanh'' = -2 tanh tanh'``."""
        return -2 * self.slope * self._tanh1

    @cached_property
    def _bend2(self) -> Tensor:
        """``w * tanh''(s2)``."""
        return -2 * self._g2 * self._tanh2


class _BoundedForm(ClosedForm):
    """``tanh f`` for the f of the network: its slope is ``tanh'(f) f_s``, and so on."""

    def __init__(
        self,
        parameters: MLPParameters,
        z: Float[Tensor, "c n d"],
        t: Float[Tensor, "*cn"],
        vector: Float[Tensor, "c n d"] | None = None,
    ) -> None:
        super().__init__(parameters, z, t, vector)
        self.network = _MLPForm(parameters, z, t)

    def own_sizes(self) -> tuple[int, ...]:
        return self.network.own_sizes()

    @cached_property
    def coefficients(self) -> Coefficients:
        return self.network.coefficients

    def inner_value(self) -> Float[Tensor, "c n"]:
        return self._tanh

    def inner_time(self, rates: tuple[Tensor, ...]) -> Float[Tensor, "c n"]:
        return self._first * self.network.inner_time(rates)

    @cached_property
    def slope(self) -> Float[Tensor, "c n h"]:
        return self._first.unsqueeze(-1) * self.network.slope

    def inner_laplacian(self) -> Float[Tensor, "c n"]:
        length = torch.bmm(self.network.slope, self.directions).square().sum(-1)
        return self._first * self.network.inner_laplacian() + self._second * length

    def inner_hessian(self) -> Float[Tensor, "c n d d"]:
        gradient = torch.bmm(self.network.slope, self.directions)
        outer = gradient.unsqueeze(-1) * gradient.unsqueeze(-2)
        first, second = (factor[:, :, None, None] for factor in (self._first, self._second))
        return first * self.network.inner_hessian() + second * outer

    def bend(self, x: Float[Tensor, "c #n m h"]) -> Float[Tensor, "c n m h"]:
        slope = self.network.slope.unsqueeze(2)
        first, second = (factor[:, :, None, None] for factor in (self._first, self._second))
        return first * self.network.bend(x) + second * slope * (slope * x).sum(-1, keepdim=True)

    @cached_property
    def _tanh(self) -> Tensor:
        return self.network.inner_value().tanh()

    @cached_property
    def _first(self) -> Tensor:
        """``tanh'(f) (C, N)``."""
        return 1 - self._tanh.square()

    @cached_property
    def _second(self) -> Tensor:
        """``tanh''(f) (C, N)``."""
        return -2 * self._first * self._tanh
