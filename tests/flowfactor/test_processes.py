"""Several processes that train together, started by torchrun: `make test-cluster`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowfactor.training import read_metrics

pytestmark = pytest.mark.cluster

SUPPORT = Path(__file__).parents[1] / "support"


def together(count, *words):
    """Run processes; return the exit code and what they have written."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *launcher, str(SUPPORT / "together.py"), *map(str, words)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=SUPPORT.parents[1]
    )
    return result.returncode, result.stderr


def lines_of(run, split):
    return [line for line in read_metrics(run) if line["split"] == split]


def test_two_processes_with_the_batch_of_one_have_its_losses(tmp_path):
    """With the same frames and no noise: what is left is the rounding of sums."""
    for count, size in ((1, 8), (2, 4)):
        code, errors = together(count, tmp_path / str(count), 20, size, "same")
        assert code == 0, errors
    for split in ("train", "validation"):
        one, two = (lines_of(tmp_path / name, split) for name in ("1", "2"))
        assert len(one) == {"train": 20, "validation": 5}[split]
        for a, b in zip(one, two, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_two_processes_are_as_good_as_one_with_the_same_sequences_in_a_step(tmp_path):
    for count, size in ((1, 8), (2, 4)):
        code, errors = together(count, tmp_path / str(count), 60, size)
        assert code == 0, errors
    one, two = (lines_of(tmp_path / name, "validation") for name in ("1", "2"))
    assert [line["step"] for line in two] == [12, 24, 36, 48, 60]
    # The same images in each step, other frames and noise.
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.03)
    assert two[-1]["loss"] < 0.95 * lines_of(tmp_path / "2", "train")[0]["loss"]

    # By as many, by one, and by two again: nothing that is random comes twice.
    for count, steps in ((2, 63), (1, 66), (2, 68)):
        code, errors = together(count, tmp_path / "2", steps, 4, "resume")
        assert code == 0, errors
    drawn = [json.loads(path.read_text()) for path in sorted((tmp_path / "2").glob("drawn_*.json"))]
    assert sorted(map(len, drawn)) == [2, 2, 3, 3, 3, 60, 60]
    assert len({each for process in drawn for each in process}) == 133
    steps = [line["step"] for line in lines_of(tmp_path / "2", "train")]
    assert steps == list(range(1, 69))

    code, errors = together(3, tmp_path / "2", 70, 4, "resume")
    assert code != 0
    assert "3 processes cannot share the 8 sequences" in errors


def test_if_one_is_killed_the_other_says_so_and_the_run_goes_on(tmp_path):
    code, errors = together(2, tmp_path / "run", 6, 4, "die")
    assert code != 0
    assert "rank 0: Another process of the training has ended" in errors
    code, errors = together(2, tmp_path / "run", 6, 4, "resume")
    assert code == 0, errors
    assert [line["step"] for line in lines_of(tmp_path / "run", "train")] == [1, 2, 3, 4, 5, 6]
