"""Numerical integration of ordinary differential equations on torch tensors, with gradients.

One function, :func:`solve`, integrates ``dz/dt = field(t, z)`` by a *method* (``RK4(steps=2)``,
``Dopri5(rtol=1e-6)``, ...) and differentiates by a *gradient* (``Direct()``,
``Checkpoint(every=8)``, ``Adjoint()``). Both are small frozen dataclasses. It returns a
:class:`Solution` with the states at the requested times, a :class:`Status` and :class:`Stats`, or
raises :class:`SolverError`.

Example:
    >>> import torch
    >>> from solvers import Dopri5, solve
    >>> _ = torch.manual_seed(0)
    >>> z0 = torch.randn(5, 2, dtype=torch.float64)
    >>> solution = solve(lambda t, z: -z, z0, [0.0, 1.0], Dopri5(rtol=1e-8, atol=1e-8))
    >>> torch.allclose(solution.ys[-1], z0 * torch.tensor(-1.0).double().exp(), atol=1e-7)
    True
"""

from solvers.adaptive import AdaptiveMethod
from solvers.errors import SolverError
from solvers.events import EventSolution, solve_until
from solvers.fixed import FixedMethod
from solvers.gradients import (
    GRADIENTS,
    Adjoint,
    Checkpoint,
    Direct,
    Gradient,
    gradient_from_name,
    to_dict,
)
from solvers.methods import (
    METHODS,
    RK4,
    AdaptiveHeun,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Heun,
    Midpoint,
    Tsit5,
    method_from_name,
)
from solvers.solve import solve
from solvers.step import Method, Tableau
from solvers.torchdiffeq import TorchDiffEq
from solvers.types import (
    Attempt,
    Observer,
    Samples,
    Solution,
    State,
    Stats,
    Status,
    VectorField,
)

__all__ = [
    "GRADIENTS",
    "METHODS",
    "RK4",
    "AdaptiveHeun",
    "AdaptiveMethod",
    "Adjoint",
    "Attempt",
    "Bosh3",
    "Checkpoint",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "EventSolution",
    "FixedMethod",
    "Gradient",
    "Heun",
    "Method",
    "Midpoint",
    "Observer",
    "Samples",
    "Solution",
    "SolverError",
    "State",
    "Stats",
    "Status",
    "Tableau",
    "TorchDiffEq",
    "Tsit5",
    "VectorField",
    "gradient_from_name",
    "method_from_name",
    "solve",
    "solve_until",
    "to_dict",
]
