"""Files of a run: models and training states that load without executing code."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from flowfactor.errors import RunError
from flowfactor.models import MODELS, SequenceModel

MODEL_FILE = "model.pt"
STATE_FILE = "checkpoint.pt"
_FORMAT = 1


def load(run: str | os.PathLike[str], device: str | torch.device = "cpu") -> SequenceModel:
    """Return the trained model of a run, in evaluation mode.

    Args:
        run: a run folder, or a model file in it.
        device: where to put the model.

    Raises:
        RunError: there is no such run, or its model file is damaged.

    The file holds tensors and plain data only and is read without executing code.

    Example:
        >>> import tempfile, torch, flowfactor
        >>> from flowfactor.checkpoints import save_model
        >>> model = flowfactor.FlowVAE.build(("rotation",), latent_dim=4, width=8)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     save_model(model, run)
        ...     again = flowfactor.load(run)
        >>> z = torch.zeros(1, 4)
        >>> torch.equal(model.decode(z), again.decode(z))
        True
    """
    path = Path(run)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.exists():
        raise RunError(
            f"There is no trained model at {path}. Give the folder of a run that has finished or "
            f"saved at least one model: `flowfactor train CONFIG --out {Path(run)}` makes one."
        )
    saved = read(path)
    name = saved.get("model")
    if name not in MODELS:
        raise RunError(
            f"{path} holds a model of the kind {name!r}; this version knows {', '.join(MODELS)}. "
            f"Open it with the version of flowfactor that wrote it."
        )
    try:
        model = MODELS[name].build(**saved["spec"])
        model.load_state_dict(saved["weights"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{path} does not describe a model that can be built: {error}. The file is damaged or "
            f"was written by another version; train again or restore it from a copy."
        ) from error
    return model.to(device).eval()


def save_model(model: SequenceModel, run: str | os.PathLike[str]) -> None:
    """Write the model file of a run: what :func:`load` reads.

    Raises:
        TypeError: the model cannot be built from plain data.
        RunError: the file cannot be written.
    """
    name = next(name for name, kind in MODELS.items() if kind is type(model))
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    write({"model": name, "spec": model.spec(), "weights": weights}, Path(run) / MODEL_FILE)


def read(path: Path) -> dict[str, Any]:
    """Read plain data and tensors, checking that the file is whole.

    Raises:
        RunError: the file is missing, truncated, or no file of this project.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"There is no file {path}.") from error
    except Exception as error:  # torch.load raises whatever the damage happens to hit
        raise RunError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}). It is damaged or was "
            f"not written by flowfactor. Nothing was changed: restore it from a copy, or train "
            f"into a new folder."
        ) from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise RunError(
            f"{path} is no checkpoint of this version of flowfactor (format {_FORMAT}). Nothing "
            f"was changed: open it with the version that wrote it, or train into a new folder."
        )
    return saved


def write(content: dict[str, Any], path: Path) -> None:
    """Write plain data and tensors atomically: the old file stays until the new one is whole.

    Raises:
        RunError: the file cannot be written.
    """
    with atomic_file(path) as file:
        torch.save({"format": _FORMAT, **content}, file)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that takes its place when all went well.

    Raises:
        RunError: the file cannot be written.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
