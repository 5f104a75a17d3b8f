"""The adaptive methods on the non-stiff problems of DETEST, and beside SciPy's.

Errors are those of the outputs at 0, 5, ..., 20, the largest over outputs and components, in
multiples of ``atol + rtol * max |y|`` with ``atol = rtol``. The tests claim:

1. On the eleven ``GENTLE`` problems, where errors hardly grow, they are within 10 tolerances. On
   the others SciPy's pairs of order 5 and 3 are above 5 and up to several hundred themselves.
2. On all problems they are within 3 times what a disturbance of one tolerance per unit of time
   could do (DETEST's own measure is an error per unit of time): a property of the problem.
3. On all problems they are within 10 times SciPy's (or 10 tolerances) at no more than 1.75 times
   its evaluations, and on the average over the problems within 1.5 times, at no more than 1.25
   times the evaluations; errors below the tolerance count as equally good.
4. The error of Dopri5 is proportional to the tolerance.
5. The statistics count what the field counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from detest import (
    OUTPUTS,
    PROBLEMS,
    Problem,
    reference,
    scipy_reference,
    scipy_states,
    sensitivity,
)

from solvers import Stats

GENTLE = ("A1", "A2", "A4", "B2", "B3", "C1", "C2", "C3", "C4", "E4", "E5")
LONG = ("B1", "D4", "D5", "E2", "E3")  # left out where they would take the most time
SCIPY = {"Dopri5": "RK45", "Bosh3": "RK23", "Dopri8": "DOP853"}
ALL = tuple(problem.name for problem in PROBLEMS)
SHORT = tuple(name for name in ALL if name not in LONG)
CASES = {
    ("Dopri5", 1e-3): ALL,
    ("Dopri5", 1e-6): ALL,
    ("Dopri5", 1e-9): SHORT,
    ("Bosh3", 1e-3): ALL,
    ("Bosh3", 1e-6): SHORT,
    ("Dopri8", 1e-3): ALL,
    ("Dopri8", 1e-6): ALL,
    ("Dopri8", 1e-9): ALL,
    ("AdaptiveHeun", 1e-3): ALL,
}


def each_problem(names: tuple[str, ...] = ALL):
    problems = [problem for problem in PROBLEMS if problem.name in names]
    return pytest.mark.parametrize("problem", problems, ids=lambda problem: problem.name)


def each_case(*methods: str):
    return pytest.mark.parametrize(
        ("method", "tolerance"), [case for case in CASES if case[0] in methods]
    )


def each_run(*methods: str):
    return pytest.mark.parametrize(
        ("problem", "method", "tolerance"),
        [
            pytest.param(problem, *case, id=f"{problem.name}-{case[0]}-{case[1]}")
            for case, names in CASES.items()
            for problem in PROBLEMS
            if case[0] in methods and problem.name in names
        ],
    )


@dataclass(frozen=True)
class Run:
    error: float
    counted: int
    stats: Stats


@cache
def run(solvers: ModuleType, problem: Problem, method: str, tolerance: float) -> Run:
    counted = 0

    def field(t, y):
        nonlocal counted
        counted += 1
        return problem.field(t, y)

    options = getattr(solvers, method)(rtol=tolerance, atol=tolerance, max_steps=20_000)
    found = solvers.solve(field, problem.z0, OUTPUTS.tolist(), options)
    return Run(_error(problem, found.ys.numpy(), tolerance), counted, found.stats)


@cache
def run_scipy(problem: Problem, method: str, tolerance: float) -> tuple[float, int]:
    """Error and evaluations of SciPy's counterpart."""
    states, evaluations = scipy_states(problem, SCIPY[method], tolerance)
    return _error(problem, states, tolerance), evaluations


def _error(problem: Problem, states: np.ndarray, tolerance: float) -> float:
    exact = reference(problem)
    return np.abs(states - exact).max() / (tolerance + tolerance * np.abs(exact).max())


@each_problem()
def test_the_problem_is_the_published_one(problem: Problem) -> None:
    end = reference(problem)[-1][: len(problem.end)]
    assert end == pytest.approx(problem.end, rel=0, abs=2e-11)


@each_problem(tuple(problem.name for problem in PROBLEMS if problem.closed is not None))
def test_scipy_agrees_with_the_closed_form(problem: Problem) -> None:
    assert scipy_reference(problem) == pytest.approx(reference(problem), rel=0, abs=2e-11)


@each_run("Dopri5", "Bosh3", "Dopri8", "AdaptiveHeun")
def test_error_within_tolerance(plain, problem: Problem, method: str, tolerance: float) -> None:
    error = run(plain, problem, method, tolerance).error
    assert error <= 3 * sensitivity(problem)
    if problem.name in GENTLE:
        assert error <= 10


@each_problem()
def test_gentle_problems_are_those_easy_for_scipy(problem: Problem) -> None:
    cases = [case for case in CASES if case[0] in ("Dopri5", "Bosh3")]
    errors = [run_scipy(problem, *case)[0] for case in cases if problem.name in CASES[case]]
    assert (max(errors) <= 5) == (problem.name in GENTLE)


@each_run(*SCIPY)
def test_not_far_from_scipy(plain, problem: Problem, method: str, tolerance: float) -> None:
    ours = run(plain, problem, method, tolerance)
    error, evaluations = run_scipy(problem, method, tolerance)
    assert ours.error <= 10 * max(error, 1)
    assert ours.counted <= 1.75 * evaluations


@each_case(*SCIPY)
def test_as_good_as_scipy_on_average(plain, method: str, tolerance: float) -> None:
    problems = [problem for problem in PROBLEMS if problem.name in CASES[method, tolerance]]
    ours = [run(plain, problem, method, tolerance) for problem in problems]
    theirs = [run_scipy(problem, method, tolerance) for problem in problems]
    ratios = [max(a.error, 1) / max(b[0], 1) for a, b in zip(ours, theirs, strict=True)]
    assert np.exp(np.mean(np.log(ratios))) <= 1.5
    assert sum(a.counted for a in ours) <= 1.25 * sum(b[1] for b in theirs)


@each_problem(("A3", "B5", "C1", "D3", "E1"))
def test_error_is_proportional_to_tolerance(plain, problem: Problem) -> None:
    tolerances = np.array([1e-4, 1e-6, 1e-8, 1e-10])
    errors = [run(plain, problem, "Dopri5", tol).error * tol for tol in tolerances.tolist()]
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert abs(slope - 1) < 0.15


@each_run("Dopri5", "Bosh3", "Dopri8", "AdaptiveHeun")
def test_statistics(plain, problem: Problem, method: str, tolerance: float) -> None:
    ours = run(plain, problem, method, tolerance)
    assert ours.stats.evaluations == ours.counted
    assert ours.stats.steps == ours.stats.accepted + ours.stats.rejected
    assert ours.stats.accepted >= len(OUTPUTS) - 1
