"""The flow: against SciPy, its Jacobian, its inverse, and for every kind of k and t."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import flowfactor
from flowfactor import AutogradPotential, MLPPotential, RidgePotential
from flowfactor.flow import compiled_flows, trace_between
from flowfactor.flow import trace as follow
from solvers import RK4, Adjoint, Direct, Dopri5, Dopri8, Euler, SolverError

DIM = 4
TIGHT = Dopri8(rtol=1e-10, atol=1e-10)


@pytest.fixture
def bank():
    bank = RidgePotential(("scaling", "rotation", "hue"), DIM, 10).double()
    with torch.no_grad():
        bank.coefficients.copy_(torch.randn_like(bank.coefficients) * 0.1)
        bank.coefficients[:, 0] *= 3
    return bank


@pytest.fixture
def z():
    return torch.randn(5, DIM, dtype=torch.float64)


def with_density(*arguments, **options):
    """Return what moved, and the log-determinants."""
    path = flowfactor.trace(*arguments, log_density=options.pop("log_density", True), **options)
    return path.z, path.log_det


def scipy_flow(u, z0, times):
    """Solve the flow of one latent, with its log-determinant, by DOP853."""

    def field(t, state):
        at = torch.from_numpy(state[None, :-1].copy())
        d = u.derivatives(at, float(t))
        return np.append(d.gradient[0].detach().numpy(), d.laplacian[0].item())

    solution = solve_ivp(
        field,
        (times[0], times[-1]),
        np.append(z0.numpy(), 0.0),
        method="DOP853",
        t_eval=times,
        rtol=1e-10,
        atol=1e-10,
    )
    return torch.from_numpy(solution.y.T)


@pytest.mark.parametrize("times", [[0.0, 1.0, 3.5], [3.0, 2.0, 0.0], [0.0, -2.0]])
@pytest.mark.parametrize("case", ["member", "sum"])
def test_equals_scipy(bank, z, times, case):
    u = bank["rotation"] if case == "member" else bank["rotation"] - 0.5 * bank["hue"]
    moved, log_det = with_density(z, u, times, method=TIGHT)
    expected = scipy_flow(u, z[0], times)
    torch.testing.assert_close(moved[:, 0].detach(), expected[:, :-1], rtol=0, atol=1e-7)
    torch.testing.assert_close(log_det[:, 0].detach(), expected[:, -1], rtol=0, atol=1e-7)


def test_log_density_is_the_determinant_of_the_jacobian(bank, z):
    _, log_det = with_density(z, bank["hue"], 3.0, method=TIGHT)
    for row, found in zip(z[:2], log_det[-1, :2], strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: flowfactor.flow(x[None], bank["hue"], 3.0, method=TIGHT)[0], row
        )
        assert found.item() == pytest.approx(
            torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-7
        )


def jacobians(z, u, times, method):
    """Return the Jacobian of the map that the method computes, one for each latent."""

    def end(x):
        return flowfactor.flow(x[None], u, times, method=method)[-1, 0]

    return torch.stack([torch.func.jacrev(end)(row) for row in z])


@pytest.mark.parametrize(("times", "steps"), [([0.0, 1.0, 2.5], 1), ([2.0, 1.5, 0.0], 3)])
@pytest.mark.parametrize(
    "case", ["wide", "narrow", "network", "narrow network", "sum", "per sample", "weights"]
)
def test_discrete_log_density_is_that_of_the_computed_map(z, case, steps, times):
    kind = MLPPotential if "network" in case else RidgePotential
    bank = kind(("scaling", "rotation"), DIM, 2 if "narrow" in case else 9, rank=1).double()
    with torch.no_grad():
        bank.coefficients.mul_(4)  # one step per frame is then far from the flow
    weights = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    # The choice for the whole batch, and for one latent of it.
    u, alone = {
        "sum": (bank[0] + 0.5 * bank[1],) * 2,
        "per sample": (bank.select(torch.tensor([1] * len(z))), bank[1]),
        "weights": (bank.select(weights.expand(len(z), 2)), bank.select(weights)),
    }.get(case, (bank[1], bank[1]))
    method = Euler(steps=steps)
    path = flowfactor.trace(z, u, times, method=method, log_density="discrete")
    plain = flowfactor.trace(z, u, times, method=method)
    torch.testing.assert_close(path.z, plain.z, rtol=0, atol=1e-12)
    assert path.stats.accepted == plain.stats.accepted
    assert path.log_det is not None
    assert torch.equal(path.log_det[0], torch.zeros_like(path.log_det[0]))
    for place in range(1, len(times)):
        expected = torch.linalg.slogdet(jacobians(z, alone, times[: place + 1], method)).logabsdet
        torch.testing.assert_close(path.log_det[place], expected, rtol=0, atol=1e-9)
        assert expected.abs().max() > 1e-3


def test_discrete_log_density_tends_to_the_integral(bank, z):
    """Its difference from the integral is of first order in the step, as Euler's method is."""
    exact = with_density(z, bank["hue"], 2.0, method=TIGHT)[1][-1]
    errors = [
        (
            with_density(z, bank["hue"], 2.0, method=Euler(steps=n), log_density="discrete")[1][-1]
            - exact
        )
        .norm()
        .item()
        for n in (8, 16, 32)
    ]
    orders = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([1.0, 1.0], abs=0.2)


def test_discrete_log_density_is_differentiable(bank, z):
    """In the latents, the parameters and the times."""
    z = z[:2].clone().requires_grad_()
    end = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def log_det(z, end, coefficients):
        # The bank's parameter is gradcheck's own leaf, which it changes in place.
        assert coefficients.data_ptr() == bank.coefficients.data_ptr()
        return with_density(z, bank["hue"], end, method=Euler(2), log_density="discrete")[1][-1]

    assert torch.autograd.gradcheck(log_det, (z, end, bank.coefficients), fast_mode=True)


def test_discrete_log_density_takes_steps_per_interval_and_times_of_any_number(bank, z):
    u = bank["hue"]
    each = flowfactor.trace(z, u, [0.0, 0.5, 1.0], method=Euler((2, 3)), log_density="discrete")
    first = flowfactor.trace(z, u, [0.0, 0.5], method=Euler(2), log_density="discrete")
    torch.testing.assert_close(each.log_det[1], first.log_det[1])
    assert each.stats.accepted == 5
    moved, log_det = with_density(z, u, 0.0, method=Euler(2), log_density="discrete")
    assert torch.equal(moved[-1], z)
    assert torch.equal(log_det[-1], torch.zeros(len(z), dtype=torch.float64))


@pytest.mark.parametrize("method", [RK4(), TIGHT])
def test_discrete_log_density_needs_euler(bank, z, method):
    with pytest.raises(ValueError, match="Euler"):
        with_density(z, bank["hue"], 1.0, method=method, log_density="discrete")


@pytest.mark.wrong_types
def test_bad_kinds_of_log_density(bank, z):
    with pytest.raises(ValueError, match="log_density"):
        flowfactor.trace(z, bank["hue"], 1.0, log_density="exact")
    with pytest.raises(ValueError, match="intervals"):
        with_density(z, bank["hue"], 1.0, method=Euler((2, 3)), log_density="discrete")


def test_backward_undoes_forward(bank, z):
    moved, out = with_density(z, bank["hue"], 3.0, method=TIGHT)
    back, home = with_density(moved[-1], bank["hue"], [3.0, 0.0], method=TIGHT)
    assert (moved[-1] - z).norm() > 0.1
    torch.testing.assert_close(back[-1], z, rtol=0, atol=1e-7)
    torch.testing.assert_close(home[-1], -out[-1], rtol=0, atol=1e-7)


def test_a_known_flow():
    """u = ||z||^2 / 2 gives z_t = e^t z_0 and a log-determinant of D t."""
    u = AutogradPotential(lambda z, t: 0.5 * z.square().sum(-1), DIM)
    z = torch.randn(3, DIM, dtype=torch.float64)
    moved, log_det = with_density(z, u, 2.0, method=TIGHT)
    torch.testing.assert_close(moved[-1], z * np.exp(2.0), rtol=1e-8, atol=0)
    torch.testing.assert_close(log_det[-1], torch.full((3,), 2.0 * DIM, dtype=torch.float64))


def test_shapes(bank, z):
    u = bank["hue"]
    assert flowfactor.flow(z, u, 2.0).shape == (5, DIM)
    assert flowfactor.flow(z, u, 2).shape == (5, DIM)
    assert flowfactor.flow(z, u, torch.tensor(2.0)).shape == (5, DIM)
    assert flowfactor.flow(z, u, torch.tensor([0.0, 1.0])).shape == (2, 5, DIM)
    assert flowfactor.flow(z, u, [0.5]).shape == (1, 5, DIM)
    moved, log_det = with_density(z, u, [0.0, 1.0, 2.0])
    assert (moved.shape, log_det.shape) == ((3, 5, DIM), (3, 5))
    assert torch.equal(flowfactor.flow(z, u, 0.0), z)
    path = flowfactor.trace(z, u, 3.0)
    assert path.z.shape == (2, 5, DIM)
    assert path.log_det is None
    assert torch.equal(path.z[0], z)


@pytest.mark.parametrize("method", [Euler(steps=2), RK4()])
def test_fixed_steps_count_per_unit_of_time(bank, z, method):
    """The result at t does not depend on which other times are asked for."""
    at_once = flowfactor.flow(z, bank["hue"], 5.0, method=method)
    frame_by_frame = flowfactor.flow(z, bank["hue"], torch.arange(6.0), method=method)[-1]
    torch.testing.assert_close(at_once, frame_by_frame, rtol=0, atol=1e-12)
    path = flowfactor.trace(z, bank["hue"], [0.0, 2.5, 4.0], method=method)
    assert path.stats.accepted == (3 + 2) * method.steps
    assert len(path.z) == 3


def test_every_kind_of_choice_agrees(model):
    z = torch.randn(3, model.latent_dim)
    u = model.potentials["rotation"]
    expected = flowfactor.flow(z, u, 2.0, method=model.method)
    one_hot = torch.nn.functional.one_hot(torch.tensor([1, 1, 1]), 3).float()
    for k in ("rotation", 1, -2, torch.tensor(1), torch.tensor([1, 1, 1]), one_hot):
        torch.testing.assert_close(flowfactor.flow(z, k, 2.0, model), expected)
        torch.testing.assert_close(model.flow(z, k, 2.0), expected)


def test_one_k_per_sample(model):
    z, k = torch.randn(4, model.latent_dim), torch.tensor([2, 0, 1, 0])
    moved = model.flow(z, k, [0.0, 3.0])
    for i in range(4):
        alone = model.flow(z[i : i + 1], int(k[i]), [0.0, 3.0])
        torch.testing.assert_close(moved[:, i], alone[:, 0])


def test_the_model_brings_its_method(model):
    z = torch.randn(2, model.latent_dim)
    model.method = Euler(steps=3)
    assert flowfactor.trace(z, 0, 4.0, model).stats.evaluations == 12
    assert flowfactor.trace(z, 0, 4.0, model, method=RK4()).stats.evaluations == 16


def test_adjoint_equals_direct_for_parameters_and_state(bank):
    k = torch.tensor([2, 0, 0, 1, 1])
    grads = []
    for gradient in (Direct(), Adjoint(rtol=1e-9, atol=1e-9)):
        torch.manual_seed(3)
        z = torch.randn(5, DIM, dtype=torch.float64, requires_grad=True)
        bank.zero_grad()
        # All of the bank is chosen and in order, or gathered: the adjoint must reach it both ways.
        for choice in (k, k.sort().values):
            moved = flowfactor.flow(z, bank.select(choice), 2.0, method=TIGHT, gradient=gradient)
            moved.square().sum().backward()
        grads.append([z.grad, *(p.grad.clone() for p in bank.parameters())])
    for direct, adjoint in zip(*grads, strict=True):
        assert direct.abs().max() > 0
        torch.testing.assert_close(adjoint, direct, rtol=1e-4, atol=1e-6)


def test_keeps_dtype_and_works_under_autocast_in_full_precision(model):
    z = torch.randn(3, model.latent_dim)
    expected = model.flow(z, "hue", 3.0)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.flow(z, "hue", 3.0), expected, rtol=0, atol=0)


def test_no_grad_and_inference_mode(model):
    z = torch.randn(3, model.latent_dim)
    expected = model.flow(z, "hue", 3.0).detach()
    with torch.no_grad():
        torch.testing.assert_close(model.flow(z, "hue", 3.0), expected)
    with torch.inference_mode():
        torch.testing.assert_close(model.flow(z, "hue", 3.0), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 1}, ValueError, "no model"),
        ({"t": float("nan")}, ValueError, "nan"),
        ({"t": [0.0, 2.0, 1.0]}, ValueError, "increase"),
        ({"t": [0.0, float("inf")]}, ValueError, "finite"),
        ({"t": [0.0, 0.0]}, ValueError, "increase"),
        ({"t": []}, ValueError, "t must"),
        ({"t": torch.zeros(2, 2)}, ValueError, "t must"),
        ({"z": torch.zeros(2, DIM + 1)}, ValueError, "z must"),
        ({"z": torch.zeros(2, DIM, dtype=torch.long)}, TypeError, "z"),
    ],
)
@pytest.mark.wrong_types
def test_bad_arguments(bank, change, error, message):
    arguments = {"z": torch.zeros(2, DIM), "k": bank.float()["hue"], "t": 1.0, **change}
    with pytest.raises(error, match=message):
        flowfactor.trace(**arguments)


def test_a_flow_that_blows_up_says_so():
    u = AutogradPotential(lambda z, t: z.pow(3).sum(-1), 1)
    with pytest.raises(SolverError):
        flowfactor.flow(torch.ones(1, 1), u, 5.0, method=Dopri5(rtol=1e-6, atol=1e-6))


def test_images_that_are_not_finite_are_named(model):
    x = torch.rand(3, 3, 28, 28)
    x[1, 0, 2, 2] = float("nan")
    with pytest.raises(ValueError, match=r"x .*\(1, 0, 2, 2\)"):
        model.encode(x)
    z = torch.zeros(3, 6)
    z[1] = float("nan")
    with pytest.raises(SolverError, match="sample 1"):
        follow(z, model.potentials["hue"], 2.0)


def test_steps_per_sample_make_samples_independent_of_their_batch() -> None:
    bank = RidgePotential(("slow", "fast"), dim=3, width=8).double()
    with torch.no_grad():
        bank.coefficients[1] *= 30
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = Dopri5(rtol=1e-5, atol=1e-5)

    def moved(rows: list[int], per_sample: bool) -> torch.Tensor:
        potential = bank.select(torch.tensor(rows))
        z_t, log_det = with_density(z[rows], potential, 2.0, method=method, per_sample=per_sample)
        return torch.cat([z_t[-1, 0], log_det[-1, :1]])

    together, alone = moved([0, 1], True), moved([0], True)
    assert (together - alone).abs().max() < 1e-13  # rounding: products of another size
    assert (moved([0, 1], False) - moved([0], False)).abs().max() > 1e-9
    with pytest.raises(ValueError, match="per_sample"):
        flowfactor.flow(z, bank["slow"], 1.0, per_sample=True)


@pytest.mark.parametrize("method", [RK4(steps=3), TIGHT], ids=["fixed", "adaptive"])
def test_each_latent_by_its_own_time(bank, z, method) -> None:
    u = bank["rotation"] + bank["scaling"]
    nan = float("nan")
    ends = torch.tensor([[1.0], [0.0], [-2.0], [3.0], [0.5]], dtype=torch.float64)
    moved = flowfactor.flow(z, u, ends, method=method)
    path = follow(z, u, ends, method=method, log_density=True)
    for i, end in enumerate(ends[:, 0].tolist()):
        expected, log_det = with_density(z[i : i + 1], u, end, method=TIGHT)
        torch.testing.assert_close(moved[i], expected[-1, 0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(path.log_det[-1, i], log_det[-1, 0], atol=1e-3, rtol=1e-3)
    assert torch.equal(path.times[:, 1:], ends)
    times = torch.tensor([[0.0, 2.0, 4.0], [1.0, 0.0, nan]] + [[3.0, nan, nan]] * 3).double()
    frames = flowfactor.flow(z, u, times, method=method)
    assert torch.equal(frames[..., 0].isnan(), times.T.isnan())
    back = flowfactor.flow(z[1:2], u, [1.0, 0.0], method=TIGHT)[-1, 0]
    torch.testing.assert_close(frames[1, 1], back, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="shape"):
        flowfactor.flow(z, u, times[:3])


# Forwards, backwards, before frame 0, and not at all.
STARTS, ENDS = torch.tensor([0.0, 3.0, 2.5, 1.0, -1.0]), torch.tensor([2.0, 0.5, 2.5, -1.0, 1.0])


@pytest.mark.parametrize("method", [RK4(steps=30), TIGHT], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("kind", ["one", "per sample"])
def test_each_latent_over_its_own_interval(bank, z, kind, method) -> None:
    u = bank["hue"] if kind == "one" else bank.select(torch.tensor([0, 0, 1, 2, 2]))
    start, end = STARTS.double(), ENDS.double()
    path = trace_between(z, u, start, end, method=method, log_density=True, fractions=[0.25])
    assert torch.equal(path.z[0], z)
    torch.testing.assert_close(path.times[:, 1], start + 0.25 * (end - start))
    own = torch.stack([start, path.times[:, 1], end], dim=1)
    own[2, 1:] = float("nan")  # times that repeat are no times of trace
    expected = follow(z, u, own, method=TIGHT, log_density=True)
    moves = torch.arange(5) != 2
    torch.testing.assert_close(path.z[:, moves], expected.z[:, moves], rtol=0, atol=1e-6)
    found = path.log_det[:, moves]
    torch.testing.assert_close(found, expected.log_det[:, moves], rtol=0, atol=1e-6)
    assert torch.equal(path.z[:, 2], z[2].expand(3, -1))
    assert (path.log_det[:, 2] == 0).all()
    assert trace_between(z, u, start, end, method=method).log_det is None


@pytest.mark.parametrize("gradient", [Direct(), Adjoint(rtol=1e-9, atol=1e-9)])
def test_gradients_over_own_intervals(z, gradient) -> None:
    """The way back undoes the way there, so that together they have the gradient of neither."""
    bank = RidgePotential(("left", "right"), DIM, 8, autonomous=True).double()
    u = bank.select(torch.tensor([0, 1, 0, 1, 1]))
    z, start, end = z.clone().requires_grad_(), STARTS.double(), ENDS.double()

    def there(z, start, end):
        return trace_between(z, u, start, end, method=TIGHT, gradient=gradient).z[-1]

    moved = there(z, start, end)
    (there(moved, end, start) - z).square().sum().backward(retain_graph=True)
    assert z.grad.abs().max() < 1e-6
    assert bank.directions.grad.abs().max() < 1e-6
    bank.zero_grad()
    moved.square().sum().backward()
    expected = []
    for i, k in enumerate((0, 1, 0, 1, 1)):
        if start[i] != end[i]:
            times = torch.stack([start[i], end[i]])
            expected.append(flowfactor.flow(z[i : i + 1], bank[k], times, method=TIGHT)[-1])
    total = sum(x.square().sum() for x in expected) + z[2].square().sum()
    for parameter in (bank.directions, bank.coefficients):
        wanted = torch.autograd.grad(total, parameter, retain_graph=True)[0]
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


def test_steps_count_for_each_part_of_an_interval(bank, z) -> None:
    u, ends = bank["hue"], (STARTS.double(), ENDS.double())
    for fractions, evaluations in (([], 12), ([0.5], 24)):
        path = trace_between(z, u, *ends, method=RK4(steps=3), fractions=fractions)
        assert path.stats.evaluations == evaluations


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"start": STARTS[:3].double()}, "start"),
        ({"end": 2.0}, "end"),
        ({"log_density": "discrete"}, "log_density"),
        ({"fractions": [0.5, 0.2]}, "increasing"),
    ],
)
@pytest.mark.wrong_types
def test_bad_intervals(bank, z, change, word) -> None:
    given = {"start": STARTS.double(), "end": ENDS.double(), **change}
    with pytest.raises(ValueError, match=word):
        trace_between(z, bank["hue"], **given)
    bad = z.index_fill(0, torch.tensor([1]), float("nan"))
    with pytest.raises(SolverError, match="sample 1"):
        trace_between(bad, bank["hue"], STARTS, ENDS)


def test_compiled_flows_are_the_flows(bank, z) -> None:
    """Without the compiler here; what is not finite is then no error."""
    with torch.compiler.set_stance("force_eager"), compiled_flows():
        path = trace_between(z, bank["hue"], STARTS, ENDS, method=RK4(steps=3))
        broken = trace_between(z / 0, bank["hue"], STARTS, ENDS, method=RK4(steps=3))
    expected = trace_between(z, bank["hue"], STARTS, ENDS, method=RK4(steps=3))
    assert torch.equal(path.z, expected.z)
    assert not broken.z[-1].isfinite().all()
