import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from flowfactor.diagnostics import (
    draw_latent_grid,
    explore_latent,
    latent_grid_data,
    plot_weights,
    weights_data,
)


@pytest.fixture
def images(digits):
    return digits.sample([0, 1, 2], "hue").frames[:, 0]


def rims(figure):
    return [p for axes in figure.axes for p in axes.patches if isinstance(p, Rectangle)]


@torch.no_grad()
def test_every_cell_is_decoded_from_the_flow_of_its_image(model, images):
    data = latent_grid_data(model, images, times=[-1.5, 0.0, 4.0])
    assert data.images.shape == (3, 3, 3, 3, 28, 28)
    assert data.names == model.names
    z0 = model.encode(images).mean
    for k, name in enumerate(data.names):
        for n, t in enumerate((-1.5, 0.0, 4.0)):
            expected = model.decode(model.flow(z0, name, t))
            assert torch.allclose(data.images[:, k, n], expected, atol=1e-5)


def test_default_times_are_those_of_the_training(model, images):
    assert latent_grid_data(model, images).times.tolist() == [0, 2, 4, 6, 8]


def test_rows_are_images_and_blocks_are_named(model, images):
    figure = explore_latent(model, images[:2], names=["hue", "scaling"], times=[0, 8, 12])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["hue", "scaling"]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["image", *["0", "8", "12"] * 2]
    assert len(axes.images) == 2 * (1 + 2 * 3)
    shown = axes.images[0].get_array()
    assert np.array_equal(shown, images[0].movedim(0, -1).numpy())
    # t = 12 of two images in two blocks.
    assert len(rims(figure)) == 4


def test_blocks_without_room_go_on_below(model, images):
    data = latent_grid_data(model, images[:1], times=list(range(9)))
    figure = draw_latent_grid(data)
    assert len(figure.axes) == 2
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == list(model.names)
    # Every image is as large in both, and within the figure.
    left, right = (axes.get_position().width for axes in figure.axes)
    assert left == pytest.approx(right)
    for axes in figure.axes:
        box = axes.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1


@torch.no_grad()
def test_weights_go_from_the_first_flow_to_the_second(model, images):
    data = weights_data(model, images[0], ("rotation", "hue"), times=[0, 3, 8])
    assert data.images.shape == (5, 3, 3, 28, 28)
    z0 = model.encode(images[:1]).mean
    for row, name in ((0, "rotation"), (-1, "hue")):
        expected = model.decode(model.flow(z0, name, 8.0))[0]
        assert torch.allclose(data.images[row, -1], expected, atol=1e-5)
    between = 0.75 * model.potentials["rotation"] + 0.25 * model.potentials["hue"]
    expected = model.decode(model.flow(z0, between, 3.0))[0]
    assert torch.allclose(data.images[1, 1], expected, atol=1e-5)


def test_weights_and_times_are_labelled(model, images):
    figure = plot_weights(model, images[0], ("hue", "scaling"), weights=[0, 0.5, 1], times=[-1, 0])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "0  (hue)",
        "0.5",
        "1  (scaling)",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["−1", "0"]
    assert len(rims(figure)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["colour"]}, "no transformation 'colour'"),
        ({"times": []}, "one or more"),
        ({"times": [0, 0]}, "increase"),
        ({"times": [0, float("nan")]}, "finite"),
    ],
)
def test_a_grid_of_what_is_not_there_is_refused(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        explore_latent(model, images, **options)


@pytest.mark.parametrize(
    ("pair", "weights", "message"),
    [
        (("hue", "hue"), [0, 1], "two different"),
        (("hue", "colour"), [0, 1], "no transformation 'colour'"),
        (("hue", "scaling"), [], r"\[0, 1\]"),
        (("hue", "scaling"), [0, 1.5], r"\[0, 1\]"),
    ],
)
def test_weights_of_what_is_not_there_are_refused(model, images, pair, weights, message):
    with pytest.raises(ValueError, match=message):
        weights_data(model, images[0], pair, weights=weights)


def test_images_of_another_shape_are_refused(model):
    with pytest.raises(ValueError, match="this model takes"):
        explore_latent(model, torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="this model takes"):
        plot_weights(model, torch.rand(1, 28, 28), ("hue", "scaling"))
