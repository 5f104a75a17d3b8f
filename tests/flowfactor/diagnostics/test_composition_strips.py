import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from flowfactor.diagnostics import composition_data, draw_composition, plot_composition

PAIR = ("rotation", "hue")


@pytest.fixture
def both(digits):
    return digits.compose([0, 1], PAIR)


@pytest.fixture
def switched(digits):
    clock = torch.arange(9).expand(2, -1)
    elapsed = [clock.clamp(max=3), (clock - 3).clamp(min=0)]
    return digits.compose([0, 1], PAIR, elapsed=elapsed)


@torch.no_grad()
def test_both_at_once_is_decoded_from_the_flow_of_the_sum(model, both):
    data = composition_data(model, both, PAIR)
    assert torch.equal(data.truth, both.frames)
    assert data.times.tolist() == list(range(9))
    potential = model.potentials["rotation"] + model.potentials["hue"]
    z0 = model.encode(both.frames[:, 0]).mean
    for t in (1, 5, 8):
        expected = model.decode(model.flow(z0, potential, float(t)))
        assert torch.allclose(data.flow[:, t], expected, atol=1e-5)
    assert data.label == "rotation + hue"


@torch.no_grad()
def test_the_second_flow_goes_on_from_where_the_first_ends(model, switched):
    data = composition_data(model, switched, PAIR, turn=3)
    z0 = model.encode(switched.frames[:, 0]).mean
    first = model.flow(z0, "rotation", 3.0)
    assert torch.allclose(data.flow[:, 3], model.decode(first), atol=1e-5)
    horizon = model.decode(model.flow(first, "hue", 5.0))
    assert torch.allclose(data.flow[:, 8], horizon, atol=1e-5)
    assert data.label == "rotation, then hue"


def test_every_sequence_has_a_strip_of_truth_and_flow(model, both, switched):
    figure = plot_composition(model, both, PAIR, switched=switched, turn=3)
    assert [text.get_text().replace("\n", " ") for text in figure.texts] == [
        "rotation + hue",
        "rotation, then hue",
    ] * 2
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["truth", "flow"]
        assert len(axes.images) == 18
    # The second strip: truth of the switched sequence, with a line behind frame 3.
    shown = figure.axes[1].images[6].get_array()
    assert np.array_equal(shown, switched.frames[0, 6].movedim(0, -1).numpy())
    assert [list(line.get_xdata()) for line in figure.axes[1].lines] == [[3.5, 3.5]]
    assert not figure.axes[0].lines
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "the second flow takes over"
    ]


def test_only_frames_beyond_the_training_have_a_rim(model, digits, both):
    def rims(figure):
        return [p for axes in figure.axes for p in axes.patches if isinstance(p, Rectangle)]

    assert not rims(plot_composition(model, both, PAIR))
    longer = digits.with_last(10).compose([0], PAIR)
    # Truth and flow at t = 9 and 10.
    assert len(rims(plot_composition(model, longer, PAIR))) == 4


@pytest.mark.parametrize(
    ("pair", "turn", "message"),
    [
        (("hue", "hue"), None, "two different"),
        (("hue", "colour"), None, "no transformation 'colour'"),
        (PAIR, 0, r"1\.\.7"),
        (PAIR, 8, r"1\.\.7"),
    ],
)
def test_what_is_no_composition_is_refused(model, both, pair, turn, message):
    with pytest.raises(ValueError, match=message):
        composition_data(model, both, pair, turn=turn)


def test_sequences_that_do_not_fit_are_refused(model, digits, both):
    with pytest.raises(ValueError, match="single transformation"):
        composition_data(model, digits.sample([0], "hue"), PAIR)
    with pytest.raises(ValueError, match="all frames"):
        composition_data(model, digits.compose([0], PAIR, torch.tensor([[0, 3]])), PAIR)
    with pytest.raises(ValueError, match="belong together"):
        plot_composition(model, both, PAIR, switched=both)
    with pytest.raises(ValueError, match="no strips"):
        draw_composition([])
    data = composition_data(model, both, PAIR)
    shorter = composition_data(model, digits.with_last(5).compose([0], PAIR), PAIR)
    with pytest.raises(ValueError, match="same times"):
        draw_composition([data, shorter])
