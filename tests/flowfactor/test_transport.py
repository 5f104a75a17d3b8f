"""Hamilton-Jacobi residual, kinetic energy and straightness on flows that are known."""

import pytest
import torch

import flowfactor
from flowfactor import AutogradPotential, RidgePotential
from flowfactor.transport import (
    Force,
    along_path,
    straightness,
    transport_terms,
)
from solvers import Dopri5

DIM = 3
# ||z||^2 / (2 (1 + t)) solves du/dt + 1/2 ||grad u||^2 = 0: straight rays at constant speed.
RAYS = AutogradPotential(lambda z, t: z.square().sum(-1) / (2 * (1 + t)), DIM)


def latents(count=4):
    return torch.randn(count, DIM, dtype=torch.float64)


def test_residual_vanishes_on_a_solution():
    z = latents()
    assert transport_terms(RAYS, z, 2.0).residual.abs().max() < 1e-12
    assert transport_terms(2 * RAYS, z, 2.0).residual.abs().min() > 1e-3


def test_residual_is_per_sample_and_takes_the_squared_norm():
    u = RidgePotential(("a",), DIM, 6).double()["a"]
    z = latents()
    d = u.derivatives(z, 1.0)
    for i in range(4):
        expected = d.time[i] + 0.5 * (d.gradient[i] ** 2).sum()
        found = transport_terms(u, z[i : i + 1], 1.0).residual
        torch.testing.assert_close(found[0], expected)


def test_optimal_paths_are_straight_at_constant_energy():
    path = flowfactor.trace(latents(), RAYS, torch.linspace(0, 4, 9), method=Dopri5(1e-9, 1e-9))
    terms = along_path(RAYS, path)
    torch.testing.assert_close(straightness(path), torch.ones(4).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(terms.kinetic_energy, terms.kinetic_energy[:1].expand(9, 4))
    assert terms.residual.abs().max() < 1e-9


def test_a_bent_path_is_not_straight():
    """The hyperbolic flow of z_1 z_2 turns: distance over length follows from sinh and cosh."""
    u = AutogradPotential(lambda z, t: z[:, 0] * z[:, 1], 2)
    z = torch.tensor([[1.0, -0.5], [0.0, 0.0]], dtype=torch.float64)
    bent = straightness(flowfactor.trace(z, u, torch.linspace(0, 2, 41)))
    assert 0.5 < bent[0] < 0.99
    assert bent[1] == 1.0


def test_along_path_takes_one_potential_per_sample():
    bank = RidgePotential(("a", "b"), DIM, 6).double()
    k, z = torch.tensor([1, 0, 1]), latents(3)
    u = bank.select(k)
    path = flowfactor.trace(z, u, [0.0, 1.0, 2.0])
    terms = along_path(u, path)
    assert terms.residual.shape == (3, 3)
    expected = transport_terms(bank["b"], path.z[2, :1], 2.0).residual
    torch.testing.assert_close(terms.residual[2, :1], expected)


def test_along_path_takes_the_times_of_each_latent():
    force = Force(DIM, width=8).double()
    times = torch.tensor([[0.0, 1.0], [3.0, 2.5]]).double()
    path = flowfactor.trace(latents(2), RAYS, times)
    terms = along_path(RAYS, path, force)
    for point in range(2):
        for i in range(2):
            z, t = path.z[point, i : i + 1], times[i, point]
            expected = transport_terms(RAYS, z, t, force)
            torch.testing.assert_close(terms.residual[point, i : i + 1], expected.residual)


def test_a_learned_force_is_never_positive():
    force = Force(DIM, width=8)
    z = torch.randn(50, DIM)
    assert (force(z, torch.tensor(3.0)) <= 0).all()
    assert force(z, torch.tensor(3.0)).std() > 0
    path = flowfactor.trace(z, RidgePotential(("a",), DIM, 6)["a"], [0.0, 1.0])
    u = RidgePotential(("a",), DIM, 6)["a"]
    assert (along_path(u, path, force).residual >= along_path(u, path).residual).all()


def test_bad_latents():
    with pytest.raises(ValueError, match="z"):
        transport_terms(RAYS, torch.zeros(2, DIM + 1), 0.0)
