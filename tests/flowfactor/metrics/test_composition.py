"""Composed flows on a model that is exact, so that every error is known."""

import pytest
import torch
from torch.distributions import Independent, Normal

import flowfactor
from flowfactor.data import Recordings, SequenceDataset, Sprites, TransformedImages
from flowfactor.errors import DataError
from flowfactor.metrics import (
    commutation_error,
    reversal_error,
    superposition_error,
    switching_error,
)
from flowfactor.models import SequenceModel
from flowfactor.observation import Gaussian
from flowfactor.potentials import IndependentPotentials
from solvers import RK4, Direct

LEFT, RIGHT = 0.02, 0.03  # how much brighter each half becomes in a frame


class Halves(SequenceDataset):
    """Images of two flat halves; one transformation brightens each."""

    names, horizon, image_shape, device = ("left", "right"), 8, (1, 2, 2), torch.device("cpu")
    start_size = 1

    def __len__(self):
        return 5

    def with_last(self, horizon):
        raise DataError("no more")

    def to(self, device):
        return self

    def _frames(self, indices, elapsed, active, start):
        own = torch.stack([0.1 + indices / 100, 0.3 - indices / 100], -1)[:, None]
        if start is not None:
            own = own + 0.1 * start[:, :, None]
        moved = [e * a[:, None] * v for e, a, v in zip(elapsed, active, (LEFT, RIGHT), strict=True)]
        values = own + torch.stack(moved, -1)
        return values[:, :, None, None, :].expand(-1, -1, 1, 2, 2)


class Reader(SequenceModel):
    """The latent is the brightness of the halves; ``twist`` bends the second flow."""

    def __init__(self, left=LEFT, right=RIGHT, twist=0.0):
        super().__init__()
        self.potentials = IndependentPotentials(
            {
                "left": flowfactor.AutogradPotential(lambda z, t: left * z[:, 0], 2),
                "right": flowfactor.AutogradPotential(
                    lambda z, t: right * z[:, 1] + twist * z[:, 0] * z[:, 1], 2
                ),
            }
        )
        self.image_shape, self.latent_dim, self.horizon = (1, 2, 2), 2, 8
        self.method, self.gradient, self.observation = RK4(steps=1), Direct(), Gaussian()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def spec(self):
        raise NotImplementedError

    def loss(self, sequences):
        raise NotImplementedError

    def encode(self, x):
        return Independent(Normal(x[:, 0, 0], torch.ones_like(x[:, 0, 0])), 1)

    def decode_logits(self, z):
        return z.logit()[:, None, None, :].expand(-1, 1, 2, 2)


@pytest.mark.parametrize("random_starts", [False, True])
def test_an_exact_model_composes_exactly(random_starts):
    model, data = Reader(), Halves()
    together = superposition_error(model, data, random_starts=random_starts)
    assert list(together) == [("left", "right")]
    round_robin = switching_error(model, data, random_starts=random_starts)
    assert list(round_robin) == [("left", "right"), ("right", "left")]
    for error in (*together.values(), *round_robin.values(), *reversal_error(model, data).values()):
        assert error.flow.shape == (5, 7)
        assert error.flow.abs().max() < 1e-5
        assert error.reconstruction.abs().max() < 1e-6
    # Both halves move, two pixels each: 2 (LEFT + RIGHT) t.
    steps = torch.arange(1, 8, dtype=torch.float64)
    expected = (2 * (LEFT + RIGHT) * steps).expand(5, -1)
    assert torch.allclose(together["left", "right"].identity, expected, atol=1e-5)
    # Four frames of the first, three of the second.
    first, then = steps.clamp(max=4), (steps - 4).clamp(min=0)
    expected = (2 * LEFT * first + 2 * RIGHT * then).expand(5, -1)
    assert torch.allclose(round_robin["left", "right"].identity, expected, atol=1e-5)
    expected = (2 * RIGHT * first + 2 * LEFT * then).expand(5, -1)
    assert torch.allclose(round_robin["right", "left"].identity, expected, atol=1e-5)


def test_a_flow_that_is_too_slow_has_the_error_of_what_is_missing():
    model, data, steps = Reader(left=0.0), Halves(), torch.arange(1, 8, dtype=torch.float64)
    missing = (2 * LEFT * steps).expand(2, -1)
    found = superposition_error(model, data, indices=[1, 3], batch_size=1)["left", "right"]
    assert torch.allclose(found.flow, missing, atol=1e-5)
    found = reversal_error(model, data, [1, 3])["left"]
    assert torch.allclose(found.flow, missing, atol=1e-5)
    assert torch.allclose(found.identity, missing, atol=1e-5)


def test_reversal_meets_the_frames_in_falling_order():
    data = Halves()
    error = reversal_error(Reader(left=2 * LEFT), data, [0], frames=3)["left"]
    assert torch.allclose(
        error.flow[0], 2 * LEFT * torch.arange(1.0, 4, dtype=torch.float64), atol=1e-5
    )


def test_commutation_of_flows_in_closed_form():
    """grad u = (a, 0) and grad w = (q y, b + q x): the ends are a s r q apart to first order."""
    data = Halves()
    exact = commutation_error(Reader(), data)["left", "right"]
    assert exact.latent < 1e-6
    assert exact.pixels < 1e-5
    assert exact.moved == pytest.approx(2 * 4 * (LEFT + RIGHT), rel=1e-4)
    q, time = 1e-3, 2.0
    bent = commutation_error(Reader(twist=q), data, [("left", "right")], time=time)
    moved = time * (LEFT**2 + RIGHT**2) ** 0.5
    apart = time**2 * LEFT * q
    assert bent["left", "right"].latent == pytest.approx(apart / moved, rel=0.05)
    assert bent["left", "right"].pixels == pytest.approx(2 * apart, rel=0.05)


def test_what_cannot_be_measured_is_refused():
    model, data = Reader(), Halves()
    with pytest.raises(ValueError, match="not a pair of the transformations left, right"):
        superposition_error(model, data, [("left", "up")])
    with pytest.raises(ValueError, match=r"frames must be in 1\.\.8"):
        switching_error(model, data, frames=9)
    with pytest.raises(ValueError, match="at least 2 frames"):
        switching_error(model, data, frames=1)
    sprites = Sprites(4)
    with pytest.raises(ValueError, match="the data undergoes"):
        reversal_error(model, sprites)
    digits = TransformedImages(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    other = flowfactor.FlowVAE.build(digits.names, (3, 12, 12), latent_dim=2, width=4)
    with pytest.raises(ValueError, match=r"the shape \(3, 8, 8\)"):
        superposition_error(other, digits)


def test_recordings_cannot_be_composed():
    films = Recordings(torch.zeros(4, 9, 1, 2, 2, dtype=torch.uint8).numpy(), [0, 1, 0, 1])
    model = Reader()
    model.potentials = IndependentPotentials(
        dict(zip(films.names, (model.potentials["left"], model.potentials["right"]), strict=True))
    )
    with pytest.raises(DataError, match="recorded"):
        superposition_error(model, films)


@pytest.mark.parametrize(
    "data",
    [TransformedImages(torch.randint(256, (4, 1, 12, 12), dtype=torch.uint8)), Sprites(4, 16)],
    ids=["digits", "sprites"],
)
def test_switching_truth_is_one_transformation_and_then_both(data):
    clock = torch.arange(9).expand(4, -1)
    first, then = clock.clamp(max=5), (clock - 5).clamp(min=0)
    pair = ("rotation", "hue")
    frames = data.compose(range(4), pair, elapsed=[first, then]).frames
    assert torch.equal(frames[:, :6], data.sample(range(4), "rotation").frames[:, :6])
    both = data.compose(range(4), pair).frames
    assert not torch.equal(frames[:, 6:], both[:, 6:])
    later = data.compose(range(4), pair, elapsed=[clock.clamp(max=3), clock]).frames
    assert torch.equal(later[:, 3], both[:, 3])
    with pytest.raises(DataError, match="one tensor for each of the factors"):
        data.compose(range(4), pair, elapsed=[first])
    with pytest.raises(DataError, match=r"0\.\.8"):
        data.compose(range(4), pair, elapsed=[first, then + 1])
    with pytest.raises(DataError, match="must have the shape"):
        data.compose(range(4), pair, elapsed=[first, then[:, :4]])
