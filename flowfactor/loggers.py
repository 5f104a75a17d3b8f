"""Loggers of a training, through Fabric's interface; a new one is a function like these.

A training that is continued makes its loggers anew and feeds them all of its lines, so that nothing
is missing or shown twice. They are told its settings by ``log_hyperparams(settings)``, and shown
pictures by ``log_media(name, file, step)``, if they have these methods.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flowfactor.data import SequenceBatch
from flowfactor.errors import ConfigError
from flowfactor.extras import import_extra
from flowfactor.models import SequenceModel
from flowfactor.registries import LOGGERS

# Rows of a film strip, and names in an animation.
_ROWS = 6


@LOGGERS.register("tensorboard")
def make_tensorboard_logger(run: Path) -> Any:
    """Return a logger of event files in ``tensorboard/``."""
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger
    from tensorboard.compat.proto.summary_pb2 import Summary

    class Logger(TensorBoardLogger):
        def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
            from torch.utils.tensorboard.summary import hparams

            plain = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in params.items()
            }
            # The metric by which the page compares runs: its lines come later.
            for summary in hparams(plain, {"validation/loss": 0.0}):
                self.experiment.file_writer.add_summary(summary)

        def log_media(self, name: str, file: Path, step: int) -> None:
            with Image.open(file) as picture:
                width, height = picture.size
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes()
            )
            value = Summary.Value(tag=name, image=image)
            self.experiment.file_writer.add_summary(Summary(value=[value]), step)

    # Hides what earlier files hold: a resumed training writes all of its lines again.
    return Logger(root_dir=run, name="", version="tensorboard", purge_step=0)


@LOGGERS.register("csv")
def make_csv_logger(run: Path) -> Any:
    """Return a logger of tables in ``csv/``, one for each time that the training is continued."""
    from lightning_fabric.loggers.csv_logs import CSVLogger

    return CSVLogger(root_dir=run, name="csv")


@LOGGERS.register("mlflow")
class MLflowLogger:
    """A run of MLflow, at ``MLFLOW_TRACKING_URI`` or in the file ``mlflow.db`` of the run folder.

    Pictures are in ``mlflow/`` beside that file. The experiment is ``MLFLOW_EXPERIMENT_NAME`` or
    ``flowfactor``. Its parameters are the settings of the training. A training that is continued is
    a new run of the same name.

    Args:
        run: the folder.

    Raises:
        ConfigError: there is no such server.
        MissingExtraError: MLflow is not installed.
    """

    def __init__(self, run: Path) -> None:
        mlflow = import_extra("mlflow", "mlflow")
        self._error = mlflow.exceptions.MlflowException
        self._metric = mlflow.entities.Metric
        file = f"sqlite:///{run.absolute() / 'mlflow.db'}"
        server = os.environ.get("MLFLOW_TRACKING_URI")
        pictures = None if server else (run.absolute() / "mlflow").as_uri()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "flowfactor"
        try:
            self._client = mlflow.MlflowClient(server or file)
            found = self._client.get_experiment_by_name(experiment)
            key = (
                self._client.create_experiment(experiment, pictures)
                if found is None
                else found.experiment_id
            )
            self._run = self._client.create_run(key, run_name=run.name).info.run_id
        except self._error as error:
            raise ConfigError(f"training.loggers: mlflow: {error}") from error

    def log_hyperparams(self, settings: Mapping[str, Any]) -> None:
        """Log the settings of the training.

        Raises:
            ValueError: the server does not take them.
        """
        with self._asking():
            for name, value in settings.items():
                self._client.log_param(self._run, name, value)

    def log_media(self, name: str, file: Path, step: int) -> None:
        """Keep a picture as an artifact.

        Raises:
            ValueError: the server does not take it.
        """
        with self._asking():
            self._client.log_artifact(self._run, str(file), f"{name}/{step:08d}")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the values of a line.

        Raises:
            ValueError: the server does not take them.
        """
        now = int(1000 * time.time())
        numbers = [self._metric(name, value, now, step) for name, value in metrics.items()]
        with self._asking():
            self._client.log_batch(self._run, numbers)

    def finalize(self, status: str) -> None:
        """End the run.

        Raises:
            ValueError: the server does not answer any more.
        """
        with self._asking():
            self._client.set_terminated(self._run, "FINISHED" if status == "success" else "FAILED")

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise ValueError(f"mlflow: {error}") from error


@LOGGERS.register("wandb")
class WandbLogger:
    """A run of Weights & Biases, in ``wandb/`` of the run folder.

    The project is ``WANDB_PROJECT`` or ``flowfactor``; ``WANDB_MODE=offline`` keeps all on this
    machine. A training that is continued is a new run of the group that its folder names.

    Args:
        run: the folder.

    Raises:
        ConfigError: it has no account.
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, run: Path) -> None:
        self._wandb = wandb = import_extra("wandb", "wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "flowfactor",
                dir=run,
                name=run.name,
                group=run.name,
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(f"training.loggers: wandb: {error}") from error

    def log_hyperparams(self, settings: Mapping[str, Any]) -> None:
        """Log the settings of the training."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def log_media(self, name: str, file: Path, step: int) -> None:
        """Log a picture, or one that moves."""
        moves = file.suffix == ".gif"
        shown = self._wandb.Video(str(file)) if moves else self._wandb.Image(str(file))
        self._run.log({name: shown}, step=step)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the values of a line."""
        self._run.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        """End the run."""
        self._run.finish(exit_code=int(status != "success"))


def draw_media(model: SequenceModel, sequences: SequenceBatch, folder: Path) -> dict[str, Path]:
    """Draw film strips of one sequence for each flow, and an animation of all flows.

    Args:
        model: in evaluation mode.
        sequences: complete ones, on the device of the model.
        folder: where the files are written, over older ones.

    Returns:
        The files by name: ``film_strips``, a PNG, and ``flows``, a GIF.
    """
    from flowfactor import diagnostics  # takes a second

    with torch.no_grad():
        labels = model.choose(sequences)
    rows = [int((labels == k).nonzero()[0]) for k in labels.unique()[:_ROWS]]
    few = dataclasses.replace(
        sequences,
        frames=sequences.frames[rows],
        times=sequences.times[rows],
        labels=labels[rows],
        activity=None,
    )
    figure = diagnostics.plot_film_strips(model, few, identity=True)
    files = {"film_strips": diagnostics.save(figure, folder / "film_strips.png")}
    animation = diagnostics.animate(model, few.frames[:, 0], names=model.names[:_ROWS])
    files["flows"] = animation.save(folder / "flows.gif")
    return files
