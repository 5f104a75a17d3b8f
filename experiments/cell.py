"""One cell of a table: a training and its evaluation, in a process of its own.

python -m experiments.cell CONFIG.yaml RUN

`flowfactor table` starts it. It goes on for as long as its standard input is open: when that ends,
the training saves its state and the process ends. So no cell outlives the command that started it,
however that command ended.
"""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# What takes long to import comes later: by then the end of the parent must be noticed already.
if TYPE_CHECKING:
    from experiments.config import Config
    from flowfactor.training import Progress

State = Literal["new", "empty", "begun", "trained", "finished"]

EVALUATED_FILE = "evaluated.json"
"""By which options ``evaluation.json`` was made; it is in the run folder of a cell."""

INTERRUPTED = 130
"""The exit code of a cell whose parent has ended."""

ERROR = "Error: "
"""How the last line begins of what a failing cell writes."""

# Changes of these keys leave a training as it is.
_ONLY_EVALUATED = ("description:", "evaluation.")

_LOCK_SECONDS = 60
_SAVING_SECONDS = 45

logger = logging.getLogger(__name__)


def state_of(run: Path, config: Config) -> State:
    """Return how far a cell is.

    Args:
        run: its folder.
        config: what it is to be.

    Returns:
        ``new`` if there is nothing; ``empty`` if the training was ended before its first
        checkpoint; ``begun`` if it can be resumed; ``trained`` if it is to be evaluated, for the
        first time or with other options; ``finished`` if nothing is left to do.

    Raises:
        RunError: the folder was made with another configuration.
        ConfigError: its configuration is damaged.
    """
    from experiments import runs

    if not (run / runs.CONFIG_FILE).is_file():
        return "new"
    if changed := changes(run, config):
        from flowfactor.errors import RunError

        listed = "\n".join(f"  {change}" for change in changed)
        raise RunError(f"{run} was made with another configuration. What differs:\n{listed}")
    if (run / runs.TRAINING_FILE).is_file():
        made_by = _read(run / EVALUATED_FILE)
        evaluated = made_by is not None and made_by == _evaluated(run, config)
        return "finished" if evaluated else "trained"
    return "begun" if (run / "checkpoint.pt").is_file() else "empty"


def changes(run: Path, config: Config) -> list[str]:
    """Return ``key: old -> new`` for what would make the training of a run another one."""
    from experiments.config import differences
    from experiments.runs import read_run_config

    return [
        change
        for change in differences(read_run_config(run), config)
        if not change.startswith(_ONLY_EVALUATED)
    ]


def run_cell(config: Config, run: Path) -> None:
    """Do what is left of a cell: train or resume, then evaluate.

    Args:
        config: of the run, its source of data resolved.
        run: the folder.

    Raises:
        RunError: another process works on the folder, or it was made with another configuration.
        ConfigError, DataError, TrainingError: as their names say.
    """
    from experiments import runs
    from experiments.config import dump
    from flowfactor.checkpoints import atomic_file

    run.parent.mkdir(parents=True, exist_ok=True)
    with _locked(run):
        state = state_of(run, config)
        if state == "empty":
            logger.info("%s was ended before its first checkpoint and starts again", run)
            shutil.rmtree(run)
        if state in ("new", "empty", "begun"):
            runs.train(config, run, resume=state == "begun", on_progress=_log_validation)
        if state != "finished":
            # An evaluation by other options must not be taken for this one if this one fails.
            (run / EVALUATED_FILE).unlink(missing_ok=True)
            with atomic_file(run / runs.CONFIG_FILE) as file:
                file.write(dump(config).encode())
            runs.evaluate(run, on_stage=lambda stage: logger.info("measuring %s", stage))
            runs.write_json(run / EVALUATED_FILE, _evaluated(run, config))


def main(arguments: list[str]) -> int:
    """Run a cell; return its exit code: 0, 1 if it failed, 130 if the parent has ended."""
    _end_with_parent()
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("flowfactor", "experiments", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        config_file, run = arguments
        from experiments.config import read_config

        # The command that the run's files name is one that does the same.
        sys.argv = ["flowfactor", "train", config_file, "--out", run]
        run_cell(read_config(config_file)[1], Path(run))
    except KeyboardInterrupt:
        logger.info("interrupted; what was trained is kept")
        return INTERRUPTED
    except Exception as error:
        from flowfactor.errors import FlowFactorError

        if not isinstance(error, FlowFactorError) or os.environ.get("FLOWFACTOR_DEBUG"):
            logger.exception("the cell failed")
        kind = "" if isinstance(error, FlowFactorError) else f"{type(error).__name__}: "
        sys.stderr.write(f"{ERROR}{kind}{' '.join(str(error).split())}\n")
        return 1
    return 0


@contextlib.contextmanager
def _locked(run: Path) -> Any:
    """Keep other processes from the run; wait for one that is about to end."""
    from filelock import FileLock, Timeout

    from flowfactor.errors import RunError

    path = run.with_name(f"{run.name}.lock")
    try:
        with FileLock(path, timeout=_LOCK_SECONDS):
            yield
    except Timeout as error:
        raise RunError(
            f"Another process has been working on {run} for {_LOCK_SECONDS} s. Wait until it has "
            f"ended, or end it; then run the table again."
        ) from error


def _end_with_parent() -> None:
    """Interrupt this process, as Ctrl-C would, when standard input ends."""
    # Whoever starts a program in the background may have it ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait() -> None:
        # Not sys.stdin, whose buffer would be locked while the interpreter ends.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        _thread.interrupt_main()
        time.sleep(_SAVING_SECONDS)
        # Something does not end. Files are written whole or not at all, so nothing is damaged.
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


def _evaluated(run: Path, config: Config) -> dict[str, Any]:
    """Return what an evaluation depends on, and which one it is."""
    from experiments import runs

    return {
        "options": config.evaluation.model_dump(mode="json"),
        "training": _digest(run / runs.TRAINING_FILE),
        "evaluation": _digest(run / runs.EVALUATION_FILE),
    }


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _read(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return None


def _log_validation(progress: Progress) -> None:
    if progress.split == "validation":
        logger.info("step %d: validation loss %.2f", progress.step, progress.terms["loss"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
