"""Numerical integration of ordinary differential equations on torch tensors, with gradients.

One function, :func:`solve`, integrates ``dz/dt = field(t, z)`` by a *method* (``RK4(steps=2)``,
``Dopri5(rtol=1e-6)``, ...) and differentiates by a *gradient* (``Direct()``,
``Checkpoint(every=8)``, ``Adjoint()``). Both are small frozen dataclasses. It returns a
:class:`Solution` with the states at the requested times, a :class:`Status` and :class:`Stats`, or
raises :class:`SolverError`.

>>> import torch
>>> from solvers import Dopri5, solve
>>> _ = torch.manual_seed(0)
>>> z0 = torch.randn(5, 2, dtype=torch.float64)
>>> solution = solve(lambda t, z: -z, z0, [0.0, 1.0], Dopri5(rtol=1e-8, atol=1e-8))
>>> torch.allclose(solution.ys[-1], z0 * torch.tensor(-1.0).double().exp(), atol=1e-7)
True
"""

from solvers.errors import SolverError
from solvers.events import EventSolution, solve_until
from solvers.field import Field
from solvers.gradients import Adjoint, Checkpoint, Direct, Gradient
from solvers.integrate import solve
from solvers.methods import (
    RK4,
    AdaptiveHeun,
    AdaptiveMethod,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    FixedMethod,
    Heun,
    Method,
    Midpoint,
    TorchDiffEq,
)
from solvers.names import gradient_from_name, method_from_name, to_dict
from solvers.solution import Samples, Solution, State, Stats, Status

__all__ = [
    "RK4",
    "AdaptiveHeun",
    "AdaptiveMethod",
    "Adjoint",
    "Bosh3",
    "Checkpoint",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "EventSolution",
    "Field",
    "FixedMethod",
    "Gradient",
    "Heun",
    "Method",
    "Midpoint",
    "Samples",
    "Solution",
    "SolverError",
    "State",
    "Stats",
    "Status",
    "TorchDiffEq",
    "gradient_from_name",
    "method_from_name",
    "solve",
    "solve_until",
    "to_dict",
]
