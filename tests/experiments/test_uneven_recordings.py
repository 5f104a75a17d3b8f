"""A configuration of one's own for recordings at real-valued times, from training to figures."""

import numpy as np
import pytest
from tiny import TRAINING

import flowfactor
from experiments.runs import read_evaluation
from flowfactor.metrics import Equivariance, MeanFilmMetric

CONFIG = """
seed: 0
data: {{source: recordings, path: {path}, validation: 4, test: 4}}
model:
  latent_dim: 4
  width: 8
  encoder: {{channels: [4, 8], hidden: 16}}
  decoder: {{hidden: [16]}}
training: {{steps: 2}}
evaluation: {{split: test}}
"""

pytestmark = pytest.mark.usefixtures("empty_figures")


def test_from_training_to_figures(call, tmp_path):
    random = np.random.default_rng(0)
    times = np.cumsum(random.uniform(0.1, 1, (16, 4)), 1) - 0.05
    times[:, 0] = 0
    films = random.random((16, 4, 1, 8, 8)) * 0.2 + 0.1 * times[..., None, None, None]
    np.savez(tmp_path / "films.npz", frames=films.clip(0, 1), times=times, labels=["a", "b"] * 8)
    (tmp_path / "own.yaml").write_text(CONFIG.format(path=tmp_path / "films.npz"))
    values = [f"{key}={value}" for key, value in TRAINING.items() if isinstance(value, int | str)]
    words = [word for value in values for word in ("--set", value)]
    config, run = tmp_path / "own.yaml", tmp_path / "run"
    code, output = call("run", config, *words, "--out", run)
    assert code == 0, output
    evaluation = read_evaluation(run)
    assert set(evaluation.result(Equivariance).errors) == {"a", "b"}
    assert evaluation.result(MeanFilmMetric) is None
    assert flowfactor.load(run).horizon == 3
    code, output = call(
        "train", config, *words, "--set", "model.kind=poflow", "--out", tmp_path / "b"
    )
    assert code == 2
    assert "constant rate" in output
    assert not (tmp_path / "b").exists()
