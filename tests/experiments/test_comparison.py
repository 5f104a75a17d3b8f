"""Evaluations of several methods as a table and figures, and `flowfactor compare` on tiny runs."""

import csv
import dataclasses
import itertools
import json
import shutil

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.comparison import (
    Method,
    choose_columns,
    comparison_table,
    curve_of,
    read_methods,
)
from experiments.comparison_figures import column_figure, error_figure, time_figure
from experiments.runs import open_run
from flowfactor.checkpoints import digest, save_model
from flowfactor.diagnostics import save
from flowfactor.errors import ConfigError, RunError
from flowfactor.metrics import Equivariance
from flowfactor.models import VAE, fit_traversals
from flowfactor.records import Evaluation
from flowfactor.tables import Spread


def evaluate(errors, seed=0, **metrics):
    """An evaluation, as far as tables read it."""
    lists = {"per_frame": [], "identity_per_frame": []}
    summaries = {
        name: lists
        | {"error": error, "identity": 10 * error, "floor": error / 2}
        | {"standard_error": 0.0, "per_frame_and_pixel": 0.0}
        for name, error in errors.items()
    }
    mean = sum(errors.values()) / len(errors)
    return Evaluation.from_dict(
        {
            "split": "test",
            "source": "digits",
            "images": 1000,
            "frames": 7,
            "seed": seed,
            "transformations": [name for name in errors if not name.startswith("spare")],
            "metrics": {"equivariance": {"mean_error": mean, "errors": summaries}} | metrics,
            "training": {"steps": 600, "seconds": 120.0, "parameters": 12345},
        }
    )


def turns(*values, label="flow", failed=0, **metrics):
    """A method with one transformation, a seed for each value."""
    seeds = [evaluate({"turn": value}, seed, **metrics) for seed, value in enumerate(values)]
    return Method(label, tuple(seeds), failed)


def bounds(model, value):
    bound = {"observation": model, "per_sequence": value, "per_frame": 0.0, "standard_error": 0.0}
    return {"sequences": 300, "samples": 50, "trained": bound, "unit_gaussian": bound}


def paths(energy):
    measures = {"straightness": 1.0, "kinetic_energy": energy, "distance": 1.0}
    return {"mean": measures, "paths": {}}


# ---- rows and columns


def test_values_are_those_of_the_seeds():
    methods = [turns(10.0, 14.0), turns(20.0, label="VAE")]
    table = comparison_table(methods, choose_columns(methods, ["mean_error", "step_ms"]))
    assert table.rows[0].values == [Spread((10.0, 14.0), (0, 1)), Spread((200.0, 200.0), (0, 1))]
    assert "**12.0** ± 2.8" in table.to_markdown()
    parameters = comparison_table(methods, choose_columns(methods, ["parameters"]))
    assert "| flow | 12,345 |" in parameters.to_markdown()


def test_missing_seeds_have_a_footnote():
    methods = [
        turns(10.0, 12.0),
        turns(10.5, failed=1, label="some"),
        turns(11.0, label="fewer"),
        Method("all", failed=2),
        Method("none"),
    ]
    table = comparison_table(methods, choose_columns(methods, ["mean_error", "mig"]))
    assert [row.footnote for row in table.rows] == [
        "",
        "1 of 2 seeds failed. Only seed 0.",
        "Only seed 0.",
        "",
        "Not run.",
    ]
    text = table.to_markdown()
    for line in ("| some¹ | **10.5** | – |", "| all | failed | failed |", "| none³ | – | – |"):
        assert line in text


def test_notes_say_how_it_was_measured():
    hardware = {"hardware": {"processor": "AMD EPYC", "threads": 1, "accelerator": "none"}}
    errors = {"chosen": "mean", "traversals": {}}
    likelihood = bounds("gaussian_learned", -9.0)
    one = evaluate({"turn": 4.0, "hue": 6.0}, log_likelihood=likelihood, traversals=errors)
    one = dataclasses.replace(one, training=one.training | hardware)
    methods = [Method("VAE", (one,)), Method("flow", (evaluate({"turn": 8.0, "hue": 2.0}, 1),))]
    text = comparison_table(methods, choose_columns(methods)).to_markdown()
    for part in (
        "Test split; 1,000 images; frames 1 to 7; seeds 0, 1;",
        "50 IWAE samples of each of 300 sequences",
        "Lowest identity error: turn 40.0, hue 20.0. Lowest floor: turn 2.0, hue 1.0.",
        "the traversal mean.",
        "Trained on: AMD EPYC, 1 thread.",
        "| log p, learned Gaussian ↑ |",
    ):
        assert part in text, part


def test_likelihoods_under_different_models_of_pixels_are_not_ranked():
    models = {"bernoulli": -1.0, "gaussian": -9.0}
    methods = [turns(1.0, label=m, log_likelihood=bounds(m, v)) for m, v in models.items()]
    columns = choose_columns(methods, ["log_likelihood", "log_likelihood_trained"])
    assert [column.better for column in columns] == ["higher", None]


def test_columns_that_nothing_has_a_value_for_are_left_out():
    errors = {"turn": 5.0, "spare 1": 7.0}
    inferred = {"mean_error": 6.0, "errors": {}, "counts": [[1]], "accuracy": 0.9}
    weak = evaluate(errors, inferred=inferred)
    methods = [Method("weak", (weak,)), turns(4.0), Method("failed", failed=1)]
    assert [column.key for column in choose_columns(methods)] == [
        *("error.turn", "mean_error", "inferred_error", "accuracy"),
        *("parameters", "minutes", "step_ms"),
    ]


def test_columns_come_in_the_order_asked_for():
    methods = [Method("flow", (evaluate({"turn": 5.0, "hue": 6.0}),))]
    columns = choose_columns(methods, ["step_ms", "errors", "minutes", "error.hue"])
    assert [column.key for column in columns] == ["step_ms", "error.turn", "error.hue", "minutes"]


def test_unknown_columns_are_refused():
    for methods, name in (
        ([turns(1.0)], "mean_eror"),
        ([turns(1.0)], "error.hue"),
        ([], "nonsense"),
    ):
        with pytest.raises(ConfigError, match=name):
            choose_columns(methods, [name])
    # Before anything has run, nobody knows the transformations.
    assert [column.key for column in choose_columns([], ["error.hue", "errors"])] == ["mean_error"]


def test_cells_of_a_file_are_methods(tmp_path):
    cells = [
        {"label": "b", "evaluation": evaluate({"turn": 1.0}).to_dict(), "curve": [[0.5, 7.0]]},
        {"label": "a", "status": "failed"},
        {"label": "b", "status": "unfinished"},
    ]
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"cells": cells, "table": {"methods": {"a": {}, "b": {}}}}))
    assert read_methods(path) == [
        Method("a", failed=1),
        Method("b", (evaluate({"turn": 1.0}),), curves=([(0.5, 7.0)],)),
    ]
    path.write_text("{}")
    with pytest.raises(RunError, match="cells"):
        read_methods(path)


# ---- figures


def ticks(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_errors_are_drawn_where_they_are(tmp_path):
    figure = error_figure([turns(10.0, 14.0), turns(30.0, label="VAE"), Method("broken", failed=1)])
    (axes,) = figure.axes
    assert ticks(axes) == ["flow", "VAE", "broken"]
    drawn = [line.get_xdata() for line in axes.lines]
    for mean, floor in ((12.0, 6.0), (30.0, 15.0)):
        assert any(list(x) == [mean] for x in drawn)
        assert any(list(x) == [floor] for x in drawn)
    # Identity, the lowest.
    assert any(list(x) == [120.0, 120.0] for x in drawn)
    assert [text.get_text() for text in axes.texts] == ["failed"]
    assert axes.get_xlim()[1] > 120
    save(figure, tmp_path / "errors.png", dpi=50)


def test_errors_of_many_methods_have_a_panel_each_and_the_mean(tmp_path):
    names = [f"factor {i}" for i in range(5)]
    methods = [
        Method(f"a method of a rather long name {i}", (evaluate(dict.fromkeys(names, 5.0 + i)),))
        for i in range(9)
    ]
    figure = error_figure(methods)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [*names, "mean"]
    save(figure, tmp_path / "errors.png", dpi=50)
    # No label of a method reaches into the next.
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    for upper, lower in itertools.pairwise(boxes):
        assert lower.y1 <= upper.y0


def test_every_number_of_a_metric_has_a_panel(tmp_path):
    flow, vae = turns(1.0, 2.0, paths=paths(4.0)), turns(2.0, label="VAE")
    methods = [flow, vae, Method("broken", failed=1)]
    figure = column_figure(methods, choose_columns(methods))
    assert [axes.get_title() for axes in figure.axes] == ["straightness ↑", "kinetic energy"]
    assert any(list(line.get_xdata()) == [4.0] for line in figure.axes[1].lines)
    assert [text.get_text() for text in figure.axes[1].texts] == ["no result", "failed"]
    save(figure, tmp_path / "metrics.png", dpi=50)
    assert column_figure(methods[1:], choose_columns(methods[1:])) is None


def test_all_methods_can_be_told_apart():
    curves = [([(0.0, 5.0 + i), (1.0, 2.0)], [(0.0, 4.0), (2.0, 1.0)]) for i in range(10)]
    figure = time_figure([Method(str(i), curves=each) for i, each in enumerate(curves)])
    lines = figure.legends[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 10
    assert len({line.get_color() for line in lines}) == 10


def test_failed_or_no_methods_can_be_drawn(tmp_path):
    for methods in ([], [Method("broken", failed=2)]):
        save(error_figure(methods), tmp_path / "errors.png", dpi=50)


def test_the_mean_curve_is_that_of_the_seeds(tmp_path):
    seeds = ([(0.0, 100.0), (2.0, 50.0), (4.0, 10.0)], [(1.0, 95.0), (3.0, 50.0), (9.0, 1.0)])
    figure = time_figure([Method("flow", curves=seeds), turns(1.0, label="without")])
    axes = figure.axes[0]
    mean = axes.lines[-1]
    # At 1, 2, 3, 4 minutes; 75, 50, 30, 10 and 95, 72.5, 50, 50 - 49/6.
    assert list(mean.get_xdata()) == [1.0, 2.0, 3.0, 4.0]
    expected = [85.0, 61.25, 40.0, (10 + 50 - 49 / 6) / 2]
    assert mean.get_ydata() == pytest.approx(expected)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["flow"]
    assert axes.get_yscale() == "log"
    save(figure, tmp_path / "time.png", dpi=50)


def test_without_curves_there_is_no_figure():
    assert time_figure([turns(1.0), Method("flow", curves=([],))]) is None


def test_a_curve_is_read_from_the_metrics(tmp_path):
    lines = [
        {"step": 1, "split": "train", "seconds": 1.0, "loss": 3.0},
        {"step": 2, "split": "validation", "seconds": 30.0, "loss": 3.0, "error": 7.5},
        {"step": 4, "split": "validation", "seconds": 60.0, "loss": 3.0},
        {"step": 6, "split": "validation", "seconds": 90.0, "loss": 3.0, "error": 5.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curve_of(tmp_path) == [(0.5, 7.5), (1.5, 5.0)]
    assert curve_of(tmp_path / "nowhere") == []
    (tmp_path / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(RunError, match="metrics"):
        curve_of(tmp_path)


# ---- flowfactor compare


def change(run, folder, **content):
    """Copy a run whose evaluation says something else."""
    shutil.copytree(run, folder)
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    return folder


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """Evaluate three runs: flows of two seeds, and a VAE."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(tiny_run, folder / "flow_0")
    found = CliRunner().invoke(app, ["evaluate", str(folder / "flow_0")])
    assert found.exit_code == 0, found.output
    first = json.loads((folder / "flow_0" / "evaluation.json").read_text())
    errors = first["metrics"]["equivariance"]
    more = {"equivariance": errors | {"mean_error": errors["mean_error"] + 4}}
    change(folder / "flow_0", folder / "flow_1", seed=1, metrics=first["metrics"] | more)
    config = folder / "flow_1" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    data = open_run(folder / "flow_0").data("train")
    model = VAE.build(
        data.names,
        data.image_shape,
        horizon=data.horizon,
        latent_dim=3,
        encoder={"channels": [4]},
        decoder={"hidden": [8]},
    )
    fit_traversals(model, [data.sample(range(12))], sequences=2, ranges=(-1.0, 1.0))
    save_model(model, folder / "new")
    vae = {"equivariance": errors, "traversals": {"chosen": "mean", "traversals": {}}}
    change(folder / "flow_0", folder / "vae", metrics=vae, weights=digest(folder / "new"))
    shutil.copy(folder / "new" / "model.safetensors", folder / "vae")
    return folder


def test_an_evaluation_of_other_weights_is_not_shown(call, evaluated, tmp_path):
    stale = shutil.copytree(evaluated / "flow_0", tmp_path / "stale")
    shutil.copy(evaluated / "vae" / "model.safetensors", stale)  # as after more training
    for words in (("plot", stale), ("compare", stale, evaluated / "flow_1")):
        code, output = call(*words)
        assert code == 2
        assert f"flowfactor evaluate {stale}" in output
    assert not (stale / "report.html").exists()


@pytest.mark.usefixtures("empty_figures")
def test_compare_writes_tables_and_figures(call, evaluated, tmp_path):
    runs = [evaluated / name for name in ("flow_0", "flow_1", "vae")]
    labels = ["flow", "flow", "VAE | β"]
    options = [word for label in labels for word in ("--labels", label)]
    out = tmp_path / "out"
    code, output = call("compare", *runs, *options, "--samples", 1, "--out", out)
    assert code == 0, output
    assert "mean E ↓" in output
    for name in ("table.md", "table.tex", "table.csv", "strips.png", "strips.pdf", "errors.png"):
        assert (out / name).is_file(), name
    flow, vae = csv.DictReader((out / "table.csv").open())
    assert (flow["method"], flow["mean_error_n"], vae["method"]) == ("flow", "2", "VAE | β")
    records = [Evaluation.read(run / "evaluation.json") for run in runs]
    means = [record.result(Equivariance).mean_error for record in records]
    assert float(flow["mean_error"]) == pytest.approx((means[0] + means[1]) / 2)
    assert float(vae["mean_error"]) == pytest.approx(means[2])


def test_compare_refuses_what_was_measured_in_another_way(call, evaluated, tmp_path):
    for content, key in (
        ({"images": 7}, "images"),
        ({"split": "validation"}, "split"),
        ({"frames": 2}, "frames"),
        ({"transformations": ["hue"]}, "transformations"),
    ):
        other = change(evaluated / "flow_0", tmp_path / key, **content)
        code, output = call("compare", evaluated / "flow_1", other, "--out", tmp_path / "out")
        assert code == 2, key
        assert key in output
    assert not (tmp_path / "out").exists()


def test_compare_refuses_other_data(call, evaluated, tmp_path):
    other = change(evaluated / "flow_0", tmp_path / "other")
    text = (other / "config.yaml").read_text()
    for config, key in (
        (text.replace("horizon: 3", "horizon: 4"), "data.horizon: 3 -> 4"),
        ("data: {source: sprites}", "data.source"),
    ):
        (other / "config.yaml").write_text(config)
        code, output = call("compare", evaluated / "flow_1", other)
        assert code == 2
        assert key in output


def test_compare_refuses_what_it_cannot_use(call, evaluated, tiny_run, tmp_path):
    run = evaluated / "flow_0"
    for words, said in (
        ([run], "two runs"),
        ([run, run], "more than once"),
        ([run, tmp_path / "nothing"], "nothing"),
        ([run, tiny_run], f"flowfactor evaluate {tiny_run}"),
        ([run, evaluated / "vae", "--labels", "flow"], "labels"),
        ([run, evaluated / "vae", "--split", "validation"], "split"),
        ([run, evaluated / "vae", "--split", "train"], "--split"),
    ):
        code, output = call("compare", *words)
        assert code == 2, said
        assert said in output


@pytest.fixture
def shapes(tmp_path):
    """Write a run of 3D Shapes, as far as it is read before its model is."""

    def write(name, seed, path):
        folder = tmp_path / name
        folder.mkdir()
        data = "{source: shapes3d}" if path is None else f"{{source: shapes3d, path: {path}}}"
        (folder / "config.yaml").write_text(f"seed: {seed}\ndata: {data}\n")
        evaluate({"scale": 1.0}, seed).write(folder / "evaluation.json")
        return folder

    return write


def test_the_same_file_may_lie_elsewhere_but_not_be_another(call, shapes):
    first, other = shapes("first", 0, "a/3dshapes.h5"), shapes("other", 0, "b/3dshapes.h5")
    code, output = call("compare", first, other)
    assert code == 2
    assert "data.path" not in output
    code, output = call("compare", first, shapes("recreated", 0, None))
    assert code == 2
    assert "data.path" in output


def test_runs_with_other_samples_held_out_are_not_drawn_together(call, shapes):
    code, output = call("compare", shapes("first", 0, None), shapes("other", 1, None))
    assert code == 2
    assert "seed" in output
