"""README and documentation are true: examples run, links exist, generated parts are up to date."""

import json
import re

import pytest

from experiments import readme_tables

ROOT = readme_tables.ROOT
PAGES = [*readme_tables.pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
README = (ROOT / "README.md").read_text()


def test_the_example_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") <= 12
    names = {}
    exec(code, names)
    assert names["film"].shape == (9, 3, 32, 32)
    assert names["path"].log_det.shape == (9, 4)
    away, missed = ((names[name] - names["z"]).norm(dim=1) for name in ("both", "back"))
    assert bool((missed < 0.01 * away).all())


def test_the_readme_is_short():
    assert len(README.split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
class TestPage:
    def test_generated_parts_are_up_to_date(self, page):
        text = page.read_text()
        assert readme_tables.fill(text) == text, "run `make generate`"

    def test_links_and_figures_exist(self, page):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, heading = target.partition("#")
            if path.startswith("http"):
                continue
            linked = page.parent / path if path else page
            assert linked.exists(), target
            if heading:
                titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]
                assert heading in anchors, target

    def test_lines_are_short(self, page):
        lines = page.read_text().splitlines() if page.name != "commands.md" else []
        assert [line for line in lines if len(line) > 115 and not line.startswith("|")] == []


@pytest.mark.parametrize(
    "path",
    sorted(readme_tables.RESULTS.glob("tables/*/table.json")),
    ids=lambda path: path.parent.name,
)
def test_the_files_of_a_table_are_those_of_its_cells(path):
    body = readme_tables.read_table(f"tables/{path.parent.name}").to_markdown()
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert "\n".join(rows) in path.with_name("table.md").read_text()
    assert all((path.parent / name).is_file() for name in ("table.tex", "table.csv", "errors.png"))


def test_results_say_where_they_come_from():
    for path in readme_tables.RESULTS.glob("*.json"):
        training = json.loads(path.read_text())["training"]
        assert training["command"].startswith("flowfactor")
        assert {"seed", "seconds", "steps", "versions", "hardware"} <= set(training)


def test_the_ratios_of_the_concepts_are_measured():
    path = ROOT / "experiments/benchmarks/results/training_step.json"
    result, page = json.loads(path.read_text()), (ROOT / "docs/concepts.md").read_text()
    ratios = [result[f"{case} density"]["nested / closed"] for case in ("with", "without")]
    ratios += [
        result[f"{case} in the batch"]["relative to K = 3"]["48"]
        for case in ("three of K", "all K")
    ]
    for ratio in ratios:
        assert f"{ratio:.2f} times" in " ".join(page.split())
