"""The grid of a fixed method: a whole number of steps in every output interval."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def step_grid(ts: Float[Tensor, " n"], steps: int | tuple[int, ...]) -> Float[Tensor, " m"]:
    """All step boundaries, each output time among them exactly.

    Interval ``i`` is divided evenly into ``steps[i]`` (or ``steps``) parts. A step *size* instead
    of a number of steps would put output times between step boundaries, where torchdiffeq
    interpolates linearly (2nd order at best), and rounding would now and then add a step.

    Differentiable with respect to ``ts``.
    """
    if steps == 1 or len(ts) == 1:
        return ts
    start, length = ts[:-1], ts[1:] - ts[:-1]
    if isinstance(steps, int):
        fraction = torch.arange(steps, dtype=ts.dtype, device=ts.device) / steps
        inner = (start[:, None] + length[:, None] * fraction).reshape(-1)
    else:
        counts = torch.tensor(steps, device=ts.device)
        fraction = torch.cat([torch.arange(n, dtype=ts.dtype, device=ts.device) / n for n in steps])
        inner = start.repeat_interleave(counts) + length.repeat_interleave(counts) * fraction
    return torch.cat([inner, ts[-1:]])
