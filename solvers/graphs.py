"""How the graphs of compiled steps become machine code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy

_aten = torch.ops.aten

_Node = Any
"""A ``torch.fx.Node``, of whose arguments its own type says too little."""

# A cheap result is computed again on the way back wherever it is used, as memory is what steps
# wait for. A memory budget instead of these would repeat matrix products too: to functorch,
# baddbmm is not among what is expensive.
_RECOMPUTATION = {
    "ban_recompute_used_far_apart": False,
    "ban_recompute_long_fusible_chains": False,
    "ban_recompute_materialized_backward": False,
}

# Functions whose derivative needs their value alone: it is kept for the way back, instead of the
# argument, from which each loop there would compute it once more.
_KEPT = ("tanh", "sigmoid", "exp")

# Products, and what adds a tensor to them.
_SUMS = {_aten.mm.default: _aten.addmm.default, _aten.bmm.default: _aten.baddbmm.default}

# So many products pay for a copy of a factor of theirs.
_MANY = 4

# Of tanh(x) / x, in powers of x^2: fitted to a relative error of 2e-8 for |x| up to 9.02, where
# float32 rounds tanh to 1. From _END on rounded values could exceed 1: they are that of _END, which
# is 1 within 3e-7, as tanh is.
_END = 7.8892665
_ABOVE = (
    0.9999999790361817,
    0.13379720336350617,
    0.0034940373173589097,
    2.0583523155259476e-05,
    1.331912334055697e-08,
)
_BELOW = (
    1.0,
    0.4671303558187969,
    0.0258710839166149,
    0.0003283097198975297,
    7.762041892154858e-07,
)


def translate(graph: Any, inputs: Any) -> Any:
    """Return what runs a graph and its gradient: a backend of ``torch.compile``.

    It is torch's own, inductor, with these differences: results of cheap operations are computed
    again on the way back, those of matrix products never, nor those of tanh and its like; sums of
    products are added up by the products; a weight that many products need turned is turned once;
    tanh in float32 on the CPU is a rational function; and C++ calls the operations of a graph that
    :func:`needs_no_python`.
    """
    import torch._functorch.config as settings
    import torch._inductor.config as inductor
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    def compile_pass(graph: Any, *arguments: Any, **options: Any) -> Any:
        add_up_products(graph.graph)
        turn_weights_once(graph.graph)
        graph.recompile()
        options["cpp_wrapper"] = inductor.cpp_wrapper or needs_no_python(graph.graph)
        with inductor.patch(cpp_wrapper=options["cpp_wrapper"]):
            return compile_fx_inner(graph, *arguments, **options)

    for node in graph.graph.nodes:
        if getattr(node.target, "__name__", node.target) in _KEPT:
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    rules = {**select_decomp_table(), _aten.tanh.default: tanh}
    with settings.patch(_RECOMPUTATION):
        return compile_fx(graph, inputs, inner_compile=compile_pass, decompositions=rules)


def needs_no_python(graph: Any) -> bool:
    """Return whether C++ can run a graph: on the CPU, in real numbers, by code of inductor's own.

    Other operations would be called by way of Python, where some fail, and others lose the type
    of what they raise.

    Args:
        graph: a ``torch.fx.Graph`` of ATen operations with their values in ``meta["val"]``.
    """
    return all(
        (node.op != "call_function" or _is_native(node.target))
        and all(
            value.device.type == "cpu" and not value.is_complex()
            for value in tree_leaves(node.meta.get("val"))
            if isinstance(value, Tensor)
        )
        for node in graph.nodes
    )


def _is_native(target: Any) -> bool:
    """Return whether inductor has code of its own for what a node calls."""
    from torch._inductor.lowering import fallbacks, lowerings

    if isinstance(target, OpOverload):
        return target in lowerings and target not in fallbacks
    return target.__module__ in ("_operator", "math")  # entries of tuples, sizes


def add_up_products(graph: Any) -> None:
    """Let each matrix product in a sum add to the sum of those before it.

    The gradient of a weight is such a sum, over all evaluations. Added up afterwards, all products
    would have to be kept and read again, some of them turned.

    Args:
        graph: a ``torch.fx.Graph`` of ATen operations with their values in ``meta["val"]``; it is
            changed.
    """
    places = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not _is_sum(node) or (len(node.users) == 1 and _is_sum(next(iter(node.users)))):
            continue
        terms, value = _find_terms(node), node.meta["val"]
        found = [(places[p[0]], term, *p) for term in terms if (p := _find_product(term, value))]
        if len(found) < 2 or not value.is_contiguous():
            continue
        total: _Node = None
        is_tall = value.shape[-2] > value.shape[-1]  # products with long rows are faster
        for _, _, product, is_turned in sorted(found, key=lambda each: each[0]):
            with graph.inserting_before(product):
                a, b = product.args
                factors = (a, b) if is_turned == is_tall else (_turn(graph, b), _turn(graph, a))
                if total is None:
                    total = graph.call_function(product.target, factors)
                else:
                    total = graph.call_function(_SUMS[product.target], (total, *factors))
            total.meta["val"] = _empty_like(value.mT if is_tall else value)
        with graph.inserting_before(node):
            if is_tall:
                total = _copy(graph, _turn(graph, total))
            products = {term for _, term, *_ in found}
            for term in terms:
                if term not in products:
                    total = graph.call_function(_aten.add.Tensor, (total, term))
                    total.meta["val"] = _empty_like(value)
        node.replace_all_uses_with(total)
    graph.eliminate_dead_code()


def turn_weights_once(graph: Any) -> None:
    """Let products whose second factor is a turned input of the graph read it as they need it.

    They are an eighth faster, for one copy.

    Args:
        graph: a ``torch.fx.Graph`` of ATen operations with their values in ``meta["val"]``; it is
            changed.
    """
    places: dict[Any, int] = {**dict.fromkeys(_SUMS, 1), **dict.fromkeys(_SUMS.values(), 2)}
    for node in list(graph.nodes):
        if node.target is not _aten.permute.default or node.args[0].op != "placeholder":
            continue
        users = [u for u in node.users if u.target in places and u.args[places[u.target]] is node]
        if len(users) >= _MANY and _is_turned(node):
            with graph.inserting_after(node):
                copy = _copy(graph, node)
            for user in users:
                user.update_arg(places[user.target], copy)


def _is_sum(node: _Node) -> bool:
    return (
        node.target is _aten.add.Tensor
        and node.kwargs.get("alpha", 1) == 1
        and len(node.all_input_nodes) == 2  # no numbers, and not the same twice
    )


def _find_terms(node: _Node) -> list[_Node]:
    """Return what a sum of sums adds up."""
    terms: list[_Node] = []
    left = [node]
    while left:
        for each in left.pop().all_input_nodes:
            is_part = _is_sum(each) and len(each.users) == 1
            (left if is_part else terms).append(each)
    return terms


def _find_product(term: _Node, value: Tensor) -> tuple[_Node, bool] | None:
    """Return the product that a term of a sum is and whether it is turned, if no other needs it."""
    is_turned = term.target is _aten.permute.default and _is_turned(term)
    product = term.args[0] if is_turned else term
    used_once = len(term.users) == 1 and len(product.users) == 1
    if product.target not in _SUMS or not used_once:
        return None
    found = term.meta["val"]
    same = (found.shape, found.dtype) == (value.shape, value.dtype)
    return (product, is_turned) if same else None


def _turned_axes(value: Tensor) -> list[int]:
    """Return the order of the axes in which matrices are turned."""
    axes = range(value.ndim)
    return [*axes[:-2], axes[-1], axes[-2]]


def _is_turned(permute: _Node) -> bool:
    return list(permute.args[1]) == _turned_axes(permute.meta["val"])


def _turn(graph: Any, matrices: _Node) -> _Node:
    value = matrices.meta["val"]
    turned = graph.call_function(_aten.permute.default, (matrices, _turned_axes(value)))
    turned.meta["val"] = value.mT
    return turned


def _copy(graph: Any, node: _Node) -> _Node:
    layout = {"memory_format": torch.contiguous_format}
    copy = graph.call_function(_aten.clone.default, (node,), layout)
    copy.meta["val"] = _empty_like(node.meta["val"])
    return copy


def _empty_like(value: Tensor) -> Tensor:
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def tanh(x: Tensor) -> Any:
    """Return ``tanh(x)`` from products and one quotient, to 7 units in the last place of float32.

    Several times as fast as torch's own; not for other dtypes and devices (``NotImplemented``).
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    inner = x.clamp(-_END, _END)
    square = inner * inner
    quotient = _evaluate(_ABOVE, square) / _evaluate(_BELOW, square)
    return inner * quotient


def _evaluate(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Return the polynomial, by Horner's rule."""
    from torch._inductor import inductor_prims

    multiply_add = getattr(inductor_prims, "fma", _multiply_add)  # older releases lack it
    result = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = multiply_add(result, x, torch.full_like(x, c))
    return result


def _multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a * b + c
