"""The 25 problems of DETEST's classes A to E, with what is known of their solutions.

Source: Hull, Enright, Fellen and Sedgwick, "Comparing numerical methods for ordinary differential
equations", SIAM J. Numer. Anal. 9, 1972. The values at the end are those of Enright and Pryce,
"Algorithm 648", ACM Trans. Math. Software 13, 1987.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp, trapezoid
from scipy.linalg import expm
from scipy.special import ellipj
from torch import Tensor

END = 20.0
OUTPUTS = np.linspace(0.0, END, 5)


@dataclass(frozen=True, eq=False)
class Problem:
    """``dy/dt = field(t, y)`` on [0, 20]; the last axis of ``y`` holds the components.

    Attributes:
        name: the class and number.
        field: of tensors, or of arrays as SciPy calls it; also takes a batch of states.
        start: the state at 0.
        end: the published state at 20, or its leading components.
        closed: the solution at a time, where it can be written down.
    """

    name: str
    field: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, ...]
    end: tuple[float, ...]
    closed: Callable[[float], np.ndarray] | None = None

    @property
    def z0(self) -> Tensor:
        return torch.tensor(self.start, dtype=torch.float64)


def scipy_states(problem: Problem, method: str, tolerance: float) -> tuple[np.ndarray, int]:
    """SciPy's states at the outputs, a row for each, and its evaluations.

    It ends a step on every output, as the layer does, where interpolation would add an error.
    """
    states, evaluations = [np.array(problem.start)], 0
    for interval in pairwise(OUTPUTS):
        found = solve_ivp(
            _numpy(problem), interval, states[-1], method, rtol=tolerance, atol=tolerance
        )
        assert found.success, found.message
        states.append(found.y[:, -1])
        evaluations += found.nfev
    return np.stack(states), evaluations


@cache
def reference(problem: Problem) -> np.ndarray:
    """The states at the outputs: in closed form, or SciPy's to about 1e-11 of their size."""
    if problem.closed is not None:
        return np.stack([problem.closed(t) for t in OUTPUTS])
    return scipy_reference(problem)


def scipy_reference(problem: Problem) -> np.ndarray:
    found = solve_ivp(
        _numpy(problem), (0.0, END), problem.start, "DOP853", OUTPUTS, rtol=1e-13, atol=1e-13
    )
    assert found.success, found.message
    return found.y.T


@cache
def sensitivity(problem: Problem) -> float:
    r"""By how much a disturbance of one unit per unit of time can change an output, at most.

    .. math:: \max_t \int_0^t \lVert \partial y(t) / \partial y(s) \rVert_\infty \, ds

    over the outputs ``t``, from differences of neighbouring solutions and by the trapezoidal rule.
    """
    size, apart, intervals = len(problem.start), 1e-5, 40
    neighbours = apart * np.eye(size + 1, size, k=-1)
    field = _numpy(problem, (size + 1, size))
    times = np.linspace(0.0, END, intervals + 1)
    state = np.array(problem.start)
    growth = [np.eye(size)]  # dy(t)/dy(s) for all earlier times s, and for t itself
    largest = 0.0
    for interval in pairwise(times):
        bundle = (state + neighbours).ravel()
        found = solve_ivp(field, interval, bundle, "DOP853", rtol=1e-8, atol=1e-8)
        state, *others = found.y[:, -1].reshape(size + 1, size)
        change = (np.stack(others) - state).T / apart
        growth = [change @ before for before in growth] + [np.eye(size)]
        if interval[1] in OUTPUTS:
            norms = [np.abs(g).sum(axis=1).max() for g in growth]
            largest = max(largest, trapezoid(norms, dx=END / intervals))
    return largest


def _numpy(problem: Problem, shape: tuple[int, ...] = (-1,)):
    """The field as SciPy calls it, for one state or several in one vector."""

    def field(t: float, y: np.ndarray) -> np.ndarray:
        return problem.field(t, y.reshape(shape)).ravel()

    return field


def _components(function):
    """A field written in its components."""

    def field(t, y):
        if isinstance(y, Tensor):
            return torch.stack(function(t, *y.unbind(-1)), dim=-1)
        return np.array(function(t, *y.T)).T

    return field


def _linear(matrix: np.ndarray, start: list[float]):
    """Field, start and solution of ``y' = matrix y``."""
    rows = torch.from_numpy(matrix)
    return (
        lambda t, y: y @ (rows if isinstance(y, Tensor) else matrix).T,
        tuple(start),
        lambda t: expm(matrix * t) @ np.array(start),
    )


def _sin(x):
    return torch.sin(x) if isinstance(x, Tensor) else math.sin(x)


def _cos(x):
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


# Class A: single equations.


def _a1() -> Problem:
    """Decay."""
    return Problem("A1", lambda t, y: -y, (1.0,), (2.061153353012535e-09,), lambda t: np.exp([-t]))


def _a2() -> Problem:
    """A special case of Riccati's equation."""
    return Problem(
        "A2",
        lambda t, y: -(y**3) / 2,
        (1.0,),
        (2.182178902359887e-01,),
        lambda t: np.array([1 / math.sqrt(1 + t)]),
    )


def _a3() -> Problem:
    """An oscillation."""
    return Problem(
        "A3",
        lambda t, y: y * _cos(t),
        (1.0,),
        (2.491650271850414,),
        lambda t: np.exp([math.sin(t)]),
    )


def _a4() -> Problem:
    """The logistic curve."""
    return Problem(
        "A4",
        lambda t, y: y / 4 * (1 - y / 20),
        (1.0,),
        (1.773016648131483e01,),
        lambda t: np.array([20 / (1 + 19 * math.exp(-t / 4))]),
    )


def _a5() -> Problem:
    """A spiral."""
    return Problem("A5", lambda t, y: (y - t) / (y + t), (4.0,), (-7.887826688964196e-01,))


# Class B: small systems.


def _b1() -> Problem:
    """Two conflicting populations."""

    def field(t, prey, hunters):
        return 2 * (prey - prey * hunters), prey * hunters - hunters

    end = (6.761876008576667e-01, 1.860816099640036e-01)
    return Problem("B1", _components(field), (1.0, 3.0), end)


def _b2() -> Problem:
    """A linear chemical reaction."""
    matrix = np.array([[-1.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -1.0]])
    field, start, closed = _linear(matrix, [2.0, 0.0, 1.0])
    end = (1.000000001030576, 1.0, 9.999999989694235e-01)
    return Problem("B2", field, start, end, closed)


def _b3() -> Problem:
    """A nonlinear chemical reaction."""

    def field(t, a, b, c):
        return -a, a - b * b, b * b

    end = (2.061153488557776e-09, 5.257228022048349e-02, 9.474277177183630e-01)
    return Problem("B3", _components(field), (1.0, 0.0, 0.0), end)


def _b4() -> Problem:
    """The integral surface of a torus."""

    def field(t, x, y, z):
        r = (x * x + y * y) ** 0.5
        return -y - x * z / r, x - y * z / r, x / r

    end = (9.826950928005993e-01, 2.198447081694832, 9.129452507276399e-01)
    return Problem("B4", _components(field), (3.0, 0.0, 0.0), end)


def _b5() -> Problem:
    """Euler's equations of a rigid body without forces."""

    def field(t, sn, cn, dn):
        return cn * dn, -sn * dn, -0.51 * sn * cn

    end = (-9.396570798729192e-01, -3.421177754000779e-01, 7.414126596199957e-01)
    return Problem(
        "B5", _components(field), (0.0, 1.0, 1.0), end, lambda t: np.array(ellipj(t, 0.51)[:3])
    )


# Class C: moderate systems.


def _c1() -> Problem:
    """A chain of radioactive decay."""
    rates = [1.0] * 9
    matrix = np.diag([-r for r in rates] + [0.0]) + np.diag(rates, -1)
    field, start, closed = _linear(matrix, [1.0] + [0.0] * 9)
    end = (
        *(2.061153622240064e-09, 4.122307244619555e-08, 4.122307244716968e-07),
        *(2.748204829855288e-06, 1.374102414941961e-05, 5.496409659803266e-05),
        *(1.832136553274552e-04, 5.234675866508716e-04, 1.308668966628220e-03),
        9.979127409508656e-01,
    )
    return Problem("C1", field, start, end, closed)


def _c2() -> Problem:
    """Another chain of radioactive decay, each link faster than the one before."""
    rates = [float(i) for i in range(1, 10)]
    matrix = np.diag([-r for r in rates] + [0.0]) + np.diag(rates, -1)
    field, start, closed = _linear(matrix, [1.0] + [0.0] * 9)
    end = (
        *(2.061153577984930e-09, 2.061153573736588e-09, 2.061153569488245e-09),
        *(2.061153565239902e-09, 2.061153560991560e-09, 2.061153556743217e-09),
        *(2.061153552494874e-09, 2.061153548246532e-09, 2.061153543998189e-09),
        9.999999814496180e-01,
    )
    return Problem("C2", field, start, end, closed)


def _heat(name: str, n: int, end: tuple[float, ...]) -> Problem:
    """Heat conduction in a rod of ``n`` inner points."""
    matrix = np.diag([-2.0] * n) + np.diag([1.0] * (n - 1), 1) + np.diag([1.0] * (n - 1), -1)
    field, start, closed = _linear(matrix, [1.0] + [0.0] * (n - 1))
    return Problem(name, field, start, end, closed)


def _c3() -> Problem:
    return _heat("C3", 10, (2.948119211022058e-03, 5.635380154844266e-03, 7.829072515926013e-03))


def _c4() -> Problem:
    return _heat("C4", 51, (3.124111453721466e-03, 6.015416842150318e-03, 8.470021834842650e-03))


def _c5() -> Problem:
    """The five outer planets around the sun, in units of 100 days and the earth's orbit."""
    gravity, sun = 2.95912208286, 1.00000597682
    masses = torch.tensor(
        [
            *(0.954786104043e-3, 0.285583733151e-3, 0.437273164546e-4),
            *(0.517759138449e-4, 0.277777777778e-5),
        ],
        dtype=torch.float64,
    )
    places = (
        *(3.42947415189, 3.35386959711, 1.35494901715),
        *(6.64145542550, 5.97156957878, 2.18231499728),
        *(11.2630437207, 14.6952576794, 6.27960525067),
        *(-30.1552268759, 1.65699966404, 1.43785752721),
        *(-21.1238353380, 28.4465098142, 15.3882659679),
    )
    speeds = (
        *(-0.557160570446, 0.505696783289, 0.230578543901),
        *(-0.415570776342, 0.365682722812, 0.169143213293),
        *(-0.325325669158, 0.189706021964, 0.0877265322780),
        *(-0.0240476254170, -0.287659532608, -0.117219543175),
        *(-0.176860753121, -0.216393453025, -0.0148647893090),
    )
    end = (
        *(-4.792730224323733, -2.420550725448973, -9.212509306014886e-01),
        *(-4.217310404035213, 7.356202947498970, 3.223785985421212),
        *(4.035559443262270, 1.719865528670555e01, 7.478910794233703),
        *(-2.998759326324844e01, -4.107310937550929, -9.277008321754407e-01),
        *(-2.442125302518482e01, 2.381459045746554e01, 1.492096306951359e01),
        *(3.499208963063806e-01, -5.748487687912825e-01, -2.551694020879149e-01),
    )
    alone = torch.eye(5, dtype=torch.float64)

    def field(t, y):
        if not isinstance(y, Tensor):
            return field(t, torch.from_numpy(y)).numpy()
        place, speed = y.unflatten(-1, (2, 5, 3)).unbind(-3)
        pull = place / place.square().sum(-1, keepdim=True) ** 1.5
        between = place.unsqueeze(-3) - place.unsqueeze(-2)  # [i, j] from planet i to j
        cubes = (between.square().sum(-1) + alone) ** 1.5  # no planet pulls itself
        others = (masses / cubes).unsqueeze(-1) * between
        indirect = (masses[:, None] * pull).sum(-2, keepdim=True) - masses[:, None] * pull
        force = others.sum(-2) - indirect - (sun + masses)[:, None] * pull
        return torch.stack([speed, gravity * force], dim=-3).flatten(-3)

    return Problem("C5", field, places + speeds, end)


# Class D: the orbit of a planet, five eccentricities.


def _orbit(name: str, eccentricity: float, end: tuple[float, ...]) -> Problem:
    minor = math.sqrt(1 - eccentricity**2)

    def field(t, x, y, u, v):
        cube = (x * x + y * y) ** 1.5
        return u, v, -x / cube, -y / cube

    def closed(t: float) -> np.ndarray:
        angle = t + eccentricity * math.sin(t)
        for _ in range(50):  # Kepler's equation, by Newton's method
            excess = angle - eccentricity * math.sin(angle) - t
            angle -= excess / (1 - eccentricity * math.cos(angle))
        cos, sin = math.cos(angle), math.sin(angle)
        rate = 1 / (1 - eccentricity * cos)
        return np.array([cos - eccentricity, minor * sin, -sin * rate, minor * cos * rate])

    start = (1 - eccentricity, 0.0, 0.0, math.sqrt((1 + eccentricity) / (1 - eccentricity)))
    return Problem(name, _components(field), start, end, closed)


_D_ENDS = {
    0.1: (2.198835352008397e-01, 9.427076846341813e-01, -9.787659841058176e-01),
    0.3: (-1.777027357140412e-01, 9.467784719905892e-01, -1.030294163192969),
    0.5: (-5.780432953035361e-01, 8.633840009194193e-01, -9.595083730380727e-01),
    0.7: (-9.538990293416394e-01, 6.907409024219432e-01, -8.212674270877433e-01),
    0.9: (-1.295266250987574, 4.003938963792321e-01, -6.775390924707566e-01),
}


# Class E: higher order equations.


def _e1() -> Problem:
    """Bessel's equation of order 1/2, from 1 on."""

    def field(t, y, dy):
        s = t + 1
        return dy, -(dy / s + (1 - 0.25 / s**2) * y)

    def closed(t: float) -> np.ndarray:
        s = t + 1
        y = math.sqrt(2 / (math.pi * s)) * math.sin(s)
        return np.array([y, math.sqrt(2 / (math.pi * s)) * math.cos(s) - y / (2 * s)])

    end = (1.456723600728308e-01, -9.883500195574063e-02)
    return Problem("E1", _components(field), tuple(closed(0.0)), end, closed)


def _e2() -> Problem:
    """Van der Pol's oscillator."""

    def field(t, y, dy):
        return dy, (1 - y * y) * dy - y

    end = (2.008149762174948, -4.250887527320057e-02)
    return Problem("E2", _components(field), (2.0, 0.0), end)


def _e3() -> Problem:
    """Duffing's equation."""

    def field(t, y, dy):
        return dy, y**3 / 6 - y + 2 * _sin(2.78535 * t)

    end = (-1.004178858647128e-01, 2.411400132095954e-01)
    return Problem("E3", _components(field), (0.0, 0.0), end)


def _e4() -> Problem:
    """A body that falls through air."""

    def field(t, y, dy):
        return dy, 0.032 - 0.4 * dy * dy

    def closed(t: float) -> np.ndarray:
        s = math.sqrt(0.032 * 0.4) * t
        return np.array([30 + math.log(math.cosh(s)) / 0.4, math.sqrt(0.08) * math.tanh(s)])

    end = (3.395091444646555e01, 2.767822659672869e-01)
    return Problem("E4", _components(field), (30.0, 0.0), end, closed)


def _e5() -> Problem:
    """The curve of pursuit."""

    def field(t, y, dy):
        return dy, (1 + dy * dy) ** 0.5 / (25 - t)

    def closed(t: float) -> np.ndarray:
        s = 1 - t / 25
        return np.array([25 / 2 * ((s * s - 1) / 2 - math.log(s)), (1 / s - s) / 2])

    end = (1.411797390542629e01, 2.400000000000002)
    return Problem("E5", _components(field), (0.0, 0.0), end, closed)


PROBLEMS = [
    *(_a1(), _a2(), _a3(), _a4(), _a5()),
    *(_b1(), _b2(), _b3(), _b4(), _b5()),
    *(_c1(), _c2(), _c3(), _c4(), _c5()),
    *(_orbit(f"D{i}", e, end) for i, (e, end) in enumerate(_D_ENDS.items(), start=1)),
    *(_e1(), _e2(), _e3(), _e4(), _e5()),
]
