"""The ways in which gradients travel back through an integration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from solvers._validate import positive_float, positive_int
from solvers.methods import Method


@dataclass(frozen=True)
class Gradient:
    """A way to differentiate an integration. Use one of its subclasses.

    Attributes:
        name: the name in configuration files, see :func:`solvers.gradient_from_name`.
    """

    name: ClassVar[str]


@dataclass(frozen=True)
class Direct(Gradient):
    """Autograd through the operations of every step ("discretise, then optimise").

    The exact gradient of what was computed, also at large steps, with respect to the initial state,
    the times, and every tensor that the field uses. Memory grows with the number of evaluations.
    For an adaptive method the sequence of step sizes is taken as given.
    """

    name: ClassVar[str] = "direct"


@dataclass(frozen=True)
class Checkpoint(Gradient):
    """The gradient of :class:`Direct` in less memory, at the cost of a second integration.

    For methods with fixed steps. Only the states at every ``every``-th step are kept; on the way
    back each segment between them is integrated once more, with recording, and differentiated.
    So ``n`` steps keep ``n / every`` states and the operations of ``every`` steps: about
    ``every = sqrt(n)`` needs the least memory. Every step is re-evaluated exactly once, also if the
    field itself is a gradient computed by autograd, for which ``torch.utils.checkpoint`` would
    recompute quadratically often. Gradients of second order are not available.

    Source: Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", 2016
    (arXiv 1604.06174); Gholami, Keutzer, Biros, "ANODE", IJCAI 2019 (arXiv 1902.10298).

    Args:
        every: steps in a segment.

    Raises:
        TypeError: ``every`` is not an integer.
        ValueError: ``every`` is below 1.
    """

    name: ClassVar[str] = "checkpoint"

    every: int = 1

    def __post_init__(self) -> None:
        positive_int("Checkpoint.every", self.every)


@dataclass(frozen=True)
class Adjoint(Gradient):
    """The continuous adjoint ("optimise, then discretise"), by torchdiffeq.

    With ``a = dL/dz`` it integrates ``da/dt = -a df/dz`` and ``dL/dp = -integral of a df/dp``
    backwards in time, together with the state, which starts anew from the stored output at every
    output time. Memory does not grow with the number of steps. The result is the gradient of the
    exact flow, up to the error of both integrations, and *not* the gradient of what was computed:
    with large steps the two differ noticeably (Euler: several percent), so prefer :class:`Direct`
    where memory allows. Gradients of second order are not available.

    Source: Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations",
    NeurIPS 2018 (arXiv 1806.07366).

    Args:
        rtol: relative tolerance on the way back; None: that of the backward method.
        atol: absolute tolerance on the way back; None: that of the backward method.
        seminorm: leave the parameters' gradients out of the error norm on the way back, which
            needs fewer steps (Kidger, Chen, Lyons, "Hey, that's not an ODE", ICML 2021, arXiv
            2009.09457).
        method: the method on the way back; None: the same as forward. Its ``max_steps`` holds
            for each way back.

    ``rtol``, ``atol`` and ``seminorm`` are for adaptive backward methods; ``solve`` refuses them
    with others.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: a tolerance is not positive and finite.
    """

    name: ClassVar[str] = "adjoint"

    rtol: float | None = None
    atol: float | None = None
    seminorm: bool = False
    method: Method | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None:
            positive_float("Adjoint.rtol", self.rtol)
        if self.atol is not None:
            positive_float("Adjoint.atol", self.atol)
        if not isinstance(self.seminorm, bool):
            raise TypeError(f"Adjoint.seminorm must be True or False, got {self.seminorm!r}")
        if self.method is not None and not isinstance(self.method, Method):
            raise TypeError(
                f"Adjoint.method must be a method such as Dopri5(), or None; got {self.method!r}"
            )
