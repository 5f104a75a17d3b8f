"""The user's field as the integrator calls it: counted, checked, and kept inside the interval."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.solution import State, Stats

Field = Callable[[Tensor, State], State]
"""``field(t, z)`` returns ``dz/dt`` with the structure, shapes and dtype of ``z``."""

Callback = Callable[[Tensor, State, Tensor], None]


class CountedField:
    """A field that counts its evaluations and refuses a derivative that does not fit the state.

    torchdiffeq broadcasts a derivative of the wrong shape, and lets one of another dtype change
    the dtype of the state: both would be silent mistakes.

    ``span`` clamps the times at which the field is evaluated, for the methods whose stage times
    may leave the interval: by rounding (Heun: ``t0 + (t1 - t0)`` need not be ``t1``), or in the
    guess of the first step (adaptive methods).
    """

    # torchdiffeq looks for these on the field that it is given, and warns about those that a
    # method does not use; so they are set only where they are wanted.
    callback_step: Callback
    callback_accept_step: Callback
    callback_reject_step: Callback
    callback_step_adjoint: Callback

    def __init__(
        self, field: Field, z0: State, stats: Stats, span: tuple[float, float] | None
    ) -> None:
        self.backward = False  # set once the integration is done: what follows is its gradient
        self._field = field
        self._stats = stats
        self._span = span
        device = (z0[0] if isinstance(z0, tuple) else z0).device.type
        self._autocast = (
            torch.autocast(device, torch.get_autocast_dtype(device))
            if torch.is_autocast_enabled(device)
            else None
        )
        self._is_tuple = isinstance(z0, tuple)
        self._like = [(z.shape, z.dtype) for z in (z0 if isinstance(z0, tuple) else (z0,))]

    def __call__(self, t: Float[Tensor, ""], z: State) -> State:
        """``dz/dt`` at ``(t, z)``, in the structure, shapes and dtype of the state."""
        if self.backward:
            self._stats.backward_evaluations += 1
        else:
            self._stats.evaluations += 1
        if isinstance(z, Tensor) and z.dtype != self._like[0][1]:
            # torchdiffeq's guess of the first step promotes a 0-dimensional float32 state.
            t, z = t.to(self._like[0][1]), z.to(self._like[0][1])
        if self._span is not None:
            t = _clamp_time(t, self._span)
        if self.backward and self._autocast is not None:
            with self._autocast:  # gradients are computed where autocast is off again
                value = self._field(t, z)
        else:
            value = self._field(t, z)
        if not self._is_tuple:
            return self._fitting(value, 0, "")
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


def _clamp_time(t: Float[Tensor, ""], span: tuple[float, float]) -> Float[Tensor, ""]:
    inside = t.clamp(*span)
    # Where a clamp acts its derivative is 0, which would lose gradients with respect to ts.
    return t + (inside - t).detach() if t.requires_grad else inside
