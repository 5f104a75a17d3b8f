"""The flow of a field: where a latent is after time t, and how its density changed."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

import solvers
from flowfactor.checks import kind_of
from flowfactor.potentials import VectorField
from solvers import (
    RK4,
    Direct,
    Euler,
    Gradient,
    Method,
    Observer,
    Solution,
    SolverError,
    State,
    Stats,
)
from solvers.checks import check_sample_times
from solvers.fixed import FixedMethod

LogDensity = bool | Literal["discrete"]
"""Whether a path has the change of the log-density, and of which map: see :func:`trace`."""


_compiles: ContextVar[bool] = ContextVar("compiles", default=False)


@contextmanager
def compiled_flows(enabled: bool = True) -> Iterator[None]:
    """Let ``torch.compile`` make a graph of :func:`trace_between` in this context.

    For work that repeats, with methods of fixed steps: the first call takes up to a minute, also
    for the gradient. Where the flow cannot be solved, the latents are NaN or infinite, and nothing
    is raised.

    Args:
        enabled: False changes nothing.
    """
    token = _compiles.set(enabled)
    try:
        yield
    finally:
        _compiles.reset(token)


class Path(NamedTuple):
    """The path of latents along a flow.

    Attributes:
        z: ``(T, B, D)``, the latent at each time; ``z[0]`` is the start.
        log_det: ``(T, B)`` or None: ``log|det dz_t/dz_0|`` from ``times[0]``, of the exact flow
            (the integral of the divergence) or of its Euler steps, as ``log_density`` asked; so
            ``log q_t(z_t) = log q_0(z_0) - log_det[t]``.
        times: ``(T,)``; ``(B, T)`` if each latent has its own; where NaN, so is the path.
        stats: what the solver counted (field evaluations, steps).
    """

    z: Float[Tensor, "t b d"]
    log_det: Float[Tensor, "t b"] | None
    times: Float[Tensor, "*b t"]
    stats: Stats


def trace(
    z: Float[Tensor, "b d"],
    field: VectorField,
    t: float | Sequence[float] | Tensor,
    *,
    method: Method = RK4(),
    gradient: Gradient = Direct(),
    log_density: LogDensity = False,
    per_sample: bool = False,
    observer: Observer | None = None,
) -> Path:
    r"""Follow ``dz/dt = v(z, t)`` and return the whole :class:`Path`.

    Args:
        z: latents ``(B, D)``, float32 or float64; the result keeps dtype and device.
        field: v; of a potential u it is ``grad u``.
        t: a number: from time 0 to t. Or times ``(T,)``, increasing or decreasing: from ``t[0]``,
            where the latents are ``z``, through all of them. One frame is one unit of time; a
            negative time is before the first frame. A tensor ``(B, T)`` gives each latent times of
            its own, in each row like ``(T,)`` and filled up by NaN; ``(B, 1)`` a number of its own:
            from time 0 to there. (``(B,)`` would be the times of all.) These need
            :class:`solvers.Direct`, and adaptive methods take steps for each sample.
        method: a solver of :mod:`solvers`. The ``steps`` of a fixed-step method count for each
            unit of time here, so that the result at t does not depend on which other times are
            asked for.
        gradient: how the solver is differentiated.
        log_density: whether to integrate ``log|det dz_t/dz_0|`` too. True: of the flow itself, the
            integral of the divergence along the path, as exact as the method. ``"discrete"``: of
            the map that Euler's method computes, ``sum over its steps of log|det(I + h dv/dz)|``,
            which is exact for any size of step; it needs ``Euler(steps=n)``.
        per_sample: let an adaptive method choose its steps for every sample by itself, so that
            the result does not depend on the rest of the batch.
        observer: called after each step, see :func:`solvers.solve`.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not match, times that do not run one way,
            or a discrete log-density with another method than Euler's.
        solvers.SolverError: the solver did not reach the last time.

    Source: Song et al., arXiv:2309.13167, for the flow; Chen et al., "Neural Ordinary Differential
    Equations", NeurIPS 2018, for the density.

    Example:
        >>> import torch, flowfactor
        >>> u = flowfactor.RidgePotential(("rotation",), dim=2, width=8)["rotation"]
        >>> path = flowfactor.trace(torch.zeros(1, 2), u, [0.0, 1.0, 2.0], log_density=True)
        >>> path.z.shape, path.log_det.shape, path.stats.evaluations
        (torch.Size([3, 1, 2]), torch.Size([3, 1]), 8)
    """
    times = _as_times(t, z)
    grid, wanted = _subdivide(times, method)
    if times.ndim == 2:
        per_sample = method.is_adaptive
        if log_density == "discrete":
            raise ValueError("a discrete log-density needs the same times (T,) for all latents")
    if log_density == "discrete":
        if per_sample:
            raise ValueError("per_sample is for adaptive methods, a discrete log-density is not")
        return _trace_discrete(z, field, times, grid, wanted, method, gradient, observer)
    if not isinstance(log_density, bool):
        raise ValueError(f"log_density is {log_density!r}; it is True, False or 'discrete'")

    def rate(at: Tensor, state: State) -> State:
        """Return the velocity of the latent and, where it is asked for, of the log-density."""
        if isinstance(state, Tensor):
            return field.velocity(state, at)
        return field.evaluate(state[0], at, ("velocity", "divergence"))

    start: State = (z, z.new_zeros(z.shape[0])) if log_density else z
    solution = _solve(rate, start, grid, method, gradient, field, z, per_sample, observer)
    ys = solution.ys if wanted is None else _index_time(solution.ys, wanted)
    if times.ndim == 2 and _is_column(t):
        # From 0 to 0 nothing moves.
        times = times.where(times.isfinite(), 0.0)
        ys = _map_parts(lambda y: y.where(y.isfinite(), y[:1]), ys)
    if isinstance(ys, Tensor):
        return Path(ys, None, times, solution.stats)
    return Path(ys[0], ys[1], times, solution.stats)


def flow(
    z: Float[Tensor, "b d"],
    field: VectorField,
    t: float | Sequence[float] | Tensor,
    **options: Any,
) -> Tensor:
    r"""Move latents along the flow of a field: solve ``dz/dt = v(z, t)``.

    Args:
        z: latents ``(B, D)``.
        field: v; of a potential u it is ``grad u``.
        t: a number: from time 0 to t. Or times ``(T,)``: from ``t[0]`` through all of them.
            ``flow(z, u, [t, 0.0])[-1]`` undoes ``flow(z, u, t)``. Or of each latent: ``(B, 1)`` a
            number, ``(B, T)`` times, see :func:`trace`.
        options: method, gradient and others of :func:`trace`.

    Returns:
        ``z_t``: ``(B, D)`` for a number t (for all or of each), else ``(T, B, D)``, the first being
        the start.

    Raises:
        ValueError, TypeError, solvers.SolverError: as :func:`trace`.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> bank = flowfactor.RidgePotential(("rotation", "hue"), dim=4, width=16)
        >>> z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> both = bank["rotation"] + bank["hue"]
        >>> moved = flowfactor.flow(z, both, 2.0)
        >>> back = flowfactor.flow(moved, both, [2.0, 0.0])[-1]
        >>> torch.allclose(back, z, atol=1e-3)
        True
    """
    path = trace(z, field, t, **options).z
    number = isinstance(t, (int, float)) or (isinstance(t, Tensor) and t.ndim == 0)
    number = number or _is_column(t)
    return path[-1] if number else path


def trace_between(
    z: Float[Tensor, "b d"],
    field: VectorField,
    start: Float[Tensor, "b"],
    end: Float[Tensor, "b"],
    *,
    method: Method = RK4(),
    gradient: Gradient = Direct(),
    log_density: bool = False,
    fractions: Sequence[float] = (),
) -> Path:
    r"""Follow each latent over an interval of its own, all of them in equally many steps.

    .. math::

        w(0) = z, \qquad \frac{dw}{dr} = (t - s)\, v(w, s + r (t - s)), \qquad z_t = w(1)

    which is the flow from time s to t, forwards or backwards, at the speed that brings all latents
    to the end together.

    Args:
        z: the latents at the times ``start``, ``(B, D)``.
        field: v; of a potential u it is ``grad u``.
        start: s, of each latent.
        end: t, of each latent; where it equals s nothing moves.
        method: a solver of :mod:`solvers`. The ``steps`` of a fixed-step method count for the whole
            of every interval, however long; with fractions for each part of it.
        gradient: how the solver is differentiated.
        log_density: whether to integrate ``log|det dz_t/dz_s|`` too.
        fractions: values of r in (0, 1), increasing, where the path is asked for as well.

    Returns:
        The path at ``r = 0, *fractions, 1``, its times ``(B, 2 + len(fractions))``.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not match, or fractions that do not increase
            from 0 to 1.
        solvers.SolverError: the solver did not reach the end.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.flow import trace_between
        >>> from solvers import RK4
        >>> _ = torch.manual_seed(0)
        >>> u = flowfactor.RidgePotential(("hue",), dim=4, width=8)["hue"]
        >>> z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> start, end = torch.tensor([0.0, 3.0, 2.0]), torch.tensor([2.0, 0.0, 2.0])
        >>> path = trace_between(z, u, start, end, method=RK4(steps=4))
        >>> torch.allclose(path.z[-1, 1], flowfactor.flow(z, u, [3.0, 0.0])[-1, 1], atol=1e-4)
        True
        >>> torch.equal(path.z[-1, 2], z[2])
        True
    """
    start, end = (_as_ends(name, t, z) for name, t in (("start", start), ("end", end)))
    if not isinstance(log_density, bool):
        raise ValueError(f"log_density must be True or False here; it is {log_density!r}")
    compiles = _compiles.get() and isinstance(method, FixedMethod)
    follow = _compiled_follow() if compiles else _follow
    return follow(z, field, start, end, method, gradient, log_density, fractions, not compiles)


def _follow(
    z: Tensor,
    field: VectorField,
    start: Tensor,
    end: Tensor,
    method: Method,
    gradient: Gradient,
    log_density: bool,
    fractions: Sequence[float],
    throw: bool,
) -> Path:
    elapsed = end - start

    def rate(at: Tensor, state: State) -> State:
        t = start + at * elapsed
        if isinstance(state, Tensor):
            return elapsed.unsqueeze(-1) * field.velocity(state, t)
        velocity, divergence = field.evaluate(state[0], t, ("velocity", "divergence"))
        return elapsed.unsqueeze(-1) * velocity, elapsed * divergence

    first: State = (z, z.new_zeros(z.shape[0])) if log_density else z
    # Numbers, which need not be read from the device, and are constants to a compiler.
    grid = [0.0, *fractions, 1.0]
    solution = _solve(rate, first, grid, method, gradient, field, z, throw=throw)
    times = torch.stack([start + r * elapsed for r in grid], dim=1)
    if isinstance(solution.ys, Tensor):
        return Path(solution.ys, None, times, solution.stats)
    return Path(solution.ys[0], solution.ys[1], times, solution.stats)


@functools.cache
def _compiled_follow() -> Callable[..., Path]:
    # Where it reads whether all is finite, the graph ends, which is no news.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    return torch.compile(_follow)


def _as_ends(name: str, t: Tensor, z: Tensor) -> Tensor:
    """Return times of each latent in the latents' dtype."""
    if not isinstance(t, Tensor) or t.shape != z.shape[:1]:
        raise ValueError(f"{name} must be a time of each latent, ({len(z)},); it is {kind_of(t)}")
    return t.to(z)


def _solve(
    rate: solvers.VectorField,
    start: State,
    grid: Tensor | Sequence[float],
    method: Method,
    gradient: Gradient,
    field: VectorField,
    z: Tensor,
    per_sample: bool = False,
    observer: Observer | None = None,
    throw: bool = True,
) -> Solution:
    try:
        with full_precision(z):
            return solvers.solve(
                rate,
                start,
                grid,
                method,
                gradient,
                parameters=field.tensors(),
                per_sample=per_sample,
                observer=observer,
                throw=throw,
            )
    except SolverError as error:
        raise _explain(error, z) from error


def _trace_discrete(
    z: Tensor,
    field: VectorField,
    times: Tensor,
    grid: Tensor,
    wanted: Tensor | None,
    method: Method,
    gradient: Gradient,
    observer: Observer | None,
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
    steps, places = _split_intervals(grid, counts)
    places = places if wanted is None else places[wanted]

    def rate(at: Tensor, state: State) -> State:
        assert isinstance(state, Tensor)
        return field.velocity(state, at)

    solution = _solve(rate, z, steps, Euler(steps=1), gradient, field, z, observer=observer)
    ys = solution.ys
    assert isinstance(ys, Tensor)
    log_det = [z.new_zeros(z.shape[0])]
    with full_precision(z):
        for at, size, before in zip(steps[:-1], steps.diff(), ys[:-1], strict=True):
            log_det.append(log_det[-1] + field.log_det(before, at, size))
    return Path(ys[places], torch.stack(log_det)[places], times, solution.stats)


def check_discrete(method: Method) -> Euler:
    """Return Euler's method; the steps of any other have no determinant in closed form.

    Raises:
        ValueError: it is not Euler's.
    """
    if not isinstance(method, Euler):
        raise ValueError(
            f"a discrete log-density needs method=Euler(steps=n); it is {method}. The integral of "
            f"the divergence goes with any method"
        )
    return method


def full_precision(z: Tensor) -> AbstractContextManager[Any]:
    """Evaluate fields in the latent's own precision also where networks around them are not.

    Half the digits of a velocity are not enough for an ODE, nor for its residuals.
    """
    return torch.autocast(z.device.type, enabled=False)


def _explain(error: SolverError, z: Tensor) -> SolverError:
    """Return another error where the latents were not finite before they flowed."""
    bad = ~torch.isfinite(z.detach()).all(dim=-1)
    if not bool(bad.any()):
        return error
    message = (
        f"{int(bad.sum())} of {len(z)} latents are not finite before they flow, the first in "
        f"sample {int(bad.nonzero()[0, 0])}. Check the images and the weights of the encoder."
    )
    return SolverError(message, error.status, error.time, error.stats)


def _as_times(t: float | Sequence[float] | Tensor, z: Tensor) -> Tensor:
    """Return the times as ``(T,)``, or of each latent; a number t becomes ``(0, t)``."""
    times = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    if times.ndim == 0:
        times = torch.stack([torch.zeros_like(times), times])
        # From 0 to 0: the start itself.
        return times[:1] if bool(times[1] == 0) else times
    if times.ndim == 2:
        if _is_column(t) and len(times) == len(z):
            zero = torch.zeros_like(times)
            return torch.cat([zero, times.where(times != 0, torch.nan)], dim=1)
        try:
            check_sample_times(times, z)
        except ValueError as error:
            raise ValueError(
                f"t must be a number, times (T,), or of each latent, ({len(z)}, 1) or "
                f"({len(z)}, T): {error}"
            ) from None
    return times


def _is_column(t: object) -> bool:
    """Return whether there is a number for each latent, ``(B, 1)``."""
    return isinstance(t, Tensor) and t.ndim == 2 and t.shape[1] == 1


def _subdivide(times: Tensor, method: Method) -> tuple[Tensor, Tensor | None]:
    """Split intervals that are longer than a unit of time, for methods of fixed step.

    Returns:
        The grid and the places of ``times`` in it; None for all.
    """
    steps = getattr(method, "steps", None)
    if not isinstance(steps, int) or times.shape[-1] < 2:
        return times, None
    if times.ndim == 2:  # each latent's own: the longest counts
        lengths = times.detach().diff(dim=1).abs().nan_to_num(0.0).amax(0).tolist()
    else:
        lengths = times.detach().diff().abs().tolist()
    # The tolerance keeps an interval of one frame one interval in the face of rounding.
    parts = [max(1, math.ceil(length - 1e-6)) for length in lengths]
    if max(parts) == 1:
        return times, None
    return _split_intervals(times, parts)


def _split_intervals(times: Tensor, parts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Split intervals into equal parts; return the grid and the places of ``times`` in it."""
    pieces = [times[..., :1]]
    for i, part in enumerate(parts):
        inner = torch.arange(1, part, dtype=times.dtype, device=times.device) / part
        start, end = times[..., i : i + 1], times[..., i + 1 : i + 2]
        pieces += [start + inner * (end - start), end]
    places = torch.tensor([0, *parts], device=times.device).cumsum(0)
    return torch.cat(pieces, dim=-1), places


def _index_time(ys: Tensor | tuple[Tensor, ...], places: Tensor) -> Tensor | tuple[Tensor, ...]:
    return _map_parts(lambda y: y[places], ys)


def _map_parts(function: Callable[[Tensor], Tensor], ys: State) -> State:
    if isinstance(ys, Tensor):
        return function(ys)
    return tuple(map(function, ys))
