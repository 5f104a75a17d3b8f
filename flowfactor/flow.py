"""The flow of a potential: where a latent is after time t, and how its density changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor

import solvers
from flowfactor.potentials import Potential, Selector
from solvers import RK4, Direct, Euler, Gradient, Method, Solution, SolverError, State, Stats

if TYPE_CHECKING:
    from flowfactor.models.base import SequenceModel

LogDensity = bool | Literal["discrete"]
"""Whether a flow returns the change of the log-density, and of which map: see :func:`flow`."""


class Path(NamedTuple):
    """A latent's way along a flow.

    Attributes:
        z: ``(T, B, D)``, the latent at each time; ``z[0]`` is the start.
        log_det: ``(T, B)`` or None: ``log|det dz_t/dz_0|`` from ``times[0]``, of the exact flow
            (the integral of the Laplacian) or of its Euler steps, as ``log_density`` asked; so
            ``log q_t(z_t) = log q_0(z_0) - log_det[t]``.
        times: ``(T,)``.
        stats: what the solver counted (field evaluations, steps).
    """

    z: Float[Tensor, "t b d"]
    log_det: Float[Tensor, "t b"] | None
    times: Float[Tensor, "t"]
    stats: Stats


def trace(
    z: Float[Tensor, "b d"],
    k: Potential | Selector,
    t: float | Sequence[float] | Tensor,
    model: SequenceModel | None = None,
    *,
    method: Method | None = None,
    gradient: Gradient | None = None,
    log_density: LogDensity = False,
    per_sample: bool = False,
) -> Path:
    """Follow ``dz/dt = grad u^k(z, t)`` and return the whole :class:`Path`.

    Takes what :func:`flow` takes. With a number t the path has the two times 0 and t.

    Example:
        >>> import torch, flowfactor
        >>> u = flowfactor.RidgePotential(("rotation",), dim=2, width=8)["rotation"]
        >>> path = flowfactor.trace(torch.zeros(1, 2), u, [0.0, 1.0, 2.0])
        >>> path.z.shape, path.stats.evaluations
        (torch.Size([3, 1, 2]), 8)
    """
    potential = _resolve(k, model)
    method = method or getattr(model, "method", None) or RK4()
    gradient = gradient or getattr(model, "gradient", None) or Direct()
    times = _as_times(t, z)
    grid, wanted = _fit_grid(times, method)
    if log_density == "discrete":
        if per_sample:
            raise ValueError("per_sample is for adaptive methods, a discrete log-density is not")
        return _trace_discrete(z, potential, times, grid, wanted, method, gradient)
    if not isinstance(log_density, bool):
        raise ValueError(
            f"log_density is {log_density!r}; it is True for the integral of the Laplacian, "
            f"'discrete' for the determinant of the Euler steps, or False"
        )

    def field(at: Tensor, state: State) -> State:
        """Return the velocity of the latent and, where it is asked for, of the log-density."""
        if isinstance(state, Tensor):
            return potential.gradient(state, at)
        velocity, divergence = potential.evaluate(state[0], at, ("gradient", "laplacian"))
        return velocity, divergence

    start: State = (z, z.new_zeros(z.shape[0])) if log_density else z
    solution = _solve(field, start, grid, method, gradient, potential, z, per_sample)
    ys = solution.ys if wanted is None else _take(solution.ys, wanted)
    if isinstance(ys, Tensor):
        return Path(ys, None, times, solution.stats)
    return Path(ys[0], ys[1], times, solution.stats)


def flow_to_zero(
    z: Float[Tensor, "b d"],
    potential: Potential,
    t: Float[Tensor, "b"],
    model: SequenceModel,
) -> Float[Tensor, "b d"]:
    """Flow back to time 0 from a time of its own for each sample.

    .. code-block:: text

        w(0) = z,   dw/ds = -t/T grad u(w, t (1 - s/T)),   the result is w(T),   T = model.horizon

    which is the flow in a time that runs backwards and at the speed that brings all samples to 0
    together. The model's method takes as many steps as for a whole sequence.

    Args:
        z: latents at the times t.
        potential: of each sample.
        t: in ``[0, T]``.
        model: gives the solver, its gradient and T.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.flow import flow_to_zero
        >>> model = flowfactor.FlowVAE.build(("a", "b"), latent_dim=4, width=8)
        >>> z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        >>> back = flow_to_zero(z, model.potentials["b"], torch.tensor([0.0, 3.0]), model)
        >>> torch.allclose(back[0], z[0])
        True
        >>> torch.allclose(back[1], model.flow(z, "b", [3.0, 0.0])[-1, 1], atol=1e-4)
        True
    """

    def field(at: Tensor, state: State) -> State:
        assert isinstance(state, Tensor)
        speed = (t / model.horizon).unsqueeze(-1)
        return -speed * potential.gradient(state, t * (1 - at / model.horizon))

    grid = torch.arange(model.horizon + 1, dtype=z.dtype, device=z.device)
    solution = _solve(field, z, grid, model.method, model.gradient, potential, z)
    assert isinstance(solution.ys, Tensor)
    return solution.ys[-1]


@overload
def flow(
    z: Float[Tensor, "b d"],
    k: Potential | Selector,
    t: float | Sequence[float] | Tensor,
    model: SequenceModel | None = None,
    *,
    method: Method | None = None,
    gradient: Gradient | None = None,
    log_density: Literal[False] = False,
    per_sample: bool = False,
) -> Tensor: ...


@overload
def flow(
    z: Float[Tensor, "b d"],
    k: Potential | Selector,
    t: float | Sequence[float] | Tensor,
    model: SequenceModel | None = None,
    *,
    method: Method | None = None,
    gradient: Gradient | None = None,
    log_density: Literal[True, "discrete"],
    per_sample: bool = False,
) -> tuple[Tensor, Tensor]: ...


def flow(
    z: Float[Tensor, "b d"],
    k: Potential | Selector,
    t: float | Sequence[float] | Tensor,
    model: SequenceModel | None = None,
    *,
    method: Method | None = None,
    gradient: Gradient | None = None,
    log_density: LogDensity = False,
    per_sample: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Move latents along the flow of a potential: solve ``dz/dt = grad u^k(z, t)``.

    Args:
        z: latents ``(B, D)``, float32 or float64; the result keeps dtype and device.
        k: a potential; or, with ``model``, the index or the name of a transformation, a long
            tensor ``(B,)`` of one index per sample, or weights ``(B, K)`` of a mixture.
        t: a number: from time 0 to t. Or times ``(T,)``, increasing or decreasing: from ``t[0]``
            through all of them. One frame is one unit of time. ``flow(z, k, [t, 0.0])`` undoes
            ``flow(z, k, t)``; a negative number runs from 0 to before the first frame.
        model: gives the potentials, and the method and gradient it was trained with.
        method: a solver of :mod:`solvers`; default: the model's, else ``RK4(steps=1)``. The
            ``steps`` of a fixed-step method count for each unit of time here, so that the result
            at t does not depend on which other times are asked for.
        gradient: how the solver is differentiated; default: the model's, else ``Direct()``.
        log_density: also return ``log|det dz_t/dz_0|``. True: of the flow itself, the integral of
            the Laplacian along the path, as exact as the method. ``"discrete"``: of the map that
            Euler's method computes, ``sum over its steps of log|det(I + h Hessian)|``, which is
            exact for any size of step; needs ``Euler(steps=n)``.
        per_sample: let an adaptive method choose its steps for every sample by itself, so that
            the result does not depend on the rest of the batch.

    Returns:
        ``z_t``: ``(B, D)`` for a number t, else ``(T, B, D)``, the first being the start. With
        ``log_density`` a pair, the second being ``log|det dz_t/dz_0|``, ``(B,)`` or ``(T, B)``, so
        that ``log q_t(z_t) = log q_0(z_0) - log|det|``.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not match, times that do not run one way,
            or a discrete log-density with another method than Euler's.
        KeyError, IndexError: no such transformation.
        solvers.SolverError: the solver did not reach the last time.

    Source: Song et al., arXiv:2309.13167, for the flow; Chen et al., "Neural Ordinary Differential
    Equations", NeurIPS 2018, for the density.

    Example:
        >>> import torch, flowfactor
        >>> bank = flowfactor.RidgePotential(("rotation", "hue"), dim=4, width=16)
        >>> z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> both = bank["rotation"] + bank["hue"]
        >>> there = flowfactor.flow(z, both, 2.0)
        >>> back = flowfactor.flow(there, both, [2.0, 0.0])[-1]
        >>> torch.allclose(back, z, atol=1e-3)
        True
    """
    path = trace(
        z,
        k,
        t,
        model,
        method=method,
        gradient=gradient,
        log_density=log_density,
        per_sample=per_sample,
    )
    number = isinstance(t, (int, float)) or (isinstance(t, Tensor) and t.ndim == 0)
    moved = path.z[-1] if number else path.z
    if path.log_det is None:
        return moved
    return moved, path.log_det[-1] if number else path.log_det


def _solve(
    field: solvers.Field,
    start: State,
    grid: Tensor,
    method: Method,
    gradient: Gradient,
    potential: Potential,
    z: Tensor,
    per_sample: bool = False,
) -> Solution:
    try:
        with full_precision(z):
            return solvers.solve(
                field,
                start,
                grid,
                method,
                gradient,
                parameters=potential.tensors(),
                per_sample=per_sample,
            )
    except SolverError as error:
        raise _explained(error, z) from error


def _trace_discrete(
    z: Tensor,
    potential: Potential,
    times: Tensor,
    grid: Tensor,
    wanted: Tensor | None,
    method: Method,
    gradient: Gradient,
) -> Path:
    """Return the path of Euler's method with the log-determinant of the steps that it takes."""
    counts = check_discrete(method).steps
    if isinstance(counts, int):
        counts = (counts,) * (len(grid) - 1)
    if len(counts) != len(grid) - 1:
        raise ValueError(
            f"{method} gives the steps of {len(counts)} intervals, but the times have "
            f"{len(grid) - 1}"
        )
    # Every step becomes an interval of the grid, so that its start is at hand.
    steps, places = _cut(grid, counts)
    places = places if wanted is None else places[wanted]

    def field(at: Tensor, state: State) -> State:
        assert isinstance(state, Tensor)
        return potential.gradient(state, at)

    solution = _solve(field, z, steps, Euler(steps=1), gradient, potential, z)
    ys = solution.ys
    assert isinstance(ys, Tensor)
    log_det = [z.new_zeros(z.shape[0])]
    with full_precision(z):
        for at, size, before in zip(steps[:-1], steps.diff(), ys[:-1], strict=True):
            log_det.append(log_det[-1] + potential.log_det(before, at, size))
    return Path(ys[places], torch.stack(log_det)[places], times, solution.stats)


def check_discrete(method: Method) -> Euler:
    """Return Euler's method, and refuse any other: its steps have no determinant in closed form.

    Raises:
        ValueError: it is not Euler's.
    """
    if not isinstance(method, Euler):
        raise ValueError(
            f"a discrete log-density sums log|det(I + h Hessian)| over the steps of Euler's "
            f"method, but the method is {method}; take method=Euler(steps=n), or "
            f"log_density=True, the integral of the Laplacian, for any method"
        )
    return method


def full_precision(z: Tensor) -> AbstractContextManager[Any]:
    """Evaluate potentials in the latent's own precision also where networks around them are not.

    Half the digits of a velocity are not enough for an ODE, nor for its residuals.
    """
    return torch.autocast(z.device.type, enabled=False)


def _explained(error: SolverError, z: Tensor) -> SolverError:
    """Say so where the latents were not finite before they flowed: the solver is not to blame."""
    bad = ~torch.isfinite(z.detach()).all(dim=-1)
    if not bool(bad.any()):
        return error
    message = (
        f"{int(bad.sum())} of {len(z)} latents are NaN or infinite before they flow, the first in "
        f"sample {int(bad.nonzero()[0, 0])}. Look for values that are not finite in the images "
        f"that they were encoded from, or in the weights of the encoder."
    )
    return SolverError(message, error.status, error.time, error.stats)


def _resolve(k: Potential | Selector, model: SequenceModel | None) -> Potential:
    if isinstance(k, Potential):
        return k
    if model is None:
        raise ValueError(
            f"k = {k!r} chooses a transformation of a model, but no model is given; call "
            f"flow(z, k, t, model), or give a potential as k"
        )
    return model.potentials.select(k)


def _as_times(t: float | Sequence[float] | Tensor, z: Tensor) -> Tensor:
    """Return the times as ``(T,)``; a number t becomes ``(0, t)``."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = str(z.dtype) if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"z must be a tensor of floating-point numbers (B, D); it is {kind}")
    times = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    if times.ndim == 0:
        times = torch.stack([torch.zeros_like(times), times])
        if bool(times[1] == 0):
            # From 0 to 0: the start itself.
            times = times[:1]
    if times.ndim != 1 or not len(times):
        raise ValueError(
            f"t has the shape {tuple(times.shape)}; give a number or a 1-D tensor of times"
        )
    return times


def _fit_grid(times: Tensor, method: Method) -> tuple[Tensor, Tensor | None]:
    """Cut intervals that are longer than a unit of time, for methods of fixed step.

    Returns the grid and the places of ``times`` in it (None: all).
    """
    steps = getattr(method, "steps", None)
    if not isinstance(steps, int) or len(times) < 2:
        return times, None
    lengths = times.detach().diff().abs().tolist()
    if not all(math.isfinite(length) for length in lengths):
        return times, None
    # The tolerance keeps an interval of one frame one interval in the face of rounding.
    parts = [max(1, math.ceil(length - 1e-6)) for length in lengths]
    if max(parts) == 1:
        return times, None
    return _cut(times, parts)


def _cut(times: Tensor, parts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cut each interval into equal parts; return the grid and the places of ``times`` in it."""
    pieces = [times[:1]]
    for i, part in enumerate(parts):
        inner = torch.arange(1, part, dtype=times.dtype, device=times.device) / part
        pieces += [times[i] + inner * (times[i + 1] - times[i]), times[i + 1 : i + 2]]
    places = torch.tensor([0, *parts], device=times.device).cumsum(0)
    return torch.cat(pieces), places


def _take(ys: Tensor | tuple[Tensor, ...], places: Tensor) -> Tensor | tuple[Tensor, ...]:
    if isinstance(ys, Tensor):
        return ys[places]
    return tuple(y[places] for y in ys)
