import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.quiver import Quiver
from small_models import small

from flowfactor.diagnostics import Plane, draw_landscape, landscape_data
from flowfactor.diagnostics.label_layout import place_boxes

NO_POTENTIAL = {"hamilton_jacobi": 0.0}


@pytest.fixture(scope="module")
def landscape(model, images):
    return landscape_data(model, images, "rotation", times=[0, 2.5, 4], resolution=9, substeps=1)


@pytest.fixture(scope="module")
def figure(landscape):
    return draw_landscape(landscape)


def grid_of(landscape):
    x, y = np.meshgrid(landscape.x, landscape.y)
    return landscape.plane.lift(torch.from_numpy(np.stack([x, y], -1)).float())


@torch.no_grad()
def test_values_and_arrows_are_those_of_the_potential_at_the_grid_points(model, landscape):
    grid = grid_of(landscape).flatten(0, 1)
    potential = model.potentials["rotation"]
    for i, t in enumerate(landscape.times.tolist()):
        assert np.allclose(landscape.value[i].reshape(-1), potential(grid, t), atol=1e-4)
        gradient = potential.gradient(grid, t) @ landscape.plane.axes.T
        assert np.allclose(landscape.gradient[i].reshape(-1, 2), gradient, atol=1e-5)


@torch.no_grad()
def test_a_field_that_is_no_potential_has_arrows_of_two_parts(data, images):
    model = small("flow_vae", data.names, (3, 8, 8), 4, parts="both", objective=NO_POTENTIAL)
    landscape = landscape_data(model, images, "rotation", times=[1.0], resolution=9, substeps=1)
    grid, field = grid_of(landscape).flatten(0, 1), model.potentials["rotation"]
    assert np.allclose(landscape.value[0].reshape(-1), field.gradient_part(grid, 1.0), atol=1e-4)
    both = torch.from_numpy(landscape.gradient[0] + landscape.solenoidal[0]).flatten(0, 1)
    velocity = field.velocity(grid, 1.0) @ landscape.plane.axes.T
    assert np.allclose(both, velocity, atol=1e-5)
    assert np.abs(landscape.solenoidal).max() > 0
    figure = draw_landscape(landscape)
    arrows = [each for each in figure.axes[0].get_children() if isinstance(each, Quiver)]
    assert len(arrows) == 2


def test_arrows_are_the_slope_of_the_colours(model, images):
    fine = landscape_data(model, images, "rotation", times=[3.0], resolution=101, substeps=1)
    by_y, by_x = np.gradient(fine.value[0], fine.y, fine.x)
    slope = np.stack([by_x, by_y], -1)[1:-1, 1:-1]
    error = np.abs(slope - fine.gradient[0, 1:-1, 1:-1]).max()
    assert error < 0.02 * np.abs(slope).max()


@torch.no_grad()
def test_trajectories_and_images_are_those_of_the_flow(model, z0, landscape):
    plane = landscape.plane
    path = model.flow(z0, "rotation", torch.arange(5.0))
    assert landscape.path_times.tolist() == [0, 1, 2, 3, 4]
    assert np.allclose(landscape.path, plane.project(path), atol=1e-4)
    assert torch.allclose(plane.origin, path.flatten(0, 1).mean(0), atol=1e-5)
    assert landscape.explained == pytest.approx(plane.explained(path), abs=1e-5)
    z = model.flow(z0, "rotation", [0.0, 2.5, 4.0])
    assert landscape.image_times.tolist() == [0.0, 2.5, 4.0]
    assert np.allclose(landscape.image_points, plane.project(z), atol=1e-4)
    for images, latents in zip(landscape.images, z, strict=True):
        assert torch.allclose(images, model.decode(latents), atol=1e-4)


def test_the_window_holds_every_trajectory_and_is_square(landscape):
    for axis, path in zip((landscape.x, landscape.y), landscape.path.T, strict=True):
        assert axis[0] < path.min() <= path.max() < axis[-1]
    assert np.ptp(landscape.x) == pytest.approx(np.ptp(landscape.y), rel=1e-5)


@torch.no_grad()
def test_times_outside_of_the_training_extend_the_trajectory(model, images, z0):
    wide = landscape_data(model, images, "hue", times=[-1.5, 5.0], resolution=5, substeps=1)
    assert wide.path_times[[0, -1]].tolist() == [-2.0, 5.0]
    start = wide.plane.project(model.flow(z0, "hue", -2.0))
    assert np.allclose(wide.path[0], start, atol=1e-3)


def test_a_plane_of_ones_own_is_used(model, images):
    first, second = torch.eye(4)[[1, 3]]
    plane = Plane.spanned_by(first, second, torch.full((4,), 0.5))
    own = landscape_data(model, images, 0, plane=plane, resolution=5, substeps=1)
    assert torch.equal(own.plane.axes, torch.eye(4)[[1, 3]])
    assert torch.all(grid_of(own)[..., [0, 2]] == 0.5)


def test_training_mode_is_left_as_it_was(model, images):
    model.train()
    landscape_data(model, images, 0, resolution=5, substeps=1)
    assert model.training
    model.eval()


def test_panels_share_one_colour_scale(landscape, figure):
    *panels, bar = figure.axes
    titles = [axes.get_title() for axes in panels]
    assert titles == [f"$u$ of rotation at $t$ = {t}" for t in ("0", "2.5", "4")]
    scales = {axes.collections[0].get_clim() for axes in panels}
    assert scales == {(landscape.value.min(), landscape.value.max())}
    first, second = (f"{100 * share:.0f} %" for share in landscape.explained)
    assert first in panels[0].get_xlabel()
    assert second in panels[0].get_ylabel()
    assert "u" in bar.get_ylabel()


def thumbnails(figure):
    children = [child for axes in figure.axes for child in axes.get_children()]
    boxes = [child for child in children if isinstance(child, AnnotationBbox)]
    return [image.get_data() for box in boxes for image in box.offsetbox.findobj(OffsetImage)]


def test_one_panel_shows_all_decoded_images_and_several_show_their_own(landscape, figure):
    part = {name: getattr(landscape, name)[:1] for name in ("times", "value", "gradient")}
    first = dataclasses.replace(landscape, **part)
    expected = [image.movedim(0, -1).numpy() for image in landscape.images.flatten(0, 1)]
    for shown in (thumbnails(draw_landscape(first)), thumbnails(figure)):
        assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))


def test_descent_reverses_the_arrows(landscape, figure):
    def arrows(figure):
        (field,) = [c for c in figure.axes[1].collections if isinstance(c, Quiver)]
        return np.stack([field.U, field.V])

    up, down = arrows(figure), arrows(draw_landscape(landscape, arrows="descent"))
    assert np.abs(up).max() > 0
    assert np.array_equal(up, -down)


def test_a_constant_potential_without_arrows_can_be_drawn(landscape):
    panel = {name: getattr(landscape, name)[:1] for name in ("times", "gradient")}
    flat = dataclasses.replace(landscape, **panel, value=np.ones_like(landscape.value[:1]))
    axes = draw_landscape(flat, arrows="none").axes[0]
    assert not any(isinstance(c, Quiver) for c in axes.collections)


@pytest.mark.parametrize(
    "options",
    [
        {"times": []},
        {"times": [float("nan")]},
        {"resolution": 1},
        {"margin": -0.1},
        {"substeps": 0},
        {"plane": Plane(torch.zeros(3), torch.eye(3)[:2])},
    ],
)
def test_bad_options_are_refused(model, images, options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        landscape_data(model, images, "hue", **options)


def test_bad_images_and_names_are_refused(model, images):
    with pytest.raises(ValueError, match="images"):
        landscape_data(model, images[..., :4], "hue")
    with pytest.raises(KeyError, match="shear"):
        landscape_data(model, images, "shear")


def test_boxes_overlap_neither_each_other_nor_points_and_stay_inside():
    generator = np.random.default_rng(0)
    for _ in range(4):
        trail = np.cumsum(generator.normal(size=(30, 2)) * 12, 0) + 250
        trail = np.clip(trail, 60, 440)
        centres = place_boxes(trail[[0, 15, 29]], trail, (50.0, 60.0), (500.0, 500.0))
        half = np.array([25, 30])
        assert (centres - half).min() >= 0
        assert (centres + half).max() <= 500
        for i in range(3):
            for j in range(i):
                assert (np.abs(centres[i] - centres[j]) >= 2 * half).any()
            for anchor in trail[[0, 15, 29]]:
                assert (np.abs(centres[i] - anchor) >= half).any()
            assert np.linalg.norm(centres[i] - trail[[0, 15, 29][i]]) < 200
