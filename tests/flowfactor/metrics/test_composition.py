"""Composed flows on a model that is exact, so that every error is known."""

import pytest
import torch
from toy_models import Toy

from flowfactor.data import Recordings, SequenceDataset
from flowfactor.errors import DataError
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.metrics import (
    Composition,
    commutation_error,
    reversal_error,
    superposition_error,
    switching_error,
)
from flowfactor.metrics.pixel_errors import limit_batch

LEFT, RIGHT = 0.02, 0.03  # how much brighter each half becomes in a frame
STEPS = torch.arange(1, 8, dtype=torch.float64)


class Halves(SequenceDataset):
    """Images of two flat halves; one transformation brightens each."""

    def __init__(self):
        super().__init__(("left", "right"), 8, (1, 2, 2), start_size=1)

    def __len__(self):
        return 5

    def render_frames(self, indices, elapsed, active, starts):
        own = torch.stack([0.1 + indices / 100, 0.3 - indices / 100], -1)[:, None]
        if starts is not None:
            own = own + 0.1 * starts[:, :, None]
        rates = torch.tensor([LEFT, RIGHT])[:, None, None]
        moved = (elapsed * active[:, :, None] * rates).movedim(0, -1)
        return (own + moved)[:, :, None, None, :].expand(-1, -1, 1, 2, 2)


def halves_model(left=LEFT, right=RIGHT, twist=0.0):
    """Return a model whose latent is the brightness of the halves; ``twist`` bends one flow."""
    return Toy(
        {
            "left": lambda z, t: left * z[:, 0],
            "right": lambda z, t: right * z[:, 1] + twist * z[:, 0] * z[:, 1],
        },
        (1, 2, 2),
        2,
        lambda x: x[:, 0, 0],
        lambda z: z.logit()[:, None, None, :].expand(-1, 1, 2, 2),
    )


@pytest.mark.parametrize("random_starts", [False, True])
def test_an_exact_model_composes_exactly(random_starts):
    model, data = halves_model(), Halves()
    both = superposition_error(model, data, random_starts=random_starts)
    assert list(both) == [("left", "right")]
    turns = switching_error(model, data, random_starts=random_starts)
    assert list(turns) == [("left", "right"), ("right", "left")]
    for error in (*both.values(), *turns.values(), *reversal_error(model, data).values()):
        assert error.flow.shape == (5, 7)
        assert error.flow.abs().max() < 1e-5
        assert error.reconstruction.abs().max() < 1e-6
    # Both halves move, two pixels each: 2 (LEFT + RIGHT) t. Or one for four frames, then the other.
    first, second = STEPS.clamp(max=4), (STEPS - 4).clamp(min=0)
    for error, expected in (
        (both["left", "right"], 2 * (LEFT + RIGHT) * STEPS),
        (turns["left", "right"], 2 * LEFT * first + 2 * RIGHT * second),
        (turns["right", "left"], 2 * RIGHT * first + 2 * LEFT * second),
    ):
        assert torch.allclose(error.identity, expected.expand(5, -1), atol=1e-5)
        assert torch.allclose(error.copy, error.identity, atol=1e-5)  # what an exact model decodes


def test_a_flow_that_is_too_slow_has_the_error_of_what_is_missing():
    model, data = halves_model(left=0.0), Halves()
    missing = (2 * LEFT * STEPS).expand(2, -1)
    both = superposition_error(model, data, indices=[1, 3], batch_size=1)["left", "right"]
    backward = reversal_error(model, data, [1, 3])["left"]
    for errors in (both.flow, backward.flow, backward.identity):
        assert torch.allclose(errors, missing, atol=1e-5)


def test_reversal_meets_the_frames_in_falling_order():
    error = reversal_error(halves_model(left=2 * LEFT), Halves(), [0], frames=3)["left"]
    assert torch.allclose(error.flow[0], 2 * LEFT * STEPS[:3], atol=1e-5)


def test_commutation_of_flows_in_closed_form():
    """grad u = (a, 0) and grad w = (q y, b + q x): the ends are a s r q apart to first order."""
    data = Halves()
    exact = commutation_error(halves_model(), data)["left", "right"]
    assert exact.latent < 1e-6
    assert exact.pixels < 1e-5
    assert exact.moved == pytest.approx(2 * 4 * (LEFT + RIGHT), rel=1e-4)
    q, time = 1e-3, 2.0
    bent = commutation_error(halves_model(twist=q), data, [("left", "right")], time=time)
    moved = time * (LEFT**2 + RIGHT**2) ** 0.5
    apart = time**2 * LEFT * q
    assert bent["left", "right"].latent == pytest.approx(apart / moved, rel=0.05)
    assert bent["left", "right"].pixels == pytest.approx(2 * apart, rel=0.05)


def test_what_cannot_be_measured_is_refused():
    model, data = halves_model(), Halves()
    with pytest.raises(ValueError, match="pairs"):
        superposition_error(model, data, [("left", "up")])
    for frames in (1, 9):
        with pytest.raises(ValueError, match="frames"):
            switching_error(model, data, frames=frames)
    recorded = Recordings(torch.zeros(2, 9, 1, 2, 2, dtype=torch.uint8).numpy(), ["left", "right"])
    with pytest.raises(DataError, match="composed"):
        superposition_error(model, recorded)


class Grey(SequenceDataset):
    """Images that become brighter, whatever they undergo."""

    def __init__(self):
        super().__init__(("a", "b", "c", "d"), 3, (1, 2, 2))

    def __len__(self):
        return 2

    def render_frames(self, indices, elapsed, active, starts):
        return (elapsed.amax(0)[..., None, None, None] / 10).expand(-1, -1, 1, 2, 2)


def test_of_many_pairs_some_are_drawn_and_the_table_says_how_many():
    data = Grey()
    model = Toy(
        {name: lambda z, t: 0.1 * z.sum(-1) for name in data.names},
        (1, 2, 2),
        2,
        lambda x: x[:, 0, 0],
        lambda z: z[:, None, None, :].expand(-1, 1, 2, 2),
    )
    off = dict.fromkeys(("equivariance", "log_likelihood", "solver_independence"), False)
    options = EvaluationOptions(metrics={"composition": {"pairs": 2}, **off}, frames=2)
    evaluation = evaluate(model, data, options)
    result = evaluation.result(Composition)
    assert (len(result.superposition), len(result.switching), len(result.commutation)) == (2, 4, 2)
    assert "2 of 6 pairs" in evaluation.tables()["composition"].title
    assert evaluate(model, data, options).result(Composition) == result


def test_batches_of_long_sequences_are_smaller():
    data = Halves()
    assert limit_batch(data, 250) == 250
    assert limit_batch(data.with_horizon(2**22 - 1), 250) == 2
    assert limit_batch(data.with_horizon(2**30), 250) == 1
    assert limit_batch(data.with_horizon(2**30), 250, frames=7) == 250
