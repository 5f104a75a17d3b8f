import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

import flowfactor
from flowfactor.diagnostics import (
    ErrorCurve,
    draw_trajectories,
    draw_transport,
    line_styles,
    plot_errors,
    plot_training,
    plot_trajectories,
    plot_transport,
    trajectory_data,
    transport_data,
)
from flowfactor.diagnostics.style import SEQUENTIAL
from flowfactor.transport import hamilton_jacobi_residual


@pytest.fixture
def images(digits):
    return digits.sample([0, 1, 2, 3], "hue").frames[:, 0]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ---- style


def test_styles_differ_in_colour_and_marker_so_that_grey_suffices():
    styles = line_styles([f"k{i}" for i in range(7)])
    assert len({style.colour for style in styles.values()}) == 7
    assert len({style.marker for style in styles.values()}) == 7
    many = line_styles([f"k{i}" for i in range(60)])
    assert len(set(many.values())) == 60


def test_colours_stay_apart_for_colour_blind_readers():
    # Simulation of full deuteranopia in linear RGB, by Vienot, Brettel and Mollon (1999).
    matrix = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    codes = [style.colour.lstrip("#") for style in line_styles([str(i) for i in range(5)]).values()]
    rgb = np.array([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in codes])
    seen = np.clip(rgb**2.2 @ matrix.T, 0, 1) ** (1 / 2.2)
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1)[np.triu_indices(5, 1)]
    assert distances.min() > 0.12


# ---- transport


def test_transport_data_are_the_terms_along_the_path(model, images):
    curves = transport_data(model, images, names=["rotation"], substeps=2)["rotation"]
    assert curves.residual.shape == (17, 4)
    with torch.no_grad():
        z = model.flow(model.encode(images).mean, "rotation", 2.5)
        potential = model.potentials["rotation"]
        residual = hamilton_jacobi_residual(potential, z, 2.5)
        gradient = potential.gradient(z, 2.5)
    assert np.allclose(curves.residual[5], residual, atol=1e-4)
    assert np.allclose(curves.speed[5], gradient.norm(dim=1), rtol=1e-4)
    assert np.allclose(curves.energy, curves.speed**2 / 2, rtol=1e-5)


def test_transport_uses_the_force_of_the_model(model, images):
    model.force = flowfactor.transport.Force(6)
    with_force = transport_data(model, images, substeps=1)["hue"].residual
    model.force = None
    without = transport_data(model, images, substeps=1)["hue"].residual
    # f <= 0 is subtracted.
    assert (with_force >= without).all()
    assert (with_force > without).any()


def test_free_motion_is_straight_and_has_no_residual(digits, images):
    model = flowfactor.FlowVAE.build(("drift",), latent_dim=4, width=4)
    drift = flowfactor.AutogradPotential(lambda z, t: 2 * z[:, 0] - 2 * t, dim=4)
    model.potentials = flowfactor.IndependentPotentials({"drift": drift})
    curves = transport_data(model, images, substeps=1)["drift"]
    assert np.allclose(curves.residual, 0, atol=1e-6)
    assert np.allclose(curves.speed, 2)
    assert np.allclose(curves.straightness, 1)
    assert "drift (straightness 1.000)" in legend(draw_transport({"drift": curves}))


def test_transport_lines_are_rms_and_median(model, images):
    figure = plot_transport(model, images, substeps=1)
    curves = transport_data(model, images, substeps=1)
    for axes in figure.axes:
        assert "frame" in axes.get_ylabel()
        assert axes.get_xlabel() == "time $t$ (frames)"
        assert len({line.get_color() for line in axes.lines}) == 3
        assert len({line.get_marker() for line in axes.lines}) == 3
    for i, curve in enumerate(curves.values()):
        rms = np.sqrt((curve.residual**2).mean(1))
        assert np.allclose(figure.axes[0].lines[i].get_ydata(), rms)
        assert np.allclose(figure.axes[1].lines[i].get_ydata(), np.median(curve.energy, 1))


# ---- trajectories


def test_trajectories_are_projections_of_the_flow(model, images):
    data = trajectory_data(model, images, horizon=5.0, substeps=1)
    assert list(data.paths) == ["scaling", "rotation", "hue"]
    with torch.no_grad():
        z0 = model.encode(images).mean
        end = model.flow(z0, "hue", 5.0)
    assert data.times[-1] == 5.0
    assert np.allclose(data.paths["hue"][-1], data.plane.project(end), atol=1e-4)
    for path in data.paths.values():
        assert np.allclose(path[0], data.plane.project(z0), atol=1e-5)
    assert 0 < sum(data.explained) <= 1


def test_trajectory_figure_marks_starts_ends_and_direction(model, images):
    data = trajectory_data(model, images, substeps=2)
    figure = draw_trajectories(data)
    (axes,) = figure.axes
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert len(lines) == 12
    for line in lines:
        brightness = np.asarray(line.get_colors())[:, :3].sum(1)
        assert (np.diff(brightness) < 0).all()
    ends = {line.get_color(): line.get_xydata() for line in axes.lines}
    assert np.allclose(
        ends[line_styles(model.names)["rotation"].colour], data.paths["rotation"][-1]
    )
    assert np.allclose(ends["white"], data.paths["hue"][0])
    assert [name.split(",")[0] for name in legend(figure)] == [*model.names, "images"]
    assert "variance" in axes.get_xlabel()


def test_unknown_transformations_are_refused(model, images):
    for plot in (plot_trajectories, plot_transport):
        with pytest.raises(ValueError, match="'shear'; the model has scaling, rotation, hue"):
            plot(model, images, names=["shear"])


# ---- training curves


@pytest.fixture
def rows():
    train = [
        {
            "step": 10 * i,
            "split": "train",
            "loss": 5000.0 / i,
            "hamilton_jacobi": 0.5,
            "learning_rate": 1e-3,
            "seconds": float(i),
        }
        for i in range(1, 41)
    ]
    checked = [{"step": s, "split": "validation", "loss": 6000.0 / s} for s in (100, 200, 400)]
    return train + checked


def test_every_term_has_a_panel_and_its_own_scale(rows):
    figure = plot_training(rows)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["loss (nats)", "Hamilton–Jacobi", "learning rate"]
    assert panels["loss (nats)"].get_yscale() == "log"
    assert panels["Hamilton–Jacobi"].get_yscale() == "linear"
    assert all(axes.get_xlabel() == "step" for axes in panels.values())
    assert "validation" in legend(figure)


def test_lines_are_the_values_and_their_running_mean(rows):
    raw, mean, checked = plot_training(rows).axes[0].lines
    values = np.array([5000.0 / i for i in range(1, 41)])
    assert np.allclose(raw.get_ydata(), values)
    assert mean.get_xydata()[0].tolist() == [30, pytest.approx(values[:3].mean())]
    assert mean.get_xydata()[-1].tolist() == [400, pytest.approx(values[-3:].mean())]
    assert checked.get_xdata().tolist() == [100, 200, 400]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no metrics"),
        ([{"step": 1, "split": "train", "seconds": 3.0}], "no metrics"),
        ([{"step": 1, "split": "train", "loss": 1.0}, {"step": 2, "loss": 1.0}], "row 2 of"),
    ],
)
def test_bad_metrics_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        plot_training(rows)


def test_values_that_are_not_finite_are_drawn_around(rows):
    rows[5] = rows[5] | {"loss": float("nan")}
    assert isinstance(plot_training(rows), Figure)


# ---- error curves


CURVE = {"flow": [2.0, 3.0, 4.0], "identity": [5.0, 7.0, 9.0], "floor": 1.5}


def test_error_curves_are_drawn_between_identity_and_floor():
    figure = plot_errors({"rotation": CURVE, "hue": ErrorCurve.of(CURVE)})
    assert [axes.get_title() for axes in figure.axes] == ["rotation", "hue"]
    identity, flow, floor = figure.axes[0].lines
    assert identity.get_xydata().tolist() == [[1, 5], [2, 7], [3, 9]]
    assert flow.get_xydata().tolist() == [[1, 2], [2, 3], [3, 4]]
    assert set(floor.get_ydata()) == {1.5}
    looks = [(line.get_linestyle(), line.get_linewidth()) for line in (identity, flow, floor)]
    assert len(set(looks)) == 3
    assert legend(figure) == ["identity ($z_t = z_0$)", "flow", "floor"]
    assert figure.axes[0].get_ylim()[0] == 0


def test_extrapolation_has_a_ground_of_its_own():
    assert not plot_errors({"hue": CURVE}, horizon=3).axes[0].patches
    figure = plot_errors({"hue": CURVE}, times=[2, 3, 4], horizon=3)
    (ground,) = figure.axes[0].patches
    assert (ground.get_x(), ground.get_x() + ground.get_width()) == (3, 4)
    assert "beyond training" in legend(figure)


@pytest.mark.parametrize(
    ("curves", "options", "message"),
    [
        ({}, {}, "no error curves"),
        ({"hue": {"flow": [1.0]}}, {}, "lacks floor, identity"),
        ({"hue": CURVE | {"identity": [1.0]}}, {}, "one length"),
        ({"hue": CURVE | {"flow": [1.0, float("inf"), 2.0]}}, {}, "not finite"),
        ({"hue": CURVE}, {"times": [1.0]}, "3 frames, but there are 1 times"),
    ],
)
def test_bad_error_curves_are_refused(curves, options, message):
    with pytest.raises(ValueError, match=message):
        plot_errors(curves, **options)


def test_figures_are_unknown_to_pyplot(model, images, rows):
    from matplotlib import pyplot

    plot_training(rows)
    plot_trajectories(model, images, horizon=1.0)
    assert pyplot.get_fignums() == []


def test_potentials_get_brighter_with_their_value_and_never_too_bright_for_white_arrows():
    red, green, blue = SEQUENTIAL(np.linspace(0, 1, 64))[:, :3].T ** 2.2
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert (np.diff(luminance) > 0).all()
    # A contrast of white to the brightest colour of at least 1.8.
    assert 1.05 / (luminance[-1] + 0.05) > 1.8
