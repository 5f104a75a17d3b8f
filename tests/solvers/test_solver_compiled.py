"""Adaptive steps as compiled graphs: the same results, and no compilation for other values."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from functorch.compile import (
    aot_module_simplified,
    make_boxed_func,
    min_cut_rematerialization_partition,
)
from solver_cases import doubles
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

from flowfactor import RidgePotential, trace
from solvers import (
    RK4,
    AdaptiveHeun,
    Bosh3,
    Checkpoint,
    Direct,
    SolverError,
    Status,
    Tsit5,
    solve,
    solve_until,
)
from solvers.graphs import add_up_products, needs_no_python, tanh, translate, turn_weights_once


@pytest.fixture
def graphs(monkeypatch) -> CompileCounterWithBackend:
    """Count the graphs; they are made as usual, but not translated to machine code."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_(f, **{**k, "backend": counter}))
    return counter


class Network(torch.nn.Module):
    """A field with parameters, of tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3).double()

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, s = state
        velocity = torch.tanh(self.layer(z)) * torch.cos(3 * t)[..., None]
        return velocity, z.sum(-1) - s


def start(count: int = 4) -> tuple[Tensor, Tensor]:
    z0 = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    return z0, torch.zeros(count, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "per_sample", "passes"),
    [(AdaptiveHeun, True, False), (Tsit5, False, True)],
)
def test_the_same_as_eager(kind, per_sample: bool, passes: bool, graphs) -> None:
    network, z0 = Network(), start()
    ts = doubles(0.1, 0.4, 1.0).requires_grad_()
    results = []
    for compiled in (False, True):
        method = kind(1e-4, 1e-4, compile=compiled, interpolate=passes, breakpoints=(0.6,))
        solution = solve(network, z0, ts, method, per_sample=per_sample, dense=True)
        inputs = (z0[0], ts, *network.parameters())
        loss = (
            solution.ys[0].sin().sum() + solution.ys[1].sum() + solution.interpolate(0.7)[1].sum()
        )
        results.append((solution.stats, *solution.ys, *torch.autograd.grad(loss, inputs)))
    assert results[0][0] == results[1][0]
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert graphs.frame_count > 0


@pytest.mark.traced
def test_other_values_need_no_other_graph(graphs) -> None:
    def run(scale: float, count: int = 5, tolerance: float = 1e-4, span: float = 1.0) -> None:
        bank = RidgePotential(("a", "b"), 3, 4, horizon=2.0)
        z0 = (scale * torch.randn(count, 3)).requires_grad_()
        method = Bosh3(tolerance, tolerance, compile=True)
        path = trace(z0, bank["b"], [0.0, span / 2, span], method=method, log_density=True)
        path.log_det.sum().backward()

    run(1.0)
    first = graphs.frame_count
    for scale, tolerance, span in ((0.1, 1e-4, 1.0), (5.0, 1e-2, 3.0), (2.0, 1e-6, -1.0)):
        run(scale, tolerance=tolerance, span=span)
    assert graphs.frame_count == first
    run(1.0, count=7)
    general = graphs.frame_count
    run(1.0, count=9)
    assert graphs.frame_count == general <= first + 2


def count_operations(graph: torch.fx.Graph) -> Counter[str]:
    return Counter(str(getattr(node.target, "overloadpacket", "")) for node in graph.nodes)


def test_ways_back_repeat_no_matrix_product_and_no_tanh(monkeypatch) -> None:
    counts: list[Counter[str]] = []

    def count(graph, inputs):
        counts.append(count_operations(graph.graph))
        return make_boxed_func(graph.forward)

    def compile_fx(graph, inputs, decompositions, **_):
        return aot_module_simplified(
            graph,
            inputs,
            count,
            bw_compiler=count,
            decompositions=decompositions,
            partition_fn=min_cut_rematerialization_partition,
        )

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    z = torch.randn(1, 64, 3, requires_grad=True)
    A, b = torch.randn(1, 64, 3), torch.randn(1, 1, 64)

    def step(z: Tensor) -> Tensor:
        for _ in range(2):
            z = torch.baddbmm(z, torch.baddbmm(b, z, A.mT).tanh(), A)
        return z

    torch._dynamo.reset()
    torch.compile(step, backend=translate)(z).sum().backward()
    assert [each["aten.bmm"] + each["aten.baddbmm"] for each in counts] == [4, 4]
    assert [each["aten.div"] for each in counts] == [2, 0]


@pytest.mark.parametrize("rows", [2, 5])
def test_sums_of_products(rows: int) -> None:
    def add(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        first, second = torch.bmm(a, b), torch.bmm(b.mT, a.mT)
        many = (
            first + second.permute(0, 2, 1) + c + torch.bmm(b.mT, b).sum() + torch.bmm(a, b.abs())
        )
        twice = torch.mm(a[0], b[0])
        kept = torch.mm(b[0].T, a[0].T)
        return many, twice + twice, twice + (kept.permute(1, 0) + torch.mm(a[0], b[0].abs())), kept

    values = torch.randn(2, rows, 3), torch.randn(2, 3, 4), torch.randn(4)
    graph = make_fx(add, tracing_mode="fake")(*values)
    add_up_products(graph.graph)
    graph.recompile()
    found = count_operations(graph.graph)
    assert (found["aten.bmm"], found["aten.baddbmm"]) == (2, 2)
    assert (found["aten.mm"], found["aten.addmm"]) == (3, 0)
    torch.testing.assert_close(graph(*values), add(*values))


def test_weights_that_many_products_need_turned() -> None:
    def add(weight: Tensor, x: Tensor) -> Tensor:
        turned = weight.permute(0, 2, 1)
        for _ in range(4):
            x = torch.baddbmm(x, torch.bmm(x, turned), weight)
        return x

    values = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    graph = make_fx(add, tracing_mode="fake")(*values)
    turn_weights_once(graph.graph)
    graph.recompile()
    assert count_operations(graph.graph)["aten.clone"] == 1
    torch.testing.assert_close(graph(*values), add(*values))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda x: torch.addcmul(x, x.mm(x.T), x.sin().sum()), True),
        (lambda x: x.to(torch.complex64).abs(), False),
        (lambda x: torch.linalg.inv(x), False),
        (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), False),
    ],
)
def test_graphs_that_need_no_python(operation, expected: bool) -> None:
    graph = make_fx(operation, tracing_mode="fake")(torch.randn(3, 3))
    assert needs_no_python(graph.graph) is expected
    for node in graph.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["val"] = node.meta["val"].to("meta")
    assert not needs_no_python(graph.graph)


def fade(t: Tensor, z: Tensor) -> Tensor:
    return torch.where(t > 0.5, (z - 10).log(), -z.sin())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_machine_code(dtype: torch.dtype) -> None:
    """Values, gradients and failures are those without it, for other batch sizes too."""
    torch._dynamo.reset()
    close = 1e-4 if dtype == torch.float32 else 1e-11
    for count in (4, 5):  # the second graph is for all others
        results = []
        for compiled in (False, True):
            z0 = torch.linspace(-1.0, 1.0, 3 * count, dtype=dtype).view(count, 3).requires_grad_()
            method = Bosh3(1e-4, 1e-4, compile=compiled)
            solution = solve(fade, z0, [0.0, 0.2, 0.4], method)
            results.append((solution.ys, *torch.autograd.grad(solution.ys.sin().sum(), z0)))
            with pytest.raises(SolverError) as failure:
                solve(fade, z0, [0.0, 1.0], method)
            assert failure.value.status is Status.NON_FINITE
        torch.testing.assert_close(*results, rtol=close, atol=close)


def test_failures_within_a_graph() -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=translate)
    def end(z: Tensor) -> Tensor:
        return solve(lambda t, z: -z, z, [0.0, 1.0], RK4(steps=1)).ys[-1]

    for grows in (False, True):
        z0 = torch.ones(2, 3, requires_grad=grows)
        assert end(z0).isfinite().all()
        with pytest.raises(RuntimeError, match="NaN"):
            end(z0 / 0)
        assert end(z0).isfinite().all()


def test_ways_back_are_eager(graphs) -> None:
    gradient = Checkpoint(3)
    network, z0 = Network(), start()
    results = []
    for each in (Direct(), gradient):
        method = Bosh3(1e-7, 1e-7, compile=each is gradient)
        end = solve(network, z0, [0.0, 1.0], method, each).ys[0][-1]
        results.append((end, *torch.autograd.grad(end.sum(), network.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_with_other_features(graphs) -> None:
    method = Bosh3(1e-7, 1e-7, compile=True)
    seen: list[object] = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        return -z

    with torch.no_grad():
        found = solve_until(
            field, doubles(1.0), lambda t, z: z[0] - 0.5, (0.0, 5.0), method, observer=seen.append
        )
    torch.testing.assert_close(found.t, doubles(2.0)[0].log(), rtol=1e-6, atol=1e-6)
    assert seen

    def end(z: Tensor) -> Tensor:
        return solve(field, z, [0.0, 1.0], method).ys[-1].sum()

    slope = torch.func.grad(end)(doubles(1.0))
    torch.testing.assert_close(slope, doubles(-1.0).exp(), rtol=1e-6, atol=1e-6)


def test_fields_that_no_graph_takes(graphs) -> None:
    """They cut it: slower, with the same values."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            x = z.detach().requires_grad_()
            slope = torch.autograd.grad(-(x**2).sum() / 2, x)[0]
        return slope if float(t) >= 0 else 0 * slope

    method = AdaptiveHeun(1e-3, 1e-3)
    plain, compiled = (
        solve(field, doubles(1.0, 2.0), [0.0, 1.0], replace(method, compile=c)).ys
        for c in (False, True)
    )
    assert torch.equal(plain, compiled)


def test_fields_that_write(graphs) -> None:
    """Into their argument, and into what they return each time."""
    buffer = torch.empty(2, dtype=torch.float64)

    def field(t: Tensor, z: Tensor) -> Tensor:
        buffer.copy_(z.mul_(-1))
        return buffer

    with torch.no_grad():
        end = solve(field, doubles(1.0, 2.0), [0.0, 1.0], Bosh3(1e-6, 1e-6, compile=True)).ys[-1]
    torch.testing.assert_close(end, doubles(1.0, 2.0) / torch.e, rtol=1e-5, atol=1e-5)


def test_a_derivative_that_changes_its_shape_is_refused(graphs) -> None:
    with pytest.raises(ValueError, match="shape"):
        solve(
            lambda t, z: z if t.ndim else z.new_ones(2, 3),
            torch.ones(3),
            [0.0, 1.0],
            AdaptiveHeun(compile=True),
        )


def test_tanh_of_graphs() -> None:
    """Relative to its value, also near 0, where many formulas lose it."""
    sizes = torch.logspace(-37, 1.5, 20_001)
    x = torch.cat([-sizes, sizes, torch.tensor([0.0, torch.inf, -torch.inf])])
    torch.testing.assert_close(tanh(x).double(), x.double().tanh(), rtol=4e-7, atol=0.0)
    assert tanh(torch.tensor(torch.nan)).isnan()
    assert tanh(x.double()) is NotImplemented


@pytest.mark.parametrize("is_compiled", [False, True])
def test_tanh_of_graphs_never_exceeds_one(is_compiled, graphs) -> None:
    first, last = torch.tensor([7.0, 9.02]).view(torch.int32).tolist()
    x = torch.arange(first, last, dtype=torch.int32).view(torch.float32)  # all floats between
    y = torch.compile(torch.tanh, backend=translate)(x) if is_compiled else tanh(x)
    assert y.max() <= 1.0
    torch.testing.assert_close(y.double(), x.double().tanh(), rtol=4e-7, atol=0.0)


@pytest.mark.parametrize("method", [Bosh3(1e-5, 1e-5), Tsit5(1e-5, 1e-5, interpolate=True)])
def test_the_steps_of_graphs_are_those_without_a_compiler(method) -> None:
    z0, s0 = start()
    field = Network()
    with torch.compiler.set_stance("force_eager"):
        given = [0.0, 0.3, 1.0]
        plain, graph = (
            solve(field, (z0, s0), given, replace(method, compile=c)).ys for c in (False, True)
        )
        torch.testing.assert_close(plain, graph, rtol=1e-12, atol=1e-12)

        def widens(t: Tensor, z: Tensor) -> Tensor:
            return -z if t < 0.1 else -z.expand(2, *z.shape)

        with pytest.raises(ValueError, match="shape"):
            solve(widens, z0.detach(), given, replace(method, compile=True))
