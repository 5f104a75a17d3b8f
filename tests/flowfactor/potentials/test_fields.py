"""Fields of ridge functions: their parts, their derivatives, their banks and their flows."""

import math

import pytest
import torch
from families import CHOICES, DIM, NAMES, latents, latents_for
from torch.utils.flop_counter import FlopCounterMode

from flowfactor import (
    AutogradField,
    AutogradPotential,
    Potential,
    RidgeField,
    RidgePotential,
    VectorField,
    flow,
    trace,
)
from flowfactor.commutator import lie_bracket
from flowfactor.flow import trace_between
from flowfactor.potentials import IndependentFields, PotentialBank
from solvers import RK4, Adjoint, Dopri5

PARTS = ("both", "gradient", "solenoidal")


def make_bank(parts="both", autonomous=True, names=NAMES, **options):
    """Return a bank in float64 all of whose parameters matter."""
    torch.manual_seed(1)
    bank = RidgeField(names, DIM, 12, parts=parts, autonomous=autonomous, **options).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return bank


def jacobian_by_autograd(field, z, t):
    z = z.detach().requires_grad_()
    columns = field.velocity(z, t).sum(0)
    rows = [torch.autograd.grad(each, z, retain_graph=True)[0] for each in columns]
    return torch.stack(rows, dim=1)


def assert_close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("parts", PARTS)
def test_equals_autograd(parts, choice):
    k = CHOICES[choice]
    number = list(CHOICES).index(choice) + PARTS.index(parts)
    z = latents_for(k)
    t = torch.linspace(0, 8, len(z), dtype=torch.float64) if number % 2 else 3.7
    bank = make_bank(parts, number % 4 > 1, rank=2 if parts != "solenoidal" and number % 3 else 0)
    v, x = bank.select(k), torch.randn_like(z)
    expected = jacobian_by_autograd(v, z, t)
    velocity, divergence, jacobian, product = v.evaluate(
        z, t, ("velocity", "divergence", "jacobian", "jvp"), x
    )
    assert_close(jacobian, expected)
    assert_close(divergence, expected.diagonal(dim1=1, dim2=2).sum(-1))
    assert_close(product, (expected @ x.unsqueeze(-1)).squeeze(-1))
    steps = torch.eye(DIM, dtype=z.dtype) + 0.3 * expected
    assert_close(v.log_det(z, t, 0.3), torch.linalg.slogdet(steps).logabsdet)
    # The parts add up, and each is what it is called.
    u, r = v.gradient_part, v.solenoidal_part
    assert isinstance(u, Potential)
    assert_close(u.gradient(z, t) + r.velocity(z, t), velocity)
    assert_close(u.hessian(z, t) + r.jacobian(z, t), jacobian)
    assert_close(u.hessian(z, t), u.hessian(z, t).mT)
    at = z.clone().requires_grad_()
    if parts != "solenoidal":
        assert_close(torch.autograd.grad(u(at, t).sum(), at)[0], u.gradient(z, t))
    assert not r.divergence(z, t).any()


def test_a_formula_by_hand():
    """One ridge function in two dimensions, with a = (2, 0): r keeps its part along the other."""
    bank = RidgeField(("only",), 2, 1, autonomous=True).double()
    with torch.no_grad():
        bank.directions.copy_(torch.tensor([[[2.0, 0.0]]]))
        bank.turns.copy_(20 * torch.tensor([[[5.0, 3.0]]]))
        w, b, c, e = 0.7, -0.4, (0.1, 0.2), 9.0
        bank.coefficients.copy_(torch.tensor([[[w, b, *c, e]]], dtype=torch.float64))
    z = torch.tensor([[0.9, 8.0]], dtype=torch.float64)
    tanh = math.tanh(2 * 0.9 - 0.4)
    expected = [0.7 * 2 * tanh + 0.1, 3 * tanh + 0.2]
    assert bank[0].velocity(z, 1.0)[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert bank[0].divergence(z, 1.0).item() == pytest.approx(0.7 * 4 * (1 - tanh**2), abs=1e-12)


def test_no_divergence_in_single_precision():
    """The trace by automatic differentiation is rounding, a millionth of the Jacobian's size."""
    torch.manual_seed(0)
    r = RidgeField(("only",), 48, 256, parts="solenoidal", autonomous=True)[0]
    z = torch.randn(8, 48)
    jacobian = jacobian_by_autograd(r, z, 0.0)
    trace_of = jacobian.diagonal(dim1=1, dim2=2).sum(-1).abs()
    assert (trace_of < 2e-6 * jacobian.flatten(1).norm(dim=1)).all()


def test_a_solenoidal_flow_carries_densities_along_unchanged():
    v, z = make_bank()["hue"].solenoidal_part, latents(3)
    path = trace(z, v, [0.0, 1.0, 2.0], log_density=True)
    assert not path.log_det.any()
    exact = {"method": Dopri5(rtol=1e-10, atol=1e-10)}
    at = z.requires_grad_()
    ends = flow(at, v, 1.0, **exact).sum(0)
    rows = torch.stack([torch.autograd.grad(e, at, retain_graph=True)[0] for e in ends], dim=1)
    assert_close(torch.linalg.slogdet(rows).logabsdet, torch.zeros(3).double(), atol=1e-8)


def test_a_field_can_turn():
    """``v = (-tanh y, tanh x)`` runs around in closed orbits, on which ln cosh x + ln cosh y stays.

    No autonomous gradient flow does: its potential grows along it.
    """
    bank = RidgeField(("around",), 2, 2, parts="solenoidal", autonomous=True).double()
    with torch.no_grad():
        bank.directions.copy_(torch.eye(2))
        bank.turns.copy_(20 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        bank.coefficients.zero_()
    z = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    level = z.cosh().log().sum(-1)
    # A quarter of an orbit: dy / tanh x, x being where the orbit is at height y = p sin(s).
    s = (torch.arange(2000, dtype=torch.float64) + 0.5) * (math.pi / 2 / 2000)
    y = z[:, :1] * s.sin()
    x = (level.unsqueeze(1) - y.cosh().log()).exp().acosh()
    periods = 4 * (z[:, :1] * s.cos() / x.tanh()).sum(1) * (math.pi / 2 / 2000)
    method = Dopri5(rtol=1e-7, atol=1e-7)
    for start, period in zip(z, periods, strict=True):
        quarters = torch.linspace(0, float(period), 5, dtype=torch.float64)
        path = flow(start[None], bank[0], quarters, method=method)[:, 0]
        assert_close(path[4], path[0], atol=1e-5)
        assert_close(path[2], -path[0], atol=1e-5)
        assert_close(path.cosh().log().sum(-1), path[:1].cosh().log().sum(-1).expand(5), atol=1e-5)


def test_the_gradient_part_is_a_ridge_potential():
    bank, z = make_bank(autonomous=False, rank=2), latents()
    same = RidgePotential(NAMES, DIM, 12, rank=2).double()
    same.load_state_dict({n: p for n, p in bank.state_dict().items() if n != "turns"})
    assert isinstance(bank.gradient_part, PotentialBank)
    for a, b in zip(bank.gradient_part, same, strict=True):
        for found, expected in zip(a.derivatives(z, 3.0), b.derivatives(z, 3.0), strict=True):
            assert torch.equal(found, expected)
    for u in (same["hue"], same.select(torch.tensor([0, 1, 2, 0, 1, 2, 0]))):
        assert_close(u.gradient_part.gradient(z, 3.0), u.velocity(z, 3.0))
        assert not u.solenoidal_part.velocity(z, 3.0).any()


def test_algebra():
    bank, z = make_bank(), latents()
    v, w = bank["scaling"], bank["hue"]
    u = RidgePotential(("u",), DIM, 8).double()["u"]
    a, b, c = (field.velocity(z, 1.0) for field in (v, w, u))
    for field, expected in (
        (v + w, a + b),
        (v - 2 * w, a - 2 * b),
        (-(v + u) / 2, -(a + c) / 2),
        (u - v, c - a),
        (sum([v, w, u]), a + b + c),
    ):
        assert isinstance(field, VectorField)
        assert not isinstance(field, Potential)
        assert_close(field.velocity(z, 1.0), expected)
        parts = (field.gradient_part, field.solenoidal_part)
        assert isinstance(parts[0], Potential)
        assert_close(sum(part.velocity(z, 1.0) for part in parts), expected)
        assert not parts[1].divergence(z, 1.0).any()
    assert isinstance(2 * u - v.gradient_part, Potential)
    assert_close((3 * v).log_det(z, 1.0, 0.1), v.log_det(z, 1.0, 0.3))
    mixed = IndependentFields({"v": v, "u": u})
    k = torch.tensor([0, 1, 1, 0, 0, 1, 0])
    chosen = torch.where(k.unsqueeze(1) == 0, a, c)
    assert_close(mixed.select(k).velocity(z, 1.0), chosen)
    assert_close(mixed.select(torch.nn.functional.one_hot(k).double()).velocity(z, 1.0), chosen)
    assert_close(mixed.select(k).gradient_part.velocity(z, 1.0)[1], c[1])


def test_choices_agree_with_members():
    bank, z = make_bank(autonomous=False), latents()
    each = torch.stack([field.velocity(z, 2.0) for field in bank], dim=1)
    assert_close(bank.velocities(z, 2.0), each)
    weights = torch.randn(len(z), 3, dtype=torch.float64)
    assert_close(bank.select(weights).velocity(z, 2.0), (weights.unsqueeze(-1) * each).sum(1))
    k = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    assert_close(bank.select(k).velocity(z, 2.0), each[torch.arange(7), k])
    factors = torch.tensor([2.0, -1.0, 0.5])
    bank.scale_(factors)
    assert_close(bank.velocities(z, 2.0), factors.double().view(3, 1) * each)
    assert_close(
        bank[0].gradient_part(z, 2.0), 2 * make_bank(autonomous=False)[0].gradient_part(z, 2.0)
    )


def test_lie_bracket():
    bank, z = make_bank(), latents()
    v, w = bank["scaling"], bank["hue"]
    expected = w.jvp(z, 0.0, v.velocity(z, 0.0)) - v.jvp(z, 0.0, w.velocity(z, 0.0))
    assert_close(lie_bracket(v, w, z, 0.0), expected)


def test_a_hard_choice_costs_nothing_for_what_is_not_chosen():
    def cost(count):
        bank = make_bank(names=[f"k{i}" for i in range(count)])
        v = bank.select(torch.tensor([0, 1, 1, 0, 2, 2]))
        with FlopCounterMode(display=False) as counter:
            v.evaluate(latents(6), 1.0, ("velocity", "divergence"))
        return counter.get_total_flops()

    assert cost(3) == cost(40) > 0


@pytest.mark.parametrize(
    ("choice", "autonomous"),
    [("name", False), ("per sample", True), ("per sample", False), ("weights", True)],
)
def test_the_adjoint_teaches_fields_and_weights(choice, autonomous):
    bank, k = make_bank(autonomous=autonomous), CHOICES[choice]
    soft = choice == "weights"
    if soft:
        k = k.clone().requires_grad_()
    z = latents_for(k)
    gradients = []
    for solver in ({}, {"gradient": Adjoint()}):
        path = trace(z, bank.select(k), 0.5, method=RK4(steps=16), log_density=True, **solver)
        loss = path.z[-1].square().sum() + path.log_det[-1].sum()
        gradients.append(torch.autograd.grad(loss, [*bank.parameters(), *([k] if soft else [])]))
    for a, b in zip(*gradients, strict=True):
        assert a.abs().max() > 0
        assert_close(a, b, atol=1e-4)


def test_times_of_each_latent():
    bank = make_bank(autonomous=False)
    k, z = torch.tensor([0, 1, 2]), latents(3)
    start, end = (torch.tensor(t).double() for t in ([0.0, 3.0, 2.0], [2.0, 0.5, 2.0]))
    together = trace_between(z, bank.select(k), start, end, method=RK4(steps=8), log_density=True)
    for i in range(2):
        times = torch.linspace(float(start[i]), float(end[i]), 9)
        alone = trace(z[i : i + 1], bank[i], times, method=RK4(steps=1), log_density=True)
        assert_close(together.z[-1, i], alone.z[-1, 0], atol=1e-6)
        assert_close(together.log_det[-1, i], alone.log_det[-1, 0], atol=1e-6)
    assert torch.equal(together.z[-1, 2], z[2])


def test_speeds_of_either_sign():
    """A flow along a combination, and back along its negative."""
    bank, z = make_bank(), latents()
    speeds = torch.randn(len(z), 3, dtype=torch.float64)
    moved = flow(z, bank.select(speeds), 1.0, method=RK4(steps=100))
    assert_close(flow(moved, bank.select(-speeds), 1.0, method=RK4(steps=100)), z, atol=1e-6)


def test_a_function_of_ones_own():
    """The field as a function has the derivatives of its closed form."""
    v, z = make_bank(autonomous=False)["hue"], latents()
    x, quantities = torch.randn_like(z), ("velocity", "divergence", "jacobian", "jvp")
    own = AutogradField(v.velocity, DIM)
    with torch.no_grad():
        found = own.evaluate(z, 2.0, quantities, x)
    for a, b in zip(found, v.evaluate(z, 2.0, quantities, x), strict=True):
        assert_close(a, b)
    with pytest.raises(ValueError, match="parts"):
        _ = (own + v).gradient_part
    with pytest.raises(ValueError, match="velocity"):
        AutogradField(lambda z, t: z.sum(1), DIM).velocity(z, 0.0)


@pytest.mark.wrong_types
def test_unknown_parts():
    with pytest.raises(ValueError, match="parts"):
        RidgeField(NAMES, DIM, 4, parts="curl")


def test_refusals():
    with pytest.raises(ValueError, match="rank"):
        RidgeField(NAMES, DIM, 4, parts="solenoidal", rank=1)
    with pytest.raises(ValueError, match="value"):
        make_bank()["hue"].evaluate(latents(), 0.0, ("value",))
    with pytest.raises(ValueError, match="different sizes"):
        make_bank()["hue"] + RidgePotential(("u",), DIM + 1, 4)["u"]


def test_the_parts_of_parts_and_of_banks_of_one_s_own():
    """A potential has no other part, what is left has no potential; banks have those of each."""
    z, bank = latents(3), make_bank()
    u, rest = AutogradPotential(lambda z, t: z.square().sum(-1), DIM), bank.solenoidal_part
    assert u.gradient_part is u
    assert not u.solenoidal_part.velocity(z, 1.0).any()
    assert rest.solenoidal_part is rest
    assert not rest.gradient_part["hue"].gradient(z, 1.0).any()
    own = IndependentFields({name: bank[name] for name in NAMES})
    assert_close(own.solenoidal_part["hue"].velocity(z, 1.0), rest["hue"].velocity(z, 1.0))
    assert_close(own.velocities(z, 1.0), bank.velocities(z, 1.0))
    weights = torch.full((3, len(NAMES)), 0.5, dtype=torch.float64)
    assert {*own.select(weights).tensors()} >= {*bank.parameters()}


def test_a_bank_says_what_it_is():
    bank = make_bank()
    for text in (*NAMES, f"dim={DIM}", "width=12"):
        assert text in repr(bank)
    assert "'hue'" in repr(bank["hue"])


def test_functions_without_a_signature_and_of_potentials():
    """Of a builtin nothing is known; the tensors of a potential are those of the function."""
    u = RidgePotential(("hue",), DIM, 4)["hue"]
    wrapped = AutogradPotential(u, DIM)
    assert {*wrapped.tensors()} == {*u.tensors()}
    z = torch.ones(2, DIM)
    torch.testing.assert_close(wrapped(z, 0.5), u(z, 0.5))
    assert AutogradPotential(max, DIM).dim == DIM
