"""The integration methods: small frozen options that validate themselves.

Two families. *Fixed* methods take a given whole number of steps in every output interval, so
their cost is known beforehand and the result is a fixed composition of smooth maps: the usual
choice for training. *Adaptive* methods choose steps such that the estimated local error of each
stays within ``atol + rtol * |z|``: the usual choice for evaluation and reference solutions.

These are explicit Runge-Kutta methods; :class:`solvers.TorchDiffEq` gives access to others. With
stages ``k_i = f(t + c_i h, z + h sum_j a_ij k_j)``, a step of size ``h`` is
``z + h sum_i b_i k_i``. A method of order ``p`` has global error ``O(h^p)``.

A method is its tableau: subclass :class:`FixedMethod` or :class:`AdaptiveMethod` to add one, and
register the class under the name that it has in configuration files.

Source: E. Hairer, S. P. Norsett, G. Wanner, "Solving Ordinary Differential Equations I", 2nd
edition, Springer 1993 (chapter II), below HNW; E. Hairer, G. Wanner, "Solving Ordinary Differential
Equations II", 2nd edition, Springer 1996, below HW.

Example:
    Ralston's method of order 2, with steps of one's own number:

    >>> import torch
    >>> from solvers import FixedMethod, Tableau, solve
    >>> class Ralston(FixedMethod):
    ...     tableau = Tableau(c=(0, 2 / 3), a=((), (2 / 3,)), b=(1 / 4, 3 / 4), order=2)
    >>> solve(lambda t, z: -z, torch.ones(1), [0.0, 1.0], Ralston(steps=50)).ys[-1]
    tensor([0.3679])
"""

from __future__ import annotations

from typing import Any

from solvers.adaptive import AdaptiveMethod
from solvers.checks import build
from solvers.fixed import FixedMethod
from solvers.registry import Registry
from solvers.step import Method, Tableau

METHODS: Registry[type[Method]] = Registry("method")
"""The methods by the names that configuration files give them."""


def method_from_name(name: str, **options: Any) -> Method:
    """Return the method of that name, with its options.

    Args:
        name: one of ``METHODS``: ``rk4``, ``dopri5``, ...
        options: the fields of the class: ``steps`` (an integer, or a list or tuple of one per
            output interval), or ``rtol``, ``atol``, ``max_steps``, ``first_step``, ``max_step``,
            ``breakpoints`` and ``controller``; for ``torchdiffeq`` ``solver``, ``steps``, the
            tolerances, ``max_steps`` and ``options``.

    Raises:
        ValueError: an unknown name (``UnknownNameError``) or option, or a value out of range.
        TypeError: a value of the wrong type.

    Example:
        >>> method_from_name("rk4", steps=[1, 2])
        RK4(steps=(1, 2))
    """
    for key in ("steps", "breakpoints", "controller"):
        if isinstance(options.get(key), list):  # YAML has no tuples
            options[key] = tuple(options[key])
    return build(METHODS, name, options)


@METHODS.register("euler")
class Euler(FixedMethod):
    """Euler's method, ``z + h f(t, z)``: order 1, one stage (HNW I.7).

    The cheapest step, and the least accurate: halving the error takes twice the steps.

    Example:
        >>> Euler(steps=4).order
        1
    """

    tableau = Tableau(c=(0.0,), a=((),), b=(1.0,), order=1)


@METHODS.register("midpoint")
class Midpoint(FixedMethod):
    """The explicit midpoint rule, ``z + h f(t + h/2, z + h/2 f(t, z))``: order 2, two stages.

    Source: Runge 1895; HNW II.1.
    """

    tableau = Tableau(c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0), order=2)


@METHODS.register("heun")
class Heun(FixedMethod):
    """Heun's method, the explicit trapezoidal rule: order 2, two stages.

    ``z + h/2 (k_1 + k_2)`` with ``k_1 = f(t, z)`` and ``k_2 = f(t + h, z + h k_1)``. This is
    torchdiffeq's ``heun2``; its ``heun3`` is Heun's other method, of order 3.

    Source: HNW II.1.
    """

    tableau = Tableau(
        c=(0.0, 1.0), a=((), (1.0,)), b=(1 / 2, 1 / 2), order=2, error=(-1 / 2, 1 / 2)
    )


@METHODS.register("rk4")
class RK4(FixedMethod):
    """Kutta's 3/8 rule: order 4, four stages.

    Not the "classical" Runge-Kutta method with its two midpoint stages, although torchdiffeq calls
    this one ``rk4``: the stages lie at ``0, 1/3, 2/3, 1`` with weights ``1/8, 3/8, 3/8, 1/8``.
    Cost and order are the same, the error constants somewhat smaller, and the results of the two
    differ by ``O(h^4)``.

    Source: Kutta 1901; HNW II.1, table 1.2.

    Example:
        >>> RK4(steps=(1, 2)).steps
        (1, 2)
    """

    tableau = Tableau(
        c=(0.0, 1 / 3, 2 / 3, 1.0),
        a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
        order=4,
    )


@METHODS.register("adaptive_heun")
class AdaptiveHeun(AdaptiveMethod):
    """Heun's method with Euler's as error estimate: order 2, two evaluations a step.

    Source: HNW II.1 and II.4.
    """

    tableau = Heun.tableau


@METHODS.register("bosh3")
class Bosh3(AdaptiveMethod):
    """The 3(2) pair of Bogacki and Shampine: order 3, three evaluations a step.

    The last of its four stages is the first of the next step. For loose tolerances.

    Source: Bogacki and Shampine, "A 3(2) pair of Runge-Kutta formulas", Appl. Math. Letters 2,
    1989.
    """

    tableau = Tableau(
        c=(0.0, 1 / 2, 3 / 4, 1.0),
        a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        b=(2 / 9, 1 / 3, 4 / 9, 0.0),
        order=3,
        error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    )


@METHODS.register("dopri5")
class Dopri5(AdaptiveMethod):
    """The 5(4) pair of Dormand and Prince: order 5, six evaluations a step.

    The last of its seven stages is the first of the next step. The method to start with.

    Source: Dormand and Prince, "A family of embedded Runge-Kutta formulae", J. Comp. Appl. Math.
    6, 1980; HNW II.5.

    Example:
        >>> Dopri5(rtol=1e-6).rtol
        1e-06
    """

    tableau = Tableau(
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        order=5,
        error=(
            35 / 384 - 5179 / 57600,
            0.0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
        quartic=(
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    )


@METHODS.register("tsit5")
class Tsit5(AdaptiveMethod):
    """The 5(4) pair of Tsitouras: order 5, six evaluations a step.

    The last of its seven stages is the first of the next step. Made for smaller errors than those
    of :class:`Dopri5` at the same cost.

    Source: Tsitouras, "Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
    assumption", Computers & Mathematics with Applications 62, 2011.

    Example:
        >>> Tsit5(rtol=1e-6).order
        5
    """

    tableau = Tableau(
        c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (
                5.325864828439257,
                -11.748883564062828,
                7.4955393428898365,
                -0.09249506636175525,
            ),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
            (
                0.09646076681806523,
                0.01,
                0.4798896504144996,
                1.379008574103742,
                -3.290069515436081,
                2.324710524099774,
            ),
        ),
        b=(
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
            0.0,
        ),
        order=5,
        error=(
            -0.001780011052225777,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
        quartic=(
            -1.0530884977290216,
            0.1017,
            2.490627285651252793,
            -16.54810288924490272,
            47.37952196281928122,
            -34.87065786149660974,
            2.5,
        ),
    )


# RK8(7)13M of Prince and Dormand 1981, table 2: rational approximations to 18 digits.
_B8 = (
    14005451 / 335480064,
    0.0,
    0.0,
    0.0,
    0.0,
    -59238493 / 1068277825,
    181606767 / 758867731,
    561292985 / 797845732,
    -1041891430 / 1371343529,
    760417239 / 1151165299,
    118820643 / 751138087,
    -528747749 / 2220607170,
    1 / 4,
)
_B7 = (
    13451932 / 455176623,
    0.0,
    0.0,
    0.0,
    0.0,
    -808719846 / 976000145,
    1757004468 / 5645159321,
    656045339 / 265891186,
    -3867574721 / 1518517206,
    465885868 / 322736535,
    53011238 / 667516719,
    2 / 45,
    0.0,
)


@METHODS.register("dopri8")
class Dopri8(AdaptiveMethod):
    """The 8(7) pair of Dormand and Prince: order 8, 13 evaluations a step.

    For smooth fields and tight tolerances, in float64.

    Source: Prince and Dormand, "High order embedded Runge-Kutta formulae", J. Comp. Appl. Math. 7,
    1981; HNW II.5.
    """

    tableau = Tableau(
        c=(
            0.0,
            1 / 18,
            1 / 12,
            1 / 8,
            5 / 16,
            3 / 8,
            59 / 400,
            93 / 200,
            5490023248 / 9719169821,
            13 / 20,
            1201146811 / 1299019798,
            1.0,
            1.0,
        ),
        a=(
            (),
            (1 / 18,),
            (1 / 48, 1 / 16),
            (1 / 32, 0.0, 3 / 32),
            (5 / 16, 0.0, -75 / 64, 75 / 64),
            (3 / 80, 0.0, 0.0, 3 / 16, 3 / 20),
            (
                29443841 / 614563906,
                0.0,
                0.0,
                77736538 / 692538347,
                -28693883 / 1125000000,
                23124283 / 1800000000,
            ),
            (
                16016141 / 946692911,
                0.0,
                0.0,
                61564180 / 158732637,
                22789713 / 633445777,
                545815736 / 2771057229,
                -180193667 / 1043307555,
            ),
            (
                39632708 / 573591083,
                0.0,
                0.0,
                -433636366 / 683701615,
                -421739975 / 2616292301,
                100302831 / 723423059,
                790204164 / 839813087,
                800635310 / 3783071287,
            ),
            (
                246121993 / 1340847787,
                0.0,
                0.0,
                -37695042795 / 15268766246,
                -309121744 / 1061227803,
                -12992083 / 490766935,
                6005943493 / 2108947869,
                393006217 / 1396673457,
                123872331 / 1001029789,
            ),
            (
                -1028468189 / 846180014,
                0.0,
                0.0,
                8478235783 / 508512852,
                1311729495 / 1432422823,
                -10304129995 / 1701304382,
                -48777925059 / 3047939560,
                15336726248 / 1032824649,
                -45442868181 / 3398467696,
                3065993473 / 597172653,
            ),
            (
                185892177 / 718116043,
                0.0,
                0.0,
                -3185094517 / 667107341,
                -477755414 / 1098053517,
                -703635378 / 230739211,
                5731566787 / 1027545527,
                5232866602 / 850066563,
                -4093664535 / 808688257,
                3962137247 / 1805957418,
                65686358 / 487910083,
            ),
            (
                403863854 / 491063109,
                0.0,
                0.0,
                -5068492393 / 434740067,
                -411421997 / 543043805,
                652783627 / 914296604,
                11173962825 / 925320556,
                -13158990841 / 6184727034,
                3936647629 / 1978049680,
                -160528059 / 685178525,
                248638103 / 1413531060,
                0.0,
            ),
        ),
        b=_B8,
        order=8,
        error=tuple(b - d for b, d in zip(_B8, _B7, strict=True)),
    )
