import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

import flowfactor
from flowfactor.data import SequenceBatch
from flowfactor.diagnostics import draw_film_strips, film_strip_data, plot_film_strips


@pytest.fixture
def sequences(digits):
    return digits.sample([0, 1, 2], torch.tensor([1, 0, 2]))


def decoded(model, frame, k, t):
    with torch.no_grad():
        return model.decode(model.flow(model.encode(frame[None]).mean, k, t))[0]


def test_flow_row_is_decoded_from_the_flow_of_frame_0(model, sequences):
    data = film_strip_data(model, sequences, before=2, beyond=1)
    assert data.names == ("rotation", "scaling", "hue")
    assert data.times.tolist() == list(range(-2, 10))
    for i, k in enumerate(data.names):
        for t in (-2, 3, 9):
            expected = decoded(model, sequences.frames[i, 0], k, float(t))
            assert torch.allclose(data.flow[i, t + 2], expected, atol=1e-5)
    start = model.decode(model.encode(sequences.frames[:, 0]).mean)
    assert torch.allclose(data.flow[:, 2], start, atol=1e-6)


def test_truth_row_is_the_data_and_unknown_elsewhere(model, sequences):
    data = film_strip_data(model, sequences, before=1, beyond=2)
    assert torch.equal(data.truth[:, 1:10], sequences.frames)
    assert data.truth[:, [0, 10, 11]].isnan().all()


def test_shown_images_are_truth_flow_and_difference(model, sequences):
    data = film_strip_data(model, sequences)
    figure = draw_film_strips(data, difference=True)
    assert len(figure.axes) == 3
    shown = [image.get_array() for image in figure.axes[1].images]
    assert len(shown) == 27
    for row, frames in enumerate(
        (data.truth[1], data.flow[1], (data.truth[1] - data.flow[1]).abs())
    ):
        for column in range(9):
            expected = frames[column].movedim(0, -1).numpy()
            assert np.array_equal(shown[9 * row + column], expected)


def test_images_lie_in_the_column_of_their_time(model, sequences):
    figure = plot_film_strips(model, sequences)
    axes = figure.axes[-1]
    for column, image in enumerate(axes.images[:9]):
        left, right, bottom, top = image.get_extent()
        assert left < column < right
        assert bottom < top
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(t) for t in range(9)]
    assert "frames" in axes.get_xlabel()


def test_rows_and_strips_are_named(model, sequences):
    figure = plot_film_strips(model, sequences)
    assert [text.get_text() for text in figure.texts] == ["rotation", "scaling", "hue"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["truth", "flow"]


def rims(figure):
    return [p for axes in figure.axes for p in axes.patches if isinstance(p, Rectangle)]


def test_frames_outside_of_the_training_have_a_rim_of_their_own(model, digits):
    longer = digits.with_last(10).sample([0], "hue")
    assert not rims(plot_film_strips(model, digits.sample([0], "hue")))
    figure = plot_film_strips(model, longer, before=1)
    # One decoded frame before 0; truth and flow at t = 9 and 10.
    found = [rim.get_edgecolor() for rim in rims(figure)]
    assert sorted(found.count(colour) for colour in set(found)) == [1, 4]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["before the first frame", "beyond training ($t$ > 8)"]


def test_grey_images_are_shown_as_grey():
    model = flowfactor.FlowVAE.build(("shift",), (1, 28, 28), latent_dim=4, width=4, horizon=2)
    films = SequenceBatch.full(torch.rand(1, 3, 1, 28, 28), torch.tensor([0]))
    figure = plot_film_strips(model, films)
    image = figure.axes[0].images[0]
    assert np.array_equal(image.get_array(), films.frames[0, 0, 0])
    assert image.get_clim() == (0, 1)


def test_sequences_without_all_frames_or_with_unknown_factor_are_refused(model, digits):
    some = digits.sample([0], "hue", torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match="all frames"):
        film_strip_data(model, some)
    with pytest.raises(ValueError, match="transformations of the model"):
        film_strip_data(model, digits.compose([0], ("hue", "rotation")))
    with pytest.raises(ValueError, match="at least 0"):
        film_strip_data(model, digits.sample([0], "hue"), before=-1)
