"""The README is true: its example runs and its numbers are those of the committed results."""

import json
import re
from pathlib import Path

import pytest
import torch

from experiments import comparison, table_config, tables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments" / "results"


def test_the_example_runs(tiny_run):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert code.count("\n") <= 14
    names = {}
    exec(code.replace("runs/demo", str(tiny_run)), names)
    assert names["film"].shape == (9, 4, 3, 28, 28)
    assert names["turned"].shape == names["z"].shape
    torch.testing.assert_close(names["back"], names["z"], rtol=0, atol=0.01)


@pytest.mark.parametrize("name", ["mnist", "demo"])
def test_the_tables_are_those_of_the_results(name):
    result = json.loads((RESULTS / f"{name}.json").read_text())
    assert tables.error_table(result) in README
    if name == "mnist":
        assert tables.likelihood_table(result) in README


PAGE = (ROOT / "docs" / "results.md").read_text()


@pytest.mark.parametrize(
    ("page", "name", "table"),
    [
        (README, "mnist_composition", tables.composition_table),
        (PAGE, "mnist_composition", tables.composition_table),
        (PAGE, "mnist_composition", tables.reversal_table),
        (PAGE, "shapes3d", tables.error_table),
        (PAGE, "shapes3d_weak", tables.error_table),
        (PAGE, "mnist_composition", tables.extrapolation_table),
    ],
)
def test_tables_of_the_pages_are_those_of_the_results(page, name, table):
    assert table(json.loads((RESULTS / f"{name}.json").read_text())) in page


def test_weak_supervision_is_that_of_the_results():
    seeds = sorted(RESULTS.glob("mnist_weak_seed*.json"))
    results = {
        f"weak, seed {path.stem.removeprefix('mnist_weak_seed')}": json.loads(path.read_text())
        for path in seeds
    }
    supervised = RESULTS / "mnist_12000.json"
    results["supervised, seed 0"] = json.loads(supervised.read_text())
    assert len(results) == 4
    assert tables.model_table(results) in PAGE
    for name, result in results.items():
        if name.startswith("weak"):
            assert result["inferred"]["accuracy"] == 1.0
            assert f"{result['inferred']['mean_error']:.1f}" in README
    assert f"{results['supervised, seed 0']['mean_error']:.1f}" in README


@pytest.mark.parametrize("name", ["mnist_composition", "sprites"])
def test_runs_side_by_side_are_those_of_the_results(name):
    for each in json.loads((RESULTS / "compared" / f"{name}.json").read_text()).values():
        keys = ("alone", "superposition", "switching", "reversal")
        cells = " | ".join(f"{each[key]:.1f}" for key in keys)
        row = f"| {each['training']['steps']:,} | {cells} | {each['either_order']:.2f} |"
        assert row in PAGE


def test_flows_on_what_they_have_not_seen_are_those_of_the_results():
    result = json.loads((RESULTS / "compared" / "mnist_on_sprites.json").read_text())
    for name, error in result["errors"].items():
        sums = [sum(error[key][:7]) for key in ("per_frame", "identity_per_frame")]
        flow, still = (f"{value:.1f}" for value in sums)
        assert f"| {name} | **{flow}** | {still} | {7 * error['floor_per_frame']:.1f} |" in PAGE
    result = json.loads((RESULTS / "shapes3d_held_out.json").read_text())
    for name, seen in result["errors"].items():
        unseen = result["held_out"]["errors"][name]
        cells = (seen["error"], seen["floor"], unseen["error"], unseen["identity"], unseen["floor"])
        row = [f"{cell:.1f}" for cell in cells]
        row[2] = f"**{row[2]}**"
        assert f"| {name} | {' | '.join(row)} |" in PAGE


def test_every_pair_of_sprites_is_that_of_its_result():
    pairs = {"composition": json.loads((RESULTS / "compared/sprites_pairs.json").read_text())}
    assert tables.composition_table(pairs) in PAGE
    assert tables.reversal_table(pairs) in PAGE


def rows_of(path):
    table = json.loads(path.read_text())
    finished = [cell for cell in table["cells"] if cell["status"] == "finished"]
    rows = []
    for label in table["table"]["methods"]:
        mine = [cell for cell in finished if cell["label"] == label]
        rows.append(comparison.Row(label, tuple(cell["evaluation"] for cell in mine)))
    return table, rows


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("tables/*/table.json")), ids=lambda p: p.parent.name
)
def test_tables_of_several_methods_are_those_of_their_cells(path):
    """The committed files are what the cells give, and the page shows them."""
    table, rows = rows_of(path)
    assert all(cell["status"] == "finished" for cell in table["cells"])
    shipped = table_config.read_table(path.parent.name)[1]
    assert {row.label for row in rows} == set(shipped.methods)
    body = comparison.markdown(rows, comparison.chosen_columns(rows, shipped.columns))
    lines = [line for line in body.splitlines() if line.startswith("|")]
    assert len(lines) == len(rows) + 2
    block = "\n".join(lines)
    assert block in (path.parent / "table.md").read_text()
    assert block in PAGE
    assert f"results/tables/{path.parent.name}" in PAGE
    for name in ("table.tex", "table.csv", "errors.png"):
        assert (path.parent / name).is_file()


def test_the_mean_errors_of_the_baselines_are_those_of_the_table():
    for row in rows_of(RESULTS / "tables" / "mnist" / "table.json")[1]:
        errors = [result["mean_error"] for result in row.results]
        assert f"{sum(errors) / len(errors):.1f}" in README, row.label


def test_the_float32_figure_is_that_of_its_result():
    result = json.loads((RESULTS / "mnist_float32.json").read_text())
    assert f"{result['mean_error']:.1f} ([mnist_float32.json]" in " ".join(README.split())
    assert f"{result['training']['steps']:,} steps" in README


def test_results_say_where_they_come_from():
    for path in RESULTS.glob("*.json"):
        training = json.loads(path.read_text())["training"]
        assert training["command"].startswith("flowfactor")
        assert {"seed", "seconds", "steps", "versions", "hardware"} <= set(training)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_and_figures_exist(page):
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (folder / target.partition("#")[0]).is_file(), target


def test_configuration_sections_are_explained():
    from experiments.config import Config

    for section in ("data", "model", "objective", "training", "evaluation"):
        assert f"| `{section}` |" in README
        assert section in Config.model_fields


def test_the_page_on_solvers_holds_the_measured_ratios():
    results = json.loads((ROOT / "experiments/benchmarks/results/solver_speed.json").read_text())
    page = (ROOT / "docs/solvers.md").read_text()
    columns = [
        (density, method)
        for method in ("rk4", "dopri5")
        for density in ("with log-density", "without log-density")
    ]
    names = {name for density, method in columns for name in results[density][method]}
    assert len(names) > 10
    for name in names:
        cells = [
            f"{found['relative to ours']:.2f}" if found else ""
            for density, method in columns
            for found in [results[density][method].get(name)]
        ]
        assert f"| {name} | {' | '.join(cells)} |" in page.replace("|  |", "|  |"), name
