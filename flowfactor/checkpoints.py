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
from flowfactor.models import SequenceModel
from flowfactor.registries import (
    DECODERS,
    ENCODERS,
    MODELS,
    OBSERVATIONS,
    POTENTIALS,
    TERMS,
)
from solvers.registry import Registry

MODEL_FILE = "model.pt"
STATE_FILE = "checkpoint.pt"
_FORMAT = 2


def load(
    run: str | os.PathLike[str],
    model: SequenceModel | None = None,
    device: str | torch.device = "cpu",
) -> SequenceModel:
    """Return the trained model of a run, in evaluation mode.

    Args:
        run: a run folder, or a model file in it.
        model: takes the weights of the file, for models that the file does not describe: those
            with networks of your own and those of an unregistered class.
        device: where to put the model.

    Raises:
        RunError: there is no such run, its model file is damaged, or it needs ``model`` or a
            plug-in.

    The file holds tensors and plain data only and is read without executing code.

    Example:
        >>> import tempfile, torch, flowfactor
        >>> model = flowfactor.FlowVAE.build(("rotation",), latent_dim=4, width=8)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     flowfactor.save_model(model, run)
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
    try:
        if model is None:
            model = _rebuild(saved, path)
        model.load_state_dict(saved["weights"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{path} does not describe this model: {error}. The file is damaged or was written by "
            f"another version or for another model."
        ) from error
    return model.to(device).eval()


def _rebuild(saved: dict[str, Any], path: Path) -> SequenceModel:
    """Return the untrained model that a file describes."""
    name, spec = saved["model"], saved["spec"]
    if spec is None:
        raise RunError(
            f"{path} holds the weights of a {saved['class']} that plain data does not describe; "
            f"make it as before training and call load(run, model=your_model)."
        )
    for registry, item in _named(name, spec):
        if item not in registry:
            plugin = saved["plugins"].get(item, "")
            raise RunError(
                f"{path} needs the {registry.kind} {item!r}, which the plug-in {plugin} defines. "
                f"Load it first: on the command line by --plugin, in Python by "
                f"flowfactor.plugins.load({plugin!r})."
            )
    model: SequenceModel = MODELS[name].from_spec(spec)
    return model


def save_model(model: SequenceModel, run: str | os.PathLike[str]) -> None:
    """Write the model file of a run: what :func:`load` reads.

    Raises:
        RunError: the file cannot be written.
    """
    name = MODELS.name_of(type(model))
    spec = None if name is None else model.spec()
    named = [] if spec is None or name is None else _named(name, spec)
    plugins = {item: registry.plugin_of(item) for registry, item in named}
    content = {
        "model": name,
        "class": type(model).__qualname__,
        "spec": spec,
        "plugins": {item: plugin for item, plugin in plugins.items() if plugin is not None},
        "weights": {key: value.detach().cpu() for key, value in model.state_dict().items()},
    }
    write(content, Path(run) / MODEL_FILE)


def _named(model: str, spec: dict[str, Any]) -> list[tuple[Registry[Any], str]]:
    """Return what a model's spec names, each with the registry that must know it."""
    options = spec["options"]
    named: list[tuple[Registry[Any], Any]] = [
        (MODELS, model),
        (ENCODERS, options.get("encoder", {}).get("kind")),
        (DECODERS, options.get("decoder", {}).get("kind")),
        (OBSERVATIONS, options.get("observation")),
        (POTENTIALS, options.get("potential")),
        *((TERMS, term) for term in options.get("objective", {})),
    ]
    return [(registry, item) for registry, item in named if item is not None]


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
