"""Dynamic optimal transport: the Hamilton-Jacobi equation, kinetic energy, straightness."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.flow import LogDensity, Path, full_precision, trace
from flowfactor.potentials import Potential, Time
from solvers import RK4, Direct, FixedMethod, Gradient, Method


class TransportTerms(NamedTuple):
    """Hamilton-Jacobi residual and kinetic energy, at some latents or along a path.

    Attributes:
        residual: ``(B,)`` or ``(T, B)``, ``du/dt + 1/2 ||grad u||^2 - f``.
        kinetic_energy: likewise, ``1/2 ||grad u||^2``, the squared norm of each sample.
    """

    residual: Float[Tensor, "*t b"]
    kinetic_energy: Float[Tensor, "*t b"]


def transport_terms(
    potential: Potential, z: Float[Tensor, "b d"], t: Time, force: Force | None = None
) -> TransportTerms:
    r"""Return ``du/dt + 1/2 ||grad u||^2 - f`` and ``1/2 ||grad u||^2`` at every latent.

    The first vanishes where u solves the Hamilton-Jacobi equation of dynamic optimal transport
    under the non-positive force f; with ``f = 0`` the paths are straight lines at constant speed.

    Args:
        potential: u.
        z: latents ``(B, D)``.
        t: one time, or one per latent ``(B,)``.
        force: a learned force; None is ``f = 0``.

    Source: Benamou and Brenier, "A computational fluid mechanics solution to the Monge-Kantorovich
    mass transfer problem", Numerische Mathematik 84 (2000).

    Example:
        >>> import torch
        >>> from flowfactor import AutogradPotential
        >>> u = AutogradPotential(lambda z, t: z.square().sum(-1) / (2 * (1 + t)), dim=2)
        >>> transport_terms(u, torch.tensor([[1.0, 2.0]]), 3.0).residual.abs() < 1e-6
        tensor([True])
    """
    with full_precision(z):
        time, gradient = potential.evaluate(z, t, ("time", "gradient"))
    energy = 0.5 * gradient.square().sum(-1)
    push = 0.0 if force is None else force(z, torch.as_tensor(t, dtype=z.dtype, device=z.device))
    return TransportTerms(time + energy - push, energy)


def along_path(potential: Potential, path: Path, force: Force | None = None) -> TransportTerms:
    """Return the transport terms at every latent of a path, each ``(T, B)``.

    Args:
        potential: the potential that made the path, one for the batch or one per sample.
        path: from :func:`flowfactor.trace`.
        force: a learned force; None is ``f = 0``.
    """
    # Where each latent has its own times, (B, T), a column is one point of all paths.
    times = path.times if path.times.ndim == 1 else path.times.mT
    terms = [transport_terms(potential, z, t, force) for t, z in zip(times, path.z, strict=True)]
    residuals, energies = zip(*terms, strict=True)
    return TransportTerms(torch.stack(residuals), torch.stack(energies))


def trace_with_random_times(
    z0: Float[Tensor, "b d"],
    field: VectorField,
    horizon: int,
    *,
    method: Method = RK4(),
    gradient: Gradient = Direct(),
    log_density: LogDensity = False,
) -> tuple[Path, Path]:
    """Return the path at the frames, and at one random time between each two of them.

    An equation of the potential holds at all times, not at frames only: one uniform time in each
    interval estimates the mean over ``[0, T]`` without bias, where residuals at the frames would be
    made small there and large between. The random times are also steps of the solver, so that
    training cannot fit the errors of a fixed grid.

    Args:
        z0: where the flow starts.
        field: that of each sample.
        horizon: the last frame T.
        method: a solver of :mod:`solvers`; a fixed one takes its steps per frame.
        gradient: how the solver is differentiated.
        log_density: see :func:`flowfactor.trace`; the second path has none.
    """
    frames = torch.arange(horizon + 1, dtype=z0.dtype, device=z0.device)
    # Away from the ends by a thousandth: times must not repeat.
    inner = frames[:-1] + torch.rand(horizon, dtype=z0.dtype, device=z0.device).clamp(1e-3, 0.999)
    alternating = rearrange([frames[:-1], inner], "kind t -> (t kind)")
    times = torch.cat([alternating, frames[-1:]])
    if isinstance(method, FixedMethod) and isinstance(method.steps, int):
        # Two intervals share the steps of a frame.
        method = dataclasses.replace(method, steps=-(-method.steps // 2))
    path = trace(z0, field, times, method=method, gradient=gradient, log_density=log_density)
    log_det = None if path.log_det is None else path.log_det[::2]
    at_frames = Path(path.z[::2], log_det, frames, path.stats)
    return at_frames, Path(path.z[1::2], None, inner, path.stats)


def straightness(path: Path) -> Float[Tensor, "b"]:
    """Return distance over length of each sample's path: 1 for a straight line.

    Args:
        path: its length is that of the polygon through ``path.z``: give enough times.

    Returns:
        ``||z_T - z_0|| / sum_t ||z_{t+1} - z_t||``, ``(B,)``, in [0, 1]; 1 for a path at rest.

    Example:
        >>> import torch, flowfactor
        >>> u = flowfactor.AutogradPotential(lambda z, t: z[:, 0] - z[:, 1], dim=2)
        >>> straightness(flowfactor.trace(torch.zeros(1, 2), u, [0.0, 1.0, 2.0]))
        tensor([1.])
    """
    length = path.z.diff(dim=0).norm(dim=-1).sum(0)
    distance = (path.z[-1] - path.z[0]).norm(dim=-1)
    return torch.where(length > 0, distance / length.clamp_min(1e-30), torch.ones_like(length))


class Force(nn.Module):
    """A learned non-positive force ``f(z, t) = -g(z, t)^2`` of the Hamilton-Jacobi equation.

    Args:
        dim: the latent size D.
        width: the hidden width of g.
        horizon: the last frame T; g sees ``t / T``.
    """

    def __init__(self, dim: int, width: int = 64, horizon: float = 8.0) -> None:
        super().__init__()
        self.horizon = horizon
        self.network = nn.Sequential(nn.Linear(dim + 1, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, z: Float[Tensor, "b d"], t: Float[Tensor, "*b"]) -> Float[Tensor, "b"]:
        """Return ``f(z, t) <= 0``, shape ``(B,)``, for one time or one of each latent."""
        time = (t / self.horizon).reshape(-1, 1).expand(z.shape[0], 1)
        g: Tensor = self.network(torch.cat([z, time], dim=1))
        return -g.squeeze(1).square()
