"""The integration methods: small frozen options that validate themselves.

Two families. *Fixed* methods take a given whole number of steps in every output interval, so
their cost is known beforehand and the result is a fixed composition of smooth maps: the usual
choice for training. *Adaptive* methods choose steps such that the estimated local error of each
stays within ``atol + rtol * |z|``: the usual choice for evaluation and reference solutions.

These are explicit Runge-Kutta methods; :class:`TorchDiffEq` gives access to others. With stages
``k_i = f(t + c_i h, z + h sum_j a_ij k_j)``, a step of size ``h`` is ``z + h sum_i b_i k_i``. A
method of order ``p`` has global error ``O(h^p)``.

Source: E. Hairer, S. P. Norsett, G. Wanner, "Solving Ordinary Differential Equations I", 2nd
edition, Springer 1993 (chapter II), below HNW.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from solvers import tableaus
from solvers._validate import positive_float, positive_int, step_counts
from solvers.tableaus import Tableau


@dataclass(frozen=True)
class Method:
    """An integration method. Use one of its subclasses.

    Attributes:
        name: the name in configuration files, see :func:`solvers.method_from_name`.
    """

    name: ClassVar[str]


@dataclass(frozen=True)
class RungeKutta(Method):
    """What every explicit Runge-Kutta method states about itself.

    Attributes:
        order: the order of accuracy ``p``.
        stages: evaluations of the field in every step.
        tableau: the coefficients.
        torchdiffeq_name: what torchdiffeq, which integrates adjoints, calls the method.
    """

    order: ClassVar[int]
    stages: ClassVar[int]
    tableau: ClassVar[Tableau]
    torchdiffeq_name: ClassVar[str]


@dataclass(frozen=True)
class FixedMethod(RungeKutta):
    """A method with a given number of steps; see its subclasses.

    Args:
        steps: steps in every output interval, of equal size within an interval. A tuple gives
            every interval its own number.

    Raises:
        TypeError: ``steps`` is not an integer or a tuple of integers.
        ValueError: a number of steps is below 1, or the tuple is empty.
    """

    steps: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        step_counts(f"{type(self).__name__}.steps", self.steps)


@dataclass(frozen=True)
class AdaptiveMethod(RungeKutta):
    """A method that chooses its steps; see its subclasses.

    A step is accepted if the norm of ``error / (atol + rtol * max(|z_old|, |z_new|))`` is at most
    1, the norm being the root mean square over all entries of a tensor, and the largest of these
    over a tuple. The samples of a batch share their steps, so that a sample's result depends,
    within the tolerance, on its neighbours; ``solve(..., per_sample=True)`` gives each its own.
    Steps end on the output times, where the result has the accuracy of the method, and the field
    is never evaluated outside the interval. A step's size follows from the error of the one before
    by HNW II.4: ``0.9 ratio^(-1/p)``, between 0.2 and 10, and at most 1 after a rejection.

    Every integration costs one evaluation beside those of its steps, to choose the first step
    (HNW II.4). A rejected step costs one less than ``stages``: its first stage is kept.

    Args:
        rtol: relative tolerance, above 0. In float32 values below 1e-6 cannot be met.
        atol: absolute tolerance, above 0, in the units of the state.
        max_steps: attempted steps allowed in the whole integration, accepted and rejected.

    Raises:
        TypeError: an option is not a number of the right kind.
        ValueError: an option is not positive, or a tolerance is infinite.
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        where = type(self).__name__
        positive_float(f"{where}.rtol", self.rtol)
        positive_float(f"{where}.atol", self.atol)
        positive_int(f"{where}.max_steps", self.max_steps)


@dataclass(frozen=True)
class Euler(FixedMethod):
    """Euler's method, ``z + h f(t, z)``: order 1, one stage (HNW I.7).

    The cheapest step, and the least accurate: halving the error takes twice the steps.

    >>> Euler(steps=4).order
    1
    """

    name: ClassVar[str] = "euler"
    tableau: ClassVar[Tableau] = tableaus.EULER
    torchdiffeq_name: ClassVar[str] = "euler"
    order: ClassVar[int] = 1
    stages: ClassVar[int] = 1


@dataclass(frozen=True)
class Midpoint(FixedMethod):
    """The explicit midpoint rule, ``z + h f(t + h/2, z + h/2 f(t, z))``: order 2, two stages.

    Source: Runge 1895; HNW II.1.
    """

    name: ClassVar[str] = "midpoint"
    tableau: ClassVar[Tableau] = tableaus.MIDPOINT
    torchdiffeq_name: ClassVar[str] = "midpoint"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2


@dataclass(frozen=True)
class Heun(FixedMethod):
    """Heun's method, the explicit trapezoidal rule: order 2, two stages.

    ``z + h/2 (k_1 + k_2)`` with ``k_1 = f(t, z)`` and ``k_2 = f(t + h, z + h k_1)``. This is
    torchdiffeq's ``heun2``; its ``heun3`` is Heun's other method, of order 3.

    Source: HNW II.1.
    """

    name: ClassVar[str] = "heun"
    tableau: ClassVar[Tableau] = tableaus.HEUN
    torchdiffeq_name: ClassVar[str] = "heun2"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2


@dataclass(frozen=True)
class RK4(FixedMethod):
    """Kutta's 3/8 rule: order 4, four stages.

    Not the "classical" Runge-Kutta method with its two midpoint stages, although torchdiffeq calls
    this one ``rk4``: the stages lie at ``0, 1/3, 2/3, 1`` with weights ``1/8, 3/8, 3/8, 1/8``.
    Cost and order are the same, the error constants somewhat smaller, and the results of the two
    differ by ``O(h^4)``.

    Source: Kutta 1901; HNW II.1, table 1.2.

    >>> RK4(steps=(1, 2)).steps
    (1, 2)
    """

    name: ClassVar[str] = "rk4"
    tableau: ClassVar[Tableau] = tableaus.KUTTA_THREE_EIGHTHS
    torchdiffeq_name: ClassVar[str] = "rk4"
    order: ClassVar[int] = 4
    stages: ClassVar[int] = 4


@dataclass(frozen=True)
class Dopri5(AdaptiveMethod):
    """The 5(4) pair of Dormand and Prince: order 5, six evaluations a step.

    The last of its seven stages is the first of the next step. The method to start with.

    Source: Dormand and Prince, "A family of embedded Runge-Kutta formulae", J. Comp. Appl. Math.
    6, 1980; HNW II.5.

    >>> Dopri5(rtol=1e-6).rtol
    1e-06
    """

    name: ClassVar[str] = "dopri5"
    tableau: ClassVar[Tableau] = tableaus.DORMAND_PRINCE_5
    torchdiffeq_name: ClassVar[str] = "dopri5"
    order: ClassVar[int] = 5
    stages: ClassVar[int] = 6


@dataclass(frozen=True)
class Bosh3(AdaptiveMethod):
    """The 3(2) pair of Bogacki and Shampine: order 3, three evaluations a step.

    The last of its four stages is the first of the next step. For loose tolerances.

    Source: Bogacki and Shampine, "A 3(2) pair of Runge-Kutta formulas", Appl. Math. Letters 2,
    1989.
    """

    name: ClassVar[str] = "bosh3"
    tableau: ClassVar[Tableau] = tableaus.BOGACKI_SHAMPINE
    torchdiffeq_name: ClassVar[str] = "bosh3"
    order: ClassVar[int] = 3
    stages: ClassVar[int] = 3


@dataclass(frozen=True)
class AdaptiveHeun(AdaptiveMethod):
    """Heun's method with Euler's as error estimate: order 2, two evaluations a step.

    torchdiffeq, and so :class:`solvers.Adjoint`, takes the derivative at Euler's prediction, the
    second stage, for the first stage of the next step. That saves an evaluation at an error of the
    size of the method's own.

    Source: HNW II.1 and II.4.
    """

    name: ClassVar[str] = "adaptive_heun"
    tableau: ClassVar[Tableau] = tableaus.HEUN
    torchdiffeq_name: ClassVar[str] = "adaptive_heun"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2


@dataclass(frozen=True)
class Dopri8(AdaptiveMethod):
    """The 8(7) pair of Dormand and Prince: order 8, 13 evaluations a step.

    For smooth fields and tight tolerances, in float64.

    Source: Prince and Dormand, "High order embedded Runge-Kutta formulae", J. Comp. Appl. Math. 7,
    1981; HNW II.5.
    """

    name: ClassVar[str] = "dopri8"
    tableau: ClassVar[Tableau] = tableaus.DORMAND_PRINCE_8
    torchdiffeq_name: ClassVar[str] = "dopri8"
    order: ClassVar[int] = 8
    stages: ClassVar[int] = 13


@dataclass(frozen=True)
class TorchDiffEq(Method):
    """Any method of the installed torchdiffeq, by its name there.

    For methods that have no class here, such as ``heun3``, ``fehlberg2`` and the multistep
    methods ``explicit_adams`` and ``implicit_adams``, or ``scipy_solver``, which reaches SciPy's
    implicit ones without gradients. Interpolation, events, ``per_sample`` and
    :class:`solvers.Checkpoint` are not available. The Adams methods (``*_adams``) remember earlier
    steps as if all were of one size, so that output times must then be equally spaced.

    Args:
        solver: the name in torchdiffeq.
        steps: steps in every output interval, for the methods that work on a fixed grid.
        rtol: relative tolerance, of steps or, for ``implicit_adams``, of its iteration.
        atol: absolute tolerance, likewise.
        max_steps: attempted steps allowed in the whole integration, for methods that choose them;
            for ``scipy_solver``, whose steps are out of sight, a twentieth of the evaluations
            allowed.
        options: further options of torchdiffeq, such as ``{"max_iters": 8}`` for
            ``implicit_adams`` or ``{"solver": "LSODA"}`` for ``scipy_solver``.

    Raises:
        TypeError: an option is not of the right kind.
        ValueError: the installed torchdiffeq has no such solver (``tsit5``, for instance, is not
            in release 0.2.5); a number out of range; an option that is decided by ``steps``.

    >>> import torch
    >>> from solvers import TorchDiffEq, solve
    >>> method = TorchDiffEq("implicit_adams", steps=20)
    >>> z0 = torch.tensor([1.0], dtype=torch.float64)
    >>> solve(lambda t, z: -z, z0, [0.0, 1.0], method).ys[-1]
    tensor([0.3679], dtype=torch.float64)
    """

    name: ClassVar[str] = "torchdiffeq"

    solver: str
    steps: int | tuple[int, ...] = 1
    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 10_000
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        known = torchdiffeq_solvers()
        if self.solver not in known:
            raise ValueError(
                f"the installed torchdiffeq has no solver {self.solver!r}; it has "
                f"{', '.join(known)}"
            )
        step_counts("TorchDiffEq.steps", self.steps)
        positive_float("TorchDiffEq.rtol", self.rtol)
        positive_float("TorchDiffEq.atol", self.atol)
        positive_int("TorchDiffEq.max_steps", self.max_steps)
        if not isinstance(self.options, Mapping):
            raise TypeError(f"TorchDiffEq.options must be a mapping, got {self.options!r}")
        for key in ("step_size", "grid_constructor", "step_t", "norm"):
            if key in self.options:
                raise ValueError(
                    f"TorchDiffEq.options[{key!r}] is set by the output times; give steps=..., the "
                    "number of steps in every interval"
                )

    @property
    def kind(self) -> Literal["fixed", "adaptive", "other"]:
        """Whether its steps are given, chosen by their error, or out of sight (SciPy's)."""
        cls = torchdiffeq_solvers()[self.solver]
        ancestors = {base.__name__ for base in cls.__mro__}
        if "FixedGridODESolver" in ancestors:
            return "fixed"
        return "adaptive" if "RKAdaptiveStepsizeODESolver" in ancestors else "other"


def torchdiffeq_solvers() -> dict[str, type]:
    """The solvers of the installed torchdiffeq, by name."""
    # The package has a function of the same name as this module in its place.
    module = importlib.import_module("torchdiffeq._impl.odeint")
    solvers: dict[str, type] = module.SOLVERS
    return solvers
