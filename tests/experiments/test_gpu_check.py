"""The list that compares an accelerator with the processor, which stands in for one here."""

import dataclasses
import shutil

import pytest
import torch

from experiments.benchmarks import gpu_check
from experiments.config import read_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return gpu_check.make_data(count=12, side=8)


@pytest.mark.parametrize("compute", [gpu_check.loss_and_gradient, gpu_check.drawn])
def test_equal_devices_compute_the_same(compute, data):
    (check,) = gpu_check.check_equality(CPU, "all", compute, ["slow_vae"], data)
    assert (check.good, check.difference, check.problem) == (True, 0.0, "")
    assert check.processor > 0
    assert check.accelerator > 0


def test_a_difference_and_a_problem_are_seen(data):
    def drifting(model, _):
        drifting.count += 0.01
        return torch.tensor([1.0, drifting.count])

    def broken(model, _):
        raise NotImplementedError("aten::unfold is not there")

    drifting.count = 0.0
    (check,) = gpu_check.check_equality(CPU, "all", drifting, ["vae"], data)
    assert not check.good
    assert check.difference == pytest.approx(0.01)
    (check,) = gpu_check.check_equality(CPU, "all", broken, ["vae"], data)
    assert not check.good
    assert "unfold" in check.problem
    text = gpu_check.table_of([check], CPU).to_markdown()
    assert "unfold" in text


def test_noise_is_that_of_the_processor():
    torch.manual_seed(0)
    expected = torch.randn(3), torch.empty(2).uniform_(), torch.randperm(5)
    torch.manual_seed(0)
    with gpu_check.SameNoise():
        found = torch.randn(3), torch.empty(2).uniform_(), torch.randperm(5)
    assert all(map(torch.equal, found, expected))


@pytest.mark.cluster  # compiling takes long
def test_compiled_flows_compute_the_same(data):
    if shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    made = torch._dynamo.utils.counters["stats"]
    before = made["unique_graphs"]
    (check,) = gpu_check.check_compiled(CPU, ["flow_vae"], data)
    assert check.good, check.problem
    assert check.difference < 1e-5
    assert made["unique_graphs"] > before


def test_a_training_is_resumed(data):
    check = gpu_check.check_training(CPU, data)
    assert check.good
    assert check.difference == 0


def test_speed_of_a_tiny_step():
    config = read_config("mnist")[1]
    training = dataclasses.replace(config.training, batch_size=2)
    checks = list(
        gpu_check.check_speed(CPU, config.replace(training=training), 1, compiled=(False,))
    )
    assert [check.name for check in checks] == ["step of mnist, float32", "step of mnist, bfloat16"]
    assert all(check.processor > 0 < check.accelerator for check in checks)


def test_without_an_accelerator_it_says_so(capsys):
    assert gpu_check.main([]) == gpu_check.main(["--device", "cuda:7"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no accelerator" in first
    assert "cuda:7" in second
