"""What is to be integrated, its arguments checked, as the integrators see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from solvers.field import CountedField
from solvers.methods import Method, RungeKutta
from solvers.solution import Stats
from solvers.stepping import Parts
from solvers.tableaus import Tableau

Observer = Callable[[float, Parts, float, Parts], bool]
"""``observe(t, z, end, after)``, called after every step; True ends the integration."""

SampleObserver = Callable[[Tensor, Parts], None]
"""``observe(t, z)``, called before every attempt with the times ``(B,)`` of all samples."""


@dataclass(frozen=True)
class Problem:
    """The arguments of an integration.

    Attributes:
        field: the derivative.
        z0: the state at the start, in parts.
        times: output times.
        values: the same on the host, in double precision.
        method: how to step.
        stats: where the work is counted.
    """

    field: CountedField
    z0: Parts
    times: Float[Tensor, " n"]
    values: list[float]
    method: Method
    stats: Stats

    @property
    def direction(self) -> float:
        """1.0 forwards in time, -1.0 backwards."""
        return 1.0 if self.values[-1] > self.values[0] else -1.0

    @property
    def tableau(self) -> Tableau:
        """The coefficients of the method, which is one of this package."""
        assert isinstance(self.method, RungeKutta)
        return self.method.tableau
