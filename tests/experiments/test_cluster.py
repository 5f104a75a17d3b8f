"""Slurm, Ray and Dask, as far as one machine can play them: `make test-cluster`."""

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tables import trained_once, wait_for, write_table
from tiny import settings

from experiments import sweep
from experiments.executors import LOST, RayOptions, SlurmOptions
from experiments.runs import read_evaluation
from flowfactor.errors import ConfigError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("empty_figures", "nice")]

STEPS = 60
MORE = {"steps": STEPS, "validate_every": 30, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def nice():
    """Let the workers of Ray have as much of the processors as others: else they may starve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


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
        ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
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


def test_ray_by_address_and_by_resources(tmp_path):
    """Tasks have what the options say, on the cluster that they name, and end when told to."""
    ray = pytest.importorskip("ray")
    utils = pytest.importorskip("ray.cluster_utils")

    def resources():
        import ray

        return ray.get_runtime_context().get_assigned_resources()

    head = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False}
    cluster = utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        options = RayOptions(address=cluster.address, threads=2, gpus=0.5, memory_gb=0.1)
        with options.open(tmp_path) as executor:
            found = executor.submit(resources).result()
            assert isinstance(executor.submit(int, "x").exception(), ValueError)
            running, waiting = (executor.submit(time.sleep, 600) for _ in range(2))
            assert not any(task.cancel() for task in (running, waiting))  # a sweep that ends tries
            executor.interrupt()
            assert isinstance(running.exception(), LOST)
            assert isinstance(waiting.exception(), LOST)
        assert (found["CPU"], found["GPU"], found["memory"]) == (2, 0.5, int(0.1 * 2**30))
        assert not ray.is_initialized()
        with pytest.raises(ConfigError, match="3 CPUs"):
            RayOptions(address=cluster.address, threads=3).open(tmp_path)
        assert not ray.is_initialized()
        with RayOptions().open(tmp_path) as executor:  # one of its own
            assert "GPU" not in ray.cluster_resources()
            assert executor.submit(os.getpid).result() != os.getpid()
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()


def play_slurm(folder, monkeypatch, sbatch):
    """Play Slurm by programs of its names, which do what is given."""
    for name in ("sbatch", "srun", "sacct", "scancel"):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{sbatch}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_a_partition_that_slurm_does_not_have_ends_the_sweep(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    play_slurm(tmp_path, monkeypatch, "echo 'sbatch: error: invalid partition: gpuu' >&2; exit 1")
    table = plan(tmp_path, "slurm")
    with pytest.raises(ConfigError, match="invalid partition: gpuu"):
        sweep.run_cells(table, table.cells, SlurmOptions(partition="gpuu"))
    assert {each.state for each in sweep.status(table)} == {"new"}


def test_the_options_of_slurm_reach_sbatch(tmp_path, monkeypatch):
    """What is played is Slurm: a program that keeps the script that it is given."""
    pytest.importorskip("submitit")
    play_slurm(
        tmp_path,
        monkeypatch,
        f'cp "$1" {tmp_path}/script; grep array= "$1" >> {tmp_path}/arrays\n'
        f"echo Submitted batch job $(wc -l < {tmp_path}/arrays)",
    )
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
