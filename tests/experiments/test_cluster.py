"""Slurm, Ray and Dask, as far as one machine can play them: `make test-cluster`."""

import contextlib
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tables import trained_once, wait_for, write_table
from tiny import settings

from experiments import sweep
from experiments.executors import RayOptions, SlurmOptions
from experiments.runs import read_evaluation

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("empty_figures")]

STEPS = 60
MORE = {"steps": STEPS, "validate_every": 30, "checkpoint_every": 5}


def plan(folder: Path, name: str) -> sweep.Sweep:
    changes = {f"training.{key}": value for key, value in MORE.items()}
    table = write_table(folder, set=settings("demo") | changes, seeds=[0, 1])
    return sweep.plan(str(table), out=folder / name)


@contextlib.contextmanager
def opened(name, folder):
    """Open an executor for two cells at a time."""
    if name == "slurm":
        pytest.importorskip("submitit")
        yield SlurmOptions(cluster="local", processes=2).open(folder)
    elif name == "ray":
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
        try:
            yield RayOptions().open(folder)
        finally:
            ray.shutdown()
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client.get_executor(pure=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the results of cells that nothing disturbs."""
    table = plan(tmp_path_factory.mktemp("tables"), "alone")
    sweep.run_cells(table, table.cells, ThreadPoolExecutor(1))
    return [read_evaluation(cell.run).metrics for cell in table.cells]


@pytest.mark.parametrize("name", ["slurm", "ray", "dask"])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2])
def test_a_cell_that_is_interrupted_goes_on_and_ends_the_same(tmp_path, alone, name, signal_number):
    """By the end of its node, by pre-emption, and by the end of a job's time."""
    if signal_number == signal.SIGUSR2 and name != "slurm":
        pytest.skip("a signal of submitit")
    if signal_number == signal.SIGTERM and name == "dask":
        pytest.skip("its cells are no main threads")
    table = plan(tmp_path, name)
    cell = table.cells[0]
    note = cell.run.with_name(f"{cell.run.name}.running")

    def interrupt():
        wait_for((cell.run / "checkpoint.pt").is_file, "the cell trains")
        os.kill(json.loads(note.read_text())["pid"], signal_number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with opened(name, table.out) as executor:
        sweep.run_cells(table, table.cells, executor)
    thread.join()
    assert (cell.run / "train.log").read_text().count("resumed at step") == 1
    for cell, metrics in zip(table.cells, alone, strict=True):
        assert cell.finished
        trained_once(cell.run, STEPS)
        assert read_evaluation(cell.run).metrics == metrics


def test_the_options_of_slurm_reach_sbatch(tmp_path, monkeypatch):
    """What is played is Slurm: a program that keeps the script that it is given."""
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun", "sacct", "scancel"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\ncp "$1" {tmp_path}/script; grep array= "$1" >> {tmp_path}/arrays\n'
            f"echo Submitted batch job $(wc -l < {tmp_path}/arrays)\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    options = SlurmOptions(
        partition="gpu", gpus=1, memory_gb=32, minutes=240, threads=8, sbatch={"account": "vision"},
        array=3, processes=2,
    )  # fmt: skip
    executor = options.open(tmp_path / "out")
    futures = [executor.submit(abs, number) for number in range(6)]
    wait_for(lambda: len(arrays_of(tmp_path)) == 2, "the jobs are sent")
    executor.interrupt()
    executor.shutdown()
    script = (tmp_path / "script").read_text()
    for line in (
        "account=vision", "array=0-2%2", "cpus-per-task=8", "gpus-per-node=1", "mem=32GB",
        "partition=gpu", "signal=USR2@90", "time=240",
    ):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script
    assert len(arrays_of(tmp_path)) == 2
    assert not any(future.done() for future in futures)


def arrays_of(folder):
    path = folder / "arrays"
    return path.read_text().splitlines() if path.is_file() else []
