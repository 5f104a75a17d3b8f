"""Potentials are a vector space: every derivative is linear."""

import pytest
import torch

from flowfactor import MLPPotential, RidgePotential
from flowfactor.potentials import LinearCombination
from flowfactor.potentials.base import DERIVATIVES
from flowfactor.potentials.mlp import MLPParameters
from flowfactor.potentials.ridge import RidgeParameters

DIM = 4


@pytest.fixture
def bank():
    return RidgePotential(("a", "b", "c"), DIM, 8).double()


def fields(u, z, t=1.7):
    every = u.evaluate(z, t, (*DERIVATIVES, "hessian", "hvp"), torch.ones_like(z))
    return torch.cat([field.flatten() for field in every])


def test_sums_differences_multiples(bank):
    z = torch.randn(3, DIM, dtype=torch.float64)
    a, b, c = (fields(u, z) for u in bank)
    cases = {
        "a + b": (bank["a"] + bank["b"], a + b),
        "a - b": (bank["a"] - bank["b"], a - b),
        "-a": (-bank["a"], -a),
        "a * 2": (bank["a"] * 2, 2 * a),
        "2 * a": (2 * bank["a"], 2 * a),
        "a / 4": (bank["a"] / 4, a / 4),
        "(a + b) * 0.5 - c": ((bank["a"] + bank["b"]) * 0.5 - bank["c"], (a + b) / 2 - c),
        "sum": (sum(bank), a + b + c),
        "tensor factor": (torch.tensor(3.0) * bank["a"], 3 * a),
    }
    for name, (u, expected) in cases.items():
        torch.testing.assert_close(fields(u, z), expected, rtol=0, atol=1e-12, msg=name)


def test_a_sum_costs_its_terms_and_no_autograd(monkeypatch):
    """Members of two banks, of two families: each is evaluated once, whatever is asked for."""
    ridge = RidgePotential(("a",), DIM, 8)
    mlp = MLPPotential(("b",), DIM, 8, rank=1)
    calls = []
    for kind in (RidgeParameters, MLPParameters):
        evaluate = kind.evaluate

        def counted(self, *arguments, inner=evaluate):
            calls.append(type(self))
            return inner(self, *arguments)

        monkeypatch.setattr(kind, "evaluate", counted)
    for name in ("grad", "vjp", "jvp", "vmap"):
        monkeypatch.setattr(torch.func, name, None)
    monkeypatch.setattr(torch.autograd, "grad", None)
    z = torch.randn(3, DIM)
    with torch.no_grad():
        fields(ridge["a"] - 0.5 * mlp["b"], z)
    assert calls == [RidgeParameters, MLPParameters]


def test_log_det_of_a_multiple_is_that_of_a_longer_step(bank):
    z = torch.randn(3, DIM, dtype=torch.float64)
    for u in (3 * bank["a"], bank["a"] + 2 * bank["a"], torch.tensor(3.0) * bank["a"]):
        torch.testing.assert_close(
            u.log_det(z, 1.7, 0.1), bank["a"].log_det(z, 1.7, 0.3), rtol=0, atol=1e-12
        )


def test_nothing_is_nested(bank):
    u = ((bank["a"] + bank["b"]) - 2 * (bank["c"] + bank["a"])) / 2
    assert isinstance(u, LinearCombination)
    assert [factor for factor, _ in u.terms()] == [0.5, 0.5, -1.0, -1.0]


def test_gradient_reaches_a_learned_factor(bank):
    factor = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    u = factor * bank["a"]
    z = torch.randn(3, DIM, dtype=torch.float64)
    u(z, 0.0).sum().backward()
    torch.testing.assert_close(factor.grad, bank["a"](z, 0.0).sum().detach())
    assert any(tensor is factor for tensor in u.tensors())


def test_different_latent_spaces_do_not_add(bank):
    other = RidgePotential(("x",), DIM + 1, 8)
    with pytest.raises(ValueError, match="different sizes"):
        bank["a"] + other["x"]


@pytest.mark.parametrize("other", ["text", None, torch.ones(2)])
def test_only_numbers_multiply(bank, other):
    with pytest.raises(TypeError):
        bank["a"] * other
    with pytest.raises(TypeError):
        bank["a"] + other
