"""A device that a processor plays: what an accelerator refuses, it refuses.

Within :func:`accelerator` the device ``meta`` has values. Its tensors are computed on the CPU, but
refuse to be mixed with those of the CPU, to become arrays of numpy, to be drawn by a generator of
the CPU, and to have 64-bit floating-point numbers, which MPS lacks.
"""

import contextlib
from unittest import mock

import torch
from operations import map_only, tensors_in
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from solvers.checks import WITHOUT_FLOAT64

DEVICE = torch.device("meta")
# The last one moves indices by itself.
_TRANSFERS = ("aten::copy_", "aten::_to_copy", "aten::index")
_WIDE = (torch.float64, torch.complex128)
# What fills tensors from Python, and would leave those on ``meta`` empty.
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)


class Elsewhere(torch.Tensor):
    """A tensor on the device that is played; its values are ``inner``."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        self.inner = inner
        return self

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force=False):
        assert force, "an array of numpy is made of a tensor of the device"
        return self.detach().cpu().numpy()

    def __repr__(self):
        return f"{self.inner} elsewhere"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of the context")


class _Played(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function._schema.name
        given = list(tensors_in(args, kwargs))
        away = [x for x in given if isinstance(x, Elsewhere)]
        here = [x for x in given if not isinstance(x, Elsewhere)]
        # One number of the CPU may be added to anything.
        if away and any(x.ndim for x in here) and name not in _TRANSFERS:
            raise AssertionError(f"{function} mixes tensors of two devices")
        asked = kwargs.get("device")
        target = bool(away) if asked is None else torch.device(asked) == DEVICE
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        if target and kwargs.get("generator") is not None:
            raise AssertionError(f"{function} takes a generator of another device")
        plain, options = map_only(Elsewhere, lambda x: x.inner, (args, kwargs))
        out = function(*plain, **options)
        if name == "aten::copy_":
            return args[0]
        if not target:
            return out
        changed = {id(x.inner): x for x in away}

        def wrap(x):
            if x.dtype in _WIDE:
                raise AssertionError(f"{function} makes {x.dtype}")
            return changed.get(id(x)) if id(x) in changed else Elsewhere(x)

        return map_only(torch.Tensor, wrap, out)


class _FromData(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **kwargs).to(DEVICE)
        if getattr(function, "__name__", "") in ("__matmul__", "matmul") and args[0].ndim == 1:
            return function(args[0][None], args[1])[0]  # else squeezed in place, unseen from here
        if function is torch.Tensor.__getitem__ and isinstance(args[0], Elsewhere):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(x) if isinstance(x, list) else x for x in parts)
            return function(args[0], index)
        if function in _FROM_DATA and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            given = args[0]
            if isinstance(given, Elsewhere):
                return given.to(kwargs.get("dtype") or given.dtype)
            return function(*args, **(kwargs | {"device": "cpu"})).to(DEVICE)
        return function(*args, **kwargs)


def _autocast(kind, *args, **kwargs):
    return _AUTOCAST("cpu" if kind == DEVICE.type else kind, *args, **kwargs)


_AUTOCAST = torch.autocast


@contextlib.contextmanager
def accelerator():
    """Let ``meta`` be an accelerator without 64-bit floating-point numbers."""
    changed = mock.patch.multiple(
        torch, autocast=_autocast, is_autocast_enabled=lambda kind="cpu": False
    )
    WITHOUT_FLOAT64.add(DEVICE.type)
    try:
        with changed, _FromData(), _Played():
            yield DEVICE
    finally:
        WITHOUT_FLOAT64.remove(DEVICE.type)
