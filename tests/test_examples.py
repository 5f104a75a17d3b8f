"""The programs in ``examples/`` run."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_short_and_tested():
    paths = sorted(EXAMPLES.glob("*.py"))
    tested = {"compose_flows", "custom_potential", "flow_a_latent", "own_networks", "run_onnx"}
    assert {path.stem for path in paths} == tested
    assert all(len(path.read_text().splitlines()) < 60 for path in paths)


def test_flow_a_latent(capsys):
    load("flow_a_latent").main()
    back = next(line for line in capsys.readouterr().out.splitlines() if "back" in line)
    assert float(back.split(":")[1]) < 0.1


def test_custom_potential(capsys):
    load("custom_potential").main()
    error = next(line for line in capsys.readouterr().out.splitlines() if "error" in line)
    assert float(error.split(":")[1]) < 0.01


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_own_networks(tmp_path, capsys):
    load("own_networks").main(tmp_path, steps=3)
    assert "| rotation" in capsys.readouterr().out


def test_compose_flows(tmp_path, capsys):
    load("compose_flows").main(tmp_path)
    assert (tmp_path / "composition.png").is_file()
    assert "gap" in capsys.readouterr().out
