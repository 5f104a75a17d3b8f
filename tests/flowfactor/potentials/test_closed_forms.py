"""Closed forms equal automatic differentiation, for every way to choose a potential."""

import pytest
import torch
from torch import nn

from flowfactor import AutogradPotential, IndependentPotentials, RidgePotential
from flowfactor.potentials.base import FIELDS

DIM, WIDTH, BATCH = 5, 12, 7
NAMES = ("scaling", "rotation", "hue")


def make_bank(autonomous: bool = False) -> RidgePotential:
    torch.manual_seed(1)
    bank = RidgePotential(NAMES, DIM, WIDTH, autonomous=autonomous).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return bank


def latents(batch: int = BATCH) -> torch.Tensor:
    return torch.randn(batch, DIM, dtype=torch.float64)


CHOICES = {
    "name": "rotation",
    "index": 2,
    "negative index": -1,
    "per sample": torch.tensor([2, 0, 1, 1, 0, 2, 2]),
    "per sample, sorted and even": torch.tensor([0, 0, 1, 1, 2, 2]),
    "per sample, one missing": torch.tensor([2, 0, 0, 2, 0, 0, 0]),
    "per sample, very uneven": torch.tensor([0] * 12 + [1, 2]),
    "weights": torch.rand(BATCH, 3, generator=torch.Generator().manual_seed(0)).double(),
}


@pytest.mark.parametrize("autonomous", [False, True])
@pytest.mark.parametrize("per_sample_time", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_equals_autograd(choice, per_sample_time, autonomous):
    k = CHOICES[choice]
    z = latents(len(k) if isinstance(k, torch.Tensor) else BATCH)
    t = torch.linspace(0, 8, len(z), dtype=torch.float64) if per_sample_time else 3.7
    u = make_bank(autonomous).select(k)
    for name, closed, oracle in zip(
        FIELDS, u.derivatives(z, t), AutogradPotential(u, DIM).derivatives(z, t), strict=True
    ):
        torch.testing.assert_close(
            closed, oracle, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("choice", CHOICES)
def test_hessian_equals_autograd_and_its_trace_is_the_laplacian(choice):
    k = CHOICES[choice]
    z = latents(len(k) if isinstance(k, torch.Tensor) else BATCH)
    u = make_bank().select(k)
    for potential in (u, 2 * u):
        hessian, laplacian = potential.evaluate(z, 3.7, ("hessian", "laplacian"))
        torch.testing.assert_close(
            hessian, AutogradPotential(potential, DIM).hessian(z, 3.7), rtol=0, atol=1e-9
        )
        trace = hessian.diagonal(dim1=1, dim2=2).sum(-1)
        torch.testing.assert_close(trace, laplacian, rtol=0, atol=1e-9)
        torch.testing.assert_close(hessian, hessian.mT, rtol=0, atol=1e-12)


def test_laplacian_is_the_trace_of_the_hessian():
    u, z = make_bank()["hue"], latents()
    for i, row in enumerate(z):
        hessian = torch.autograd.functional.hessian(lambda x: u(x[None], 1.3).sum(), row)
        torch.testing.assert_close(u.laplacian(z, 1.3)[i], hessian.trace(), rtol=0, atol=1e-9)


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


@pytest.mark.parametrize("order", ["shuffled", "sorted"])
def test_each_sample_moves_under_its_own_potential(order):
    bank = make_bank()
    k = torch.tensor([0] * 9 + [1, 2, 2])
    if order == "shuffled":
        k = k[torch.randperm(len(k))]
    z = latents(len(k))
    together = bank.select(k).derivatives(z, 2.0)
    alone = [bank[int(index)].derivatives(row[None], 2.0) for index, row in zip(k, z, strict=True)]
    for field, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(field, torch.cat(parts), rtol=0, atol=1e-12)


def test_one_hot_weights_are_a_hard_choice():
    bank, k, z = make_bank(), torch.tensor([2, 0, 1, 1, 0, 2, 2]), latents()
    soft = bank.select(nn.functional.one_hot(k, 3).double())
    for a, b in zip(soft.derivatives(z, 4.0), bank.select(k).derivatives(z, 4.0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


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


def test_gradients_reach_only_the_chosen_parameters():
    bank = make_bank()
    bank.select(torch.tensor([0, 2, 2]))(latents(3), 1.0).sum().backward()
    touched = bank.directions.grad.flatten(1).abs().sum(1) > 0
    assert touched.tolist() == [True, False, True]


def test_parameter_gradients_equal_those_of_autograd():
    for closed in (True, False):
        bank = make_bank()
        u = bank.select(torch.tensor([2, 0, 1, 1, 0, 2, 2]))
        torch.manual_seed(5)
        z = latents()
        fields = (u if closed else AutogradPotential(u, DIM)).derivatives(z, 3.0)
        sum(field.square().sum() for field in fields).backward()
        grads = [parameter.grad for parameter in bank.parameters()]
        if closed:
            expected = grads
    for mine, oracle in zip(expected, grads, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-9, atol=1e-9)


def test_large_latents_do_not_overflow():
    u = RidgePotential(NAMES, DIM, WIDTH)["hue"]
    for field in u.derivatives(torch.full((2, DIM), 1e4), 1.0):
        assert torch.isfinite(field).all()


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
