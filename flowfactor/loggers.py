"""Loggers of a training, through Fabric's interface; a new one is a function like these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
