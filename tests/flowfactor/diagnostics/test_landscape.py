import numpy as np
import pytest
import torch
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.quiver import Quiver

import flowfactor
from flowfactor.diagnostics import Plane, draw_landscape, landscape_data, plot_landscape
from flowfactor.diagnostics.landscape import place_boxes


@pytest.fixture
def images(digits):
    return digits.sample([0, 1], "hue").frames[:, 0]


@pytest.fixture
def data(model, images):
    return landscape_data(model, images, "rotation", times=[0, 2.5, 8], resolution=9, substeps=1)


def grid_of(data):
    x, y = np.meshgrid(data.x, data.y)
    return data.plane.lift(torch.from_numpy(np.stack([x, y], -1)).float())


def test_values_are_those_of_the_potential_at_the_grid_points(model, data):
    grid = grid_of(data).flatten(0, 1)
    for t, value in zip(data.times, data.value, strict=True):
        with torch.no_grad():
            expected = model.potentials["rotation"](grid, float(t))
        assert np.allclose(value.reshape(-1), expected, atol=1e-4)


def test_arrows_are_the_projection_of_the_gradient(model, data):
    grid = grid_of(data)
    t, i, j = 1, 2, 6
    with torch.no_grad():
        gradient = model.potentials["rotation"].gradient(grid[i, j][None], 2.5)[0]
    assert np.allclose(data.gradient[t, i, j], data.plane.axes @ gradient, atol=1e-5)


def test_arrows_are_the_slope_of_the_colours(model, images):
    fine = landscape_data(model, images, "rotation", times=[3.0], resolution=201, substeps=1)
    by_y, by_x = np.gradient(fine.value[0].astype(np.float64), fine.y, fine.x)
    slope = np.stack([by_x, by_y], -1)[1:-1, 1:-1]
    error = np.abs(slope - fine.gradient[0, 1:-1, 1:-1]).max()
    assert error < 0.02 * np.abs(slope).max()


def test_trajectories_and_images_are_those_of_the_flow(model, images, data):
    with torch.no_grad():
        z0 = model.encode(images).mean
        z = model.flow(z0, "rotation", [0.0, 2.5, 8.0])
        decoded = model.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    ends = data.plane.project(z[[0, 2]]).numpy()
    assert np.allclose(data.path[[0, -1]], ends, atol=1e-4)
    assert data.path_times[[0, -1]].tolist() == [0.0, 8.0]
    assert data.image_times.tolist() == [0.0, 2.5, 8.0]
    assert torch.allclose(data.images, decoded, atol=1e-4)
    assert np.allclose(data.image_points, data.plane.project(z), atol=1e-4)


def test_plane_passes_through_the_mean_of_the_trajectories(model, images, data):
    with torch.no_grad():
        z = model.flow(model.encode(images).mean, "rotation", torch.arange(9.0))
    assert torch.allclose(data.plane.origin, z.flatten(0, 1).mean(0), atol=1e-5)
    assert data.explained == pytest.approx(data.plane.explained(z), abs=1e-5)
    assert sum(data.explained) <= 1 + 1e-9


def test_window_holds_every_trajectory_and_is_square(data):
    assert data.x[0] < data.path[..., 0].min() <= data.path[..., 0].max() < data.x[-1]
    assert data.y[0] < data.path[..., 1].min() <= data.path[..., 1].max() < data.y[-1]
    assert np.ptp(data.x) == pytest.approx(np.ptp(data.y), rel=1e-5)


def test_times_outside_of_the_training_extend_the_trajectory(model, images):
    data = landscape_data(model, images, "hue", times=[-1.5, 9.0], resolution=5, substeps=1)
    assert data.path_times[[0, -1]].tolist() == [-2.0, 9.0]
    with torch.no_grad():
        before = model.flow(model.encode(images).mean, "hue", -2.0)
    assert np.allclose(data.path[0], data.plane.project(before), atol=1e-3)


def test_a_plane_of_ones_own_is_used(model, images):
    first, second = torch.eye(6)[[1, 4]]
    plane = Plane.spanned_by(first, second, torch.full((6,), 0.5))
    data = landscape_data(model, images, 0, plane=plane, resolution=5, substeps=1)
    assert torch.equal(data.plane.axes, torch.eye(6)[[1, 4]])
    grid = grid_of(data)
    assert torch.all(grid[..., [0, 2, 3, 5]] == 0.5)


def test_training_mode_is_left_as_it_was(model, images):
    model.train()
    landscape_data(model, images, 0, resolution=5, substeps=1)
    assert model.training


def test_figure_shows_every_time_on_one_colour_scale(data):
    figure = draw_landscape(data)
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels] == [
        f"$u$ of rotation at $t$ = {t}" for t in ("0", "2.5", "8")
    ]
    meshes = [axes.collections[0] for axes in panels]
    assert len({mesh.get_clim() for mesh in meshes}) == 1
    assert meshes[0].get_clim() == pytest.approx((data.value.min(), data.value.max()))
    assert all(mesh.get_array().size == 81 for mesh in meshes)
    first, second = (f"{100 * share:.0f} %" for share in data.explained)
    assert first in panels[0].get_xlabel()
    assert second in panels[0].get_ylabel()
    assert "u" in bar.get_ylabel()


def thumbnails(figure):
    boxes = [
        child
        for axes in figure.axes
        for child in axes.get_children()
        if isinstance(child, AnnotationBbox)
    ]
    images = [image.get_data() for box in boxes for image in box.offsetbox.findobj(OffsetImage)]
    return boxes, images


def test_one_panel_shows_all_decoded_images_and_several_show_their_own(model, images, data):
    one = landscape_data(
        model, images, "rotation", times=[4], image_times=[0, 4, 8], resolution=9, substeps=1
    )
    boxes, shown = thumbnails(draw_landscape(one))
    assert len(boxes) == 6
    expected = [image.movedim(0, -1).numpy() for image in one.images.flatten(0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))
    boxes, shown = thumbnails(draw_landscape(data))
    assert len(boxes) == 6
    assert np.array_equal(shown[0], data.images[0, 0].movedim(0, -1))


def test_descent_turns_the_arrows_round(data):
    def arrows(figure):
        (field,) = [c for c in figure.axes[1].collections if isinstance(c, Quiver)]
        return np.stack([field.U, field.V])

    up, down = (arrows(draw_landscape(data, arrows=way)) for way in ("ascent", "descent"))
    assert np.abs(up).max() > 0
    assert np.array_equal(up, -down)
    without = draw_landscape(data, arrows="none")
    assert not any(isinstance(c, Quiver) for c in without.axes[1].collections)


def test_a_constant_potential_can_be_drawn(images):
    flat = flowfactor.AutogradPotential(lambda z, t: 0 * z.sum(-1), dim=4)
    model = flowfactor.FlowVAE.build(("rest",), latent_dim=4, width=4)
    model.potentials = flowfactor.IndependentPotentials({"rest": flat})
    figure = plot_landscape(model, images, "rest", times=[0], resolution=5)
    assert figure.axes[0].get_title() == "$u$ of rest at $t$ = 0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": []}, "at least one time"),
        ({"times": [float("nan")]}, "finite"),
        ({"resolution": 1}, "at least 2 points"),
        ({"margin": -0.1}, "margin"),
        ({"substeps": 0}, "substeps"),
        ({"plane": Plane(torch.zeros(3), torch.eye(3)[:2])}, "3 dimensions"),
    ],
)
def test_bad_options_are_refused(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        landscape_data(model, images, "hue", **options)


def test_bad_images_and_names_are_refused(model, images):
    with pytest.raises(ValueError, match="this model takes"):
        landscape_data(model, images[..., :20], "hue")
    with pytest.raises(KeyError, match="shear"):
        landscape_data(model, images, "shear")


def test_boxes_overlap_neither_each_other_nor_points_and_stay_inside():
    generator = np.random.default_rng(0)
    for _ in range(8):
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
