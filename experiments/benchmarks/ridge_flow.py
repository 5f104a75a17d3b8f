"""The flow that the benchmarks of solvers integrate, and what each of them has to return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowfactor import AutogradPotential, RidgePotential
from flowfactor.potentials import Potential
from solvers import State

LAST = 8.0
"""The last time; the first is 0."""


@dataclass(frozen=True)
class Size:
    """The sizes of a problem: B, D, H, the number of steps, and K."""

    batch: int = 128
    dim: int = 48
    width: int = 256
    steps: int = 8
    kinds: int = 1


class Outcome(NamedTuple):
    """The states at all times and the gradients of the loss, as tensors of any package.

    Attributes:
        states: ``(T, B, D)``, or ``(T, B, D + 1)`` with the log-determinant as the last entry.
        gradients: by z0, by the directions and by the coefficients of the potential.
    """

    states: Any
    gradients: tuple[Any, ...]


class RidgeFlow:
    """``dz/dt = grad u(z, t)`` over [0, 8] for a random ridge potential that moves in time.

    With ``density`` the state is the pair ``(z, log_det)``, whose second derivative is the
    Laplacian. The loss is a fixed random linear function of the states at all times behind the
    start, as in training, where every frame is decoded; its gradients are those by ``z0`` and by
    the parameters. The potential is as before training, when a latent moves about as far as it is
    long. Everything random is drawn in float32 from a seed, so that a problem in float64
    is the same problem.

    Args:
        size: the sizes; with ``kinds`` above 1 sample i follows the potential ``i mod K``.
        density: integrate the log-determinant too.
        nested: get gradient and Laplacian of the same function by automatic differentiation.
        dtype: of everything.
    """

    def __init__(
        self,
        size: Size = Size(),
        *,
        density: bool = True,
        nested: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.size, self.density, self.nested, self.dtype = size, density, nested, dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            names = [f"k{i}" for i in range(size.kinds)]
            self.bank = RidgePotential(names, size.dim, size.width, horizon=LAST)
            z0 = torch.randn(size.batch, size.dim)
            entries = size.dim + int(density)
            self.weights = torch.randn(size.steps, size.batch, entries).to(dtype)
        self.bank.to(dtype)
        self.z0 = z0.to(dtype).requires_grad_()
        self.kind = torch.arange(size.batch) % size.kinds
        self.times = torch.linspace(0.0, LAST, size.steps + 1, dtype=torch.float64).tolist()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the loss is differentiated by."""
        return (self.z0, self.bank.directions, self.bank.coefficients)

    def potential(self) -> Potential:
        """Return the potential of the batch; one per solve, as an optimiser moves the bank."""
        chosen = self.bank.select(self.kind) if self.size.kinds > 1 else self.bank[0]
        return AutogradPotential(chosen, self.size.dim) if self.nested else chosen

    def field(self) -> Callable[[Tensor, State], State]:
        """Return ``field(t, state)`` for states as :meth:`start` gives them."""
        potential = self.potential()

        def with_density(t: Tensor, state: State) -> State:
            velocity, laplacian = potential.evaluate(state[0], t, ("gradient", "laplacian"))
            return velocity, laplacian

        def alone(t: Tensor, state: State) -> State:
            assert isinstance(state, Tensor)
            return potential.gradient(state, t)

        return with_density if self.density else alone

    def start(self) -> State:
        """Return the state at time 0: ``z0``, or ``(z0, 0)``."""
        return (self.z0, self.z0.new_zeros(self.size.batch)) if self.density else self.z0

    def flat_field(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the field for packages whose state is one tensor ``(B, D)`` or ``(B, D + 1)``."""
        field = self.field()
        if not self.density:
            return field  # type: ignore[return-value]
        dim = self.size.dim

        def flat(t: Tensor, y: Tensor) -> Tensor:
            velocity, laplacian = field(t, (y[:, :dim], y[:, dim]))
            return torch.cat([velocity, laplacian.unsqueeze(1)], dim=1)

        return flat

    def flat_start(self) -> Tensor:
        """Return the state at time 0 as one tensor."""
        if not self.density:
            return self.z0
        return torch.cat([self.z0, self.z0.new_zeros(self.size.batch, 1)], dim=1)

    def loss(self, rows: State) -> Tensor:
        """Return the loss of the states at all times, in either form."""
        if isinstance(rows, Tensor):
            return (rows[1:] * self.weights).sum()
        z, log_det = rows
        dim = self.size.dim
        return (z[1:] * self.weights[..., :dim]).sum() + (
            log_det[1:] * self.weights[..., dim]
        ).sum()

    def outcome(self, rows: State) -> Outcome:
        """Return the states and the gradients of the loss, by a backward pass."""
        return Outcome(rows, torch.autograd.grad(self.loss(rows), self.inputs))

    def counting(self) -> CountingFlow:
        """Return the same flow, counting the evaluations of its field."""
        return CountingFlow(self.size, density=self.density, nested=self.nested, dtype=self.dtype)


class CountingFlow(RidgeFlow):
    """A flow that counts the evaluations of its field.

    Attributes:
        evaluations: all of them.
        forward: those before the gradients.
    """

    evaluations = 0
    forward = 0

    def count(self, *_: Any) -> None:
        """Count one evaluation."""
        self.evaluations += 1

    def outcome(self, rows: State) -> Outcome:
        """Return the states and the gradients of the loss."""
        self.forward = self.evaluations
        return super().outcome(rows)

    def field(self) -> Callable[[Tensor, State], State]:
        """Return the field, every call of which is counted."""
        field = super().field()

        def counted(t: Tensor, state: State) -> State:
            self.count()
            return field(t, state)

        return counted


def matrix_products(flow: RidgeFlow) -> Callable[[], None]:
    """Return a run of the matrix products alone that an integration by rk4 cannot avoid.

    An evaluation has two, and the Laplacian one by a vector; each has two on the way back.
    """
    K = flow.size.kinds
    rows = -(-flow.size.batch // K)
    z = torch.randn(K, rows, flow.size.dim, dtype=flow.dtype)
    s = torch.randn(K, rows, flow.size.width, dtype=flow.dtype)
    A = torch.randn(K, flow.size.width, flow.size.dim, dtype=flow.dtype)
    squares, ones = A[..., :1].contiguous(), z[..., :1].contiguous()
    pairs: list[tuple[Tensor, Tensor]] = [(z, A.mT), (s, A)]
    pairs += [(s, A), (s.mT, z), (z, A.mT), (s.mT, z)]
    if flow.density:
        pairs += [(s, squares), (ones, squares.mT), (s.mT, ones)]
    outputs = [torch.bmm(a, b) for a, b in pairs]

    def run() -> None:
        for _ in range(4 * flow.size.steps):
            for (a, b), out in zip(pairs, outputs, strict=True):
                torch.bmm(a, b, out=out)

    return run


def as_array(states: Any) -> np.ndarray:
    """Return states of any package as one float64 array ``(T, B, D)`` or ``(T, B, D + 1)``."""
    if isinstance(states, tuple | list):
        z, log_det = (as_array(part) for part in states)
        return np.concatenate([z, log_det[..., None]], axis=-1)
    if isinstance(states, Tensor):
        states = states.detach().numpy()
    return np.asarray(states, dtype=np.float64)


def distances(found: Outcome, reference: Outcome) -> dict[str, float]:
    """Return how far an outcome is from another: the largest of a state, and the relative norms."""
    a, b = as_array(found.states), as_array(reference.states)
    gradients = [
        (as_array(x).reshape(-1), as_array(y).reshape(-1))
        for x, y in zip(found.gradients, reference.gradients, strict=True)
    ]
    return {
        "largest error of a state": float(np.abs(a - b).max()),
        "states": _relative(a, b),
        "gradients": max(_relative(x, y) for x, y in gradients),
    }


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
