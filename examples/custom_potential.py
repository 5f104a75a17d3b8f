"""Flow along a potential of your own: a well that turns into a saddle."""

import torch
from torch import Tensor

from flowfactor import AutogradPotential, flow, trace


def well(z: Tensor, t: Tensor) -> Tensor:
    """Return ``u(z, t)`` for latents ``(B, 2)``: attraction to 0, along one axis less and less."""
    return -0.5 * (z[:, 0].square() + (1 - t / 4) * z[:, 1].square())


def main() -> None:
    """Move points, compare with the exact solution, and look at the density."""
    u = AutogradPotential(well, dim=2)
    z0 = torch.tensor([[1.0, 1.0], [2.0, -1.0]])
    path = trace(z0, u, torch.linspace(0, 8, 5), log_density=True)
    print("positions:", path.z[:, 0].tolist())
    # dz/dt = (-z_1, -(1 - t/4) z_2): both axes are known in closed form.
    exact = z0 * torch.exp(torch.tensor([-8.0, -(8 - 8**2 / 8)]))
    print("largest error:", (path.z[-1] - exact).abs().max().item())
    print("log|det dz_t/dz_0| at t = 8:", path.log_det[-1, 0].item(), "(exact: -8)")

    half = flow(z0, 0.5 * u, 8.0)  # potentials scale and add, also your own
    print("at half speed:", half[0].tolist())


if __name__ == "__main__":
    main()
