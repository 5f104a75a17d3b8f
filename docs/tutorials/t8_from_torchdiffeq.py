"""
The solver layer for people who come from torchdiffeq
=====================================================

Each call of torchdiffeq beside its counterpart in :mod:`solvers`, and the traps that disappear.
The package integrates any field on torch tensors; it knows nothing of images or potentials.
"""

# %%
# One call, three parts
# ---------------------
#
# ``odeint(f, y0, t, method=..., options=...)`` mixes the problem, the method and how to
# differentiate. Here they are three arguments: the problem, a method, a gradient.

import matplotlib.pyplot as plt
import torch
from torchdiffeq import odeint, odeint_adjoint

from solvers import RK4, Adjoint, Checkpoint, Dopri5, SolverError, Tsit5, solve, solve_until

torch.set_default_dtype(torch.float64)
weight = torch.tensor([[0.0, -2.0], [2.0, -0.1]], requires_grad=True)


def spiral(t, z):
    """Return the velocity of a spiral towards the origin."""
    return z @ weight.T


z0 = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
times = torch.linspace(0, 5, 26)

theirs = odeint(spiral, z0, times, rtol=1e-8, atol=1e-8)
ours = solve(spiral, z0, times, Dopri5(rtol=1e-8, atol=1e-8))
print("largest difference:", (theirs - ours.ys).abs().max().item())
print(ours.status.value, ours.stats)

# %%
# The answer carries a status and what it cost. A method is a small frozen dataclass that checks its
# options where it is made; ``Tsit5`` is the one that most libraries recommend today.

for method in (RK4(steps=4), Dopri5(rtol=1e-6, atol=1e-6), Tsit5(rtol=1e-6, atol=1e-6)):
    found = solve(spiral, z0, times, method)
    error = (found.ys - theirs).abs().max().item()
    print(f"{type(method).__name__:8}{found.stats.evaluations:5} evaluations, error {error:.1e}")

# %%
# Gradients
# ---------
#
# ``odeint_adjoint`` is ``Adjoint()``. The parameters of a field that is a module are found; those
# of a function are named, and a tensor that the field uses and nobody named is an error instead of
# a gradient that is silently missing. ``Checkpoint`` recomputes steps instead of storing them.

end = odeint_adjoint(spiral, z0, times, adjoint_params=(weight,), rtol=1e-8, atol=1e-8)[-1]
(reference,) = torch.autograd.grad(end.square().sum(), weight)

for gradient in (Adjoint(), Checkpoint(every=4)):
    method = Dopri5(rtol=1e-8, atol=1e-8)
    end = solve(spiral, z0, times, method, gradient, parameters=(weight,)).ys[-1]
    (found,) = torch.autograd.grad(end.square().sum(), weight)
    print(f"{type(gradient).__name__:12}{(found - reference).abs().max().item():.1e}")

# %%
# A pulse that is stepped over
# ----------------------------
#
# Adaptive steps grow where a field is quiet, and may miss what is short. No tolerance helps; a
# largest step does, or the times at which the field is known to jump. Both libraries have both.


def pulse(t, z):
    """Return a pulse of height 100 and width 0.01 at t = 5; its integral is 1.7725."""
    return 100 * torch.exp(-(((t - 5) / 0.01) ** 2)) * torch.ones_like(z)


nothing = torch.zeros(1, 1)
span = torch.tensor([0.0, 10.0])
print("default:           ", solve(pulse, nothing, span, Dopri5()).ys[-1].item())
print("max_step=0.02:     ", solve(pulse, nothing, span, Dopri5(max_step=0.02)).ys[-1].item())
print("breakpoints=(5,):  ", solve(pulse, nothing, span, Dopri5(breakpoints=(5.0,))).ys[-1].item())

# %%
# Times of each sample's own
# --------------------------
#
# A batch whose samples need different times is one call, with steps of each sample's own; a stiff
# sample does not slow the others down.

own = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 5.0]])
apart = solve(spiral, z0, own, Dopri5(rtol=1e-8, atol=1e-8), per_sample=True)
print(apart.ys.shape, apart.stats.evaluations)

# %%
# Events, dense output, failure
# -----------------------------
#
# ``odeint_event`` is :func:`solvers.solve_until`; the time of the event is differentiable.

crossing = solve_until(spiral, z0[:1], lambda t, z: z[:, 0], (0.0, 5.0), Dopri5(rtol=1e-8))
print("the first coordinate is zero at t =", crossing.t.item())

smooth = solve(spiral, z0, [0.0, 5.0], Dopri5(rtol=1e-8, atol=1e-8), dense=True)
fine = torch.linspace(0, 5, 200)
path = torch.stack([smooth.interpolate(t) for t in fine]).detach()

figure, axes = plt.subplots(figsize=(4, 4))
axes.plot(path[:, 0, 0], path[:, 0, 1])
axes.scatter(*crossing.z[0].detach(), color="C3", zorder=3)
axes.set(title="Dense output, and the first event", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
figure.tight_layout()

# %%
# A field that explodes raises an error that says where, and keeps what was reached:

try:
    solve(lambda t, z: z**2, torch.ones(1, 1), [0.0, 2.0], Dopri5())
except SolverError as error:
    print(error)

torch.set_default_dtype(torch.float32)
