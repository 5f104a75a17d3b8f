"""Executors that are refused, or that refuse: before a cell is run, in a sentence."""

import socket
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from command_line import call
from tables import write_table

from experiments import sweep
from experiments.executors import RayOptions, RefusedError
from flowfactor.errors import ConfigError


@pytest.fixture
def played_ray(monkeypatch):
    """Return a module in place of Ray's: two nodes, one of which has a GPU."""

    def node(**resources):
        return {"Alive": True, "Resources": resources | {"memory": 8 * 2**30}}

    ray = types.ModuleType("ray")
    ray.exceptions = mock.Mock()
    ray.joined = []
    ray.init = lambda address, **_: ray.joined.append(address)
    ray.is_initialized = lambda: bool(ray.joined)
    ray.shutdown = ray.joined.clear
    ray.nodes = lambda: [node(CPU=4.0), node(CPU=2.0, GPU=1.0)]
    ray.remote = lambda **_: lambda function: function
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
