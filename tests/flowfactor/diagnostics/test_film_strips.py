import dataclasses

import numpy as np
import pytest
import torch
from drawings import labels_of, legend_of, rims_of
from small_models import NAMES, films, small

from flowfactor.data import SequenceBatch
from flowfactor.diagnostics import (
    comparison_data,
    composition_data,
    draw_film_strips,
    film_strip_data,
    plot_comparison,
    plot_film_strips,
)
from flowfactor.models import fit_traversals

PAIR = ("rotation", "hue")


@pytest.fixture(scope="module")
def sequences(data):
    return data.sample([0, 1, 2], torch.tensor([1, 0, 2]))


@pytest.fixture(scope="module")
def simultaneous(data):
    return data.compose([0, 1], PAIR)


@pytest.fixture(scope="module")
def sequential(data):
    clock = torch.arange(5).expand(2, -1)
    return data.compose([0, 1], PAIR, elapsed=[clock.clamp(max=2), (clock - 2).clamp(min=0)])


@pytest.fixture(scope="module")
def models():
    """A flow model, one with the transformations in another order, and a traversal."""
    vae = small("vae")
    fit_traversals(vae, [films()], sequences=2, ranges=(-1.0, 1.0))
    turned = small("flow_vae", (*NAMES[::-1], "spare 1"))
    return {"flow": small("flow_vae"), "turned round": turned, "VAE": vae.eval()}


def decode(model, frames, *flows):
    with torch.no_grad():
        z = model.represent(frames)
        for k, t in flows:
            z = model.flow(z, k, float(t))
        return model.decode(z)


# ---- one model


def test_strips_hold_the_truth_and_the_flow_of_frame_0(model, sequences):
    strips = film_strip_data(model, sequences, before=2, beyond=1)
    assert strips.labels == ("rotation", "scaling", "hue")
    assert strips.times.tolist() == list(range(-2, 6))
    assert torch.equal(strips.truth[:, 2:7], sequences.frames)
    assert strips.truth[:, [0, 1, 7]].isnan().all()
    for i, k in enumerate(strips.labels):
        for t in (-2, 3, 5):
            expected = decode(model, sequences.frames[i, :1], (k, t))[0]
            assert torch.allclose(strips.flows["flow"][i, t + 2], expected, atol=1e-5)


def test_a_row_without_motion(model, sequences):
    strips = film_strip_data(model, sequences, before=1, identity=True)
    assert list(strips.flows) == ["flow", "identity"]
    still = strips.flows["identity"]
    assert still.shape == strips.flows["flow"].shape
    assert torch.equal(still, still[:, :1].expand_as(still))
    assert torch.allclose(still[:, 1], strips.flows["flow"][:, 1], atol=1e-6)  # frame 0


def test_images_lie_in_the_row_and_column_of_their_name_and_time(model, sequences):
    strips = film_strip_data(model, sequences)
    figure = draw_film_strips(strips, difference=True)
    assert labels_of(figure.texts) == ["rotation", "scaling", "hue"]
    truth, flow = strips.truth[1], strips.flows["flow"][1]
    axes = figure.axes[1]
    assert labels_of(axes.get_yticklabels()) == ["truth", "flow", "|difference|"]
    shown = iter(axes.images)
    for row, frames in enumerate((truth, flow, (truth - flow).abs())):
        for column, frame in enumerate(frames):
            image = next(shown)
            left, right, bottom, top = image.get_extent()
            assert column < left < right < column + 1
            assert -row - 1 < bottom < top < -row
            assert np.array_equal(image.get_array(), frame.movedim(0, -1))
    last = figure.axes[-1]
    assert labels_of(last.get_xticklabels()) == [str(t) for t in range(5)]
    assert "frames" in last.get_xlabel()


def test_frames_outside_of_the_training_have_a_rim_of_their_own(model, data):
    assert not rims_of(plot_film_strips(model, data.sample([0], "hue")))
    figure = plot_film_strips(model, data.with_horizon(6).sample([0], "hue"), before=1)
    # One decoded frame before 0; truth and flow at t = 5 and 6.
    colours = [rim.get_edgecolor() for rim in rims_of(figure)]
    assert sorted(colours.count(colour) for colour in set(colours)) == [1, 4]
    assert len(legend_of(figure)) == 2


def test_grey_images_are_shown_as_grey():
    batch = SequenceBatch.full(torch.rand(1, 4, 1, 8, 8), torch.tensor([0]))
    image = plot_film_strips(small("flow_vae"), batch).axes[0].images[0]
    assert np.array_equal(image.get_array(), batch.frames[0, 0, 0])
    assert image.get_clim() == (0, 1)


def test_sequences_that_do_not_fit_are_refused(model, data, simultaneous):
    for numbers in ([3, 4], [0, 3, 2]):
        with pytest.raises(ValueError, match="t = 0"):
            film_strip_data(model, data.sample([0], "hue", torch.tensor([numbers])))
    with pytest.raises(ValueError, match="labels"):
        film_strip_data(model, simultaneous)
    with pytest.raises(ValueError, match="before"):
        film_strip_data(model, data.sample([0], "hue"), before=-1)


# ---- several models


def test_each_model_decodes_from_frame_0(models):
    batch = films(4)
    strips = comparison_data(models, batch, NAMES)
    assert strips.labels == (*NAMES, *NAMES)
    assert torch.equal(strips.truth, batch.frames)
    for row, model in models.items():
        for i, name in enumerate(strips.labels):
            expected = decode(model, batch.frames[i, :1], (name, 2))[0]
            assert torch.allclose(strips.flows[row][i, 2], expected, atol=1e-5), row


def test_samples_of_a_transformation_are_side_by_side(models):
    strips = comparison_data(models, films(4), NAMES)
    figure = draw_film_strips(strips, side_by_side=True)
    assert labels_of(figure.texts) == list(NAMES)
    left, right = (axes.get_position() for axes in figure.axes[:2])
    assert left.y0 == right.y0
    assert left.x1 < right.x0
    assert labels_of(figure.axes[0].get_yticklabels()) == ["truth", *models]
    # The first and the third sequence are of the first transformation.
    for axes, i in ((figure.axes[0], 0), (figure.axes[1], 2)):
        frames = torch.cat([strips.truth[i], *(flow[i] for flow in strips.flows.values())])
        for image, frame in zip(axes.images, frames, strict=True):
            assert np.array_equal(image.get_array(), frame[0])
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False, False, True, True]


def test_samples_that_cannot_share_lines_are_below_one_another(models):
    figure = plot_comparison(models, films(3), NAMES)
    assert labels_of(figure.texts) == ["left", "left", "right"]
    assert len({axes.get_position().y0 for axes in figure.axes}) == 3


def test_long_names_take_two_lines(models):
    long = "a flow model without one of its terms and with a name that never ends"
    figure = plot_comparison({long: models["flow"]}, films(2), NAMES)
    label = labels_of(figure.axes[0].get_yticklabels())[1]
    assert label.count("\n") == 1
    assert label.replace("\n", " ") == long


def test_models_that_cannot_be_compared_are_refused(models):
    with pytest.raises(ValueError, match="models"):
        comparison_data({}, films(), NAMES)
    with pytest.raises(ValueError, match="'up'"):
        comparison_data(models, films(), ("up", "right"))
    with pytest.raises(ValueError, match="labels"):
        comparison_data(models, films(), NAMES[:1])
    with pytest.raises(ValueError, match="horizon"):
        comparison_data(models | {"longer": small("flow_vae", horizon=4)}, films(), NAMES)


# ---- two flows


def test_simultaneous_flows_follow_the_sum_of_the_potentials(model, simultaneous):
    strips = composition_data(model, simultaneous, PAIR)
    assert torch.equal(strips.truth, simultaneous.frames)
    potential = model.potentials["rotation"] + model.potentials["hue"]
    for t in (1, 4):
        expected = decode(model, simultaneous.frames[:, 0], (potential, t))
        assert torch.allclose(strips.flows["flow"][:, t], expected, atol=1e-5)
    assert strips.labels == ("rotation + hue",) * 2


def test_the_second_flow_starts_where_the_first_ends(model, sequential):
    strips = composition_data(model, sequential, PAIR, turn=2)
    starts, flow = sequential.frames[:, 0], strips.flows["flow"]
    assert torch.allclose(flow[:, 2], decode(model, starts, ("rotation", 2)), atol=1e-5)
    expected = decode(model, starts, ("rotation", 2), ("hue", 2))
    assert torch.allclose(flow[:, 4], expected, atol=1e-5)
    assert strips.labels == ("rotation, then hue",) * 2


def test_strips_of_one_sample_stay_together(model, simultaneous, sequential):
    parts = [
        composition_data(model, simultaneous, PAIR),
        composition_data(model, sequential, PAIR, turn=2),
    ]
    figure = draw_film_strips(parts)
    labels = [label.replace("\n", " ") for label in labels_of(figure.texts)]
    assert labels == ["rotation + hue", "rotation, then hue"] * 2
    shown = figure.axes[1].images[3].get_array()
    assert np.array_equal(shown, sequential.frames[0, 3].movedim(0, -1))
    # A line behind frame 2, where the second flow takes over.
    assert [list(line.get_xdata()) for line in figure.axes[1].lines] == [[3, 3]]
    assert not figure.axes[0].lines
    shorter = dataclasses.replace(parts[0], times=parts[0].times + 1)
    with pytest.raises(ValueError, match="times"):
        draw_film_strips([parts[0], shorter])
    with pytest.raises(ValueError, match="no strips"):
        draw_film_strips([])


@pytest.mark.parametrize(
    ("pair", "turn", "name"),
    [
        (("hue", "hue"), None, "pair"),
        (("hue", "colour"), None, "colour"),
        (PAIR, 0, "turn"),
        (PAIR, 4, "turn"),
    ],
)
def test_bad_compositions_are_refused(model, simultaneous, pair, turn, name):
    with pytest.raises(ValueError, match=name):
        composition_data(model, simultaneous, pair, turn=turn)


def test_a_single_transformation_is_no_composition(model, data):
    with pytest.raises(ValueError, match="labels"):
        composition_data(model, data.sample([0], "hue"), PAIR)
