"""What goes wrong for a new user: one paragraph, exit code 2, no traceback, nothing lost."""

import shutil

import pytest
from tiny import sets
from typer.testing import CliRunner

from experiments.cli import app

# Each: words after `train demo`, and what the message must say.
CONFIGURATIONS = {
    "unknown key": (["--set", "training.stepz=3"], "training.stepz.*did you mean `steps`"),
    "unknown section": (["--set", "trainin.steps=3"], "did you mean `training`"),
    "wrong type": (["--set", "training.steps=many"], "training.steps.*integer.*many"),
    "out of range": (["--set", "training.learning_rate=-1"], "training.learning_rate.*greater"),
    "unknown choice": (["--set", "model.observation=poisson"], "bernoulli"),
    "unknown solver": (["--set", "model.solver.name=rk5"], "rk4"),
    "option of another solver": (
        ["--set", "model.solver={name: rk4, rtol: 0.1}"],
        "rk4.*rtol.*steps",
    ),
    "unknown potential": (["--set", "model.potential=gp"], "model.potential.*ridge.*mlp"),
    "negative rank": (["--set", "model.rank=-1"], "model.rank.*greater"),
    "density of another solver": (
        ["--set", "model.density=discrete"],
        "model: density `discrete`.*solver is rk4.*euler",
    ),
    "impossible combination": (
        ["--set", "training.frames_per_sequence=9"],
        "frames_per_sequence is 9.*8",
    ),
    "no digits left": (
        ["--set", "data.exclude_digits=[0,1,2,3,4,5,6,7,8,9]"],
        "no digit",
    ),
    "too many digits": (["--set", "data.train=100000"], "100000.*only"),
    "override without value": (["--set", "training.steps"], "key.path=value"),
    "override into a value": (["--set", "seed.x=1"], "seed is a value"),
    "override no yaml": (["--set", "model={a: ["], "not YAML"),
    "missing data": (
        ["--set", "data.source=torchvision", "--set", "data.root=nowhere"],
        "nowhere",
    ),
    "decoder and channels": (
        ["--set", "model.decoder={kind: mlp, channels: [4]}"],
        "no channels",
    ),
    "device that is not there": (["--set", "training.accelerator=mps"], "accelerator"),
    "transformation of no kind": (
        ["--set", "data.transformations={spin: {kind: twist}}"],
        "data.transformations.spin.kind.*scaling",
    ),
    "force without its equation": (
        ["--set", "model.force=learned", "--set", "objective.hamilton_jacobi=0"],
        "hamilton_jacobi is 0",
    ),
    "own images in no folder": (
        ["--set", "data.source=images", "--set", "data.root=nowhere"],
        "no folder nowhere",
    ),
    "own images have no classes": (
        ["--set", "data.source=images", "--set", "data.exclude_digits=[1]"],
        "exclude_digits: unknown key",
    ),
    "scale of zero": (
        ["--set", "data.transformations={shrink: {kind: scaling, step: -0.2}}"],
        "shrink",
    ),
}


def check_error(code, output, message):
    import re

    assert code == 2, output
    assert "Traceback" not in output
    assert re.search(message, output), output
    assert len(output) < 1200


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_bad_configurations(call, tmp_path, case):
    words, message = CONFIGURATIONS[case]
    run = tmp_path / "run"
    code, output = call("train", "demo", *sets(), *words, "--out", run)
    check_error(code, output, message)
    assert not run.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("training: [1, 2]", "training"),
        ("- a list", "sections"),
        ("a: b: c", "not valid YAML"),
        (b"\xff\xfe\x00\x01", "read as text|not valid YAML"),
    ],
)
def test_bad_config_files(call, tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check_error(*call("train", path, "--out", tmp_path / "run"), message)


def test_unknown_config(call, tmp_path):
    check_error(*call("train", "dmeo", "--out", tmp_path / "run"), "Did you mean `demo`")
    check_error(*call("run", "dmeo", "--out", tmp_path / "run"), "Did you mean `demo`")


def test_corrupt_idx_file(call, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, kind, dimensions in (
        ("train", "images", 3),
        ("train", "labels", 1),
        ("t10k", "images", 3),
        ("t10k", "labels", 1),
    ):
        (raw / f"{part}-{kind}-idx{dimensions}-ubyte").write_bytes(b"\0\0\x08\x03 broken")
    run = tmp_path / "run"
    words = ("--set", "data.source=torchvision", "--set", f"data.root={tmp_path}")
    check_error(*call("train", "demo", *sets(), *words, "--out", run), "idx")
    assert not run.exists()


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_that_exists_is_not_overwritten(call, tiny_run):
    before = files_of(tiny_run)
    check_error(*call("train", "demo", *sets(), "--out", tiny_run), "not empty.*--resume")
    assert files_of(tiny_run) == before


def test_a_training_without_checkpoint_is_neither_continued_nor_overwritten(
    call, tiny_run, tmp_path
):
    run = tmp_path / "ended"
    run.mkdir()
    for file in ("config.yaml", "metrics.jsonl"):
        shutil.copy(tiny_run / file, run)
    before = files_of(run)
    check_error(*call("train", "demo", *sets(), "--out", run), "Delete the folder")
    check_error(*call("run", "demo", *sets(), "--out", run), "Delete the folder")
    check_error(*call("train", "demo", *sets(), "--out", run, "--resume"), "new folder")
    after = files_of(run)
    assert after[run / "metrics.jsonl"] == before[run / "metrics.jsonl"]


def test_resume_with_another_configuration_changes_nothing(call, tiny_run):
    before = files_of(tiny_run)
    words = ("train", "demo", *sets("model.width=9"), "--out", tiny_run, "--resume")
    check_error(*call(*words), "model.width: 8 -> 9")
    assert files_of(tiny_run) == before


def test_out_is_a_file(call, tmp_path):
    (tmp_path / "taken").write_text("mine")
    check_error(*call("train", "demo", *sets(), "--out", tmp_path / "taken"), "is a file")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("command", ["evaluate", "plot"])
def test_missing_and_foreign_folders(call, tmp_path, command):
    check_error(*call(command, tmp_path / "nothing"), "no run folder")
    (tmp_path / "other").mkdir()
    check_error(*call(command, tmp_path / "other"), "config.yaml")


@pytest.mark.parametrize("file", ["model.pt", "config.yaml", "training.json"])
def test_damaged_files_of_a_run(call, tiny_run, tmp_path, file):
    run = tmp_path / "copy"
    shutil.copytree(tiny_run, run)
    (run / file).write_bytes(b"{ damaged")
    before = files_of(run)
    check_error(*call("evaluate", run), file)
    assert files_of(run) == before


def test_damaged_checkpoint_is_not_resumed(call, tiny_run, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(tiny_run, run)
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    before = files_of(run)
    words = ("train", "demo", *sets("training.steps=6"), "--out", run, "--resume")
    check_error(*call(*words), "checkpoint.pt.*damaged")
    after = files_of(run)
    for path in ("checkpoint.pt", "model.pt", "metrics.jsonl"):
        assert after[run / path] == before[run / path]


def test_plot_needs_an_evaluation(call, tiny_run):
    check_error(*call("plot", tiny_run), "flowfactor evaluate")


def test_wrong_flags(call, tiny_run):
    for words in (
        ("evaluate", tiny_run, "--split", "train"),
        ("evaluate", tiny_run, "--images", "0"),
        ("evaluate", tiny_run, "--images", "many"),
        ("train",),
        ("train", "demo", "--fast"),
        ("fly",),
    ):
        code, output = call(*words)
        assert code == 2, output
        assert "Traceback" not in output


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "nothing"), "--debug"])
    assert result.exception is not None
    assert type(result.exception).__name__ == "RunError"
