"""
A latent flow from nothing
==========================

What is a flow along a potential, how does it move points, and what does it do to their density?
No images and no training yet: a potential in the plane.
"""

# %%
# A potential gives a velocity
# ----------------------------
#
# A potential is a scalar function :math:`u(z, t)`. A latent moves along its gradient,
#
# .. math:: \frac{dz}{dt} = \nabla u(z, t).
#
# Any function of torch tensors is a potential. This one is a bowl turned upside down that is
# stretched along one axis, so that points run away from the origin, faster along the first axis.

import matplotlib.pyplot as plt
import torch

from flowfactor import AutogradPotential, RidgePotential, flow, trace


def hill(z, t):
    """Return ``u(z)`` for latents ``(B, 2)``."""
    return 0.5 * (0.3 * z[:, 0] ** 2 + 0.1 * z[:, 1] ** 2)


u = AutogradPotential(hill, dim=2)
z0 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
print(flow(z0, u, 4.0))

# %%
# The exact answer is :math:`z_i e^{\lambda_i t}` with the eigenvalues 0.3 and 0.1. The default is
# one step of a Runge-Kutta method between two times; ``method=RK4(steps=4)`` takes four, and
# ``method=Dopri5(rtol=1e-8)`` chooses them.

print(z0 * torch.tensor([0.3, 0.1]).mul(4.0).exp())

# %%
# Whole paths
# -----------
#
# :func:`flowfactor.trace` returns the path at all the times that you ask for, and the change of
# the log-density along it, which is the integral of the Laplacian of the potential:
#
# .. math:: \log q_t(z_t) = \log q_0(z_0) - \int_0^t \Delta u(z_s, s)\, ds .

times = torch.linspace(0, 4, 9)
angles = torch.linspace(0, 2 * torch.pi, 25)[:-1]
circle = torch.stack((angles.cos(), angles.sin()), dim=1)
path = trace(circle, u, times, log_density=True)

figure, axes = plt.subplots(figsize=(5, 4))
grid = torch.cartesian_prod(torch.linspace(-4, 4, 61), torch.linspace(-2, 2, 31))
heights = u.evaluate(grid, 0.0, ["value"])[0].detach()
axes.contourf(*grid.T.reshape(2, 61, 31), heights.reshape(61, 31), levels=12, cmap="Greys")
axes.plot(*path.z.permute(2, 0, 1), color="C0", linewidth=0.8)
axes.scatter(*path.z[-1].T, color="C3", s=12, zorder=3)
axes.set(title="A circle after four units of time", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
figure.tight_layout()

print("log|det dz_t/dz_0| at t = 4:", path.log_det[-1, 0].item(), "(exact: 1.6)")

# %%
# A vector space of flows
# -----------------------
#
# Potentials add and scale. The sum of two potentials moves a latent under both at once; a negative
# one moves it backwards.

tilt = AutogradPotential(lambda z, t: z[:, 1], dim=2)  # a constant velocity upwards
both = flow(z0, u + 0.5 * tilt, 4.0)
back = flow(both, -(u + 0.5 * tilt), 4.0)
print("there and back:", (back - z0).abs().max().item())

# %%
# Running time backwards does the same, also where the potential depends on time:

again = flow(both, u + 0.5 * tilt, [4.0, 0.0])[-1]
print("there and back:", (again - z0).abs().max().item())

# %%
# Closed forms
# ------------
#
# Automatic differentiation of a Laplacian is expensive. The potentials that the models learn have
# closed forms. A :class:`~flowfactor.RidgePotential` is a bank: one potential for
# each name.

torch.manual_seed(0)
bank = RidgePotential(("rotation", "hue"), dim=2, width=8)
value, gradient, laplacian = bank["hue"].evaluate(z0, 0.0, ["value", "gradient", "laplacian"])
print(value.shape, gradient.shape, laplacian.shape)

# %%
# The second argument of :func:`flowfactor.flow` may be a name, if you say of which model, or a
# potential. :doc:`t2_paper` does this with a trained model of digits.
