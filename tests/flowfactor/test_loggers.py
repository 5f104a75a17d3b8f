"""Loggers; those of services need packages of their own: `make test-cluster`."""

import dataclasses
import sys

import lightning_fabric
import pytest
from PIL import Image
from small_models import small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_data import Tiny

from flowfactor.errors import ConfigError
from flowfactor.registries import LOGGERS
from flowfactor.training import TrainingOptions, fit

DATA = Tiny(horizon=2)
OPTIONS = TrainingOptions(
    steps=2,
    batch_size=4,
    log_every=1,
    validate_every=2,
    validation_sequences=4,
    checkpoint_every=1,
    loggers=("tensorboard",),
    media=True,
    accelerator="cpu",
    precision="32-true",
    threads=1,
)


def make():
    return small("flow_vae", DATA.names, DATA.image_shape, DATA.horizon)


def test_tensorboard_shows_each_step_once_after_a_resume_and_pictures(tmp_path, empty_figures):
    fit(make(), DATA, DATA, OPTIONS, tmp_path)
    more = dataclasses.replace(OPTIONS, steps=3)
    fit(make(), DATA, DATA, more, tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    assert [each.step for each in events.Scalars("train/loss")] == [1, 2, 3]
    assert [each.step for each in events.Scalars("validation/loss")] == [2, 3]
    for name in ("film_strips", "flows"):
        (shown,) = events.Images(name)
        assert shown.step == 3
        assert shown.encoded_image_string[:3] in (b"\x89PN", b"GIF")
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    with Image.open(tmp_path / "media" / "flows.gif") as picture:
        assert picture.is_animated


def test_loggers_of_the_callers_fabric(tmp_path, empty_figures):
    told = {}

    class Logger:
        def log_metrics(self, metrics, step):
            told.setdefault(step, {}).update(metrics)

        def log_hyperparams(self, settings):
            told["settings"] = settings

        def log_media(self, name, file, step):
            told[name] = (file.suffix, step)

    options = dataclasses.replace(OPTIONS, loggers=("csv",))
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1, loggers=[Logger()])
    fit(make(), DATA, DATA, options, tmp_path, fabric=fabric)
    assert told["settings"]["training.steps"] == 2
    assert told["settings"]["model"] == "flow_vae"
    assert told["film_strips"] == (".png", 2)
    assert told["flows"] == (".gif", 2)
    assert set(told[1]) > {"train/loss", "train/seconds"}
    assert "validation/loss" in told[2]


def feed(name, run):
    logger = LOGGERS[name](run)
    logger.log_hyperparams({"model.width": 8, "model.clip": None, "seed": 3})
    picture = run / "picture.gif"
    Image.new("RGB", (4, 4)).save(picture)
    logger.log_media("flows", picture, 1)
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
    (picture,) = client.list_artifacts(run.info.run_id, "flows/00000001")
    assert picture.path.endswith(".gif")
    assert list((tmp_path / "mlflow").rglob("*.gif"))  # and not in the working folder


@pytest.mark.cluster
def test_wandb_writes_into_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    feed("wandb", tmp_path)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/videos/*.gif"))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"flowfactor\[{name}\]"):
        LOGGERS[name](tmp_path)
