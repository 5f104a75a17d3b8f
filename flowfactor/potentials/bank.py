"""A bank of K named fields, and the three ways to choose among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.checks import brief
from flowfactor.potentials.base import Potential, VectorField, ZeroPotential
from flowfactor.potentials.query import Query, Time, as_time, check_latents
from solvers.registry import suggest

Selector = int | str | Tensor
"""Which field: an index, a name, one index per sample ``(B,)``, or weights ``(B, K)``."""

F_co = TypeVar("F_co", bound=VectorField, covariant=True)


class FieldBank(nn.Module, ABC, Generic[F_co]):
    """K named fields ``v^1 .. v^K`` on one latent space.

    ``bank["rotation"]`` and ``bank[1]`` are single fields; :meth:`select` also takes one index
    per sample or soft weights, and returns one field for the batch. The fields of a
    :class:`PotentialBank` are potentials.

    Args:
        names: the names of the transformations, all different.
        dim: the latent size D.

    Raises:
        ValueError: no name, a name given twice, or ``dim`` not positive.
    """

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a bank needs names that are all different; it got {list(names)}")
        if dim < 1:
            raise ValueError(f"dim must be at least 1; it is {dim}")
        self.names = tuple(names)
        self.dim = dim

    @abstractmethod
    def member(self, index: int) -> F_co:
        """Return the field of one transformation, ``0 <= index < K``."""

    @abstractmethod
    def per_sample(self, k: Int[Tensor, "b"]) -> F_co:
        """Return the field that applies ``v^{k_i}`` to sample i; ``k`` is already checked."""

    @abstractmethod
    def mixture(self, weights: Float[Tensor, "b k"]) -> F_co:
        """Return ``sum_k weights[i, k] v^k`` for sample i; ``weights`` is already checked."""

    @property
    def gradient_part(self) -> FieldBank[Potential]:
        """The bank of the fields' gradient parts.

        Raises:
            ValueError: the fields do not know their parts.
        """
        raise ValueError(f"the parts of a {type(self).__name__} are not known")

    @property
    def solenoidal_part(self) -> FieldBank[VectorField]:
        """The bank of the fields' solenoidal parts, whose divergence is 0.

        Raises:
            ValueError: the fields do not know their parts.
        """
        raise ValueError(f"the parts of a {type(self).__name__} are not known")

    def velocities(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b k d"]:
        """Return the velocities of all K fields at the same latents, ``(B, K, D)``."""
        return torch.stack([field.velocity(z, t) for field in self], dim=1)

    def index(self, name: int | str) -> int:
        """Return the index of a name, or check an index; negative ones count from the end.

        Raises:
            KeyError: there is no such name.
            IndexError: the index is not in ``[-K, K)``.
        """
        if isinstance(name, str):
            if name not in self.names:
                raise KeyError(
                    f"k: no transformation is named {name[:80]!r}; {suggest(name, self.names)}"
                )
            return self.names.index(name)
        if not -len(self) <= name < len(self):
            raise IndexError(
                f"k = {name} is out of range: there are {len(self)} transformations, "
                f"0 to {len(self) - 1} ({brief(self.names)})"
            )
        return int(name) % len(self)

    def select(self, k: Selector) -> F_co:
        """Return the field that ``k`` asks for.

        Args:
            k: an index or a name (one field for any batch); a tensor of integers ``(B,)``, one
                index per sample: only the chosen fields are evaluated; or a floating-point tensor
                ``(B, K)`` of weights, giving ``sum_k weights[i, k] v^k`` for sample i.

        Returns:
            A field; a potential, if the bank is one of potentials. A selection per sample reads
            the parameters when it is made: make a new one after an optimiser step.

        Raises:
            KeyError: an unknown name.
            IndexError: an index out of range.
            TypeError, ValueError: a tensor of another dtype or shape.
        """
        if isinstance(k, (int, str)) and not isinstance(k, bool):
            return self.member(self.index(k))
        if not isinstance(k, Tensor):
            raise TypeError(
                f"k is a {type(k).__name__}; give an index, a name, a long tensor (B,) or a "
                f"floating-point tensor of weights (B, {len(self)})"
            )
        if k.is_floating_point():
            if k.ndim != 2 or k.shape[1] != len(self):
                raise ValueError(
                    f"the weights k have the shape {tuple(k.shape)}; with {len(self)} "
                    f"transformations they must be (B, {len(self)})"
                )
            return self.mixture(k)
        if k.dtype == torch.bool or k.is_complex():
            raise TypeError(f"k has the dtype {k.dtype}; indices are integers, weights are floats")
        if k.ndim == 0:
            return self.member(self.index(int(k)))
        if k.ndim != 1:
            raise ValueError(
                f"k has the shape {tuple(k.shape)}; one index per sample has the shape (B,)"
            )
        if k.numel():
            low, high = (int(bound) for bound in torch.aminmax(k))
            if low < 0 or high >= len(self):
                raise IndexError(
                    f"k holds the index {low if low < 0 else high}, which is out of range: there "
                    f"are {len(self)} transformations, 0 to {len(self) - 1} "
                    f"({brief(self.names)})"
                )
        return self.per_sample(k.long())

    def __getitem__(self, k: int | str) -> F_co:
        return self.member(self.index(k))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[F_co]:
        return (self.member(k) for k in range(len(self)))


class PotentialBank(FieldBank[Potential], ABC):
    """K named potentials ``u^1 .. u^K`` on one latent space: the fields are their gradients."""

    @property
    def gradient_part(self) -> FieldBank[Potential]:
        """The bank itself."""
        return self

    @property
    def solenoidal_part(self) -> FieldBank[VectorField]:
        """A bank of fields at rest."""
        return bank_at_rest(self.names, self.dim)


class IndependentFields(FieldBank[F_co]):
    """A bank of fields of any kind, one object each.

    Args:
        fields: the field of each name, all of the same ``dim``.

    Raises:
        ValueError: the bank is empty or the fields differ in ``dim``.
    """

    def __init__(self, fields: Mapping[str, VectorField]) -> None:
        sizes = {field.dim for field in fields.values()}
        if len(sizes) != 1:
            raise ValueError(
                f"the fields of a bank must act on latents of one size; their dim is "
                f"{', '.join(map(str, sorted(sizes))) or 'unknown, as there is none'}"
            )
        super().__init__(tuple(fields), sizes.pop())
        self.fields = nn.ModuleList(fields.values())

    @property
    def gradient_part(self) -> FieldBank[Potential]:
        """The bank of the fields' gradient parts."""
        return IndependentPotentials(
            {name: v.gradient_part for name, v in zip(self.names, self, strict=True)}
        )

    @property
    def solenoidal_part(self) -> FieldBank[VectorField]:
        """The bank of the fields' solenoidal parts."""
        return IndependentFields(
            {name: v.solenoidal_part for name, v in zip(self.names, self, strict=True)}
        )

    def member(self, index: int) -> F_co:
        """Return the field of one transformation."""
        field: Any = self.fields[index]
        return field  # type: ignore[no-any-return]

    def per_sample(self, k: Int[Tensor, "b"]) -> F_co:
        """Return the field that evaluates each chosen member on its own samples."""
        chosen: Any = PerSample(self, k)
        return chosen  # type: ignore[no-any-return]

    def mixture(self, weights: Float[Tensor, "b k"]) -> F_co:
        """Return ``sum_k weights[i, k] v^k`` for sample i."""
        chosen: Any = Weighted(self, weights)
        return chosen  # type: ignore[no-any-return]


class IndependentPotentials(IndependentFields[Potential], PotentialBank):
    """A bank of potentials of any kind, one object each: for networks of your own.

    Args:
        potentials: the potential of each name, all of the same ``dim``.

    Raises:
        ValueError: the bank is empty or the potentials differ in ``dim``.

    Example:
        >>> import torch
        >>> from flowfactor import AutogradPotential, IndependentPotentials
        >>> bowl = AutogradPotential(lambda z, t: -0.5 * z.square().sum(-1), dim=2)
        >>> wind = AutogradPotential(lambda z, t: t * z[:, 0], dim=2)
        >>> bank = IndependentPotentials({"shrink": bowl, "drift": wind})
        >>> chosen = bank.select(torch.tensor([0, 1]))
        >>> chosen.gradient(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.5)
        tensor([[-1.0000, -2.0000],
                [ 0.5000,  0.0000]])
    """

    def __init__(self, potentials: Mapping[str, Potential]) -> None:
        super().__init__(potentials)

    def per_sample(self, k: Int[Tensor, "b"]) -> Potential:
        """Return the potential that evaluates each chosen member on its own samples."""
        return PotentialPerSample(self, k)

    def mixture(self, weights: Float[Tensor, "b k"]) -> Potential:
        """Return ``sum_k weights[i, k] u^k`` for sample i."""
        return WeightedPotentials(self, weights)


def bank_at_rest(names: Sequence[str], dim: int) -> IndependentPotentials:
    """Return a bank of potentials that move nothing."""
    return IndependentPotentials(dict.fromkeys(names, ZeroPotential(dim)))


class Selection(VectorField):
    """A field that is chosen from a bank; its parts are chosen likewise from the bank's parts."""

    def __init__(self, bank: FieldBank[VectorField], k: Selector) -> None:
        super().__init__()
        self.dim = bank.dim
        self.size = len(k) if isinstance(k, Tensor) else None
        # In a tuple, which does not make the whole bank a part of what reads a part of it.
        self._chosen = (bank, k)

    @property
    def gradient_part(self) -> Potential:
        """The same choice from the bank of gradient parts."""
        bank, k = self._chosen
        return bank.gradient_part.select(k)

    @property
    def solenoidal_part(self) -> VectorField:
        """The same choice from the bank of solenoidal parts."""
        bank, k = self._chosen
        return bank.solenoidal_part.select(k)


class PerSample(Selection):
    """Sample i under the field ``v^{k_i}``: one evaluation for each chosen member."""

    def __init__(self, bank: FieldBank[VectorField], k: Int[Tensor, "b"]) -> None:
        super().__init__(bank, k)
        chosen = k.unique().tolist()
        self.members = nn.ModuleList([bank.member(index) for index in chosen])
        self.rows = [(k == index).nonzero().squeeze(1) for index in chosen]
        order = torch.cat(self.rows) if self.rows else k
        self.back = order.argsort()

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities of each sample's own field."""
        parts = [
            member.evaluate(*query.map(lambda x, rows=rows: x[rows]))  # type: ignore[misc]
            for member, rows in self._members()
        ]
        return tuple(torch.cat(quantity)[self.back] for quantity in zip(*parts, strict=True))

    def log_det(self, z: Float[Tensor, "b d"], t: Time, h: float | Tensor) -> Float[Tensor, "b"]:
        """Return ``log|det(I + h dv/dz)|`` of each sample's own field."""
        check_latents(z, self.dim, self.size)
        time = as_time(t, z)
        parts = [
            member.log_det(z[rows], time[rows] if time.ndim else time, h)
            for member, rows in self._members()
        ]
        return torch.cat(parts)[self.back]

    def _members(self) -> Iterator[tuple[VectorField, Tensor]]:
        """Yield each chosen member and the rows that chose it."""
        for member, rows in zip(self.members, self.rows, strict=True):
            assert isinstance(member, VectorField)
            yield member, rows


class Weighted(Selection):
    """``sum_k weights[i, k] v^k`` for sample i: the soft choice among fields.

    Args:
        bank: K fields.
        weights: ``(B, K)``, any real numbers.
    """

    def __init__(self, bank: FieldBank[VectorField], weights: Float[Tensor, "b k"]) -> None:
        super().__init__(bank, weights)
        self.fields = nn.ModuleList(bank)
        self.weights = weights

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities, each weighted per sample."""
        each = [field.evaluate(*query) for field in self.fields]  # type: ignore[operator]
        return tuple(
            weigh(torch.stack(quantity), self.weights) for quantity in zip(*each, strict=True)
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the parameters of all fields and the weights."""
        return (*self.parameters(), self.weights)


class PotentialPerSample(PerSample, Potential):
    """Sample i under the potential ``u^{k_i}``."""


class WeightedPotentials(Weighted, Potential):
    """``sum_k weights[i, k] u^k`` for sample i: the soft choice among potentials."""


def weigh(quantities: Float[Tensor, "k b *d"], weights: Float[Tensor, "b k"]) -> Tensor:
    """Return ``sum_k weights[b, k] quantities[k, b]``, of the shape of a single quantity."""
    w = weights.mT.reshape(*weights.mT.shape, *([1] * (quantities.ndim - 2)))
    return (w * quantities).sum(0)
