"""Loggers; those of services need packages of their own: `make test-cluster`."""

import dataclasses
import sys
import types

import lightning_fabric
import pytest
from PIL import Image
from small_models import small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_data import Tiny

from flowfactor.errors import ConfigError, MissingExtraError
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


class PlayedService:
    """What MLflow and wandb are asked for, until they refuse."""

    def __init__(self):
        self.calls, self.refuses = [], ()

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if name in self.refuses:
                raise self.error(f"{name} is refused")
            self.calls.append((name, *args))
            return self

        return call

    class error(Exception):  # noqa: N801, N818  (as wandb calls it)
        pass


@pytest.fixture
def mlflow(monkeypatch):
    service = PlayedService()
    service.info = types.SimpleNamespace(run_id="7")
    module = types.ModuleType("mlflow")
    module.exceptions = types.SimpleNamespace(MlflowException=service.error)
    module.entities = types.SimpleNamespace(Metric=lambda *metric: metric)
    module.MlflowClient = lambda address: service
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return service


@pytest.fixture
def wandb(monkeypatch):
    service = PlayedService()
    service.config = service
    module = types.ModuleType("wandb")
    module.init, module.Settings, module.Error = service.init, dict, service.error
    module.Image = module.Video = lambda file: file
    monkeypatch.setitem(sys.modules, "wandb", module)
    return service


def test_what_mlflow_is_told(tmp_path, mlflow):
    feed("mlflow", tmp_path)
    told = [call[:3] for call in mlflow.calls]
    assert ("log_param", "7", "model.width") in told
    assert [call[2][0][1::2] for call in mlflow.calls if call[0] == "log_batch"][::2] == [
        (1.0, 1), (0.5, 2)
    ]  # fmt: skip
    assert mlflow.calls[-1] == ("set_terminated", "7", "FINISHED")
    for method in ("log_param", "log_artifact", "log_batch"):
        mlflow.refuses = (method,)
        with pytest.raises(ValueError, match=method):
            feed("mlflow", tmp_path)
    mlflow.refuses = ("create_run",)
    with pytest.raises(ConfigError, match=r"training\.loggers: mlflow"):
        feed("mlflow", tmp_path)


def test_what_wandb_is_told(tmp_path, wandb):
    feed("wandb", tmp_path)
    logged = [call[1] for call in wandb.calls if call[0] == "log"]
    assert {"flows": str(tmp_path / "picture.gif")} in logged
    assert {"validation/loss": 1.0} in logged
    assert wandb.calls[-1] == ("finish",)
    wandb.refuses = ("init",)
    with pytest.raises(ConfigError, match=r"training\.loggers: wandb"):
        feed("wandb", tmp_path)


def test_a_logger_that_refuses_is_left_out_of_the_training(tmp_path, mlflow, caplog):
    """The others go on, and so does what it would have shown."""
    mlflow.refuses = ("log_batch",)
    options = dataclasses.replace(OPTIONS, loggers=("mlflow", "csv"), media=False)
    assert fit(make(), DATA, DATA, options, tmp_path).steps == 2
    assert "log_batch" in caplog.text
    assert len([call for call in mlflow.calls if call[0] == "log_param"]) > 5
    (table,) = (tmp_path / "csv").glob("*/metrics.csv")
    assert "train/loss" in table.read_text()


def test_a_service_that_is_gone_at_the_end_takes_nothing_along(tmp_path, mlflow, caplog):
    mlflow.refuses = ("set_terminated",)
    options = dataclasses.replace(OPTIONS, loggers=("mlflow",), media=False)
    assert fit(make(), DATA, DATA, options, tmp_path).steps == 2
    assert "set_terminated" in caplog.text


def test_pictures_that_cannot_be_drawn_do_not_end_the_training(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise ValueError("an image to show must have 1 or 3 channels")

    monkeypatch.setattr("flowfactor.training.draw_media", fail)
    assert fit(make(), DATA, DATA, dataclasses.replace(OPTIONS, loggers=()), tmp_path).steps == 2
    assert "channels" in caplog.text


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
    with pytest.raises(MissingExtraError, match=rf"flowfactor\[{name}\]"):
        LOGGERS[name](tmp_path)
