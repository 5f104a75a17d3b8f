import numpy as np
import pytest
import torch
from drawings import labels_of, rims_of

from flowfactor.diagnostics import (
    draw_latent_grid,
    explore_latent,
    latent_grid_data,
    plot_weights,
    weights_data,
)


@torch.no_grad()
def test_every_cell_is_decoded_from_the_flow_of_its_image(model, images, z0):
    grid = latent_grid_data(model, images, times=[-1.5, 0.0, 4.0])
    assert grid.images.shape == (2, 3, 3, 3, 8, 8)
    assert grid.names == model.names
    for k, name in enumerate(grid.names):
        for n, t in enumerate(grid.times.tolist()):
            expected = model.decode(model.flow(z0, name, t))
            assert torch.allclose(grid.images[:, k, n], expected, atol=1e-5)


def test_rows_are_images_and_blocks_are_named(model, images):
    figure = explore_latent(model, images, names=["hue", "scaling"], times=[0, 4, 6])
    (axes,) = figure.axes
    assert labels_of(axes.texts) == ["hue", "scaling"]
    assert labels_of(axes.get_xticklabels()) == ["image", *["0", "4", "6"] * 2]
    assert len(axes.images) == 2 * (1 + 2 * 3)
    assert np.array_equal(axes.images[0].get_array(), images[0].movedim(0, -1))
    # t = 6 of two images in two blocks.
    assert len(rims_of(figure)) == 4


def test_blocks_that_do_not_fit_continue_below(model, images):
    grid = latent_grid_data(model, images[:1])
    assert grid.times.tolist() == [0, 1, 2, 3, 4]
    figure = draw_latent_grid(grid, width=4.5)
    assert len(figure.axes) == 2
    assert [text for axes in figure.axes for text in labels_of(axes.texts)] == list(model.names)
    boxes = [axes.get_position() for axes in figure.axes]
    assert boxes[0].width == pytest.approx(boxes[1].width)
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)


@torch.no_grad()
def test_weights_go_from_the_first_flow_to_the_second(model, images, z0):
    strips = weights_data(model, images[0], ("rotation", "hue"), times=[0, 3, 4])
    first, quarter, *_, second = strips.flows.values()
    between = 0.75 * model.potentials["rotation"] + 0.25 * model.potentials["hue"]
    for frames, potential in ((first, "rotation"), (quarter, between), (second, "hue")):
        expected = model.decode(model.flow(z0[:1], potential, 3.0))
        assert torch.allclose(frames[:, 1], expected, atol=1e-5)


def test_weights_and_times_are_labelled(model, images):
    figure = plot_weights(model, images[0], ("hue", "scaling"), weights=[0, 0.5, 1], times=[-1, 0])
    (axes,) = figure.axes
    assert labels_of(axes.get_yticklabels()) == ["0  (hue)", "0.5", "1  (scaling)"]
    assert labels_of(axes.get_xticklabels()) == ["−1", "0"]
    assert len(rims_of(figure)) == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"names": ["colour"]}, "names"),
        ({"times": []}, "times"),
        ({"times": [0, 0]}, "times"),
        ({"times": [0, float("nan")]}, "times"),
    ],
)
def test_bad_options_are_refused(model, images, options, name):
    with pytest.raises(ValueError, match=name):
        explore_latent(model, images, **options)


@pytest.mark.parametrize(
    ("pair", "weights", "name"),
    [
        (("hue", "hue"), [0, 1], "pair"),
        (("hue", "colour"), [0, 1], "colour"),
        (("hue", "scaling"), [], "weights"),
        (("hue", "scaling"), [0, 1.5], "weights"),
    ],
)
def test_bad_weights_are_refused(model, images, pair, weights, name):
    with pytest.raises(ValueError, match=name):
        weights_data(model, images[0], pair, weights=weights)


def test_images_of_another_shape_are_refused(model):
    with pytest.raises(ValueError, match="images"):
        explore_latent(model, torch.rand(1, 3, 12, 12))
