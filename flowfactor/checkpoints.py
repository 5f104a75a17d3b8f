"""Files of a run: models and training states that load without executing code.

A model is a file of :mod:`flowfactor.tensor_files`. A training state, and a model written before,
is an archive of torch whose comment is the SHA-256 of all bytes before it. So damage anywhere is
noticed, and what is in a file is bounded by its size.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import math
import os
import re
import secrets
import socket
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flowfactor import pretrained, tensor_files
from flowfactor.checks import brief
from flowfactor.errors import BusyError, ConfigError, RunError, explain
from flowfactor.machine import find_device
from flowfactor.models import SequenceModel
from flowfactor.registries import (
    DECODERS,
    ENCODERS,
    FIELDS,
    MODELS,
    OBSERVATIONS,
    TERMS,
)
from solvers.registry import Registry

MODEL_FILE = "model.safetensors"
ARCHIVE_FILE = "model.pt"
"""The model of a run that an earlier version trained."""
STATE_FILE = "checkpoint.pt"
LOCK_FILE = ".training.lock"

_MODEL_FORMAT = 4
_FORMAT = 3
_SEAL = b"sha256:"
_SEAL_SIZE = len(_SEAL) + 64
_END_OF_ARCHIVE = 22
"""Size of the last record of an archive; its last two bytes are the length of the comment."""

_MOST_NAMES = 10_000
_LONGEST_NAME = 1000
_MOST_FRAMES = 1_000_000

_FACTORIES = frozenset(
    {torch.arange, torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros}
)
"""Functions that make tensors of the size that they are given first."""

_TEMPORARY = re.compile(r"\.(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{8}\.part")

_locked: contextvars.ContextVar[frozenset[Path]] = contextvars.ContextVar(
    "locked", default=frozenset()
)


def load(
    run: str | os.PathLike[str],
    model: SequenceModel | None = None,
    device: str | torch.device = "cpu",
) -> SequenceModel:
    """Return a trained model, in evaluation mode.

    Args:
        run: a run folder, a model file in it, or the name of a model that ships, see
            :func:`flowfactor.pretrained.names`.
        model: takes the weights of the file, for models that the file does not describe: those
            with networks of your own and those of an unregistered class.
        device: where to put the model; ``auto`` is an accelerator if there is one.

    Raises:
        RunError: there is no such run, its model file is damaged, or it needs ``model`` or a
            plug-in.
        ConfigError: there is no such device.

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
    place = find_device(device)
    path = model_file(run)
    saved = read(path)
    try:
        weights = _weights_of(saved, path)
        if model is None:
            model = _rebuild(saved, path)
        check_tensors(model.state_dict(), weights)
        model.load_state_dict(weights)
    except RunError:
        raise
    except Exception as error:  # whatever a stranger's file makes a constructor raise
        raise RunError(
            f"{path} does not describe this model: {_brief(error)}. It was written by another "
            f"version or for another model."
        ) from error
    return model.to(place).eval()


def take_weights(model: SequenceModel, run: str | os.PathLike[str]) -> tuple[str, ...]:
    """Let a model begin with the weights of another, as far as both have them.

    These are the tensors of the same name and shape. The names and the order of flows come along,
    see :meth:`~flowfactor.models.SequenceModel.inherit`.

    Args:
        model: is changed in place.
        run: a run folder, a model file, or the name of a model that ships.

    Returns:
        The names of the parameters that the other model does not have: they stay as they are.

    Raises:
        RunError: there is no such model, its file is damaged, or none of its weights fit.
        ConfigError: its flows are others than those of the model.

    Example:
        >>> import tempfile, flowfactor
        >>> blurred, sharp = (
        ...     flowfactor.FlowVAE.build(("hue",), latent_dim=4, width=8, observation=each)
        ...     for each in ("bernoulli", "laplace")
        ... )
        >>> with tempfile.TemporaryDirectory() as run:
        ...     flowfactor.save_model(blurred, run)
        ...     flowfactor.checkpoints.take_weights(sharp, run)
        ('observation.log_scale',)
    """
    path = model_file(run)
    saved = read(path)
    try:
        weights = _weights_of(saved, path)
        spec = saved["spec"] or {}
        names = spec.get("flows", spec.get("names"))
        taken = model.inherit(weights, None if names is None else tuple(names))
        model.load_state_dict(taken, strict=False)
    except (RunError, ConfigError):
        raise
    except Exception as error:  # whatever a stranger's file makes of this
        raise RunError(f"{path} does not describe a model: {_brief(error)}.") from error
    if not taken:
        raise RunError(f"{path} has no weights of the names and shapes of this model.")
    return tuple(name for name, _ in model.named_parameters() if name not in taken)


def _weights_of(saved: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the weights that were read from a model file, in single precision if halved."""
    _check_size(saved["weights"], path)
    if saved.get("half") is True:
        saved["weights"] = {name: _widen(each) for name, each in saved["weights"].items()}
    weights: dict[str, Tensor] = saved["weights"]
    return weights


def find_model(run: str | os.PathLike[str]) -> Path | None:
    """Return the model file in a run folder, None if there is none yet."""
    files = (Path(run) / name for name in (MODEL_FILE, ARCHIVE_FILE))
    return next((path for path in files if path.exists()), None)


def model_file(run: str | os.PathLike[str]) -> Path:
    """Return the model file of a run or of a model that ships, or the file itself.

    Raises:
        RunError: there is none.
    """
    path = Path(run)
    if not path.exists() and os.fspath(run) in pretrained.names():
        return pretrained.folder(os.fspath(run)) / MODEL_FILE
    found = find_model(path) if path.is_dir() else path if path.exists() else None
    if found is None:
        raise RunError(
            f"There is no trained model at {path / MODEL_FILE if path.is_dir() else path}. Give "
            f"the folder of a run that has finished or saved at least one model, as `flowfactor "
            f"train CONFIG --out {path}` makes one, or the name of a model that ships: "
            f"{', '.join(pretrained.names())}."
        )
    return found


def digest(run: str | os.PathLike[str]) -> str:
    """Return the SHA-256 that seals the model file of a run; other weights have another one.

    It is read from its place in the file; :func:`load` compares it with the rest.

    Args:
        run: a folder, or the file itself.

    Raises:
        RunError: there is no model, or its file has no seal.
    """
    path = model_file(run)
    with path.open("rb") as file:
        found = tensor_files.seal_of(file) or _seal_of(file)
    if found is None:
        raise RunError(f"{path} is damaged: its checksum is missing. Restore it from a copy.")
    return found


def _rebuild(saved: dict[str, Any], path: Path) -> SequenceModel:
    """Return the untrained model that a file describes, after checking its sizes."""
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
    _check_spec(spec)
    with _Bounded(saved["weights"]):
        model: SequenceModel = MODELS[name].from_spec(spec)
    return model


def _check_spec(spec: dict[str, Any]) -> None:
    """Refuse names, images and horizons of impossible sizes, before anything is made of them.

    Raises:
        ValueError: with what is allowed.
    """
    for key in ("names", "flows"):
        names = spec.get(key, [])
        if not (
            isinstance(names, list)
            and len(names) <= _MOST_NAMES
            and all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names)
        ):
            raise ValueError(
                f"{key} must be at most {_MOST_NAMES} names of at most {_LONGEST_NAME} letters"
            )
    shape = spec["image_shape"]
    if len(shape) != 3 or not all(type(size) is int and 0 < size < 2**16 for size in shape):
        raise ValueError("image_shape must be three integers in 1..65535")
    if type(spec["horizon"]) is not int or not 0 < spec["horizon"] <= _MOST_FRAMES:
        raise ValueError(f"horizon must be an integer in 1..{_MOST_FRAMES}")


def _check_size(weights: Any, path: Path) -> None:
    """Refuse tensors that are larger than the file, as those of strides 0 are.

    Raises:
        ValueError: they are, or these are no tensors by name.
    """
    if not isinstance(weights, dict):
        raise ValueError("the weights are no tensors by name")
    sizes: dict[int, int] = {}  # by storage: a layer of two names is in the file once
    for value in weights.values():
        if isinstance(value, Tensor):
            storage = value.untyped_storage().data_ptr()
            sizes[storage] = max(sizes.get(storage, 0), value.numel() * value.element_size())
    if sum(sizes.values()) > path.stat().st_size:
        raise ValueError("the weights are larger than the file")


class _Bounded(TorchFunctionMode):
    """Keep a model that is made in this context from having far more tensors than ``weights``.

    Raises:
        ValueError: before the memory is used. (On the device ``"meta"`` none is, but random
            numbers there import torch's compiler, for longer than all the rest of a start.)
    """

    def __init__(self, weights: Mapping[str, Any]) -> None:
        super().__init__()
        tensors = [value for value in weights.values() if isinstance(value, Tensor)]
        self.count = 10 * len(tensors) + 1000
        self.size = 2 * sum(each.numel() for each in tensors) + 10_000_000

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function in _FACTORIES:
            size = args[0] if args and isinstance(args[0], tuple | list) else args
            self.count, self.size = self.count - 1, self.size - math.prod(size)
            if self.count < 0 or self.size < 0:
                raise ValueError("it describes a model with more weights than the file holds")
        return function(*args, **(kwargs or {}))


def check_tensors(expected: Mapping[str, Any], found: Any) -> None:
    """Require the same names, and tensors of the same shapes and types.

    Raises:
        ValueError: with what differs first.
    """
    if not isinstance(found, dict):
        raise ValueError("tensors by name are missing")
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"tensors are missing: {brief(missing, 3)}")
    if unknown := [name for name in found if name not in expected]:
        raise ValueError(f"tensors belong elsewhere: {brief(unknown, 3)}")
    for name, value in expected.items():
        if isinstance(value, Tensor) and _form(value) != _form(found[name]):
            raise ValueError(f"{name} is {_form(found[name])}, but must be {_form(value)}")


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def _brief(error: object, length: int = 300) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= length else f"{text[:length]}..."


def save_model(
    model: SequenceModel,
    run: str | os.PathLike[str],
    facts: dict[str, Any] | None = None,
    *,
    half: bool = False,
) -> None:
    """Write the model file of a run: what :func:`load` reads.

    Args:
        model: of any class.
        run: the folder.
        facts: plain data that :meth:`~flowfactor.models.SequenceModel.finish` returned, if the
            model is finished.
        half: store weights of float32 in half of the bytes, to three digits; they are loaded as
            float32 again.

    Raises:
        RunError: the file cannot be written.
    """
    name = MODELS.name_of(type(model))
    spec = None if name is None else model.spec()
    named = [] if spec is None or name is None else _named(name, spec)
    plugins = {item: registry.plugin_of(item) for registry, item in named}
    weights = model.state_dict()
    content = {
        "format": _MODEL_FORMAT,
        "model": name,
        "class": type(model).__qualname__,
        "spec": spec,
        "plugins": {item: plugin for item, plugin in plugins.items() if plugin is not None},
        "facts": facts,
        "half": half,
    }
    if half:
        weights = {
            key: value.half() if value.dtype == torch.float32 else value
            for key, value in weights.items()
        }
    write_file(Path(run) / MODEL_FILE, tensor_files.pack(weights, content))
    # Of the same run, by an earlier version.
    (Path(run) / ARCHIVE_FILE).unlink(missing_ok=True)


def _widen(weight: Any) -> Any:
    halved = isinstance(weight, Tensor) and weight.dtype == torch.float16
    return weight.float() if halved else weight


def _named(model: str, spec: dict[str, Any]) -> list[tuple[Registry[Any], str]]:
    """Return what a model's spec names, each with the registry that must know it."""
    options = spec["options"]
    named: list[tuple[Registry[Any], Any]] = [
        (MODELS, model),
        (ENCODERS, options.get("encoder", {}).get("kind")),
        (DECODERS, options.get("decoder", {}).get("kind")),
        (OBSERVATIONS, options.get("observation")),
        (FIELDS, options.get("field", options.get("potential"))),
        *((TERMS, term) for term in options.get("objective", {})),
    ]
    return [(registry, item) for registry, item in named if item is not None]


def read(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Read plain data and tensors, checking that the file is as it was written.

    Args:
        path: of a model or a training state.
        whole: False is for a look at the plain data of a training state: its tensors stay in the
            file, and its checksum is not compared.

    Raises:
        RunError: the file is missing, damaged, or no file of this version.
    """
    try:
        with path.open("rb") as file:
            if tensor_files.seal_of(file) is not None:
                file.seek(0)
                weights, content = tensor_files.unpack(file.read())
                saved, wanted = {**content, "weights": weights}, _MODEL_FORMAT
            else:
                if whole:
                    _check_seal(file)
                _check_archive(file)
                file.seek(0)
                saved = torch.load(
                    file if whole else path, map_location="cpu", weights_only=True, mmap=not whole
                )
                wanted = _FORMAT
    except FileNotFoundError as error:
        raise RunError(f"There is no file {path}.") from error
    except Exception as error:  # torch.load raises whatever a stranger's file happens to hit
        known = isinstance(error, tensor_files.DamageError)
        reason = str(error) if known else type(error).__name__
        raise RunError(
            f"{path} cannot be read as a checkpoint ({reason}). It is damaged or was not written "
            f"by this version of flowfactor. Nothing was changed: restore it from a copy, or train "
            f"into a new folder."
        ) from error
    if not isinstance(saved, dict) or saved.get("format") != wanted:
        raise RunError(
            f"{path} is no checkpoint of this version of flowfactor (format {wanted}). Nothing "
            f"was changed: open it with the version that wrote it, or train into a new folder."
        )
    return saved


def write(content: dict[str, Any], path: Path) -> None:
    """Write plain data and tensors atomically: the old file stays until the new one is whole.

    Raises:
        RunError: the file cannot be written.
    """
    with atomic_file(path) as file:
        try:
            torch.save({"format": _FORMAT, **content}, file)
        except RuntimeError as error:  # what torch makes of an OSError
            cause = error.__context__ if isinstance(error.__context__, OSError) else None
            raise OSError(
                getattr(cause, "errno", None), getattr(cause, "strerror", None) or _brief(error)
            ) from error
        _seal(file)


def _seal(file: IO[bytes]) -> None:
    """Add the checksum of an archive as its comment."""
    file.seek(-_END_OF_ARCHIVE, os.SEEK_END)
    end = file.read()
    assert end[:4] == b"PK\x05\x06"
    assert end[-2:] == bytes(2)
    file.seek(-2, os.SEEK_END)
    file.write(_SEAL_SIZE.to_bytes(2, "little"))
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0, os.SEEK_END)
    file.write(_SEAL + digest.encode())


def _seal_of(file: IO[bytes]) -> str | None:
    """Return the checksum that an archive carries, unchecked; None if it has none."""
    file.seek(-min(_SEAL_SIZE, file.seek(0, os.SEEK_END)), os.SEEK_END)
    seal = file.read()
    if len(seal) != _SEAL_SIZE or not seal.startswith(_SEAL):
        return None
    return seal.removeprefix(_SEAL).decode("ascii", errors="replace")


def _check_seal(file: IO[bytes]) -> None:
    seal = _seal_of(file)
    if seal is None:
        raise tensor_files.DamageError("its checksum is missing")
    size = file.seek(0, os.SEEK_END) - _SEAL_SIZE
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0:
        block = file.read(min(size, 2**20))
        digest.update(block)
        size -= len(block)
    if seal != digest.hexdigest():
        raise tensor_files.DamageError("its checksum is wrong")


def _check_archive(file: IO[bytes]) -> None:
    """Refuse an archive that unpacks to more than it is."""
    total = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        files = archive.infolist()
    if any(each.compress_type != zipfile.ZIP_STORED for each in files) or total < sum(
        each.file_size for each in files
    ):
        raise tensor_files.DamageError("it unpacks to more than it is")


# ---- writing into a folder


def unwritable(path: str | os.PathLike[str], error: OSError) -> RunError:
    """Return the error to raise where a file cannot be written."""
    reason = explain(OSError(error.errno, error.strerror or str(error)))
    return RunError(f"{os.fspath(path)} cannot be written: {reason}")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that takes its place when all went well.

    Raises:
        RunError: the file cannot be written.
    """
    name = f".{socket.gethostname()[:100]}-{os.getpid()}-{secrets.token_hex(4)}.part"
    temporary = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_file(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a file whole or not at all, and return its path; missing folders are made.

    Args:
        path: of the file; an older one is replaced.
        content: of the file. Letters of a text that UTF-8 lacks are written as escapes.

    Raises:
        RunError: the file cannot be written.
    """
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    with atomic_file(Path(path)) as file:
        file.write(content)
    return Path(path)


def _remove_leftovers(folder: Path, *, all_hosts: bool = False) -> None:
    """Remove temporary files of processes that were killed while they wrote.

    Args:
        folder: where they are.
        all_hosts: also of other machines, of which it is not known whether they still write.
    """
    for name in os.listdir(folder):
        if (match := _TEMPORARY.fullmatch(name)) is None:
            continue
        here = match["host"] == socket.gethostname()[:100]
        if all_hosts if not here else not _is_alive(int(match["process"])):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # nothing can be asked without ending it
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def lock_run(run: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other trainings out of a run folder, which is made if it is not there.

    The operating system lets go of the lock when the process ends, in whatever way. Within the
    context the same thread may lock the folder again. Temporary files of killed processes are
    removed.

    Raises:
        BusyError: another process has the folder.
        RunError: it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run, lock_run(run), lock_run(run):
        ...     pass
    """
    folder = Path(run).resolve()
    if folder in _locked.get():
        yield
        return
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"Another process is training in {run}. Wait until it has ended, or choose another "
            f"folder."
        ) from error
    except OSError as error:
        raise unwritable(run, error) from error
    token = _locked.set(_locked.get() | {folder})
    try:
        _remove_leftovers(folder, all_hosts=True)
        yield
    finally:
        _locked.reset(token)
        lock.release()


def is_empty(run: Path) -> bool:
    """Return whether a folder holds nothing but what a killed start may have left."""
    names = os.listdir(run)
    return all(name == LOCK_FILE or _TEMPORARY.fullmatch(name) for name in names)
