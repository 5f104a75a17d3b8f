"""The same integration by this project and by its peers, one small function each.

Each function takes a :class:`RidgeFlow` and returns a function that integrates, differentiates, and
returns the :class:`Outcome`. ``rk4`` is Kutta's 3/8 rule everywhere, with the same steps; adaptive
methods have the same tolerances everywhere, the arguments of the run, and each package its own step
control.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any, ClassVar

import numpy as np
import torch
import torchdiffeq
from torch import Tensor

from experiments.benchmarks.ridge_flow import LAST, CountingFlow, Outcome, RidgeFlow
from solvers import RK4, AdaptiveMethod, Direct, Gradient, Method, solve
from solvers.graphs import translate

RTOL, ATOL = 1e-5, 1e-6

Run = Callable[..., Outcome]
"""``run(rtol, atol)``, with RTOL and ATOL as defaults where the method has tolerances."""

Build = Callable[[RidgeFlow], Run]

PACKAGES = ("torchdiffeq", "torchdyn", "torchode", "diffrax", "jax", "jaxlib")

# Kutta's 3/8 rule: times of the stages, their rows, and the weights.
C38 = (0.0, 1 / 3, 2 / 3, 1.0)
A38 = ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0))
B38 = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


class MissingPeerError(Exception):
    """A package to compare with is not installed, or does not work here."""


def need(package: str) -> Any:
    """Import a package that only the comparison needs.

    Raises:
        MissingPeerError: it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPeerError(
            f"{package} cannot be imported ({error}); install the packages to compare with by: "
            f"pip install 'flowfactor[peers]'"
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of the installed peers."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


# ---- this project


def ours(gradient: Gradient = Direct(), method: Method = RK4(steps=1), **options: Any) -> Build:
    """``solve`` of this project."""

    def build(flow: RidgeFlow) -> Run:
        def run(rtol: float = RTOL, atol: float = ATOL) -> Outcome:
            solution = solve(
                flow.field(),
                flow.start(),
                flow.times,
                replace(method, rtol=rtol, atol=atol)
                if isinstance(method, AdaptiveMethod)
                else method,
                gradient,
                parameters=flow.inputs[1:],
                **options,
            )
            return flow.outcome(solution.ys)

        return run

    return build


def ours_compiled(backend: Callable[..., Any] | str = translate) -> Build:
    """``solve`` and the loss under ``torch.compile``, as one graph, by a backend of it."""

    def build(flow: RidgeFlow) -> Run:
        def forward() -> Any:
            solution = solve(flow.field(), flow.start(), flow.times, RK4(steps=1))
            return flow.loss(solution.ys), solution.ys

        compiled = torch.compile(forward, fullgraph=True, backend=backend)

        def run() -> Outcome:
            loss, rows = compiled()
            return Outcome(rows, torch.autograd.grad(loss, flow.inputs))

        return run

    return build


def hand_written(flow: RidgeFlow) -> Run:
    """Run the 3/8 rule as a plain loop in torch, on one tensor, without any solver."""

    def run() -> Outcome:
        field, y = flow.flat_field(), flow.flat_start()
        rows = [y]
        for t, end in zip(flow.times, flow.times[1:], strict=False):
            h = end - t
            k1 = field(torch.tensor(t), y)
            k2 = field(torch.tensor(t + h / 3), y + h / 3 * k1)
            k3 = field(torch.tensor(t + 2 * h / 3), y + h * (k2 - k1 / 3))
            k4 = field(torch.tensor(end), y + h * (k1 - k2 + k3))
            y = y + h / 8 * (k1 + 3 * (k2 + k3) + k4)
            rows.append(y)
        return flow.outcome(torch.stack(rows))

    return run


# ---- torchdiffeq, torchdyn, torchode


def by_torchdiffeq(method: str = "rk4", adjoint: bool = False, **options: Any) -> Build:
    """Package torchdiffeq, called by hand; ``rk4`` takes one step between two times."""

    def build(flow: RidgeFlow) -> Run:
        times = torch.tensor(flow.times, dtype=flow.dtype)

        def run(rtol: float = RTOL, atol: float = ATOL) -> Outcome:
            arguments: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, **options}
            if adjoint:
                rows = torchdiffeq.odeint_adjoint(
                    flow.field(), flow.start(), times, adjoint_params=flow.inputs[1:], **arguments
                )
            else:
                rows = torchdiffeq.odeint(flow.field(), flow.start(), times, **arguments)
            return flow.outcome(rows)

        return run

    return build


def by_torchdyn(method: str) -> Build:
    """Package torchdyn, with the tableau of the 3/8 rule in its ``RungeKutta4``.

    Its own tableau evaluates the second stage at the start of the step and the fourth in its middle
    (``c`` begins with a 0 that the stepper does not expect), so that a field that moves in time is
    integrated to first order only.
    """

    def build(flow: RidgeFlow) -> Run:
        odeint = need("torchdyn.numerics").odeint
        steppers = need("torchdyn.numerics.solvers.ode")
        times = torch.tensor(flow.times, dtype=flow.dtype)
        stepper: Any = steppers.DormandPrince45(flow.dtype)
        if method == "rk4":
            stepper = steppers.RungeKutta4(flow.dtype)
            stages = [torch.tensor(row) for row in A38[1:]]
            stepper.tableau = (torch.tensor(C38[1:]), stages, torch.tensor(B38), torch.zeros(1))

        def run(rtol: float = RTOL, atol: float = ATOL) -> Outcome:
            arguments = {} if method == "rk4" else {"rtol": rtol, "atol": atol}
            field = flow.flat_field()

            def at_scalar(t: Tensor, y: Tensor) -> Tensor:
                return field(t.reshape(()), y)

            _, rows = odeint(at_scalar, flow.flat_start(), times, stepper, **arguments)
            return flow.outcome(rows)

        return run

    return build


def by_torchode(method: str) -> Build:
    """Package torchode, every sample with its own steps; it lacks the 3/8 rule, but takes it."""

    def build(flow: RidgeFlow) -> Run:
        torchode = need("torchode")
        times = torch.tensor(flow.times, dtype=flow.dtype).expand(flow.size.batch, -1)
        first_step: Tensor | None = None
        stepper_class: Any = torchode.Dopri5
        if method == "rk4":
            first_step = torch.full((flow.size.batch,), LAST / flow.size.steps)
            stepper_class = _kutta38_of_torchode()

        def run(rtol: float = RTOL, atol: float = ATOL) -> Outcome:
            controller: Any = torchode.IntegralController(atol=atol, rtol=rtol)
            if method == "rk4":
                controller = torchode.FixedStepController()
            term = torchode.ODETerm(flow.flat_field(), with_stats=False)
            solver = torchode.AutoDiffAdjoint(
                stepper_class(term), controller, backprop_through_step_size_control=False
            )
            problem = torchode.InitialValueProblem(y0=flow.flat_start(), t_eval=times)
            solution = solver.solve(problem, term, dt0=first_step)
            return flow.outcome(solution.ys.transpose(0, 1))

        return run

    return build


def _kutta38_of_torchode() -> Any:
    kutta = need("torchode.single_step_methods.runge_kutta")
    base: Any = kutta.ExplicitRungeKutta
    interpolation = need("torchode.interpolation")
    tableau = kutta.ButcherTableau.from_lists(
        c=list(C38), a=[list(row) for row in A38], b=list(B38), b_err=[0.0] * 4
    )

    class Kutta38(base):
        def __init__(self, term: Any) -> None:
            super().__init__(term, tableau)

        def convergence_order(self) -> int:
            return 4

        def build_interpolation(self, data: Any) -> Any:
            return interpolation.ThirdOrderPolynomialInterpolation.from_k(
                data.t0, data.dt, data.y0, data.y1, data.k
            )

    return Kutta38


# ---- jax


def name_dtype(dtype: torch.dtype) -> str:
    """Return what other packages call it."""
    return str(dtype).removeprefix("torch.")


def by_diffrax(method: str, direct: bool = False, max_steps: int = 64) -> Build:
    """Package diffrax under ``jit``, differentiated by its checkpoints or by ``DirectAdjoint``.

    What its checkpoints cost depends on ``max_steps``.
    """

    def build(flow: RidgeFlow) -> Run:
        diffrax = need("diffrax")
        adjoint = diffrax.DirectAdjoint() if direct else diffrax.RecursiveCheckpointAdjoint()
        arguments: dict[str, Any]
        if method == "rk4":
            arguments = {
                "solver": _kutta38_of_diffrax(),
                "dt0": LAST / flow.size.steps,
                "stepsize_controller": diffrax.ConstantStepSize(),
                "saveat": diffrax.SaveAt(t0=True, steps=True),
                "max_steps": flow.size.steps,
            }
        else:
            arguments = {
                "solver": {"dopri5": diffrax.Dopri5, "tsit5": diffrax.Tsit5}[method](),
                "dt0": None,
                "saveat": diffrax.SaveAt(ts=np.asarray(flow.times, dtype=name_dtype(flow.dtype))),
                "max_steps": max_steps,
            }

        def integrate(field: Any, start: Any, parameters: Any, rtol: Any, atol: Any) -> Any:
            if method != "rk4":
                controller = diffrax.PIDController(rtol=rtol, atol=atol)
                arguments["stepsize_controller"] = controller
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                t0=0.0,
                t1=LAST,
                y0=start,
                args=parameters,
                adjoint=adjoint,
                **arguments,
            )
            return solution.ys

        return _in_jax(flow, integrate)

    return build


def by_jax_scan(flow: RidgeFlow) -> Run:
    """Run the 3/8 rule in a ``jax.lax.scan`` under ``jit``, without any solver."""
    jax, jnp = need("jax"), need("jax.numpy")
    h = LAST / flow.size.steps

    def integrate(field: Any, start: Any, parameters: Any, *_: Any) -> Any:
        def advance(y: Any, *terms: tuple[float, Any]) -> Any:
            for weight, slope in terms:
                y = jax.tree.map(lambda a, b, w=weight: a + h * w * b, y, slope)
            return y

        def step(y: Any, t: Any) -> Any:
            k1 = field(t, y, parameters)
            k2 = field(t + h / 3, advance(y, (1 / 3, k1)), parameters)
            k3 = field(t + 2 * h / 3, advance(y, (-1 / 3, k1), (1.0, k2)), parameters)
            k4 = field(t + h, advance(y, (1.0, k1), (-1.0, k2), (1.0, k3)), parameters)
            end = advance(y, (1 / 8, k1), (3 / 8, k2), (3 / 8, k3), (1 / 8, k4))
            return end, end

        rows = jax.lax.scan(step, start, jnp.asarray(flow.times[:-1]))[1]
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, rows)

    return _in_jax(flow, integrate)


def _in_jax(flow: RidgeFlow, integrate: Callable[..., Any]) -> Run:
    """Return the run of an integration in jax: the same field, weights and loss.

    Tolerances are arguments of what is compiled, once for all of them.
    """
    jax, jnp = need("jax"), need("jax.numpy")
    jax.config.update("jax_enable_x64", flow.dtype == torch.float64)
    dim, density = flow.size.dim, flow.density
    z0, directions, coefficients = (jnp.asarray(x.detach().numpy()) for x in flow.inputs)
    frequencies = jnp.asarray(flow.bank.frequencies.numpy())
    weights = jnp.asarray(flow.weights.numpy())
    count = flow.count if isinstance(flow, CountingFlow) else None

    def field(t: Any, state: Any, parameters: Any) -> Any:
        if count is not None:
            jax.debug.callback(count, t)  # with t: a call in a loop stays in the loop
        A, coefficients = parameters[0][0], parameters[1][0]
        angle = t * frequencies
        features = jnp.concatenate(
            [jnp.stack([jnp.ones_like(t), t / LAST]), jnp.sin(angle), jnp.cos(angle)]
        )
        w, b, c, _ = jnp.split(features @ coefficients, np.cumsum([len(A), len(A), dim]).tolist())
        z = state[0] if density else state
        tanh = jnp.tanh(z @ A.T + b)
        velocity = (w * tanh) @ A + c
        if not density:
            return velocity
        return velocity, (w * (1 - tanh**2)) @ (A**2).sum(-1)

    def loss(inputs: Any, rtol: Any, atol: Any) -> Any:
        z0, *parameters = inputs
        start = (z0, jnp.zeros(len(z0), z0.dtype)) if density else z0
        rows = integrate(field, start, tuple(parameters), rtol, atol)
        if not density:
            return (rows[1:] * weights).sum(), rows
        z, log_det = rows
        value = (z[1:] * weights[..., :dim]).sum() + (log_det[1:] * weights[..., dim]).sum()
        return value, rows

    differentiate = jax.jit(jax.grad(loss, has_aux=True))
    inputs = (z0, directions, coefficients)

    def run(rtol: float = RTOL, atol: float = ATOL) -> Outcome:
        if isinstance(flow, CountingFlow):
            jax.block_until_ready(jax.jit(loss)(inputs, rtol, atol))
            jax.effects_barrier()
            flow.forward, flow.evaluations = flow.evaluations, 0
        gradients, rows = jax.block_until_ready(differentiate(inputs, rtol, atol))
        jax.effects_barrier()
        return Outcome(rows, gradients)

    return run


def _kutta38_of_diffrax() -> Any:
    diffrax = need("diffrax")
    base: Any = diffrax.AbstractERK

    class Kutta38(base):
        tableau: ClassVar[Any] = diffrax.ButcherTableau(
            c=np.array(C38[1:]),
            a_lower=tuple(np.array(row) for row in A38[1:]),
            b_sol=np.array(B38),
            b_error=np.zeros(4),
        )
        interpolation_cls: ClassVar[Any] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms: Any) -> int:
            return 4

    return Kutta38()
