"""Integration in segments that are integrated once more when gradients are needed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Segment = Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]
"""``segment(z, grid)``: the states at all points of ``grid``, from ``z`` at the first of them."""


def integrate_in_segments(
    segment: Segment,
    z0: tuple[Tensor, ...],
    grid: Float[Tensor, " m"],
    outputs: list[int],
    every: int,
    parameters: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """The states at the grid points ``outputs``, differentiable in ``z0``, grid and parameters."""
    ys: tuple[Tensor, ...] = _Segments.apply(
        segment, outputs, every, len(z0), *z0, grid, *parameters
    )
    return ys


class _Segments(torch.autograd.Function):
    # Segments are recomputed by a Function of their own, not by hooks on saved tensors as in
    # torch.utils.checkpoint: that leaves the field free to call autograd itself.

    @staticmethod
    def forward(
        ctx: Any, segment: Segment, outputs: list[int], every: int, n: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        z, grid = tensors[:n], tensors[n]
        last = len(grid) - 1
        bounds = [*range(0, last, every), last]
        starts: list[tuple[Tensor, ...]] = []
        pieces: list[tuple[Tensor, ...]] = []
        for a, b in pairwise(bounds):
            starts.append(z)
            rows = segment(z, grid[a : b + 1])
            wanted = _rows_in(outputs, a, b, last)
            pieces.append(tuple(part[wanted] for part in rows))
            z = tuple(part[-1].clone() for part in rows)  # a view would keep all rows alive
        ctx.segment, ctx.outputs, ctx.bounds, ctx.n = segment, outputs, bounds, n
        ctx.save_for_backward(*tensors[n:], *(part for start in starts for part in start))
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        n, bounds, outputs = ctx.n, ctx.bounds, ctx.outputs
        last = bounds[-1]
        saved = ctx.saved_tensors
        kept = n * (len(bounds) - 1)
        grid, parameters, states = saved[0], saved[1:-kept], saved[-kept:]

        carry = [torch.zeros_like(z) for z in states[:n]]
        grad_grid = torch.zeros_like(grid)
        grad_parameters: list[Tensor | None] = [None] * len(parameters)
        consumed = len(outputs)
        for i, (a, b) in reversed(list(enumerate(pairwise(bounds)))):
            wanted = _rows_in(outputs, a, b, last)
            with torch.enable_grad():
                z = tuple(s.detach().requires_grad_() for s in states[n * i : n * (i + 1)])
                times = grid[a : b + 1].detach().requires_grad_(ctx.needs_input_grad[4 + n])
                rows = ctx.segment(z, times)
                ends = [part[-1] for part in rows] + [part[wanted] for part in rows]
            span = slice(consumed - len(wanted), consumed)
            consumed -= len(wanted)
            inputs = (*z, *((times,) if times.requires_grad else ()), *parameters)
            grads = torch.autograd.grad(
                ends, inputs, carry + [g[span] for g in grad_ys], allow_unused=True
            )
            carry = [_or_zeros(g, part) for g, part in zip(grads[:n], z, strict=True)]
            if times.requires_grad:
                grad_grid[a : b + 1] += _or_zeros(grads[n], times)
            for j, g in enumerate(grads[len(inputs) - len(parameters) :]):
                total = grad_parameters[j]
                grad_parameters[j] = g if total is None else total if g is None else total + g
        return (None, None, None, None, *carry, grad_grid, *grad_parameters)


def _rows_in(outputs: list[int], a: int, b: int, last: int) -> list[int]:
    """Which rows of the segment from ``a`` to ``b`` are outputs; its end belongs to the next."""
    return [i - a for i in outputs if a <= i < b or i == b == last]


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
