"""Change what happens in a sequence: stop it, turn it round, let something else happen, faster."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from flowfactor.checks import check_integer, check_tensor

Coefficients = Float[Tensor, "b n k"]
"""Signed speeds of K fields in n steps, as ``infer_activity`` of a model finds them."""


def stop(coefficients: Coefficients, step: int) -> Coefficients:
    """Let nothing happen from a step on.

    Args:
        coefficients: signed speeds.
        step: the first that stands still.

    Raises:
        ValueError: there is no such step.

    Example:
        >>> import torch
        >>> stop(torch.tensor([[[1.0], [2.0], [3.0]]]), 1).flatten().tolist()
        [1.0, 0.0, 0.0]
    """
    _check(coefficients, step)
    edited = coefficients.clone()
    edited[:, step:] = 0
    return edited


def turn_back(coefficients: Coefficients, step: int) -> Coefficients:
    """Go back from a step on the way that was come, as far as there are steps, then stop.

    Args:
        coefficients: signed speeds.
        step: the first that goes back.

    Raises:
        ValueError: there is no such step.

    Example:
        >>> import torch
        >>> turn_back(torch.tensor([[[1.0], [2.0], [0.0], [0.0]]]), 2).flatten().tolist()
        [1.0, 2.0, -2.0, -1.0]
    """
    edited = stop(coefficients, step)
    back = min(step, coefficients.shape[1] - step)
    edited[:, step : step + back] = -coefficients[:, step - back : step].flip(1)
    return edited


def swap(coefficients: Coefficients, field: int, other: int, step: int = 0) -> Coefficients:
    """Exchange two fields from a step on: what one did, the other one does at the same speed.

    Args:
        coefficients: signed speeds.
        field, other: the fields.
        step: the first that is changed.

    Raises:
        ValueError: there is no such step or field.

    Example:
        >>> import torch
        >>> swap(torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), 0, 1, step=1).tolist()
        [[[1.0, 0.0], [0.0, 2.0]]]
    """
    _check(coefficients, step)
    for each in (field, other):
        check_integer("field", each, 0, coefficients.shape[-1] - 1)
    edited = coefficients.clone()
    edited[:, step:, field] = coefficients[:, step:, other]
    edited[:, step:, other] = coefficients[:, step:, field]
    return edited


def hand_over(coefficients: Coefficients, step: int = 0) -> Coefficients:
    """Let each field's successor do what it did, and the first what the last one did.

    Args:
        coefficients: signed speeds.
        step: the first that is changed.

    Raises:
        ValueError: there is no such step.

    Example:
        >>> import torch
        >>> hand_over(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]])).tolist()
        [[[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]]
    """
    _check(coefficients, step)
    return torch.cat([coefficients[:, :step], coefficients[:, step:].roll(1, -1)], 1)


def change_speed(coefficients: Coefficients, factor: float, step: int = 0) -> Coefficients:
    """Multiply all speeds from a step on.

    Args:
        coefficients: signed speeds.
        factor: negative ones also change the direction.
        step: the first that is changed.

    Raises:
        ValueError: there is no such step.

    Example:
        >>> import torch
        >>> change_speed(torch.tensor([[[1.0], [2.0]]]), -0.5, step=1).flatten().tolist()
        [1.0, -1.0]
    """
    _check(coefficients, step)
    edited = coefficients.clone()
    edited[:, step:] *= factor
    return edited


def refine(coefficients: Coefficients, substeps: int) -> Coefficients:
    """Cut every step into several of the same path, for frames between frames.

    Example:
        >>> import torch
        >>> refine(torch.tensor([[[1.0], [-2.0]]]), 2).flatten().tolist()
        [0.5, 0.5, -1.0, -1.0]
    """
    check_integer("substeps", substeps)
    return coefficients.repeat_interleave(substeps, 1) / substeps


def _check(coefficients: Tensor, step: int) -> None:
    check_tensor("coefficients", coefficients, ("B", "N", "K"))
    check_integer("step", step, 0, coefficients.shape[1])
