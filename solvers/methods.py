"""The integration methods: small frozen options that validate themselves.

Two families. *Fixed* methods take a given whole number of steps in every output interval, so
their cost is known beforehand and the result is a fixed composition of smooth maps: the usual
choice for training. *Adaptive* methods choose steps such that the estimated local error of each
stays within ``atol + rtol * |z|``: the usual choice for evaluation and reference solutions.

All are explicit Runge-Kutta methods. With stages ``k_i = f(t + c_i h, z + h sum_j a_ij k_j)``, a
step of size ``h`` is ``z + h sum_i b_i k_i``. A method of order ``p`` has global error ``O(h^p)``.

Source: E. Hairer, S. P. Norsett, G. Wanner, "Solving Ordinary Differential Equations I", 2nd
edition, Springer 1993 (chapter II), below HNW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from solvers._validate import positive_float, positive_int


@dataclass(frozen=True)
class Method:
    """What every integration method states about itself. Use one of its subclasses.

    Attributes:
        name: the name in configuration files, see :func:`solvers.method_from_name`.
        order: the order of accuracy ``p``.
        stages: evaluations of the field in every attempted step.
        torchdiffeq_name: what torchdiffeq calls the method.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    stages: ClassVar[int]
    torchdiffeq_name: ClassVar[str]


@dataclass(frozen=True)
class FixedMethod(Method):
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
        where = f"{type(self).__name__}.steps"
        if not isinstance(self.steps, tuple):
            positive_int(where, self.steps)
            return
        if not self.steps:
            raise ValueError(f"{where} is an empty tuple; give one integer, or one per interval")
        for i, n in enumerate(self.steps):
            positive_int(f"{where}[{i}]", n)


@dataclass(frozen=True)
class AdaptiveMethod(Method):
    """A method that chooses its steps; see its subclasses.

    A step is accepted if the norm of ``error / (atol + rtol * max(|z_old|, |z_new|))`` is at most
    1, the norm being the root mean square over all entries of a tensor, and the largest of these
    over a tuple. All samples of a batch share their steps; so a sample's result depends, within
    the tolerance, on its neighbours. Steps end on the output times, where the result has the
    accuracy of the method, and the field is never evaluated outside the interval.

    Every integration costs two evaluations beside those of its steps: the derivative at the
    start, and one to choose the first step (HNW II.4).

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
    torchdiffeq_name: ClassVar[str] = "euler"
    order: ClassVar[int] = 1
    stages: ClassVar[int] = 1


@dataclass(frozen=True)
class Midpoint(FixedMethod):
    """The explicit midpoint rule, ``z + h f(t + h/2, z + h/2 f(t, z))``: order 2, two stages.

    Source: Runge 1895; HNW II.1.
    """

    name: ClassVar[str] = "midpoint"
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
    torchdiffeq_name: ClassVar[str] = "bosh3"
    order: ClassVar[int] = 3
    stages: ClassVar[int] = 3


@dataclass(frozen=True)
class AdaptiveHeun(AdaptiveMethod):
    """Heun's method with Euler's as error estimate: order 2, one evaluation a step.

    torchdiffeq takes the derivative at Euler's prediction, the second stage, for the first stage of
    the next step. That saves an evaluation at an error of the size of the method's own.

    Source: HNW II.1 and II.4.
    """

    name: ClassVar[str] = "adaptive_heun"
    torchdiffeq_name: ClassVar[str] = "adaptive_heun"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 1


@dataclass(frozen=True)
class Dopri8(AdaptiveMethod):
    """The 8(7) pair of Dormand and Prince: order 8, 13 evaluations a step.

    For smooth fields and tight tolerances, in float64.

    Source: Prince and Dormand, "High order embedded Runge-Kutta formulae", J. Comp. Appl. Math. 7,
    1981; HNW II.5.
    """

    name: ClassVar[str] = "dopri8"
    torchdiffeq_name: ClassVar[str] = "dopri8"
    order: ClassVar[int] = 8
    stages: ClassVar[int] = 13
