"""Closure, later frames and sharpness on a wheel whose true motion is known."""

import math

import pytest
import torch
from toy_models import Toy

from flowfactor.data import Coverage, SequenceDataset
from flowfactor.errors import ConfigError
from flowfactor.evaluation import EvaluationOptions, check_metrics, evaluate
from flowfactor.metrics import closure_error, relative_sharpness

PERIOD, HORIZON, SIDE = 12, 3, 8
SPEED = 2 * math.pi / PERIOD
PHASES = 2 * math.pi * torch.arange(SIDE) / SIDE


def wave(angle, height=0.4):
    """Return images of a wave, at angles ``(...)``: the latent is the angle."""
    return (0.5 + height * (angle[..., None] + PHASES).cos())[..., None, None, :]


class Wheel(SequenceDataset):
    """Waves that roll; after a period each is where it was."""

    def __init__(self, shown=None, names=("roll", "still")):
        super().__init__(names, HORIZON, (1, 1, SIDE))
        self.shown = shown

    def __len__(self):
        return 5

    def render_frames(self, indices, elapsed, active, starts):
        angle = indices[:, None] + SPEED * elapsed[0] * active[0][:, None]
        return wave(angle).expand(-1, -1, 1, 1, -1)

    def coverage(self, k):
        if self.shown is None:
            return super().coverage(k)
        return Coverage(self.shown, period=PERIOD) if k == 0 else Coverage((0, HORIZON))


def rolling(speed=SPEED, height=0.4):
    """Return a model whose latent, the angle of the wave, moves at some speed."""

    def angle(x):
        a, b = (x[:, 0, 0] * PHASES.cos()).sum(-1), (x[:, 0, 0] * PHASES.sin()).sum(-1)
        return torch.atan2(-b, a)[:, None]

    potentials = {"roll": lambda z, t: speed * z[:, 0], "still": lambda z, t: 0 * z[:, 0]}
    return Toy(
        potentials,
        (1, 1, SIDE),
        1,
        angle,
        lambda z: wave(z[:, 0], height).logit().reshape(-1, 1, 1, SIDE),
        HORIZON,
    )


CYCLIC = Wheel((0, HORIZON))


def test_a_wheel_comes_back():
    exact = closure_error(rolling(height=0.3), CYCLIC)
    assert list(exact) == ["roll"]
    assert exact["roll"].period == PERIOD
    assert exact["roll"].over_floor == pytest.approx(1, abs=1e-4)
    # One that turns too far ends where it has turned too far to.
    fast = closure_error(rolling(1.1 * SPEED, height=0.3), CYCLIC, [2, 4], batch_size=1)["roll"]
    angles = torch.tensor([2.0, 4.0])
    ends = [wave(angles + turned, 0.3) for turned in (0.0, 0.1 * 2 * math.pi)]
    floor, error = ((wave(angles) - end).abs().sum().item() / 2 for end in ends)
    assert (fast.floor, fast.error) == pytest.approx((floor, error), rel=1e-4)


def test_closure_needs_a_cycle():
    options = EvaluationOptions(metrics={"closure": {}})
    with pytest.raises(ConfigError, match="closure"):
        check_metrics(rolling(), Wheel(), options)
    check_metrics(rolling(), CYCLIC, options)


@pytest.mark.parametrize("height", [0.4, 0.2])
def test_sharpness_is_the_square_of_the_contrast(height):
    measured = relative_sharpness(rolling(height=height), CYCLIC, frames=2, batch_size=2)
    for each in measured.values():
        numbers = each.flow, each.reconstruction
        assert numbers == pytest.approx([(height / 0.4) ** 2] * 2, rel=1e-3)


FEW = {"log_likelihood": {"sequences": 2, "samples": 2}, "extrapolation": {}}


@pytest.mark.parametrize(
    ("shown", "states"),
    [
        ((0, 6), "covered"),
        ((0, 4), "1 covered, 2 extrapolation"),
        ((-7, -6), "1 extrapolation, 2 covered"),
        (None, "extrapolation"),
    ],
)
def test_later_frames_are_told_apart_from_extrapolation(shown, states):
    record = evaluate(rolling(SPEED / 2), Wheel(shown), EvaluationOptions(frames=2, metrics=FEW))
    result = record.metrics["extrapolation"].errors
    assert result["roll"].states == states
    assert result["still"].states == "extrapolation"
    # At half the speed, and without any.
    angles, later = torch.arange(5.0)[:, None], torch.tensor([4, 5, 6]) * SPEED
    late, stays = (
        (wave(angles + later) - wave(angles + part * later)).abs().sum((-3, -2, -1)).mean().item()
        for part in (0.5, 0)
    )
    beyond = result["roll"].beyond
    assert (beyond.error, beyond.identity) == pytest.approx((late, stays), rel=1e-4)
    assert beyond.copy == pytest.approx(stays, rel=1e-4)
    assert result["roll"].over_identity == pytest.approx(late / stays, rel=1e-4)
    columns = record.tables()["extrapolation"].columns
    assert {"over identity", "later states"} <= {column.key for column in columns}
