"""Inferred activity against the true one: who acts, which way, how fast, and from when on."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowfactor.activity import Activity
from flowfactor.checks import check_tensor
from flowfactor.data.activity import accumulate
from flowfactor.matching import ActivityMatching, match_activity
from solvers.checks import widen


@dataclasses.dataclass(frozen=True)
class ActivityScores:
    """How well activity was inferred, over all steps of some sequences.

    Attributes:
        accuracy: the share of the steps in which exactly the right fields are active: for two
            transformations at once, both. A field is active whose probability is above 1/2.
        direction: the share of the correctly found fields that run in the right direction; None if
            none was found.
        correlation: between inferred and true signed speed, for each transformation over the steps
            in which it acts; None where there is none, as one of them is constant.
        speed_correlation: the same of the absolute speeds.
        switch_error: the mean distance of the inferred from the true frame of the switch; None for
            sequences in which nothing switches.
    """

    accuracy: float
    direction: float | None
    correlation: list[float | None]
    speed_correlation: list[float | None]
    switch_error: float | None = None


def arrange(activity: Activity, matching: ActivityMatching) -> Activity:
    """Return the activity with fields in the order of their transformations, and their directions.

    Args:
        activity: of K fields.
        matching: of them; spare fields come last, and where there are too few, some that never act
            are added.
    """
    activity = _pad(activity, len(matching.signs))
    order = list(matching.order)
    against = matching.signs[order] < 0
    forward = activity.forward[..., order]
    return Activity(
        activity.coefficients[..., order] * matching.signs[order],
        activity.active[..., order],
        torch.where(against, 1 - forward, forward),
        activity.evidence,
    )


def match_fields(activity: Activity, truth: Float[Tensor, "b n m"]) -> ActivityMatching:
    """Assign fields to transformations, see :func:`~flowfactor.matching.match_activity`.

    If there are too few fields, some transformations get one that is never active.

    Args:
        activity: inferred, of K fields.
        truth: signed speeds of M transformations, 0 where they rest.
    """
    padded = _pad(activity, truth.shape[-1])
    return match_activity(padded.coefficients, padded.active, truth)


def score_activity(
    activity: Activity, truth: Float[Tensor, "b n m"], matching: ActivityMatching
) -> ActivityScores:
    """Return how well the activity of sequences was inferred.

    Args:
        activity: inferred, of K fields.
        truth: signed speeds of M transformations, 0 where they rest.
        matching: which field is which transformation, for instance from other sequences.

    Raises:
        TypeError, ValueError: a truth of another shape.

    Example:
        >>> import torch
        >>> truth = torch.tensor([[[1.0, 0.0], [0.0, -0.5], [0.0, -0.5]]])
        >>> speeds = torch.tensor([[[0.0, 0.9, 0.0], [0.0, 0.8, 0.0], [0.6, 0.0, 0.0]]])
        >>> active, forward = (speeds != 0).float(), (speeds > 0).float()
        >>> inferred = Activity(speeds, active, forward, torch.zeros(1))
        >>> scores = score_activity(inferred, truth, match_fields(inferred, truth))
        >>> round(scores.accuracy, 3), scores.direction, scores.switch_error
        (0.667, 1.0, 1.0)
    """
    check_tensor("truth", truth, (*activity.active.shape[:2], "M"))
    m = truth.shape[-1]
    # On the processor, for there are devices without float64.
    found = Activity(*(part.cpu() for part in vars(arrange(activity, matching)).values()))
    truth = truth.cpu()
    active, acts = found.active > 0.5, truth != 0
    right = (active == F.pad(acts, (0, active.shape[-1] - m))).all(-1)
    both = acts & active[..., :m]
    agrees = (found.forward[..., :m] > 0.5) == (truth > 0)
    speeds = found.coefficients[..., :m].double()
    signed, absolute = (
        [_correlation(x[..., k], y[..., k], acts[..., k]) for k in range(m)]
        for x, y in ((speeds, truth.double()), (speeds.abs(), truth.double().abs()))
    )
    return ActivityScores(
        float(right.double().mean()),
        float(agrees[both].double().mean()) if bool(both.any()) else None,
        signed,
        absolute,
        _switch_error(found.active, truth),
    )


def find_switch(active: Float[Tensor, "b n k"]) -> Int[Tensor, "b"]:
    r"""Return the frame at which one field most likely hands over to another one.

    .. math::

        \arg\max_{1 \le s < n} \max_{j \ne k}
        \Bigl( \sum_{t < s} p_{t,j} + \sum_{t \ge s} p_{t,k} \Bigr)

    Args:
        active: probability ``p`` that each field acts in each step, of at least two fields and
            steps.

    Example:
        >>> import torch
        >>> find_switch(torch.tensor([[[0.9, 0.1], [0.8, 0.1], [0.1, 0.9]]])).tolist()
        [2]
    """
    moved = accumulate(widen(active))
    before, after = moved[:, 1:-1], moved[:, -1:] - moved[:, 1:-1]
    pairs = before.unsqueeze(-1) + after.unsqueeze(-2)
    same = torch.eye(active.shape[-1], dtype=torch.bool, device=active.device)
    return pairs.masked_fill(same, -torch.inf).amax((-1, -2)).argmax(1) + 1


def _switch_error(active: Float[Tensor, "b n k"], truth: Float[Tensor, "b n m"]) -> float | None:
    """Return the mean distance from the frames in which the truth switches, if all switch once."""
    changes = (truth[:, 1:] != truth[:, :-1]).any(-1)
    if active.shape[-1] < 2 or not bool((changes.sum(1) == 1).all()):
        return None
    frames = changes.long().argmax(1) + 1
    return float((find_switch(active) - frames).abs().double().mean())


def _correlation(
    x: Float[Tensor, "b n"], y: Float[Tensor, "b n"], where: Bool[Tensor, "b n"]
) -> float | None:
    """Return Pearson's correlation over some steps; None if a side is constant."""
    if int(where.sum()) < 2:
        return None
    pair = torch.stack([x[where], y[where]])
    pair = pair - pair.mean(1, keepdim=True)
    lengths = pair.norm(dim=1)
    if float(lengths.min()) <= 1e-6 * len(pair[0]) ** 0.5:  # nothing but rounding
        return None
    return float((pair[0] * pair[1]).sum() / lengths.prod())


def _pad(activity: Activity, fields: int) -> Activity:
    """Return the activity of at least so many fields, the added ones of which never act."""
    missing = (0, max(0, fields - activity.active.shape[-1]))
    return Activity(
        F.pad(activity.coefficients, missing),
        F.pad(activity.active, missing),
        F.pad(activity.forward, missing, value=0.5),
        activity.evidence,
    )
