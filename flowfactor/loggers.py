"""Loggers of a training, through Fabric's interface; a new one is a function like these.

A training that is continued makes its loggers anew and feeds them all of its lines, so that nothing
is missing or shown twice.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from flowfactor.errors import ConfigError
from flowfactor.registries import LOGGERS


@LOGGERS.register("tensorboard")
def make_tensorboard_logger(run: Path) -> Any:
    """Return a logger of event files in ``tensorboard/``."""
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    # Hides what earlier files hold: a resumed training writes all of its lines again.
    return TensorBoardLogger(root_dir=run, name="", version="tensorboard", purge_step=0)


@LOGGERS.register("csv")
def make_csv_logger(run: Path) -> Any:
    """Return a logger of tables in ``csv/``, one for each time that the training is continued."""
    from lightning_fabric.loggers.csv_logs import CSVLogger

    return CSVLogger(root_dir=run, name="csv")


@LOGGERS.register("mlflow")
class MLflowLogger:
    """A run of MLflow, at ``MLFLOW_TRACKING_URI`` or in the file ``mlflow.db`` of the run folder.

    The experiment is ``MLFLOW_EXPERIMENT_NAME`` or ``flowfactor``. Its parameters are the keys of
    the configuration. A training that is continued is a new run of the same name.

    Args:
        run: the folder.

    Raises:
        ConfigError: MLflow is missing, or there is no such server.
    """

    def __init__(self, run: Path) -> None:
        mlflow = _import("mlflow")
        self._error = mlflow.exceptions.MlflowException
        self._metric = mlflow.entities.Metric
        file = f"sqlite:///{run.absolute() / 'mlflow.db'}"
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "flowfactor"
        try:
            self._client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or file)
            found = self._client.get_experiment_by_name(experiment)
            key = (
                self._client.create_experiment(experiment) if found is None else found.experiment_id
            )
            self._run = self._client.create_run(key, run_name=run.name).info.run_id
            for name, value in _settings(run).items():
                self._client.log_param(self._run, name, value)
        except self._error as error:
            raise ConfigError(f"training.loggers: mlflow: {error}") from error

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the values of a line.

        Raises:
            ValueError: the server does not take them.
        """
        now = int(1000 * time.time())
        try:
            self._client.log_batch(
                self._run, [self._metric(name, value, now, step) for name, value in metrics.items()]
            )
        except self._error as error:
            raise ValueError(f"mlflow: {error}") from error

    def finalize(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._run, "FINISHED" if status == "success" else "FAILED")


@LOGGERS.register("wandb")
class WandbLogger:
    """A run of Weights & Biases, in ``wandb/`` of the run folder.

    The project is ``WANDB_PROJECT`` or ``flowfactor``; ``WANDB_MODE=offline`` keeps all on this
    machine. A training that is continued is a new run of the group that its folder names.

    Args:
        run: the folder.

    Raises:
        ConfigError: wandb is missing, or it has no account.
    """

    def __init__(self, run: Path) -> None:
        wandb = _import("wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "flowfactor",
                dir=run,
                name=run.name,
                group=run.name,
                config=_settings(run),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(f"training.loggers: wandb: {error}") from error

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the values of a line."""
        self._run.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        """End the run."""
        self._run.finish(exit_code=int(status != "success"))


def _settings(run: Path) -> dict[str, Any]:
    """Return the configuration of a run, by key; nothing if it has none."""
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    return dict(_flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"training.loggers: {package} is not installed. `pip install 'flowfactor[{package}]'` "
            f"does it."
        ) from error
