"""Pairs that differ plainly are told apart, those that do not are guessed."""

import pytest
import torch
from toy_models import Toy

from flowfactor.data import Sprites
from flowfactor.metrics import ClassifierOptions, classify_pairs, variation_predictability

FAST = ClassifierOptions(width=8, epochs=15, batch_size=8, learning_rate=5e-3)


def colours(data, alike=False):
    """Return a model whose flows brighten one channel each, or all the same."""

    def ramp(k):
        return lambda z, t: 0.05 * z[:, 0 if alike else k]

    return Toy(
        {name: ramp(k) for k, name in enumerate(data.names)},
        data.image_shape,
        3,
        lambda x: x.mean((2, 3)),
        lambda z: 4 * z[:, :, None, None].expand(-1, *data.image_shape),
    )


@pytest.fixture(scope="module")
def sprites():
    transformations = dict(list(Sprites(1).transformations.items())[:3])
    return Sprites(60, 8, transformations)


def test_flows_that_differ_are_told_apart(sprites):
    model, options = colours(sprites), {"options": FAST, "train_fraction": 0.2}
    state = torch.get_rng_state()
    score = variation_predictability(model, sprites, **options)
    assert score.accuracy > 0.95
    assert score.chance == pytest.approx(1 / 3)
    assert (score.train_pairs, score.test_pairs) == (36, 144)
    assert variation_predictability(model, sprites, **options, batch_size=13) == score
    assert torch.equal(state, torch.get_rng_state())


def test_flows_that_are_alike_are_guessed(sprites):
    """No image is on both sides, so that nothing can be learned by heart: exactly chance."""
    model = colours(sprites, alike=True)
    score = variation_predictability(model, sprites, random_starts=True, options=FAST)
    assert score.accuracy == pytest.approx(1 / 3, abs=1e-6)
    # Nothing has moved yet.
    score = variation_predictability(colours(sprites), sprites, range(40), time=0.0, options=FAST)
    assert score.accuracy == pytest.approx(1 / 3, abs=1e-6)
    assert score.train_pairs == 12


PAIRS, LABELS = torch.rand(20, 1, 8, 8), torch.arange(20) % 2


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"labels": 0 * LABELS}, "labels"),
        ({"train_fraction": 0.01}, "train_fraction"),
        pytest.param({"groups": LABELS[1:]}, "groups", marks=pytest.mark.wrong_types),
        ({"after": PAIRS * torch.nan}, "finite"),
        pytest.param({"after": PAIRS[1:]}, "after", marks=pytest.mark.wrong_types),
    ],
)
def test_what_cannot_be_classified_is_refused(changes, argument):
    arguments = {"before": PAIRS, "after": PAIRS, "labels": LABELS} | changes
    with pytest.raises(ValueError, match=argument):
        classify_pairs(**arguments)
