"""The default bank: sums of ridge functions with every derivative in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.potentials.bank import PotentialBank, check_batch, weigh
from flowfactor.potentials.base import Field, Potential, Time, as_time, check_latents


class RidgePotential(PotentialBank):
    r"""K potentials, each a sum of H ridge functions with coefficients that move in time.

    .. code-block:: text

        u(z, t)     = sum_h w_h(t) logcosh(a_h . z + b_h(t)) + c(t) . z + e(t)
        grad u      = A^T (w * tanh(s)) + c             with s = A z + b
        laplacian u = sum_h w_h sech^2(s_h) ||a_h||^2
        Hessian u   = A^T diag(w sech^2(s)) A
        du/dt       = sum_h (w_h' logcosh(s_h) + w_h tanh(s_h) b_h') + c' . z + e'

    The coefficients ``(w, b, c, e)(t)`` are learned combinations of 1, t, and sines and cosines of
    t, so that their derivatives w', b', c', e' are exact. The offset e moves no latent, but the
    Hamilton-Jacobi equation needs it: a constant velocity v has the potential
    ``v . z - ||v||^2 t / 2``.

    An evaluation costs two matrix products, whatever is asked for, and no automatic
    differentiation. The parameters of the K potentials are stacked, and a choice of one potential
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
    ) -> None:
        super().__init__(names, dim)
        for what, size in (("width", width), ("frequencies", frequencies), ("horizon", horizon)):
            if not size > 0:
                raise ValueError(f"{what} must be positive; it is {size}")
        K = len(self.names)
        self.width = width
        self.horizon = float(horizon)
        self.autonomous = autonomous
        # s = A z has unit variance for z ~ N(0, I), and the flow starts slow: the decoder should
        # not have to chase latents that run away before anything is learned.
        self.directions = nn.Parameter(torch.randn(K, width, dim) / math.sqrt(dim))
        # Rows: the constant part, then what multiplies t / T, the sines and the cosines.
        rows = 1 if autonomous else 2 + 2 * frequencies
        coefficients = torch.randn(K, rows, 2 * width + dim + 1) / 30
        coefficients[:, 0] = torch.cat(
            [torch.randn(K, width) / 20, torch.randn(K, width), torch.zeros(K, dim + 1)], dim=1
        )
        self.coefficients = nn.Parameter(coefficients)
        self.frequencies: Tensor
        spectrum = math.pi / (2 * horizon) * 2.0 ** torch.arange(frequencies)
        self.register_buffer("frequencies", spectrum, persistent=False)

    def member(self, index: int) -> Potential:
        """Return the potential of one transformation."""
        return _Member(self, index)

    def per_sample(self, k: Int[Tensor, "b"]) -> Potential:
        """Return the potential that applies ``u^{k_i}`` to sample i, grouped by k."""
        return _Grouped(self, k)

    def mixture(self, weights: Float[Tensor, "b k"]) -> Potential:
        """Return ``sum_k weights[i, k] u^k`` for sample i, all K in one batched product."""
        return _Mixture(self, weights)

    def parameters_of(self, which: slice | Int[Tensor, "c"]) -> _Parameters:
        """Return the stacked parameters of some of the potentials, a view for a slice."""
        return _Parameters(
            self.directions[which], self.coefficients[which], self.frequencies, self.horizon
        )

    def extra_repr(self) -> str:
        """Describe the bank in one line."""
        return (
            f"{', '.join(self.names)}; dim={self.dim}, width={self.width}, "
            f"autonomous={self.autonomous}"
        )


class _Parameters(NamedTuple):
    """Stacked parameters of C potentials, and the closed forms over them."""

    directions: Float[Tensor, "c h d"]
    coefficients: Float[Tensor, "c r m"]
    frequencies: Float[Tensor, "f"]
    horizon: float

    def evaluate(
        self, z: Float[Tensor, "c n d"], t: Float[Tensor, "*cn"], fields: Sequence[Field]
    ) -> tuple[Tensor, ...]:
        """Return the asked fields, ``(C, N)`` or ``(C, N, D)``; ``t`` is ``()`` or ``(C, N)``."""
        A = self.directions
        (w, b, c, e), rates = self._coefficients_at(t, with_rates="time" in fields)
        s = torch.baddbmm(b, z, A.mT)
        tanh = s.tanh()
        log_cosh = _log_cosh(s) if {"value", "time"} & set(fields) else None
        found: list[Tensor] = []
        for field in fields:
            if field == "gradient":
                found.append(torch.baddbmm(c, w * tanh, A))
            elif field == "laplacian":
                squares = A.square().sum(-1, keepdim=True)
                found.append(torch.bmm(w * (1 - tanh.square()), squares).squeeze(-1))
            elif field == "hessian":
                bend = (w * (1 - tanh.square())).unsqueeze(-2)
                found.append((bend * A.mT.unsqueeze(1)) @ A.unsqueeze(1))
            elif field == "value":
                assert log_cosh is not None
                found.append((w * log_cosh).sum(-1) + (c * z).sum(-1) + e.squeeze(-1))
            elif field == "time":
                assert log_cosh is not None
                if rates is None:
                    found.append(torch.zeros_like(z[..., 0]))
                else:
                    dw, db, dc, de = rates
                    moving = (dw * log_cosh + w * tanh * db).sum(-1)
                    found.append(moving + (dc * z).sum(-1) + de.squeeze(-1))
            else:
                raise ValueError(
                    f"a potential has no field {field!r}; there are value, time, gradient, "
                    f"laplacian, hessian"
                )
        return tuple(found)

    def _coefficients_at(
        self, t: Float[Tensor, "*cn"], with_rates: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
        """Return ``(w, b, c, e)`` at t, each ``(C, 1 or N, .)``, and their time derivatives."""
        C, H, D = self.directions.shape
        sizes = (H, H, D, 1)
        if self.coefficients.shape[1] == 1:
            return self.coefficients.split(sizes, dim=-1), None
        # One row for the batch, or one for every latent.
        at = t.reshape(*t.shape, 1) if t.ndim else t.view(1, 1, 1)
        angle = at * self.frequencies
        sin, cos = angle.sin(), angle.cos()
        features = torch.cat([torch.ones_like(at), at / self.horizon, sin, cos], dim=-1)
        values = torch.bmm(features.expand(C, -1, -1), self.coefficients).split(sizes, dim=-1)
        if not with_rates:
            return values, None
        rates = torch.cat(
            [
                torch.zeros_like(at),
                torch.full_like(at, 1 / self.horizon),
                cos * self.frequencies,
                -sin * self.frequencies,
            ],
            dim=-1,
        )
        return values, torch.bmm(rates.expand(C, -1, -1), self.coefficients).split(sizes, dim=-1)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.directions, self.coefficients)


class _Member(Potential):
    """One potential of the bank; always reads the bank's current parameters."""

    def __init__(self, bank: RidgePotential, index: int) -> None:
        super().__init__()
        self.dim = bank.dim
        self.bank = bank
        self.index = index

    def evaluate(
        self, z: Float[Tensor, "b d"], t: Time, fields: Sequence[Field]
    ) -> tuple[Tensor, ...]:
        check_latents(z, self.dim)
        time = as_time(t, z)
        parameters = self.bank.parameters_of(slice(self.index, self.index + 1))
        found = parameters.evaluate(
            z.unsqueeze(0), time.unsqueeze(0) if time.ndim else time, fields
        )
        return tuple(field.squeeze(0) for field in found)

    def extra_repr(self) -> str:
        return f"{self.bank.names[self.index]!r}"


class _Grouped(Potential):
    """Sample i under the potential ``k_i``, as one batched product over chunks of equal k.

    Samples are grouped by k and the groups cut into chunks of ``ceil(B / G)`` rows, G being the
    number of different k: at most 2 G chunks and 2 B rows, however uneven the groups, and whatever
    K. Groups of equal size that already lie in order are a view, and nothing is copied.
    """

    def __init__(self, bank: RidgePotential, k: Int[Tensor, "b"]) -> None:
        super().__init__()
        self.dim = bank.dim
        self.size = B = k.shape[0]
        chosen, counts = k.unique(return_counts=True)
        G = max(len(chosen), 1)
        rows = max(-(-B // G), 1)
        chunks = -(-counts // rows)
        owner = chosen.repeat_interleave(chunks)
        self.shape = (len(owner), rows)
        contiguous = len(owner) * rows == B and bool((k[1:] >= k[:-1]).all())
        self.slots: Tensor | None = None
        self.back: Tensor | None = None
        if not contiguous:
            order = k.argsort(stable=True)
            # Row r of a group lies in chunk r // rows of that group, at r % rows.
            starts = counts.cumsum(0) - counts
            rank = torch.arange(B, device=k.device) - starts.repeat_interleave(counts)
            first_chunk = (chunks.cumsum(0) - chunks).repeat_interleave(counts)
            place = first_chunk * rows + rank
            # Empty places repeat the first sample: finite, and dropped again.
            slots = torch.zeros(len(owner) * rows, dtype=torch.long, device=k.device)
            self.slots = slots.index_copy(0, place, order)
            self.back = torch.empty_like(order).index_copy(0, order, place)
        everything = len(owner) == len(bank) and bool(
            (owner == torch.arange(len(bank), device=k.device)).all()
        )
        self._parameters_read = bank.parameters_of(slice(None) if everything else owner)

    def evaluate(
        self, z: Float[Tensor, "b d"], t: Time, fields: Sequence[Field]
    ) -> tuple[Tensor, ...]:
        check_batch(z, self.size, self.dim)
        time = as_time(t, z)
        found = self._parameters_read.evaluate(
            self._arrange(z), self._arrange(time) if time.ndim else time, fields
        )
        return tuple(self._restore(field) for field in found)

    def tensors(self) -> tuple[Tensor, ...]:
        return self._parameters_read.tensors()

    def _arrange(self, x: Tensor) -> Tensor:
        if self.slots is not None:
            x = x.index_select(0, self.slots)
        return x.reshape(*self.shape, *x.shape[1:])

    def _restore(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        return x if self.back is None else x.index_select(0, self.back)


class _Mixture(Potential):
    """``sum_k weights[i, k] u^k`` for sample i, over the stacked parameters."""

    def __init__(self, bank: RidgePotential, weights: Float[Tensor, "b k"]) -> None:
        super().__init__()
        self.dim = bank.dim
        self.bank = bank
        self.weights = weights

    def evaluate(
        self, z: Float[Tensor, "b d"], t: Time, fields: Sequence[Field]
    ) -> tuple[Tensor, ...]:
        check_batch(z, self.weights.shape[0], self.dim)
        K = len(self.bank)
        time = as_time(t, z)
        found = self.bank.parameters_of(slice(None)).evaluate(
            z.expand(K, -1, -1), time.expand(K, -1) if time.ndim else time, fields
        )
        return tuple(weigh(field, self.weights.to(z.dtype)) for field in found)

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.bank.parameters(), self.weights)


def _log_cosh(x: Tensor) -> Tensor:
    """Return ``log cosh x`` without overflow: ``|x| + log1p(exp(-2 |x|)) - log 2``."""
    magnitude = x.abs()
    return magnitude + F.softplus(-2 * magnitude) - math.log(2.0)
