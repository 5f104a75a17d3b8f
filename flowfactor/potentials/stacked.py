"""Banks whose K fields are one family with stacked parameters, and the choices among them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.potentials.bank import F_co, FieldBank, PotentialBank, Selection, weigh
from flowfactor.potentials.base import Potential, VectorField
from flowfactor.potentials.closed_form import StackedParameters
from flowfactor.potentials.query import Query, Time, as_step, as_time, check_latents
from flowfactor.potentials.time_features import spectrum


class StackedFields(FieldBank[F_co]):
    """K fields whose parameters are stacked; a subclass has :meth:`parameters_of`.

    Here is the choice of a member, of one field per sample, and of a soft mixture, for all of which
    only the parameters of what is chosen are touched.
    """

    _choices: Choices

    @abstractmethod
    def parameters_of(self, which: slice | Int[Tensor, "c"]) -> StackedParameters:
        """Return the stacked parameters of some of the fields, views for a slice."""

    def member(self, index: int) -> F_co:
        """Return the field of one transformation."""
        return self._choices.member(self, index)  # type: ignore[no-any-return]

    def per_sample(self, k: Int[Tensor, "b"]) -> F_co:
        """Return the field that applies ``v^{k_i}`` to sample i, grouped by k."""
        return self._choices.per_sample(self, k)  # type: ignore[no-any-return]

    def mixture(self, weights: Float[Tensor, "b k"]) -> F_co:
        """Return ``sum_k weights[i, k] v^k`` for sample i, all K in one batched product."""
        return self._choices.mixture(self, weights)  # type: ignore[no-any-return]

    def velocities(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b k d"]:
        """Return the velocities of all K fields at the same latents, ``(B, K, D)``."""
        check_latents(z, self.dim)
        query = Query(z, as_time(t, z), ("velocity",), None)
        every = self.parameters_of(slice(None))
        (found,) = every.evaluate(query.map(lambda x: x.expand(len(self), *x.shape)))
        return found.transpose(0, 1)


class TimedFields(StackedFields[F_co]):
    r"""K fields of one family, of ``s = A z`` and coefficients that move in time.

    Here are the parameters that all families have: A, the coefficients, and the axes of a quadratic
    term ``1/2 sum_r q_r(t) (p_r . z)^2``.

    Args:
        names: the names of the K transformations.
        dim: the latent size D.
        width: the number H of rows of A.
        own: the sizes of the groups of coefficients that the family has, and what their constant
            parts, standard normal, are divided by at the start.
        horizon: the time T up to which the coefficients are resolved: the last frame.
        frequencies: the number F of frequencies of the coefficients.
        autonomous: the coefficients do not depend on time.
        rank: the number r of squares in the quadratic term.

    Raises:
        ValueError: a size that is not positive (``rank``: negative), or names that repeat.
    """

    def __init__(
        self,
        names: Sequence[str],
        dim: int,
        width: int,
        own: Sequence[tuple[int, float]],
        *,
        horizon: float,
        frequencies: int,
        autonomous: bool,
        rank: int,
    ) -> None:
        super().__init__(names, dim)
        for what, size in (("width", width), ("frequencies", frequencies), ("horizon", horizon)):
            if not size > 0:
                raise ValueError(f"{what} must be positive; it is {size}")
        if rank < 0:
            raise ValueError(f"rank, the number of squares, must be at least 0; it is {rank}")
        K = len(self.names)
        self.width = width
        self.horizon = float(horizon)
        self.autonomous = autonomous
        self.rank = rank
        # s = A z has unit variance for z ~ N(0, I), and the flow starts slow: the decoder should
        # not have to chase latents that run away before anything is learned.
        self.directions = nn.Parameter(torch.randn(K, width, dim) / math.sqrt(dim))
        # Rows: the constant part, then what multiplies t / T, the sines and the cosines.
        rows = 1 if autonomous else 2 + 2 * frequencies
        inner = sum(size for size, _ in own)
        coefficients = torch.randn(K, rows, inner + dim + 1 + rank) / 30
        start = [torch.randn(K, size) / divisor for size, divisor in own]
        coefficients[:, 0, : inner + dim + 1] = torch.cat([*start, torch.zeros(K, dim + 1)], dim=1)
        self.coefficients = nn.Parameter(coefficients)
        self.register_parameter(
            "axes", nn.Parameter(torch.randn(K, rank, dim) / math.sqrt(dim)) if rank else None
        )
        self.axes: nn.Parameter | None
        self.frequencies: Tensor
        self.register_buffer("frequencies", spectrum(frequencies, horizon), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Converted to float64 they would keep the rounding of float32.
        exact = spectrum(len(self.frequencies), self.horizon, self.frequencies.dtype)
        self.frequencies = exact.to(self.frequencies.device)
        return self

    def extra_repr(self) -> str:
        """Describe the bank in one line."""
        return (
            f"{', '.join(self.names)}; dim={self.dim}, width={self.width}, "
            f"autonomous={self.autonomous}, rank={self.rank}"
        )


class _Member(Selection):
    """One field of the bank; always reads the bank's current parameters."""

    def __init__(self, bank: StackedFields[VectorField], index: int) -> None:
        super().__init__(bank, index)
        self.bank = bank
        self.index = index

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        found = self._own_parameters().evaluate(query.map(lambda x: x.unsqueeze(0)))
        return tuple(quantity.squeeze(0) for quantity in found)

    def log_det(self, z: Float[Tensor, "b d"], t: Time, h: float | Tensor) -> Float[Tensor, "b"]:
        check_latents(z, self.dim)
        form = self._own_parameters().at(z.unsqueeze(0), self._time(t, z))
        return form.log_det(as_step(h, z)).squeeze(0)

    def _own_parameters(self) -> StackedParameters:
        return self.bank.parameters_of(slice(self.index, self.index + 1))

    def _time(self, t: Time, z: Tensor) -> Tensor:
        time = as_time(t, z)
        return time.unsqueeze(0) if time.ndim else time

    def extra_repr(self) -> str:
        return f"{self.bank.names[self.index]!r}"


class _Grouped(Selection):
    """Sample i under the field ``v^{k_i}``, as one batched product over chunks of equal k.

    Samples are grouped by k and the groups cut into chunks of ``ceil(B / G)`` rows, G being the
    number of different k: at most 2 G chunks and 2 B rows, however uneven the groups, and whatever
    K. Groups of equal size that already lie in order are a view, and nothing is copied.
    """

    def __init__(self, bank: StackedFields[VectorField], k: Int[Tensor, "b"]) -> None:
        super().__init__(bank, k)
        B = k.shape[0]
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

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        found = self._parameters_read.evaluate(query.map(self._arrange))
        return tuple(self._restore(quantity) for quantity in found)

    def log_det(self, z: Float[Tensor, "b d"], t: Time, h: float | Tensor) -> Float[Tensor, "b"]:
        check_latents(z, self.dim, self.size)
        form = self._parameters_read.at(self._arrange(z), self._time(t, z))
        return self._restore(form.log_det(as_step(h, z)))

    def tensors(self) -> tuple[Tensor, ...]:
        return self._parameters_read.tensors()

    def _time(self, t: Time, z: Tensor) -> Tensor:
        time = as_time(t, z)
        return self._arrange(time) if time.ndim else time

    def _arrange(self, x: Tensor) -> Tensor:
        if self.slots is not None:
            x = x.index_select(0, self.slots)
        return x.reshape(*self.shape, *x.shape[1:])

    def _restore(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        return x if self.back is None else x.index_select(0, self.back)


class _Mixture(Selection):
    """``sum_k weights[i, k] v^k`` for sample i, over the stacked parameters."""

    def __init__(self, bank: StackedFields[VectorField], weights: Float[Tensor, "b k"]) -> None:
        super().__init__(bank, weights)
        self.weights = weights
        self._parameters_read = bank.parameters_of(slice(None))

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        weights = self.weights.to(query.z.dtype)
        found = self._parameters_read.evaluate(
            query.map(lambda x: x.expand(weights.shape[1], *x.shape))
        )
        return tuple(weigh(quantity, weights) for quantity in found)

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self._parameters_read.tensors(), self.weights)


class _PotentialMember(_Member, Potential):
    """One potential of the bank."""


class _GroupedPotentials(_Grouped, Potential):
    """Sample i under the potential ``u^{k_i}``."""


class _PotentialMixture(_Mixture, Potential):
    """``sum_k weights[i, k] u^k`` for sample i."""


class Choices(NamedTuple):
    """The kinds of fields that are chosen from a bank."""

    member: Any
    per_sample: Any
    mixture: Any


StackedFields._choices = Choices(_Member, _Grouped, _Mixture)


class StackedPotentialChoices(StackedFields[Potential], PotentialBank):
    """K potentials whose parameters are stacked."""

    _choices = Choices(_PotentialMember, _GroupedPotentials, _PotentialMixture)


class StackedPotentials(TimedFields[Potential], StackedPotentialChoices):
    r"""K potentials of one family, ``f(A z, t) + c(t) . z + e(t) + 1/2 sum_r q_r(t) (p_r . z)^2``.

    A family gives the closed forms of its f, see
    :class:`~flowfactor.potentials.closed_form.ClosedForm`, and :meth:`parameters_of`; its arguments
    are those of :class:`TimedFields`.
    """
