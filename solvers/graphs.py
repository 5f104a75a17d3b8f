"""How the graphs of compiled steps become machine code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# A cheap result is computed again on the way back wherever it is used, as memory is what steps
# wait for. A memory budget instead of these would repeat matrix products too: to functorch,
# baddbmm is not among what is expensive.
_RECOMPUTATION = {
    "ban_recompute_used_far_apart": False,
    "ban_recompute_long_fusible_chains": False,
    "ban_recompute_materialized_backward": False,
}

# Of tanh(x) / x, in powers of x^2: fitted to a relative error of 2e-8 for |x| up to 9.02, beyond
# which float32 rounds tanh to 1.
_END = 9.02
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

    It is torch's own, inductor, with two differences: results of cheap operations are computed
    again on the way back, those of matrix products never, and tanh in float32 on the CPU is a
    rational function.
    """
    import torch._functorch.config as settings
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    rules = {**select_decomp_table(), torch.ops.aten.tanh.default: tanh}
    with settings.patch(_RECOMPUTATION):
        return compile_fx(graph, inputs, decompositions=rules)


def tanh(x: Tensor) -> Any:
    """Return ``tanh(x)`` from products and one quotient, to 5 units in the last place of float32.

    Several times as fast as torch's own; not for other dtypes and devices (``NotImplemented``).
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    inner = x.clamp(-_END, _END)
    square = inner * inner
    quotient = _evaluate(_ABOVE, square) / _evaluate(_BELOW, square)
    return (inner * quotient).clamp(-1.0, 1.0)


def _evaluate(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Return the polynomial, by Horner's rule."""
    result = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result
