"""Tensors among the arguments and results of operations, found faster than pytrees do."""

from collections.abc import Iterator

import torch


def tensors_in(*values) -> Iterator[torch.Tensor]:
    """Yield the tensors among values and in their lists, tuples and dicts."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())


def map_only(kind, function, value):
    """Return a value with its objects of a kind, also those in lists, tuples and dicts, mapped."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([map_only(kind, function, each) for each in value])
    if isinstance(value, dict):
        return {key: map_only(kind, function, each) for key, each in value.items()}
    return value
