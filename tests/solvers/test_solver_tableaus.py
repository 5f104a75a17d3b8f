"""The coefficients: order conditions, and the same numbers in torchdiffeq and SciPy."""

from __future__ import annotations

import importlib
import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.integrate
import torch
from solver_cases import doubles

from solvers import METHODS as REGISTERED
from solvers import RK4, AdaptiveHeun, AdaptiveMethod, Bosh3, Dopri5, Dopri8, Tsit5
from solvers.step import RungeKutta, Step, Tableau, take_step

METHODS = [cls for cls in map(REGISTERED.__getitem__, REGISTERED) if issubclass(cls, RungeKutta)]
ADAPTIVE = [cls for cls in METHODS if issubclass(cls, AdaptiveMethod)]
ROUNDING = 2e-14
EMBEDDED = {Dopri5: 4, Tsit5: 4, Bosh3: 2, AdaptiveHeun: 1, Dopri8: 7}

Tree = tuple["Tree", ...]
"""A rooted tree, as the tuple of the trees at its root."""


def trees(order: int) -> list[Tree]:
    """All rooted trees with so many nodes."""

    def forests(nodes: int, largest: int) -> list[list[Tree]]:
        if nodes == 0:
            return [[]]
        found = []
        for size in range(1, min(nodes, largest) + 1):
            for tree in trees(size):
                found += [[tree, *rest] for rest in forests(nodes - size, size)]
        return found

    return sorted({tuple(sorted(forest)) for forest in forests(order - 1, order - 1)})


def nodes_in(tree: Tree) -> int:
    return 1 + sum(nodes_in(child) for child in tree)


def density(tree: Tree) -> int:
    result = nodes_in(tree)
    for child in tree:
        result *= density(child)
    return result


def matrix(tableau: Tableau) -> np.ndarray:
    a = np.zeros((len(tableau.c), len(tableau.c)))
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = row
    return a


def worst_condition(tableau: Tableau, weights: np.ndarray, order: int) -> float:
    """How far ``sum_i b_i phi_i(tree)`` is from ``1 / density``, over all trees of that order."""
    a = matrix(tableau)

    def elementary(tree: Tree) -> np.ndarray:
        result = np.ones(len(a))
        for child in tree:
            result = result * (a @ elementary(child))
        return result

    return max(abs(weights @ elementary(tree) - 1 / density(tree)) for tree in trees(order))


def test_the_numbers_of_trees() -> None:
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert density((((),), ())) == 4 * 2


@pytest.mark.parametrize("method", METHODS)
def test_shapes_and_nodes(method: type[RungeKutta]) -> None:
    tableau = method.tableau
    assert len(tableau.c) == len(tableau.a) == len(tableau.b)
    assert tableau.c[0] == 0.0
    for i, (c, row) in enumerate(zip(tableau.c, tableau.a, strict=True)):
        assert len(row) == i
        assert sum(row) == pytest.approx(c, abs=2e-15)
        assert 0 <= c <= 1
    if issubclass(method, AdaptiveMethod):
        assert len(tableau.error) == len(tableau.b)
        assert sum(tableau.error) == pytest.approx(0, abs=1e-15)
        assert any(tableau.error)


@pytest.mark.parametrize("method", METHODS)
def test_order_conditions(method: type[RungeKutta]) -> None:
    """Of exactly the stated order: all conditions up to there, and not all of the next."""
    b = np.array(method.tableau.b)
    for order in range(1, method.tableau.order + 1):
        assert worst_condition(method.tableau, b, order) < ROUNDING
    assert worst_condition(method.tableau, b, method.tableau.order + 1) > 1e-8


@pytest.mark.parametrize("method", ADAPTIVE)
def test_order_conditions_of_the_embedded_method(method: type[AdaptiveMethod]) -> None:
    weights = np.array(method.tableau.b) - np.array(method.tableau.error)
    for order in range(1, EMBEDDED[method] + 1):
        assert worst_condition(method.tableau, weights, order) < ROUNDING
    # Otherwise the difference would not estimate the error.
    assert worst_condition(method.tableau, weights, EMBEDDED[method] + 1) > 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_the_last_stage_is_the_first_of_the_next_step(method: type[RungeKutta]) -> None:
    is_same = method in (Dopri5, Tsit5, Bosh3)
    assert method.tableau.first_same_as_last == is_same
    assert method().stages == len(method.tableau.c) - is_same


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_that_of_the_tableau(method: type[RungeKutta]) -> None:
    """Against the definition, with stages that depend on time and state."""

    def field(t, z):
        return (torch.sin(3 * t) - z[0] * z[1], z[0] + t * t)

    tableau, t, h = method.tableau, 0.4, 0.3
    z = (doubles(0.7), doubles(-0.2))
    times = [doubles(t + c * h)[0] for c in tableau.c]
    after, stages = take_step(tableau, field, Step(torch.stack(times), h), z)
    k: list[tuple[torch.Tensor, ...]] = []
    for c, row in zip(tableau.c, tableau.a, strict=True):
        at = tuple(
            y + h * sum((w * other[i] for w, other in zip(row, k, strict=True)), 0 * y)
            for i, y in enumerate(z)
        )
        k.append(field(doubles(t + c * h)[0], at))
    for i, y in enumerate(z):
        expected = y + h * sum(w * other[i] for w, other in zip(tableau.b, k, strict=True))
        assert torch.allclose(after[i], expected, atol=1e-14, rtol=0)
        for stage, other in zip(stages, k, strict=True):
            assert torch.allclose(stage[i], other[i], atol=1e-14, rtol=0)


def test_dopri8_converges_with_order_8() -> None:
    """One step of halved sizes: the error of a step is of order 9."""

    def field(t, z):
        return (-2 * t * z[0] + torch.cos(3 * t) * torch.exp(-t * t),)

    def exact(t: float) -> float:
        return (np.sin(3 * t) / 3 + 0.2) * np.exp(-t * t)

    counts, errors = [12, 14, 17, 20, 24], []
    for n in counts:
        z: tuple[torch.Tensor, ...] = (doubles(0.2),)
        grid = np.linspace(0.0, 2.0, n + 1)
        for start, end in itertools.pairwise(grid):
            times = [doubles(start + c * (end - start))[0] for c in Dopri8.tableau.c]
            step = Step(torch.stack(times), end - start)
            z, _ = take_step(Dopri8.tableau, field, step, z)
        errors.append(abs(z[0].item() - exact(2.0)))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 7.5 < slope < 9.0


@pytest.mark.parametrize(("method", "name"), [(Dopri5, "RK45"), (Bosh3, "RK23")])
def test_the_coefficients_are_those_of_scipy(method: type[AdaptiveMethod], name: str) -> None:
    theirs, tableau = getattr(scipy.integrate, name), method.tableau
    n = len(theirs.B)
    assert np.array_equal(theirs.A[:, : n - 1], matrix(tableau)[:n, : n - 1])
    assert np.array_equal(theirs.B, np.array(tableau.b)[:n])
    assert np.array_equal(theirs.C, np.array(tableau.c)[:n])
    # Their error is that of the other sign for one of the pairs.
    sign = np.sign(theirs.E[0]) * np.sign(tableau.error[0])
    assert np.allclose(sign * theirs.E, tableau.error, atol=2e-16, rtol=0)


@pytest.mark.parametrize(
    ("method", "module", "name"),
    [
        (Dopri5, "dopri5", "_DORMAND_PRINCE_SHAMPINE_TABLEAU"),
        (Bosh3, "bosh3", "_BOGACKI_SHAMPINE_TABLEAU"),
        (Dopri8, "dopri8", "_DOPRI8_TABLEAU"),
        (AdaptiveHeun, "adaptive_heun", "_ADAPTIVE_HEUN_TABLEAU"),
    ],
)
def test_the_coefficients_are_those_of_torchdiffeq(
    method: type[AdaptiveMethod], module: str, name: str
) -> None:
    theirs = getattr(importlib.import_module(f"torchdiffeq._impl.{module}"), name)
    tableau, n = method.tableau, len(method.tableau.c)
    a = np.zeros((len(theirs.beta) + 1, len(theirs.beta) + 1))
    for i, row in enumerate(theirs.beta, start=1):
        a[i, : len(row)] = row.numpy()
    # Their tables hold the derivative at the end as one more stage where it is not one of ours.
    assert np.allclose(a[:n, :n], matrix(tableau), atol=1e-15, rtol=1e-15)
    assert np.allclose(theirs.c_sol.numpy()[:n], tableau.b, atol=1e-15, rtol=1e-15)
    if method is not Dopri5:  # where theirs is Shampine's, two thirds of the original
        assert np.allclose(np.abs(theirs.c_error.numpy()[:n]), np.abs(tableau.error), atol=1e-15)


def test_fractions_written_as_such_are_exact() -> None:
    """A digit lost in one numerator would pass unnoticed where its weight is small."""
    for tableau in (Dopri5.tableau, Bosh3.tableau, RK4.tableau):
        for c, row in zip(tableau.c, tableau.a, strict=True):
            limits = [Fraction(value).limit_denominator(400_000) for value in row]
            assert sum(limits) == Fraction(c).limit_denominator(400_000)
            assert all(
                float(f) == pytest.approx(v, abs=1e-16) for f, v in zip(limits, row, strict=True)
            )
