"""Closed forms equal automatic differentiation, for every way to choose a potential."""

import math

import pytest
import torch
from families import CHOICES, DIM, FAMILIES, NAMES, latents, latents_for, make_bank
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flowfactor import AutogradPotential, IndependentPotentials, MLPPotential, RidgePotential
from flowfactor.potentials.base import DERIVATIVES

WIDTH = 12
STACKED = ("ridge", "mlp, rank 3")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_autograd(family, choice):
    k = CHOICES[choice]
    # Every family meets one time for all and one for each, with and without coefficients in time.
    number = list(CHOICES).index(choice) + list(FAMILIES).index(family)
    per_sample_time, autonomous = number % 2 == 0, number % 4 > 1
    z = latents_for(k)
    v = torch.randn_like(z)
    t = torch.linspace(0, 8, len(z), dtype=torch.float64) if per_sample_time else 3.7
    u = make_bank(family, autonomous).select(k)
    fields = (*DERIVATIVES, "hessian", "hvp")
    oracle = AutogradPotential(u, DIM)
    for name, closed, expected in zip(
        fields, u.evaluate(z, t, fields, v), oracle.evaluate(z, t, fields, v), strict=True
    ):
        assert closed.shape == expected.shape
        torch.testing.assert_close(
            closed, expected, rtol=1e-10, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
    for h in (0.01, -0.5, torch.tensor(1.0)):
        torch.testing.assert_close(u.log_det(z, t, h), oracle.log_det(z, t, h), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", STACKED)
@pytest.mark.parametrize("choice", CHOICES)
def test_the_second_derivatives_agree_with_each_other(choice, family):
    """The Hessian is symmetric, its trace the Laplacian, its columns products with unit vectors."""
    k = CHOICES[choice]
    z = latents_for(k)
    u = make_bank(family).select(k)
    for potential in (u, 2 * u):
        hessian, laplacian = potential.evaluate(z, 3.7, ("hessian", "laplacian"))
        trace = hessian.diagonal(dim1=1, dim2=2).sum(-1)
        torch.testing.assert_close(trace, laplacian, rtol=0, atol=1e-9)
        torch.testing.assert_close(hessian, hessian.mT, rtol=0, atol=1e-11)
        unit = torch.zeros_like(z)
        unit[:, 2] = 1
        torch.testing.assert_close(
            potential.hvp(z, unit, 3.7), hessian[:, :, 2], rtol=0, atol=1e-11
        )


def test_laplacian_is_the_trace_of_the_hessian():
    u, z = make_bank()["hue"], latents()
    for i, row in enumerate(z):
        hessian = torch.autograd.functional.hessian(lambda x: u(x[None], 1.3).sum(), row)
        torch.testing.assert_close(u.laplacian(z, 1.3)[i], hessian.trace(), rtol=0, atol=1e-9)


def test_the_flow_of_the_quadratic_term_by_hand():
    """With nothing else, u = q/2 (p . z)^2: the latent grows by q along p, and nowhere else."""
    bank = RidgePotential(("only",), dim=2, width=1, autonomous=True, rank=1).double()
    with torch.no_grad():
        bank.coefficients.zero_()
        bank.coefficients[..., -1] = 0.3
        bank.axes.copy_(torch.tensor([[[1.0, 0.0]]]))
    z = torch.tensor([[2.0, 5.0]], dtype=torch.float64)
    value, _, gradient, laplacian = bank[0].derivatives(z, 0.0)
    assert value.item() == pytest.approx(0.3 * 4 / 2, abs=1e-12)
    assert gradient[0].tolist() == pytest.approx([0.6, 0.0], abs=1e-12)
    assert laplacian.item() == pytest.approx(0.3, abs=1e-12)
    assert bank[0].log_det(z, 0.0, 0.5).item() == pytest.approx(math.log(1.15), abs=1e-12)


def test_a_network_by_hand():
    """The MLP is the network that its docstring says, with and without the outer tanh."""
    for bounded in (False, True):
        bank = MLPPotential(("only",), DIM, 4, autonomous=True, bounded=bounded).double()
        A, W = bank.directions[0], bank.mixing[0]
        b1, b2, w, c, e = bank.coefficients[0, 0].split([4, 4, 4, DIM, 1])
        z = latents()
        output = torch.tanh(torch.tanh(z @ A.T + b1) @ W.T + b2) @ w
        output = (output.tanh() if bounded else output) + z @ c + e
        torch.testing.assert_close(bank[0](z, 2.0), output, rtol=0, atol=1e-12)


def test_formula_by_hand():
    """One ridge function in one dimension: u = w log cosh(a z + b) + c z + e."""
    bank = RidgePotential(("only",), dim=1, width=1, autonomous=True).double()
    a, w, b, c, e = 0.7, 1.3, -0.4, 0.2, 0.5
    with torch.no_grad():
        bank.directions.fill_(a)
        bank.coefficients.copy_(torch.tensor([[[w, b, c, e]]], dtype=torch.float64))
    z = torch.tensor([[0.9]], dtype=torch.float64)
    s = torch.tensor(a * 0.9 + b, dtype=torch.float64)
    value, time, gradient, laplacian = bank[0].derivatives(z, 5.0)
    assert value.item() == pytest.approx((w * s.cosh().log() + c * 0.9 + e).item(), abs=1e-12)
    assert time.item() == 0
    assert gradient.item() == pytest.approx((w * s.tanh() * a + c).item(), abs=1e-12)
    assert laplacian.item() == pytest.approx((w * a**2 / s.cosh() ** 2).item(), abs=1e-12)


@pytest.mark.parametrize("family", STACKED)
@pytest.mark.parametrize("order", ["shuffled", "sorted"])
def test_each_sample_moves_under_its_own_potential(order, family):
    bank = make_bank(family)
    k = torch.tensor([0] * 9 + [1, 2, 2])
    if order == "shuffled":
        k = k[torch.randperm(len(k))]
    z = latents(len(k))
    together = bank.select(k).derivatives(z, 2.0)
    alone = [bank[int(index)].derivatives(row[None], 2.0) for index, row in zip(k, z, strict=True)]
    for field, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(field, torch.cat(parts), rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", STACKED)
def test_one_hot_weights_are_a_hard_choice(family):
    bank, k, z = make_bank(family), torch.tensor([2, 0, 1, 1, 0, 2, 2]), latents()
    soft = bank.select(nn.functional.one_hot(k, 3).double())
    for a, b in zip(soft.derivatives(z, 4.0), bank.select(k).derivatives(z, 4.0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_a_hard_choice_evaluates_only_what_is_chosen():
    """Rows evaluated stay below 2 B however uneven the groups, and parameters below 2 G."""
    bank = RidgePotential([f"k{i}" for i in range(50)], DIM, WIDTH)
    for k in (
        torch.randint(50, (64,)),
        torch.tensor([7] * 60 + [1, 2, 3, 4]),
        torch.tensor([49] * 64),
        torch.arange(50),
    ):
        u = bank.select(k)
        chunks, rows = u.shape
        assert chunks * rows <= 2 * len(k)
        assert chunks <= 2 * len(k.unique())
        assert u.tensors()[0].shape[0] == chunks


@pytest.mark.parametrize("kind", [RidgePotential, MLPPotential])
def test_the_cost_does_not_grow_with_what_is_not_chosen(kind):
    def cost(count, k):
        bank = kind([f"k{i}" for i in range(count)], DIM, WIDTH, rank=1)
        u = bank.select(k)
        z = torch.randn(len(k) if isinstance(k, torch.Tensor) else 60, DIM)
        with FlopCounterMode(display=False) as counter:
            u.derivatives(z, 1.0)
        return counter.get_total_flops()

    three = torch.tensor([0, 1, 2]).repeat_interleave(20)
    assert cost(48, 47) == cost(1, 0)
    assert cost(48, three * 20) == cost(3, three)
    uneven = torch.tensor([3] * 50 + [17] * 9 + [40])
    assert cost(48, uneven) <= 2 * cost(3, three)


@pytest.mark.parametrize("family", ["ridge, rank 3", "mlp"])
def test_gradients_reach_only_the_chosen_parameters(family):
    bank = make_bank(family)
    bank.select(torch.tensor([0, 2, 2]))(latents(3), 1.0).sum().backward()
    for parameter in bank.parameters():
        touched = parameter.grad.flatten(1).abs().sum(1) > 0
        assert touched.tolist() == [True, False, True]


def gradients_of(family, evaluate):
    """Return the gradients that reach the latents and parameters through some quantity."""
    bank = make_bank(family)
    torch.manual_seed(5)
    z = latents().requires_grad_()
    evaluate(bank.select(torch.tensor([2, 0, 1, 1, 0, 2, 2])), z).backward()
    return [z.grad, *(parameter.grad for parameter in bank.parameters())]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", ["fields", "log_det"])
def test_gradients_equal_those_of_autograd(family, what):
    def closed(u, z):
        if what == "log_det":
            return u.log_det(z, 3.0, 0.2).square().sum()
        fields = u.evaluate(z, 3.0, (*DERIVATIVES, "hessian", "hvp"), torch.ones_like(z))
        return sum(field.square().sum() for field in fields)

    def oracle(u, z):
        return closed(AutogradPotential(u, DIM), z)

    for mine, expected in zip(
        gradients_of(family, closed), gradients_of(family, oracle), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("kind", [RidgePotential, MLPPotential])
def test_large_latents_do_not_overflow(kind):
    u = kind(NAMES, DIM, WIDTH, rank=2)["hue"]
    z = torch.full((2, DIM), 1e4)
    for field in (*u.derivatives(z, 1.0), u.hvp(z, z, 1.0), u.log_det(z, 1.0, 0.1)):
        assert torch.isfinite(field).all()


def test_no_rank_has_the_parameters_of_earlier_runs():
    """Models that were trained before there was a quadratic term still load."""
    state = {"directions": torch.randn(3, 12, DIM), "coefficients": torch.randn(3, 10, 30)}
    bank = RidgePotential(NAMES, DIM, 12)
    bank.load_state_dict(state)
    assert list(bank.state_dict()) == list(state)
    assert "axes" in RidgePotential(NAMES, DIM, 12, rank=1).state_dict()


def test_a_bank_of_networks():
    bank = IndependentPotentials(
        {
            "bowl": AutogradPotential(lambda z, t: z.square().sum(-1) * t, DIM),
            "plane": AutogradPotential(lambda z, t: z[:, 0], DIM),
        }
    )
    z = latents(3)
    k = torch.tensor([1, 0, 1])
    expected = torch.stack(
        [bank[int(i)].gradient(row[None], 0.5)[0] for i, row in zip(k, z, strict=True)]
    )
    torch.testing.assert_close(bank.select(k).gradient(z, 0.5), expected)
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(bank.select(weights).gradient(z, 0.5), expected)
    # The bowl t |z|^2 has the Hessian 2 t, the plane none.
    bends = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    v = torch.randn_like(z)
    for t in (0.5, torch.full((3,), 0.5, dtype=torch.float64)):
        for choice in (k, weights):
            u = bank.select(choice)
            torch.testing.assert_close(u.hvp(z, v, t), bends.unsqueeze(1) * v)
            torch.testing.assert_close(u.log_det(z, t, 2.0), DIM * (1 + 2 * bends).log())


def test_autograd_potential_trains_a_network_under_no_grad_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(DIM + 1, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, z, t):
            return self.inner(torch.cat([z, t.expand(len(z), 1)], dim=1)).squeeze(1)

    u = AutogradPotential(Net(), DIM)
    z = torch.randn(4, DIM)
    u.laplacian(z, torch.tensor(0.5)).sum().backward()
    assert all(p.grad is not None for p in list(u.parameters())[:2])
    with torch.no_grad():
        assert torch.isfinite(u.gradient(z, 0.5)).all()
    assert len(u.tensors()) == 4
