"""Executors that are refused, or that refuse: before a cell is run, in a sentence."""

import logging
import os
import socket
import sys
import types
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor

import pytest
import torch
from command_line import call
from tables import wait_for, write_table

from experiments import sweep
from experiments.executors import LOST, RayOptions, RefusedError, SlurmOptions, perform
from flowfactor.errors import ConfigError


@pytest.fixture
def as_before(monkeypatch):
    """Undo what a call does to the process that is its own."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("flowfactor", "experiments"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logger.level)


def test_a_call_returns_its_result_or_its_error(as_before):
    settings = {"threads": torch.get_num_threads(), "command": "flowfactor table 'my table'"}
    assert perform(settings, int, ("7",), {"base": 8}) == (7, None)
    assert sys.argv == ["flowfactor", "table", "my table"]
    assert isinstance(perform(settings, int, ("x",), {})[1], ValueError)

    def fail():
        raise type("LocalError", (Exception,), {})("which no other process knows")

    assert "no other process" in str(perform(settings, fail, (), {})[1])


# ---- Ray


@pytest.fixture
def played_ray(monkeypatch, as_before):
    """Return a module in place of Ray's: two nodes, one of which has a GPU; tasks run at once."""

    def node(**resources):
        return {"Alive": True, "Resources": resources | {"memory": 8 * 2**30}}

    def start(function):
        def run(*arguments):
            done = Future()
            if os.abort in arguments:
                done.set_exception(ray.exceptions.NodeDiedError())
            else:
                done.set_result(function(*arguments))
            return types.SimpleNamespace(future=lambda: done)

        return types.SimpleNamespace(remote=run)

    ray = types.ModuleType("ray")
    names = "LocalRayletDied NodeDied ObjectLost OutOfMemory TaskCancelled WorkerCrashed"
    errors = {f"{name}Error": type(name, (Exception,), {}) for name in names.split()}
    ray.exceptions = types.SimpleNamespace(**errors)
    ray.joined = []
    ray.init = lambda address, **_: ray.joined.append(address)
    ray.is_initialized = lambda: bool(ray.joined)
    ray.shutdown = ray.joined.clear
    ray.nodes = lambda: [node(CPU=4.0), node(CPU=2.0, GPU=1.0)]
    ray.remote = lambda **_: start
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 5}, "5 CPUs"),
        ({"threads": 4, "gpus": 0.5}, "4 CPUs, 0.5 GPUs"),
        ({"memory_gb": 9}, "9 GB"),
        ({"address": "node7"}, "executor.address"),
        ({"address": "node7:port"}, "executor.address"),
        ({"address": "ray://node7"}, "executor.address"),
    ],
)
def test_what_no_node_has_is_refused(played_ray, tmp_path, options, message):
    """Ray itself would wait for ever, or for a minute."""
    with pytest.raises(ConfigError, match=message):
        RayOptions(**options).open(tmp_path)
    assert not played_ray.joined


def test_a_cluster_that_does_not_answer_is_refused(played_ray, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for each in (address, f"ray://{address}"):
            with pytest.raises(ConfigError, match=r"executor\.address: .*127"):
                RayOptions(address=each).open(tmp_path)


def test_ray_that_can_do_it_is_joined(played_ray, tmp_path):
    """Without an address it is one of its own, whatever else runs on this machine."""
    for options, address in (
        ({"threads": 2, "gpus": 1}, "local"),
        ({"threads": 4, "memory_gb": 8}, "local"),
        ({"threads": 64, "autoscaling": True, "address": "auto"}, "auto"),
    ):
        with RayOptions(**options).open(tmp_path):
            assert played_ray.joined == [address]
        assert not played_ray.joined


def test_what_becomes_of_the_tasks_of_ray(played_ray, tmp_path):
    with RayOptions().open(tmp_path) as executor:
        assert executor.submit(int, "7").result() == 7
        assert isinstance(executor.submit(int, "x").exception(), ValueError)
        assert isinstance(executor.submit(os.abort).exception(), LOST)


# ---- Slurm


@pytest.fixture
def played_slurm(monkeypatch, as_before):
    """Return what is known of submitit's jobs, which are done when ``held`` is false."""
    slurm = types.SimpleNamespace(arrays=[], parameters={}, jobs=[], held=False, refuses=False)

    class LostError(Exception):
        pass

    class Job:
        job_id, state = "7_0", "NODE_FAIL"

        def __init__(self, function, call):
            self.function, self.call, self.cancelled = function, call, False

        def done(self):
            return not slurm.held

        def result(self):
            if self.call[1] is os.abort:
                raise LostError
            return self.function(self.call)

        def cancel(self, check):
            self.cancelled = True

    class AutoExecutor:
        def __init__(self, folder, cluster, **_):
            if cluster == "slurm" and slurm.refuses:
                raise RuntimeError("no sbatch here")

        def update_parameters(self, **parameters):
            slurm.parameters.update(parameters)

        def map_array(self, function, calls):
            if slurm.refuses:
                raise RuntimeError("invalid partition")
            slurm.arrays.append(len(calls))
            slurm.jobs += (jobs := [Job(function, call) for call in calls])
            return jobs

    submitit = types.ModuleType("submitit")
    submitit.AutoExecutor = AutoExecutor
    submitit.core = types.SimpleNamespace(
        utils=types.SimpleNamespace(UncompletedJobError=LostError)
    )
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    return slurm


def test_what_becomes_of_the_jobs_of_slurm(played_slurm, tmp_path):
    """Arrays of bounded size; a lost job may be sent again, an error is the call's own."""
    options = SlurmOptions(array=2, partition="gpu", memory_gb=3, threads=1)
    with options.open(tmp_path) as executor:
        calls = [(abs, -3), (int, "x"), (os.abort,)]
        good, bad, lost = (executor.submit(*each) for each in calls)
        assert good.result(20) == 3
        assert isinstance(bad.exception(20), ValueError)
        assert isinstance(lost.exception(20), LOST)
    assert played_slurm.arrays == [2, 1]
    assert played_slurm.parameters["slurm_partition"] == "gpu"
    assert played_slurm.parameters["mem_gb"] == 3
    with pytest.raises(BrokenExecutor, match="NODE_FAIL"):
        lost.result()


def test_slurm_that_takes_no_more_jobs(played_slurm, tmp_path):
    """None at all is an error; while others run, the rest waits for them."""
    played_slurm.held = True
    executor = SlurmOptions().open(tmp_path)
    first = executor.submit(abs, -1)
    wait_for(lambda: played_slurm.arrays, "the first one is sent", 20)
    played_slurm.refuses = True
    second = executor.submit(abs, -2)
    third = executor.submit(abs, -3)
    wait_for(lambda: third.running(), "the others are tried", 20)
    assert third.running()
    played_slurm.refuses = played_slurm.held = False
    assert [each.result(20) for each in (first, second, third)] == [1, 2, 3]
    played_slurm.refuses = True
    with pytest.raises(RefusedError, match="invalid partition"):
        executor.submit(abs, -4).result(20)
    executor.shutdown()
    with pytest.raises(ConfigError, match="no sbatch"):
        SlurmOptions().open(tmp_path)


def test_an_interrupt_cancels_the_jobs_of_slurm(played_slurm, tmp_path):
    played_slurm.held = True
    executor = SlurmOptions(cluster="local", processes=1).open(tmp_path)
    running, waiting = (executor.submit(abs, -1) for _ in range(2))
    wait_for(lambda: played_slurm.jobs, "the first one is sent", 20)
    executor.interrupt()
    executor.shutdown(cancel_futures=True)
    assert [job.cancelled for job in played_slurm.jobs] == [True]
    assert not running.done()
    assert not waiting.done() or waiting.cancelled()


# ---- any


def test_a_sweep_ends_where_its_executor_takes_no_cells(tmp_path):
    """No cell has failed by that, and the same command runs them all."""

    class Refusing(ThreadPoolExecutor):
        def submit(self, *_):
            raise RefusedError("no such partition")

    plan = sweep.plan(str(write_table(tmp_path, seeds=[0, 1])), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="partition"):
        sweep.run_cells(plan, plan.cells, Refusing(1))
    assert [each.state for each in sweep.status(plan)] == ["new", "new"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{kind: ray, partition: gpu}", "executor.partition"),
        ("executor: {kind: ray, partition: gpu}", "executor.partition"),
        ("{executor: {kind: ray}, partition: gpu}", "partition: unknown key"),
        ("{kind: ray, gpus: 1.5}", "gpus"),
        ("{kind: slrum}", "'slurm'"),
        ("[local]", "must hold keys"),
    ],
)
def test_a_file_of_an_executor_that_is_wrong_is_named(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    table = write_table(tmp_path)
    code, output = call("table", table, "--executor", tmp_path / "mine.yaml")
    assert code == 2
    assert "mine.yaml" in output
    assert message in output
