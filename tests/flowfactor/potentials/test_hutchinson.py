"""Hutchinson's estimate of the Laplacian: unbiased, with the error that it reports."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import flowfactor
from flowfactor import AutogradPotential, Hutchinson
from solvers import RK4

DIM = 5
MIXING = torch.randn(DIM, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def waves(z, t):
    return (z @ MIXING.to(z)).sin().sum(-1) * t


def estimated(probes, seed=0):
    return AutogradPotential(waves, DIM, laplacian=Hutchinson(probes, seed))


EXACT = AutogradPotential(waves, DIM)


def latents(batch=3):
    return torch.randn(batch, DIM, dtype=torch.float64)


def test_exact_for_a_diagonal_hessian():
    """Signs have the square 1; with other probes even this would be noise."""

    def function(z, t):
        return (z.sin() * torch.arange(1.0, DIM + 1)).sum(-1) * t

    z = torch.randn(4, DIM)
    exact = AutogradPotential(function, DIM).laplacian(z, 0.7)
    u = AutogradPotential(function, DIM, laplacian=Hutchinson(probes=2))
    torch.testing.assert_close(u.laplacian(z, 0.7), exact)
    estimate = u.estimate_laplacian(z, 0.7)
    torch.testing.assert_close(estimate.mean, exact)
    torch.testing.assert_close(estimate.standard_error, torch.zeros(4), rtol=0, atol=1e-5)


def test_unbiased_and_its_standard_error_is_the_spread_over_seeds():
    z, seeds = latents(), 500
    each = [estimated(8, seed).estimate_laplacian(z, 1.3) for seed in range(seeds)]
    means = torch.stack([estimate.mean for estimate in each])
    spread = means.std(0)
    assert ((means.mean(0) - EXACT.laplacian(z, 1.3)).abs() < 4 * spread / seeds**0.5).all()
    reported = torch.stack([estimate.standard_error for estimate in each]).square().mean(0).sqrt()
    torch.testing.assert_close(reported, spread, rtol=0.15, atol=0)


def test_the_variance_is_that_of_the_literature():
    """Of one probe: twice the squares off the diagonal of the Hessian (Hutchinson 1989)."""
    z, repeats = latents(), 4000
    hessian = EXACT.hessian(z, 1.3)
    squares = hessian.square().sum((1, 2)) - hessian.diagonal(dim1=1, dim2=2).square().sum(1)
    # The samples of a batch have signs of their own.
    found = estimated(1).laplacian(z.repeat(repeats, 1), 1.3).unflatten(0, (repeats, 3))
    torch.testing.assert_close(found.var(0), 2 * squares, rtol=0.1, atol=0)


def test_the_seed_decides():
    z = latents()
    first = estimated(4).laplacian(z, 1.0)
    assert torch.equal(first, estimated(4).laplacian(z, 1.0))
    assert not torch.equal(first, estimated(4, seed=1).laplacian(z, 1.0))
    u = estimated(4, seed=1)
    u.estimator = Hutchinson(4, seed=0)
    assert torch.equal(first, u.laplacian(z, 1.0))


def test_the_signs_draw_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    signs = Hutchinson(probes=3).draw(torch.zeros(4, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}


def test_other_fields_stay_exact():
    z, u = latents(), estimated(2)
    fields = ("value", "time", "gradient", "hessian", "hvp")
    for mine, expected in zip(
        u.evaluate(z, 1.0, fields, z), EXACT.evaluate(z, 1.0, fields, z), strict=True
    ):
        assert torch.equal(mine, expected)
    assert torch.equal(u.log_det(z, 1.0, 0.1), EXACT.log_det(z, 1.0, 0.1))


def test_the_log_density_of_a_flow():
    """One field from start to end: deterministic, and right within its error over seeds."""
    z = latents(2)

    def log_det(u):
        return flowfactor.trace(z, 0.1 * u, 2.0, method=RK4(), log_density=True).log_det[-1]

    assert torch.equal(log_det(estimated(4)), log_det(estimated(4)))
    found = torch.stack([log_det(estimated(4, seed)) for seed in range(30)])
    assert ((found.mean(0) - log_det(EXACT)).abs() < 4 * found.std(0) / 30**0.5).all()


def test_it_trains_a_network():
    net = torch.nn.Linear(DIM, 8)
    u = AutogradPotential(lambda z, t: net(z).tanh().sum(1), DIM, laplacian=Hutchinson(4))
    u.laplacian(torch.randn(3, DIM), 0.0).sum().backward()
    assert net.weight.grad.abs().sum() > 0


def test_the_cost_is_that_of_the_probes():
    large = 64
    weights = torch.randn(large, 32)

    def cost(laplacian):
        u = AutogradPotential(lambda z, t: (z @ weights).sin().sum(1), large, laplacian)
        with FlopCounterMode(display=False) as counter:
            u.laplacian(torch.randn(5, large), 0.0)
        return counter.get_total_flops()

    # Linear in the vectors, beside the one pass that all share.
    assert cost(None) == cost(Hutchinson(large))
    shared = cost(Hutchinson(4)) - 4 * (cost(Hutchinson(5)) - cost(Hutchinson(4)))
    assert cost(None) - shared == pytest.approx(16 * (cost(Hutchinson(4)) - shared))


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Hutchinson(probes=0)
    z = latents()
    for laplacian in (None, Hutchinson(probes=1)):
        u = AutogradPotential(waves, DIM, laplacian)
        with pytest.raises(ValueError, match="at least two probes"):
            u.estimate_laplacian(z, 0.0)
