"""What a field depends on beside its arguments: tensors, random numbers, buffers of modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from solvers.types import Parts


def name_field(field: object) -> str:
    """Return what to call a field in a message."""
    name = getattr(field, "__qualname__", None) or type(field).__name__
    return f"field {name}"


# ---- tensors


def find_tensors(slopes: Parts, known: Sequence[Tensor], since: int) -> tuple[list[Tensor], str]:
    """Return the leaves that require grad and entered an evaluation, from its graph.

    Args:
        slopes: what the field returned.
        known: tensors that need not be found.
        since: the sequence number of a node made just before the evaluation.

    Returns:
        The leaves that are not known, and a description of a tensor that is no leaf, was computed
        before the evaluation, and is not known; empty if there is none.
    """
    leaves = {id(x) for x in known if x.grad_fn is None}
    edges = {(x.grad_fn, x.output_nr) for x in known if x.grad_fn is not None}
    found: dict[int, Tensor] = {}
    older = ""
    todo = [(x.grad_fn, x.output_nr) for x in slopes if x.grad_fn is not None]
    found.update({id(x): x for x in slopes if x.grad_fn is None and x.requires_grad})
    seen: set[Any] = set()
    while todo:
        node, place = todo.pop()
        if (node, place) in edges:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:  # the node of a leaf
            found[id(variable)] = variable
        elif node._sequence_nr() < since:
            shape = tuple(node._input_metadata[place].shape)
            older = f"a tensor of shape {shape}, computed before by {node.name()}"
        elif node not in seen:
            seen.add(node)
            todo += [(n, i) for n, i in node.next_functions if n is not None]
    return [x for key, x in found.items() if key not in leaves], older


def mark() -> int:
    """Return the sequence number of a new node: later ones of this thread have larger numbers."""
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).clone().grad_fn
    assert node is not None
    return node._sequence_nr()


# ---- random numbers and buffers


@dataclass
class Snapshot:
    """Random states, and the values of the buffers of modules, at one time."""

    random: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]
    versions: tuple[tuple[int, int], ...]


class Surroundings:
    """The random state that a field draws from, and the buffers of the modules that it consists of.

    Args:
        field: its modules are searched for in itself, in the object whose method it is, and among
            the variables that a function uses.
        devices: those whose random state counts, beside the CPU's.
    """

    def __init__(self, field: Callable[..., Any], devices: Sequence[torch.device]) -> None:
        kinds = dict.fromkeys(device for device in devices if device.type not in ("cpu", "meta"))
        self._devices = list(kinds)
        modules = dict.fromkeys(m for top in _find_modules(field) for m in top.modules())
        self._places = [
            (m, name) for m in modules for name, b in m._buffers.items() if b is not None
        ]
        self._last: Snapshot | None = None

    def save(self) -> Snapshot:
        """Return a snapshot, which shares with the last one what has not changed."""
        last, random = self._last, self._get_random()
        buffers = [b for m, name in self._places if (b := m._buffers[name]) is not None]
        versions = tuple((id(b), -1 if b.is_inference() else b._version) for b in buffers)
        if last is not None and all(map(torch.equal, random, last.random)):
            random = last.random
        if last is not None and versions == last.versions:
            values = last.buffers
        else:
            values = tuple(b.detach().clone() for b in buffers)
        self._last = Snapshot(random, values, versions)
        return self._last

    @contextmanager
    def restore(self, snapshot: Snapshot, random: bool, buffers: bool) -> Iterator[None]:
        """Return to a snapshot for as long as the context lasts."""
        before = self._get_random() if random else ()
        originals = [m._buffers[name] for m, name in self._places] if buffers else []
        try:
            if random:
                self._set_random(snapshot.random)
            for (m, name), value in zip(self._places, snapshot.buffers, strict=False):
                if buffers:
                    # Another tensor in its place: a buffer that is written to would lose its value,
                    # and a graph that has saved it its gradient.
                    m._buffers[name] = value.clone()
            yield
        finally:
            if random:
                self._set_random(before)
            for (m, name), original in zip(self._places, originals, strict=False):
                m._buffers[name] = original

    def _get_random(self) -> tuple[Tensor, ...]:
        return (torch.get_rng_state(), *(_random_of(device)[0]() for device in self._devices))

    def _set_random(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            _random_of(device)[1](state)


def _random_of(device: torch.device) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    """Return how to read and to set the random state of a device."""
    module: Any = torch.get_device_module(device.type)
    if device.type == "mps":  # of which there is one
        return module.get_rng_state, module.set_rng_state
    return lambda: module.get_rng_state(device), lambda x: module.set_rng_state(x, device)


def _find_modules(field: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a field is, belongs to, or uses by name."""
    candidates: list[Any] = [field]
    function = field.__func__ if inspect.ismethod(field) else field
    if inspect.isfunction(function):
        for cell in function.__closure__ or ():
            try:
                candidates.append(cell.cell_contents)
            except ValueError:  # not assigned yet
                continue
        names = function.__code__.co_names
        candidates += [function.__globals__[n] for n in names if n in function.__globals__]
    candidates += [
        getattr(x, "__self__", None) for x in candidates if not isinstance(x, ModuleType)
    ]
    return [x for x in candidates if isinstance(x, nn.Module)]
