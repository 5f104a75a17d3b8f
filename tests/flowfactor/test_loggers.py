"""Loggers of services, which need packages of their own: `make test-cluster`."""

import sys

import pytest

from flowfactor.errors import ConfigError
from flowfactor.registries import LOGGERS


def feed(name, run):
    (run / "config.yaml").write_text("{model: {width: 8, clip: null}, seed: 3}")
    logger = LOGGERS[name](run)
    for step in (1, 2):
        logger.log_metrics({"train/loss": 1 / step, "train/odd": float("nan")}, step)
        logger.log_metrics({"validation/loss": 2 / step}, step)
    logger.finalize("success")


@pytest.mark.cluster
def test_mlflow_keeps_settings_and_every_line(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    feed("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("flowfactor").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.width": "8", "model.clip": "None", "seed": "3"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(1, 1.0), (2, 0.5)]


@pytest.mark.cluster
def test_wandb_writes_into_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    feed("wandb", tmp_path)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"flowfactor\[{name}\]"):
        LOGGERS[name](tmp_path)
