"""The Lie bracket of two flows: against autograd, and against what it says of their order."""

import pytest
import torch

import flowfactor
from flowfactor.commutator import lie_bracket
from solvers import RK4


@pytest.fixture
def bank():
    torch.manual_seed(0)
    bank = flowfactor.RidgePotential(("a", "b", "c"), dim=4, width=16).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return bank


def test_against_autograd(bank):
    z = torch.randn(6, 4, dtype=torch.float64)
    found = lie_bracket(bank["a"], bank["b"], z, 2.0)

    def velocity(name):
        return lambda point: bank[name].gradient(point[None], 2.0)[0]

    for row, point in zip(found, z, strict=True):
        a, b = velocity("a"), velocity("b")
        jacobian_a, jacobian_b = (torch.func.jacrev(field)(point) for field in (a, b))
        torch.testing.assert_close(row, jacobian_b @ a(point) - jacobian_a @ b(point))
    torch.testing.assert_close(found, -lie_bracket(bank["b"], bank["a"], z, 2.0))
    assert lie_bracket(bank["a"], bank["a"], z, 2.0).abs().max() == 0


def test_it_is_how_far_apart_the_two_orders_end():
    torch.manual_seed(1)
    bank = flowfactor.RidgePotential(("a", "b"), dim=3, width=8, autonomous=True).double()
    z, method = torch.randn(5, 3, dtype=torch.float64), RK4(steps=4)
    bracket = lie_bracket(bank["a"], bank["b"], z, 0.0)

    def apart(s):
        def run(point, name):
            return flowfactor.flow(point, bank[name], s, method=method)

        return (run(run(z, "a"), "b") - run(run(z, "b"), "a")) / s**2

    errors = [(apart(s) - bracket).norm() for s in (0.02, 0.01)]
    assert errors[0] < 0.1 * bracket.norm()
    assert errors[1] < 0.6 * errors[0]  # first order in s
