import numpy as np
import pytest
import torch
from drawings import legend_of
from matplotlib.collections import LineCollection

from flowfactor.diagnostics import (
    ErrorCurve,
    draw_trajectories,
    draw_transport,
    line_styles,
    plot_errors,
    plot_training,
    trajectory_data,
    transport_data,
)
from flowfactor.diagnostics.style import SEQUENTIAL
from flowfactor.transport import Force

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


def test_potentials_get_brighter_with_their_value_and_never_too_bright_for_white_arrows():
    red, green, blue = SEQUENTIAL(np.linspace(0, 1, 64))[:, :3].T ** 2.2
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert (np.diff(luminance) > 0).all()
    # A contrast of white to the brightest colour of at least 1.8.
    assert 1.05 / (luminance[-1] + 0.05) > 1.8


# ---- transport


@pytest.fixture(scope="module")
def curves(model, images):
    return transport_data(model, images, substeps=2)


def test_transport_data_are_the_terms_along_the_path(model, z0, curves):
    curve = curves["rotation"]
    assert curve.residual.shape == (9, 2)
    with torch.no_grad():
        z = model.flow(z0, "rotation", 2.5)
        potential = model.potentials["rotation"]
        rate, gradient = potential.evaluate(z, 2.5, ("time", "gradient"))
    assert np.allclose(curve.residual[5], rate + gradient.square().sum(1) / 2, atol=1e-4)
    assert np.allclose(curve.speed[5], gradient.norm(dim=1), rtol=1e-4)
    assert np.allclose(curve.energy, curve.speed**2 / 2, rtol=1e-5)


def test_transport_uses_the_force_of_the_model(model, images, curves, monkeypatch):
    monkeypatch.setattr(model, "force", Force(4))
    forced = transport_data(model, images, names=["hue"], substeps=2)["hue"].residual
    # f <= 0 is subtracted.
    assert (forced >= curves["hue"].residual).all()
    assert (forced > curves["hue"].residual).any()


def test_transport_lines_are_rms_and_median(curves):
    figure = draw_transport(curves)
    for axes in figure.axes:
        assert "frame" in axes.get_ylabel()
        assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 3
    residual, energy, _ = figure.axes
    for i, curve in enumerate(curves.values()):
        rms = np.sqrt((curve.residual**2).mean(1))
        assert np.allclose(residual.lines[i].get_ydata(), rms)
        assert np.allclose(energy.lines[i].get_ydata(), np.median(curve.energy, 1))
    straight = f"{curves['hue'].straightness.mean():.3f}"
    assert straight in next(text for text in legend_of(figure) if text.startswith("hue"))


# ---- trajectories


def test_trajectories_are_projections_of_the_flow(model, images, z0):
    data = trajectory_data(model, images, horizon=3.0, substeps=1)
    assert tuple(data.paths) == model.names
    assert data.times.tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        path = model.flow(z0, "hue", torch.arange(4.0))
    assert np.allclose(data.paths["hue"], data.plane.project(path), atol=1e-4)
    assert 0 < sum(data.explained) <= 1


def test_trajectory_figure_marks_starts_ends_and_direction(model, images):
    data = trajectory_data(model, images, substeps=1)
    figure = draw_trajectories(data)
    (axes,) = figure.axes
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert len(lines) == 6
    for line in lines:
        brightness = np.asarray(line.get_colors())[:, :3].sum(1)
        assert (np.diff(brightness) < 0).all()
    ends = {line.get_color(): line.get_xydata() for line in axes.lines}
    colour = line_styles(model.names)["rotation"].colour
    assert np.allclose(ends[colour], data.paths["rotation"][-1])
    assert np.allclose(ends["white"], data.paths["hue"][0])
    assert [name.split(",")[0] for name in legend_of(figure)] == [*model.names, "images"]
    assert "variance" in axes.get_xlabel()


@pytest.mark.parametrize("compute", [trajectory_data, transport_data])
def test_unknown_transformations_are_refused(model, images, compute):
    with pytest.raises(ValueError, match="shear"):
        compute(model, images, names=["shear"])


# ---- training curves


@pytest.fixture(scope="module")
def training(rows):
    return plot_training(rows)


def test_every_term_has_a_panel_and_its_own_scale(training):
    panels = {axes.get_title(): axes for axes in training.axes if axes.get_title()}
    assert list(panels) == ["loss (nats)", "Hamilton–Jacobi", "learning rate"]
    assert panels["loss (nats)"].get_yscale() == "log"
    assert panels["Hamilton–Jacobi"].get_yscale() == "linear"
    assert all(axes.get_xlabel() == "step" for axes in panels.values())
    assert "validation" in legend_of(training)


def test_lines_are_the_values_and_their_running_mean(training):
    raw, mean, checked = training.axes[0].lines
    values = np.array([5000.0 / i for i in range(1, 41)])
    assert np.allclose(raw.get_ydata(), values)
    assert mean.get_xydata()[0].tolist() == [30, pytest.approx(values[:3].mean())]
    assert mean.get_xydata()[-1].tolist() == [400, pytest.approx(values[-3:].mean())]
    assert checked.get_xdata().tolist() == [100, 200, 400]


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([], "metrics"),
        ([{"step": 1, "split": "train", "seconds": 3.0}], "metrics"),
        ([{"step": 1, "split": "train", "loss": 1.0}, {"step": 2, "loss": 1.0}], "row 2"),
    ],
)
def test_bad_metrics_are_refused(rows, name):
    with pytest.raises(ValueError, match=name):
        plot_training(rows)


def test_values_that_are_not_finite_are_drawn_around(rows):
    steps = [{**row, "loss": float("nan")} for row in rows[:3]]
    values = plot_training(steps + rows[3:]).axes[0].lines[0].get_ydata()
    assert np.isnan(values[:3]).all()
    assert np.isfinite(values[3:]).all()


# ---- error curves


CURVE = ErrorCurve([2.0, 3.0, 4.0], [5.0, 7.0, 9.0], 1.5)


def test_error_curves_are_drawn_between_identity_and_floor():
    figure = plot_errors({"rotation": CURVE, "hue": CURVE})
    assert [axes.get_title() for axes in figure.axes] == ["rotation", "hue"]
    identity, flow, floor = figure.axes[0].lines
    assert identity.get_xydata().tolist() == [[1, 5], [2, 7], [3, 9]]
    assert flow.get_xydata().tolist() == [[1, 2], [2, 3], [3, 4]]
    assert set(floor.get_ydata()) == {1.5}
    looks = {(line.get_linestyle(), line.get_linewidth()) for line in (identity, flow, floor)}
    assert len(looks) == 3
    assert legend_of(figure) == ["identity ($z_t = z_0$)", "flow", "floor"]
    assert figure.axes[0].get_ylim()[0] == 0


def test_each_panel_of_errors_shows_all_of_its_curves():
    scales = {"small": 1.0, "large": 90.0, "middle": 9.0}
    curves = {
        name: ErrorCurve([scale, scale], [2 * scale, 3 * scale], scale / 2)
        for name, scale in scales.items()
    }
    figure = plot_errors(curves)
    for axes, scale in zip(figure.axes, scales.values(), strict=True):
        low, high = axes.get_ylim()
        assert low == 0
        assert 3 * scale <= high < 4 * scale


def test_times_beyond_the_training_are_shaded():
    assert not plot_errors({"hue": CURVE}, horizon=3).axes[0].patches
    (area,) = plot_errors({"hue": CURVE}, times=[2, 3, 4], horizon=3).axes[0].patches
    assert (area.get_x(), area.get_x() + area.get_width()) == (3, 4)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (([], [], 1.0), "flow"),
        (([2.0, 3.0], [1.0], 1.0), "identity"),
        (([float("inf")], [1.0], 1.0), "finite"),
    ],
)
def test_bad_error_curves_are_refused(values, name):
    with pytest.raises(ValueError, match=name):
        ErrorCurve(*values)


@pytest.mark.parametrize(
    ("curves", "options", "name"), [({}, {}, "curves"), ({"hue": CURVE}, {"times": [1.0]}, "times")]
)
def test_curves_and_times_must_match(curves, options, name):
    with pytest.raises(ValueError, match=name):
        plot_errors(curves, **options)
