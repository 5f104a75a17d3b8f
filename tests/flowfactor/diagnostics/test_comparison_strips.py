import numpy as np
import pytest
import torch
from small_models import NAMES, films, small

from flowfactor.diagnostics import comparison_strip_data, draw_comparison, plot_comparison
from flowfactor.models import fit_traversals


@pytest.fixture
def models():
    """A flow model, one that knows the transformations in another order, and one with a rule."""
    vae = small("vae")
    fit_traversals(vae, [films()], images=2, ranges=(-1.0, 1.0))
    return {
        "flow": small("flow_vae"),
        "turned round": small("flow_vae", (*NAMES[::-1], "spare 1")),
        "VAE": vae.eval(),
    }


def test_rows_are_decoded_from_frame_0_by_each_model(models):
    sequences = films(4)
    data = comparison_strip_data(models, sequences, NAMES)
    assert data.names == (*NAMES, *NAMES)
    assert list(data.flows) == list(models)
    assert torch.equal(data.truth, sequences.frames)
    for label, model in models.items():
        for i, name in enumerate(data.names):
            with torch.no_grad():
                z0 = model.encode(sequences.frames[i, :1]).mean
                expected = model.decode(model.flow(z0, name, 2.0))[0]
            assert torch.allclose(data.flows[label][i, 2], expected, atol=1e-5), label


def test_samples_of_a_transformation_are_side_by_side(models):
    data = comparison_strip_data(models, films(4), NAMES)
    figure = draw_comparison(data)
    assert [text.get_text() for text in figure.texts] == list(NAMES)
    assert len(figure.axes) == 4
    left, right = figure.axes[:2]
    assert left.get_position().y0 == right.get_position().y0
    assert left.get_position().x1 < right.get_position().x0
    assert [label.get_text() for label in left.get_yticklabels()] == ["truth", *models]
    # The first and the third sequence are of the first transformation.
    for axes, i in ((left, 0), (right, 2)):
        shown = [image.get_array() for image in axes.images]
        rows = [data.truth[i], *(flow[i] for flow in data.flows.values())]
        assert len(shown) == 4 * len(rows)
        for image, frame in zip(shown, torch.cat(rows), strict=True):
            assert np.array_equal(image, frame[0])
    assert all(axes.get_xlabel() for axes in figure.axes[2:])
    assert not any(axes.get_xlabel() for axes in figure.axes[:2])


def test_samples_that_cannot_share_lines_are_below_one_another(models):
    sequences = films(3)  # two of the one transformation, one of the other
    figure = plot_comparison(models, sequences, NAMES)
    assert [text.get_text() for text in figure.texts] == ["left", "left", "right"]
    assert len({axes.get_position().y0 for axes in figure.axes}) == 3


def test_long_labels_take_two_lines(models):
    long = "a flow model without one of its terms and with a name that never ends"
    figure = plot_comparison({long: models["flow"]}, films(2), NAMES)
    label = figure.axes[0].get_yticklabels()[1].get_text()
    assert label.count("\n") == 1
    assert label.replace("\n", " ") == long


def test_what_cannot_be_compared_is_refused(models):
    with pytest.raises(ValueError, match="no model"):
        comparison_strip_data({}, films(), NAMES)
    with pytest.raises(ValueError, match="flow has no transformation 'up'"):
        comparison_strip_data(models, films(), ("up", "right"))
    with pytest.raises(ValueError, match=r"factors of the sequences must be in 0\.\.0"):
        comparison_strip_data(models, films(), NAMES[:1])
    with pytest.raises(ValueError, match="longer was trained up to frame 4, flow up to frame 3"):
        comparison_strip_data(models | {"longer": small("flow_vae", horizon=4)}, films(), NAMES)
