"""The user's field as an integrator calls it: counted, and checked against the state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.solution import State, Stats
from solvers.stepping import Parts

Field = Callable[[Tensor, State], State]
"""``field(t, z)`` returns ``dz/dt`` with the structure, shapes and dtype of ``z``."""


class CountedField:
    """A field on parts that counts its evaluations and refuses a derivative of another shape.

    Broadcast or converted silently, such a derivative would change the state.
    """

    def __init__(self, field: Field, z0: State, stats: Stats) -> None:
        self.backward = False  # set once the integration is done: what follows is its gradient
        self.is_tuple = isinstance(z0, tuple)
        self._field = field
        self._stats = stats
        device = (z0[0] if isinstance(z0, tuple) else z0).device.type
        self._autocast = (
            torch.autocast(device, torch.get_autocast_dtype(device))
            if torch.is_autocast_enabled(device)
            else None
        )
        self._like = [(z.shape, z.dtype) for z in (z0 if isinstance(z0, tuple) else (z0,))]

    def __call__(self, t: Float[Tensor, "*b"], z: Parts) -> Parts:
        """``dz/dt`` at ``(t, z)``, in the shapes and dtype of the state."""
        if self.backward:
            self._stats.backward_evaluations += 1
        else:
            self._stats.evaluations += 1
        state = z if self.is_tuple else z[0]
        if self.backward and self._autocast is not None:
            with self._autocast:  # gradients are computed where autocast is off again
                value = self._field(t, state)
        else:
            value = self._field(t, state)
        if not self.is_tuple:
            return (self._fitting(value, 0, ""),)
        if not isinstance(value, tuple) or len(value) != len(self._like):
            got = f"{len(value)} tensors" if isinstance(value, tuple) else type(value).__name__
            raise TypeError(
                f"field(t, z) must return a tuple of {len(self._like)} tensors, as the state is "
                f"one; it returned {got}"
            )
        return tuple(self._fitting(v, i, f"[{i}]") for i, v in enumerate(value))

    def _fitting(self, value: object, i: int, where: str) -> Tensor:
        shape, dtype = self._like[i]
        if not isinstance(value, Tensor):
            raise TypeError(
                f"field(t, z){where} must be a tensor shaped as the state, "
                f"got {type(value).__name__}"
            )
        if value.shape != shape:
            raise ValueError(
                f"field(t, z){where} has shape {tuple(value.shape)}, but the state has shape "
                f"{tuple(shape)}; return dz/dt in the shape of z"
            )
        if value.dtype != dtype:
            if self._autocast is not None:
                return value.to(dtype)
            raise TypeError(
                f"field(t, z){where} has dtype {value.dtype}, but the state has {dtype}; "
                "convert the initial state or the field, so that both agree"
            )
        return value
