"""Pairs that differ plainly are told apart, those that do not are guessed."""

import pytest
import torch
from checking import unchecked

import flowfactor
from flowfactor.data import Sprites
from flowfactor.metrics import ClassifierOptions, classify_pairs, variation_predictability
from flowfactor.models import SequenceModel
from flowfactor.observation import Gaussian
from flowfactor.potentials import IndependentPotentials
from solvers import RK4, Direct

FAST = ClassifierOptions(width=8, epochs=15, batch_size=8, learning_rate=5e-3)


class Colours(SequenceModel):
    """The latent is the mean colour; each flow brightens one channel, or all do the same."""

    def __init__(self, names, image_shape, alike=False):
        super().__init__()

        def ramp(k):
            return flowfactor.AutogradPotential(lambda z, t: 0.05 * z[:, 0 if alike else k], 3)

        self.potentials = IndependentPotentials({name: ramp(k) for k, name in enumerate(names)})
        self.image_shape, self.latent_dim, self.horizon = image_shape, 3, 8
        self.method, self.gradient, self.observation = RK4(steps=1), Direct(), Gaussian()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def spec(self):
        raise NotImplementedError

    def loss(self, sequences):
        raise NotImplementedError

    def encode(self, x):
        mean = x.mean((2, 3))
        return torch.distributions.Normal(mean, torch.ones_like(mean))

    def decode_logits(self, z):
        return 4 * z[:, :, None, None].expand(-1, *self.image_shape)


@pytest.fixture(scope="module")
def sprites():
    return Sprites(120, 8, Sprites(1).transformations[:3])


def test_flows_that_differ_are_told_apart(sprites):
    model = Colours(sprites.names, sprites.image_shape)
    score = variation_predictability(model, sprites, options=FAST)
    assert score.accuracy > 0.95
    assert score.chance == pytest.approx(1 / 3)
    assert (score.train_pairs, score.test_pairs) == (36, 324)
    state = torch.get_rng_state()
    again = variation_predictability(model, sprites, options=FAST, batch_size=13)
    assert again == score
    assert torch.equal(state, torch.get_rng_state())


def test_flows_that_are_alike_are_guessed(sprites):
    """No image is on both sides, so that nothing can be learned by heart: exactly chance."""
    model = Colours(sprites.names, sprites.image_shape, alike=True)
    score = variation_predictability(model, sprites, random_starts=True, options=FAST)
    assert score.accuracy == pytest.approx(1 / 3, abs=1e-6)
    # Nothing has moved yet.
    model = Colours(sprites.names, sprites.image_shape)
    score = variation_predictability(model, sprites, range(40), time=0.0, options=FAST)
    assert score.accuracy == pytest.approx(1 / 3, abs=1e-6)
    assert score.train_pairs == 12


def test_true_motions_are_told_apart():
    sprites = Sprites(200, 16)
    films = [sprites.sample(range(200), k, torch.tensor([[0, 8]] * 200)).frames for k in range(5)]
    before, after = torch.cat(films).unbind(1)
    labels = torch.arange(5).repeat_interleave(200)
    score = classify_pairs(before, after, labels, torch.arange(200).repeat(5), options=FAST)
    assert score.accuracy > 0.85
    assert (score.train_pairs, score.test_pairs) == (100, 900)


def test_what_cannot_be_classified_is_refused(sprites):
    x, k = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    with pytest.raises(ValueError, match="at least two factors"):
        classify_pairs(x, x, torch.zeros(20, dtype=torch.long))
    with pytest.raises(ValueError, match="train_fraction"):
        classify_pairs(x, x, k, train_fraction=0.01)
    with pytest.raises(ValueError, match="shapes are"):
        unchecked(classify_pairs)(x, x, k[1:])
    with pytest.raises(ValueError, match="groups"):
        unchecked(classify_pairs)(x, x, k, k[1:])
    with pytest.raises(ValueError, match="finite"):
        classify_pairs(x, x * torch.nan, k)
    with pytest.raises(ValueError, match="epochs must be positive"):
        ClassifierOptions(epochs=0)
    with pytest.raises(ValueError, match="the data undergoes"):
        variation_predictability(Colours(("a", "b"), (3, 8, 8)), sprites)
