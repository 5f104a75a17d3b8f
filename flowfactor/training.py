"""The training loop: schedule, validation, checkpoints, resume.

A training can end at any moment and go on as if it had not. The state that is kept is that after
the last whole step: weights and optimiser only change between two moments at which the state is
whole, and the random states are those of the later one. What follows a step (a line of the log, a
validation) is *due* until it is done, and is done again by a training that ended within it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowfactor import checkpoints, machine
from flowfactor.checks import check_integer, check_type, kind_of
from flowfactor.data import BackgroundLoader, SequenceBatch, SequenceDataset, SequenceLoader
from flowfactor.data.loader import Batches, EncodedFrame
from flowfactor.errors import ConfigError, DataError, FlowFactorError, RunError
from flowfactor.flow import compiled_flows
from flowfactor.interrupts import Interrupted, Notes, note_signals
from flowfactor.loggers import draw_media
from flowfactor.models import SequenceModel
from flowfactor.models.base import trusted_arguments
from flowfactor.options import (
    NUMBER,
    NameIn,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Weight,
    dump,
    options,
)
from flowfactor.registries import LOGGERS, MODELS
from solvers import SolverError

# Importing Fabric takes seconds.
if TYPE_CHECKING:
    from lightning_fabric import Fabric
else:
    Fabric = Any

METRICS_FILE = "metrics.jsonl"
MEDIA_FOLDER = "media"
SHOWN_SEQUENCES = 250
"""Training sequences that models without flows learn to move by at a validation."""

MAY_CHANGE = (
    "steps",
    "max_minutes",
    "learning_rate",
    "clip",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "loggers",
    "media",
    "threads",
    "compile",
)
"""Options that may be others when a training is resumed."""

# What the backends of torch.distributed say when another process does not answer.
_LOST_PROCESS = re.compile(r"gloo|NCCL|closed by peer|Connection reset", re.IGNORECASE)

_QUIET_SECONDS = 10.0
"""Seconds of training after which the log gets a line, whatever happens."""

logger = logging.getLogger(__name__)


class TrainingError(FlowFactorError):
    """A training that cannot go on, such as one whose loss is no longer finite."""


MomentDecay = Annotated[float, pydantic.Field(ge=0, lt=1), NUMBER]


@options
class TrainingOptions:
    """How long and how fast to train, on what, and what to write down.

    The learning rate rises linearly over ``warmup`` steps and then follows half a cosine to 0.
    Where it stands on the cosine is the larger of two fractions, of the steps and of the minutes,
    so that a training ends on time with its schedule complete, however fast the machine.
    """

    initial_weights: str | None = None
    """Run folder, or name of a model that ships, whose weights the training begins with, as far as
    the model has tensors of the same names and shapes; the log lists the others. Flows keep the
    names and the order that they have there. null: all weights are drawn."""
    steps: PositiveInt = 10_000
    """Optimiser steps at most."""
    max_minutes: PositiveFloat | None = None
    """Wall-clock minutes at most, over all resumes; null is no limit."""
    batch_size: PositiveInt = 66
    """Sequences per step and process."""
    frames_per_sequence: PositiveInt | None = 2
    """Random frames of each sequence beside the one that is encoded; null: all of them."""
    encoded_frame: EncodedFrame = "first"
    """Frame of each sequence that is encoded. ``first``: frame 0. ``random``: any, from which the
    model explains others before and after it: its flows are then right from any state and
    backwards."""
    learning_rate: PositiveFloat = 2e-3
    """Peak of the schedule."""
    warmup: NonNegativeInt = 200
    """Steps of linear rise."""
    weight_decay: Weight = 0.0
    """Weight decay of AdamW."""
    betas: tuple[MomentDecay, MomentDecay] = (0.9, 0.99)
    """Decay rates of AdamW's moments."""
    clip: PositiveFloat | None = 1000.0
    """Largest norm of the gradient; null does not clip."""
    average: OpenFraction | None = None
    """Decay of an exponential moving average of the weights, which is what is validated and saved;
    null keeps the weights themselves."""
    log_every: PositiveInt = 50
    """Steps between two lines of the log."""
    validate_every: PositiveInt = 1000
    """Steps between two validations."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two checkpoints to resume from."""
    validation_sequences: PositiveInt = 1000
    """Sequences of the validation loss."""
    validation_errors: NonNegativeInt = 0
    """Sequences of which each validation also measures the equivariance error; 0: none."""
    loggers: tuple[Annotated[str, NameIn(LOGGERS)], ...] = ("tensorboard",)
    """Loggers beside ``metrics.jsonl``."""
    media: bool = False
    """Show the loggers a film strip and an animation at each validation; the latest are in
    ``media/`` of the run."""
    accelerator: machine.DeviceName = "auto"
    """The device of the training, and of what is computed with the model afterwards. ``auto``: an
    accelerator if there is one, else the processor."""
    devices: PositiveInt | Literal["auto"] = 1
    """Number of devices of that kind, one process each. Under ``torchrun`` its numbers hold
    instead. When a training is resumed by more or fewer processes, these share its batches."""
    num_nodes: PositiveInt = 1
    """Number of machines."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several processes train together."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Precision of the networks; potentials and losses are always computed in float32. ``auto``:
    what is faster by a short measurement before the training, which keeps to it when resumed."""
    threads: PositiveInt | Literal["auto"] = "auto"
    """Threads of each process. ``auto``: as many as cores are idle when the training begins, and
    no more than torch or ``OMP_NUM_THREADS`` say."""
    compile: bool | Literal["auto"] = "auto"
    """Let ``torch.compile`` make a graph of the flow of each training step, for models that are
    trained on intervals of frames. ``auto``: on CUDA, if it compiles there."""

    def check(self, config: Any) -> None:
        """Refuse a configuration whose model needs other frames.

        Raises:
            ConfigError: frames are left out, and the model needs all of them.
        """
        if self.frames_per_sequence is not None:
            _refuse_few_frames(MODELS[config.kind])


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands, for whoever shows it.

    Attributes:
        step: steps done; ``fraction``: of the whole training, in [0, 1].
        seconds: trained so far, over all resumes; ``seconds_left``: an estimate.
        terms: the latest terms of the loss, by name, and their sum ``loss``.
        split: ``train`` or ``validation``.
    """

    step: int
    fraction: float
    seconds: float
    seconds_left: float
    terms: dict[str, float]
    split: str

    @property
    def time_left(self) -> str:
        """The estimate as minutes and seconds."""
        return "{}:{:02d}".format(*divmod(round(self.seconds_left), 60))


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a training ended: steps and seconds in all, and the lowest validation loss."""

    steps: int
    seconds: float
    best_validation: float


def fit(
    model: SequenceModel,
    training: SequenceDataset | Batches,
    validation: SequenceDataset | Sequence[SequenceBatch],
    options: TrainingOptions = TrainingOptions(),
    run: str | os.PathLike[str] = "run",
    *,
    fabric: Fabric | None = None,
    resume: bool = False,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    measure: Callable[[SequenceModel], dict[str, float]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train a model and leave the best one, by validation loss, in the run folder.

    Writes ``metrics.jsonl`` (one JSON object a line), the files of the loggers, ``checkpoint.pt``
    (the whole state, for ``resume``) and ``model.safetensors`` (what :func:`flowfactor.load`
    reads), the last two atomically. While it runs, no other training can use the folder.

    A training that ends early, by an error or a signal, keeps the state of its last whole step.
    SIGINT, SIGTERM and SIGHUP are looked for between steps and validation batches, and raise
    :class:`~flowfactor.interrupts.Interrupted`, a ``KeyboardInterrupt``, after the state is saved.
    With several processes an error, unlike a signal, keeps the last checkpoint.

    Args:
        model: it is trained in place.
        training: a data set; or batches as a function of the step, such as a
            :class:`~flowfactor.data.SequenceLoader`. For an accelerator a thread draws the batch of
            the next step during this one.
        validation: a data set, or batches, that are not trained on.
        options: how long and how fast.
        run: the folder; an older training in it is replaced, unless it is resumed.
        fabric: device, precision and processes; by default those of the options. Its loggers are
            used beside those of the options.
        resume: continue from ``checkpoint.pt``: the same training, as far as the batches are the
            same functions of the step. Other numbers of processes share the sequences of a data
            set's batches; their random numbers begin anew.
        seed: of the batches and of the posterior's samples.
        on_progress: called after every log and validation.
        measure: called with the model, in evaluation mode, at every validation; what it returns
            stands beside the losses in ``metrics.jsonl``. The time it takes counts as training. By
            default the equivariance error, if ``options.validation_errors`` asks for it.
        settings: plain data that the checkpoint keeps and that must be the same to resume it, such
            as the configuration of the data.

    Raises:
        TrainingError: the loss or the gradient is not finite. The last good state is kept.
        RunError: another process trains in the folder; there is nothing to resume, it is damaged,
            or it belongs to another model, other data or other options.
        ConfigError: the options name devices that are not there, or do not fit the model, such as
            too few steps for its schedule.
        DataError: a sequence has no label, and the model needs all of them.
        TypeError, ValueError: other arguments than those above, or data with other
            transformations or images than the model.

    Example:
        >>> import tempfile, torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (12, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8)
        >>> options = flowfactor.TrainingOptions(steps=2, batch_size=6, accelerator="cpu")
        >>> with tempfile.TemporaryDirectory() as run:
        ...     result = flowfactor.fit(model, data, data, options, run)
        ...     trained = flowfactor.load(run)
        >>> result.steps, trained.names
        (2, ('scaling', 'rotation', 'hue'))
    """
    _check_fit(model, training, validation, options, run, seed)
    if options.precision == "auto" and any(p.dtype == torch.float64 for p in model.parameters()):
        options = dataclasses.replace(options, precision="32-true")  # which keeps float64 as it is
    if fabric is None:
        options, reasons = decide(options, run if resume else None)
        for key, reason in reasons.items():
            logger.info("%s: %s", key, reason)
        fabric = make_fabric(options)
    if isinstance(training, SequenceDataset):
        training = model.match_precision(training).to(fabric.device)
    if isinstance(validation, SequenceDataset):
        validation = model.match_precision(validation).to(fabric.device)
    if measure is None and options.validation_errors:
        measure = _measure_errors(model, training, validation, options.validation_errors)
    if isinstance(validation, SequenceDataset):
        validation = list(validation_batches(validation, options.validation_sequences))
    run = Path(run)
    with machine.threads(options.threads), lock_of(run, fabric), note_signals() as notes:
        state = _read_state(run) if resume else None
        _begin(model, options, state)
        identity = _identify(model, training, options, seed, fabric, settings or {})
        if isinstance(training, SequenceDataset):
            size = options.batch_size
            if state is not None:
                identity["processes"], size = _share(size, state["identity"], fabric)
            training = SequenceLoader(
                training,
                size,
                frames_per_sequence=options.frames_per_sequence,
                encoded_frame=options.encoded_frame,
                seed=seed,
                rank=fabric.global_rank,
                world_size=fabric.world_size,
            )
        trainer = _Trainer(model, options, run, fabric, seed, measure, identity)
        if state is not None:
            trainer.restore(state)
        elif fabric.is_global_zero:
            # Of an older training; this one may end before it has any of its own.
            for name in (checkpoints.STATE_FILE, checkpoints.MODEL_FILE, checkpoints.ARCHIVE_FILE):
                (run / name).unlink(missing_ok=True)
        del state  # as large as the model and its optimiser
        result = trainer.train(training, validation, on_progress, notes)
    if notes.signal:  # it came too late to be looked at
        raise Interrupted(notes.signal)
    return result


def _begin(model: SequenceModel, options: TrainingOptions, state: Mapping[str, Any] | None) -> None:
    """Let a model begin with the weights that the options name, or go on from a state with such.

    Raises:
        RunError, ConfigError: see :func:`take_initial_weights`.
    """
    if options.initial_weights is None:
        return
    if state is not None:  # its weights are read later; the flows are called as they were
        if names := state["identity"].get("model.flows"):
            model.inherit(model.state_dict(), tuple(names))
        return
    anew = take_initial_weights(model, options)
    if anew:
        logger.warning("not in %s, and begun anew: %s", options.initial_weights, ", ".join(anew))


def take_initial_weights(model: SequenceModel, options: TrainingOptions) -> tuple[str, ...]:
    """Let a model begin with the weights that ``options.initial_weights`` names, if any.

    Returns:
        The names of the parameters that are begun anew, see
        :func:`flowfactor.checkpoints.take_weights`.

    Raises:
        RunError: there is no such model, its file is damaged, or none of its weights fit.
        ConfigError: its flows are others, or the model needs what is not there.
    """
    if options.initial_weights is None:
        return ()
    try:
        return checkpoints.take_weights(model, options.initial_weights)
    except RunError as error:
        raise RunError(f"training.initial_weights: {error}") from error
    except ConfigError as error:
        raise ConfigError(
            f"training.initial_weights, {options.initial_weights}: {error}"
        ) from error


def lock_of(run: str | os.PathLike[str], fabric: Fabric) -> contextlib.AbstractContextManager[None]:
    """Return the lock of a run folder, which the first process holds for all of them."""
    return checkpoints.lock_run(run) if fabric.is_global_zero else contextlib.nullcontext()


def _identify(
    model: SequenceModel,
    training: SequenceDataset | Batches,
    options: TrainingOptions,
    seed: int,
    fabric: Fabric,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what must be the same when a training is resumed, as plain data."""
    name = MODELS.name_of(type(model)) or type(model).__qualname__
    identity = {"model": name, "seed": seed, "processes": fabric.world_size, **settings}
    source = _source(training)
    data = source.dataset if isinstance(source, SequenceLoader) else source
    if isinstance(data, SequenceDataset):
        identity["data"] = {
            "samples": len(data),
            "names": data.names,
            "horizon": data.horizon,
            "image_shape": data.image_shape,
        }
    spec = dict(model.spec() or {})
    identity |= {f"model.{key}": value for key, value in spec.pop("options", {}).items()}
    identity |= {f"model.{key}": value for key, value in spec.items()}
    identity |= {
        f"training.{key}": value for key, value in dump(options).items() if key not in MAY_CHANGE
    }
    identity["training.precision"] = fabric.strategy.precision.precision
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain


def _share(batch_size: int, identity: Mapping[str, Any], fabric: Fabric) -> tuple[int, int]:
    """Return how many processes began a training, and the sequences of a step for each of these.

    Raises:
        ConfigError: as many cannot have equally many sequences.
    """
    before, now = identity.get("processes"), fabric.world_size
    if type(before) is not int or before < 1 or before == now:  # damage is reported later
        return now, batch_size
    total = batch_size * before
    if total % now:
        raise ConfigError(
            f"training.devices: {now} processes cannot share the {total} sequences of a step "
            f"equally, which were those of {before} when the training began"
        )
    if fabric.is_global_zero:
        logger.info(
            "%d sequences of a step, by %d processes when the training began, by %d now",
            total, before, now,
        )  # fmt: skip
    return before, total // now


def _check_fit(
    model: Any, training: Any, validation: Any, options: Any, run: Any, seed: Any
) -> None:
    """Refuse arguments that training cannot use, before it begins.

    Raises:
        TypeError, ValueError: the message names the argument.
        ConfigError: a random frame is to be encoded, and the model cannot.
        DataError: a sequence has no label, and the model needs all of them.
    """
    check_type("model", model, SequenceModel)
    check_type("options", options, TrainingOptions)
    check_type("run", run, (str, os.PathLike), "a path")
    check_integer("seed", seed, 0)
    if not isinstance(training, SequenceDataset) and not hasattr(training, "batch"):
        wanted = "a SequenceDataset, or batches with a method batch(step)"
        raise TypeError(f"training must be {wanted}; it is {kind_of(training)}")
    check_type("validation", validation, (SequenceDataset, Sequence))
    check_options(model, options, training)
    for name, data in (("training", training), ("validation", validation)):
        if isinstance(data, SequenceDataset):
            model.check_data(data, name, names=model.supervised)
            if model.supervised:
                data.require_labels()
        elif isinstance(data, Sequence):
            for batch in data:
                check_type(f"each of {name}", batch, SequenceBatch)
                model.check_sequences(batch, values=False, anywhere=True)


def check_options(
    model: SequenceModel,
    options: TrainingOptions,
    training: SequenceDataset | Batches | None = None,
) -> None:
    """Refuse a training that shows a model other frames than it takes, or ends too early.

    Args:
        model: what it :attr:`~flowfactor.models.SequenceModel.needs_all_frames` and so on counts.
        options: of the training.
        training: what is trained on; a loader says itself which frames it draws.

    Raises:
        ConfigError: frames are left out, or another one than frame 0 is encoded, and the model
            cannot; or the training is half over before all of the model learns.
    """
    source = None if training is None else _source(training)
    drawn: Any = options if source is None or isinstance(source, SequenceDataset) else source
    if isinstance(drawn, TrainingOptions | SequenceLoader):
        if drawn.encoded_frame != "first" and not model.encodes_any_frame:
            raise ConfigError(
                f"training.encoded_frame: must be first, for a {type(model).__name__} encodes "
                f"frame 0"
            )
        every = drawn.dataset.horizon if isinstance(drawn, SequenceLoader) else None
        if drawn.frames_per_sequence != every:
            _refuse_few_frames(type(model))
    needed = 2 * model.schedule_steps
    if needed > options.steps:
        raise ConfigError(
            f"training.steps: must be at least {needed}, for the schedule of this "
            f"{type(model).__name__} takes {model.schedule_steps} steps before all of it learns; "
            f"it is {options.steps}. Train longer, or shorten the schedule "
            f"(warmup and anneal of model.inference, or model.stages)."
        )


def _source(training: SequenceDataset | Batches) -> SequenceDataset | Batches:
    """Return what a thread draws from, anything else as it is."""
    return training.batches if isinstance(training, BackgroundLoader) else training


def _rest(training: Batches) -> None:
    """Let no thread read from where others are about to."""
    if isinstance(training, BackgroundLoader):
        training.wait()


def _refuse_few_frames(model: type[SequenceModel]) -> None:
    """Refuse to leave frames out for a model that needs all of them."""
    if model.needs_all_frames:
        raise ConfigError(
            f"training.frames_per_sequence: must be null, for a {model.__name__} learns from whole "
            f"sequences"
        )


def decide(
    options: TrainingOptions, run: str | os.PathLike[str] | None = None
) -> tuple[TrainingOptions, dict[str, str]]:
    """Replace every ``auto`` of precision, threads and compile by what this machine does best now.

    Args:
        options: of a training.
        run: a folder whose training is resumed: its precision is kept.

    Returns:
        The options, and for each that was ``auto`` its value and why, as text.

    Raises:
        ConfigError: there are no such devices.
    """
    changes: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    keys = ("threads", "precision", "compile")
    if all(getattr(options, key) != "auto" for key in keys):
        return options, reasons
    planned = _plan_fabric(dataclasses.replace(options, precision="32-true"))
    if options.compile == "auto":
        changes["compile"], reason = machine.choose_compilation(planned.device)
        reasons["compile"] = f"{str(changes['compile']).lower()} ({reason})"
    if options.threads == "auto":
        here = os.environ.get("LOCAL_WORLD_SIZE") or planned.world_size // options.num_nodes
        alike = int(here) if planned.device.type == "cpu" else 1
        changes["threads"], reason = machine.choose_threads(alike)
        reasons["threads"] = f"{changes['threads']} ({reason})"
    if options.precision == "auto":
        kept = None if run is None else _precision_of(Path(run))
        if kept is not None:
            changes["precision"], reason = kept, "as the training began"
        elif planned.world_size > 1:
            changes["precision"] = "32-true"
            reason = "not measured, since several processes must agree"
        else:
            rows = options.batch_size * (1 + (options.frames_per_sequence or 1))
            with machine.threads(changes.get("threads", options.threads)):
                changes["precision"], reason = machine.choose_precision(planned.device, rows)
        reasons["precision"] = f"{changes['precision']} ({reason})"
    return dataclasses.replace(options, **changes), reasons


def _precision_of(run: Path) -> str | None:
    """Return the precision of the training in a folder, None if there is none that can be read."""
    try:
        state = checkpoints.read(run / checkpoints.STATE_FILE, whole=False)
        precision = json.loads(state["identity"])["training.precision"]
    except (RunError, LookupError, TypeError, ValueError):
        return None  # which is reported where the training is resumed
    return precision if precision in ("32-true", "bf16-mixed") else None


def make_fabric(options: TrainingOptions) -> Fabric:
    """Return Fabric with the devices and precision of the options, its processes launched.

    Raises:
        ConfigError: there are no such devices.
    """
    fabric = _plan_fabric(decide(options)[0])
    try:
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise _no_such_devices(error) from error
    return fabric


def _plan_fabric(options: TrainingOptions) -> Fabric:
    """Return Fabric before its processes are launched."""
    import lightning_fabric

    precision: Any = options.precision
    devices: Any = options.devices
    nodes = options.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started the processes
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    try:
        device = machine.find_device(options.accelerator)
        if device.index is not None:
            if (devices, nodes) != (1, 1):
                raise ValueError(f"{device} is one device, which several processes cannot share")
            devices = [device.index]
        return lightning_fabric.Fabric(
            accelerator=device.type,
            devices=devices,
            num_nodes=nodes,
            strategy=options.strategy,
            precision=precision,
        )
    except (RuntimeError, ValueError) as error:  # raised for devices that are not there
        raise _no_such_devices(error) from error


def _no_such_devices(error: Exception) -> ConfigError:
    return ConfigError(
        f"training.accelerator, devices, strategy or precision: {error}. `--device cpu` trains on "
        f"the processor."
    )


def _measure_errors(
    model: SequenceModel,
    training: SequenceDataset | Batches,
    validation: SequenceDataset | Sequence[SequenceBatch],
    count: int,
) -> Callable[[SequenceModel], dict[str, float]]:
    """Return what measures the equivariance error on validation sequences, see ``model.measure``.

    Raises:
        ConfigError: there are batches instead of data sets.
    """
    if not (isinstance(training, SequenceDataset) and isinstance(validation, SequenceDataset)):
        raise ConfigError("validation_errors: needs data sets for training and validation")
    watched = next(validation_batches(validation, count, batch_size=count))
    # The sequences of weak supervision may have no labels at all.
    shown = list(validation_batches(training, SHOWN_SEQUENCES)) if model.supervised else []
    return lambda model: model.measure(watched, shown)


def _read_state(run: Path) -> dict[str, Any]:
    """Return the state of the training in a folder; its ``identity`` is that of the training.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = run / checkpoints.STATE_FILE
    if not path.exists():
        raise RunError(
            f"There is no training to resume in {run}: it has no {checkpoints.STATE_FILE}, as a "
            f"training that was ended before its first checkpoint. Start it again, without resume."
        )
    state = checkpoints.read(path)
    try:
        return {**state, "identity": dict(json.loads(state["identity"]))}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path} is damaged: {str(error)[:300]}. Nothing was changed: restore it from a copy, or "
        f"train into a new folder."
    )


class _Trainer:
    def __init__(
        self,
        model: SequenceModel,
        options: TrainingOptions,
        run: Path,
        fabric: Fabric,
        seed: int,
        measure: Callable[[SequenceModel], dict[str, float]] | None,
        identity: dict[str, Any],
    ) -> None:
        self.measure = measure
        self.identity = identity
        self.options = options
        self.run = run
        self.fabric = fabric
        self.model = model
        self.seed = seed
        groups = model.parameter_groups()
        # A group may have a peak of its own; the schedule is the same for all.
        self.peaks = [group.get("lr", options.learning_rate) for group in groups]
        optimizer = torch.optim.AdamW(
            groups,
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.wrapped, self.optimizer = fabric.setup(_Loss(model), optimizer)
        self.average: AveragedModel | None = None
        if options.average is not None:
            average = get_ema_multi_avg_fn(options.average)
            self.average = AveragedModel(model, multi_avg_fn=average)
        # Values that a forward pass may change.
        self.changing = [
            (f"{prefix}.{name}".lstrip("."), module, name)
            for prefix, module in model.named_modules()
            for name in module._buffers
            if name not in module._non_persistent_buffers_set
        ]
        self.step = 0
        self.seconds = 0.0
        self.best = math.inf
        self.due: dict[str, dict[str, float]] = {}
        self.warned = False
        torch.manual_seed(seed + fabric.global_rank)

    # ---- the loop

    def train(
        self,
        training: Batches,
        validation: Sequence[SequenceBatch],
        on_progress: Callable[[Progress], None] | None,
        notes: Notes,
    ) -> TrainingResult:
        self.notes = notes
        self.began = time.monotonic() - self.seconds
        self.told = self.seconds
        self.model.train()
        self._take()
        with self._log() as log, self._ahead(training) as training:
            try:
                news = bool(self.due)
                while True:
                    if news:
                        if "validation" in self.due:
                            _rest(training)
                        self._report(validation, log, on_progress or (lambda _: None))
                        self._take()
                        if self.step % self.options.checkpoint_every == 0 or self._fraction() >= 1:
                            self._save()
                    self._end_if_asked()
                    if self._fraction() >= 1:
                        break
                    self._step(training)
                    news = True
            except BaseException as error:
                self._keep(error)
                if self.fabric.world_size > 1 and _LOST_PROCESS.search(str(error)):
                    raise TrainingError(
                        f"Another process of the training has ended, so that step {self.step} "
                        f"could not be done. --resume continues from the last checkpoint."
                    ) from error
                raise
        return TrainingResult(self.step, self.seconds, self.best)

    def _ahead(self, training: Batches) -> contextlib.AbstractContextManager[Batches]:
        """Return the batches, for an accelerator those that a thread draws ahead."""
        if isinstance(training, BackgroundLoader) or self.fabric.device.type == "cpu":
            return contextlib.nullcontext(training)
        return BackgroundLoader(training, self.fabric.device)

    def _step(self, training: Batches) -> None:
        """Do one step. Nothing that is kept changes until all that may fail is done."""
        self.model.on_step(self.step)
        rate = self._set_learning_rate(self._fraction())
        terms = self._differentiate(self._batch(training), training)
        self.whole = False
        if self.step == self.model.first_step:
            self.optimizer.state.clear()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        self.seconds, _ = self._agree()
        ends = self._fraction() >= 1
        if self.step % self.options.log_every == 0 or ends:
            self.due["train"] = {**self._mean_terms(terms), "learning_rate": rate}
        if self.step % self.options.validate_every == 0 or ends:
            self.due["validation"] = {}
        self._take()
        self._compare_with_clock()
        if self._is_quiet():
            self._tell(_as_floats(terms))

    def _mean_terms(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the terms as numbers, over the sequences of all processes."""
        count = self.fabric.world_size
        if count > 1:
            values = torch.stack([value.detach() for value in terms.values()])
            torch.distributed.all_reduce(values)
            terms = dict(zip(terms, values / count, strict=True))
        return _as_floats(terms)

    def _compare_with_clock(self) -> None:
        """Warn once if the clock will end the training before or soon after the schedule."""
        needed, minutes = self.model.schedule_steps, self.options.max_minutes
        if self.warned or not needed or minutes is None:
            return
        if self.seconds < min(_QUIET_SECONDS, 60 * minutes / 20):  # too early to tell the pace
            return
        self.warned = True
        fitting = round(60 * minutes / self.seconds * self.step)
        if 2 * needed > fitting and self.fabric.is_global_zero:
            logger.warning(
                "about %d steps fit into training.max_minutes = %g at %.0f ms each, but the "
                "schedule of the model takes %d steps before all of it learns: give it more time, "
                "or shorten the schedule (warmup and anneal of model.inference, or model.stages)",
                fitting,
                minutes,
                1000 * self.seconds / self.step,
                needed,
            )

    def _is_quiet(self) -> bool:
        """Return whether the log waits for a line."""
        return time.monotonic() - self.began >= self.told + _QUIET_SECONDS

    def _tell(self, terms: Mapping[str, float], split: str = "train") -> None:
        """Log where the training stands."""
        self.told = time.monotonic() - self.began
        if self.fabric.is_global_zero:
            progress = self._progress(dict(terms), split)
            logger.info(
                "step %d (%.0f %%), %s left: %s%s",
                self.step,
                100 * progress.fraction,
                progress.time_left,
                "validation " if split == "validation" else "",
                "  ".join(f"{name} {value:.4g}" for name, value in terms.items()),
                extra={"split": split},
            )

    def _take(self) -> None:
        """Take the random states and whatever else the next step may change before it is done."""
        self.random = self._random_state()
        self.buffers = {
            key: value.clone()
            for key, module, name in self.changing
            if (value := module._buffers[name]) is not None
        }
        self.whole = True

    def _random_state(self) -> dict[str, Tensor]:
        """Return the states of the generators, by the kind of device."""
        states, kind = {"cpu": torch.get_rng_state()}, self.fabric.device.type
        if kind != "cpu":
            states[kind] = getattr(torch, kind).get_rng_state()
        return states

    @contextlib.contextmanager
    def _random_as_before(self) -> Iterator[None]:
        """Set the generators to where they were, whatever happens within."""
        states = self._random_state()
        try:
            yield
        finally:
            self._set_random_state(states)

    def _set_random_state(self, states: Mapping[str, Tensor]) -> None:
        """Set the generators of the processor and of this device."""
        for kind, value in states.items():
            if kind == "cpu":
                torch.set_rng_state(value)
            elif kind == self.fabric.device.type:
                getattr(torch, kind).set_rng_state(value)

    def _report(
        self,
        validation: Sequence[SequenceBatch],
        log: _Log,
        report: Callable[[Progress], None],
    ) -> None:
        """Do what is due after a step: write its line, validate."""
        for split in tuple(self.due):
            values = self.due[split] if split == "train" else self._validate(validation)
            log.write(split, self.step, {"seconds": round(self.seconds, 3), **values})
            del self.due[split]
            terms = {name: value for name, value in values.items() if name != "learning_rate"}
            if split == "validation":
                self._tell(terms, split)
                if self.options.media and validation:
                    self._illustrate(validation[0], log)
            report(self._progress(terms, split))

    def _illustrate(self, sequences: SequenceBatch, log: _Log) -> None:
        """Show the loggers what the model makes of some sequences."""
        if not self.fabric.is_global_zero:
            return
        model = self._evaluated()
        try:
            with self._random_as_before():
                files = draw_media(
                    model.eval(), sequences.to(self.fabric.device), self.run / MEDIA_FOLDER
                )
        except (FlowFactorError, ValueError) as error:
            logger.warning("no pictures: %s", " ".join(str(error).split())[:300])
            return
        finally:
            self.model.train()
        for name, file in files.items():
            log.show(name, file, self.step)

    def _end_if_asked(self) -> None:
        """Raise :class:`Interrupted` if a signal has come, to any of the processes."""
        _, signal = self._agree()
        if signal:
            raise Interrupted(signal)

    def _agree(self) -> tuple[float, int]:
        """Return the time and the signal that all processes go by, or they would part."""
        seconds, signal = time.monotonic() - self.began, self.notes.signal
        if self.fabric.world_size == 1:
            return seconds, signal
        mine = torch.tensor([seconds, signal], dtype=torch.float64, device=self.fabric.device)
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
        return float(mine[0]), int(mine[1])

    def _fraction(self) -> float:
        """Return how much of the training is done, by steps or by time, whichever is more."""
        by_steps = self.step / self.options.steps
        if self.options.max_minutes is None:
            return by_steps
        return max(by_steps, self.seconds / (60 * self.options.max_minutes))

    def _set_learning_rate(self, fraction: float) -> float:
        done = self.step - self.model.first_step
        warm = min(1.0, (done + 1) / max(self.options.warmup, 1))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            first, last = group.get("span", (0, None))
            part = fraction if last is None else (self.step - first) / max(last - first, 1)
            group["lr"] = peak * warm * _half_cosine(part)
        return self.options.learning_rate * warm * _half_cosine(fraction)

    def _batch(self, training: Batches) -> SequenceBatch:
        """Return the batch of this step.

        Raises:
            DataError: a sample cannot be read; the message says which.
        """
        try:
            return training.batch(self.step)
        except Exception:
            self._check_samples(training)
            raise

    def _check_samples(self, training: Batches) -> None:
        """Look for a sample of this step that is bad.

        Raises:
            DataError: there is one; the message says which.
        """
        _rest(training)
        source = _source(training)
        if isinstance(source, SequenceLoader):
            check_samples(source.dataset, source.indices(self.step))

    def _differentiate(self, batch: SequenceBatch, training: Batches) -> dict[str, Tensor]:
        """Leave gradients in the parameters and return the terms of the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            parts = vars(batch.to(self.fabric.device)).values()
            with compiled_flows(self.options.compile is True):
                terms: dict[str, Tensor] = self.wrapped(*parts)
        except SolverError as error:
            raise self._stopped(f"the flow could not be solved ({error})") from error
        loss = torch.stack(list(terms.values())).sum()
        self.fabric.backward(loss)
        limit = self.options.clip if self.options.clip is not None else math.inf
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=limit, error_if_nonfinite=False
        )
        assert norm is not None
        if not bool(torch.isfinite(loss.detach() + norm)):
            values = ", ".join(f"{name} {value:.4g}" for name, value in _as_floats(terms).items())
            self._check_samples(training)
            raise self._stopped(
                f"the loss or its gradient is not finite ({values}; norm {float(norm):.4g})"
            )
        return terms

    def _stopped(self, reason: str) -> TrainingError:
        return TrainingError(
            f"The training stopped at step {self.step}, because {reason}. The state before this "
            f"step is kept in {self.run / checkpoints.STATE_FILE}. Look for images with values "
            f"that are not finite; if there are none, continue with --resume and a lower learning "
            f"rate (`training.learning_rate`) or a tighter `training.clip`."
        )

    # ---- validation

    def _validate(self, validation: Sequence[SequenceBatch]) -> dict[str, float]:
        """Return the mean terms over the validation batches; keep the model if it is the best."""
        model = self._evaluated()
        totals: dict[str, float] = {}
        count = 0
        # The samples of the posterior are the same at every validation, and training's own
        # sequence of random numbers is not disturbed.
        with self._random_as_before(), torch.no_grad():
            torch.manual_seed(0)
            model.eval()
            for batch in validation:
                self._end_if_asked()
                with self.fabric.autocast():
                    terms = _as_floats(model.loss(batch.to(self.fabric.device)))
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0.0) + value * len(batch)
                count += len(batch)
            measured = {} if self.measure is None else self.measure(model)
        self.model.train()
        means = {name: total / max(count, 1) for name, total in totals.items()}
        if means and means["loss"] < self.best:
            self._save_model(model)
            self.best = means["loss"]
        return {**means, **measured}

    def _evaluated(self) -> SequenceModel:
        if self.average is None:
            return self.model
        averaged = self.average.module
        assert isinstance(averaged, SequenceModel)
        return averaged

    # ---- files

    def _save_model(self, model: SequenceModel) -> None:
        if self.fabric.is_global_zero:
            checkpoints.save_model(model, self.run)

    def _keep(self, error: BaseException) -> None:
        """Save the state of the last whole step, if it can be, before a training ends."""
        # What the other processes do after an error is not known; a signal they have agreed on.
        if not self.whole or (self.fabric.world_size > 1 and not isinstance(error, Interrupted)):
            return
        try:
            self._save()
        except Exception as second:
            logger.error("The state of step %d was not saved: %s", self.step, second)

    def _save(self) -> None:
        states = self._random_states()
        if not self.fabric.is_global_zero:
            return
        if checkpoints.find_model(self.run) is None:
            # Nothing was validated yet; a run that is stopped early still opens.
            self._save_model(self._evaluated())
        state: dict[str, Any] = {
            "identity": json.dumps(self.identity),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "due": self.due,
            "weights": {**self.model.state_dict(), **self.buffers},
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": states,
        }
        checkpoints.write(state, self.run / checkpoints.STATE_FILE)

    def _random_states(self) -> list[dict[str, Tensor]]:
        """Return the random states of all processes."""
        count = self.fabric.world_size
        if count == 1:
            return [self.random]
        states: list[Any] = [None] * count
        torch.distributed.all_gather_object(states, self.random)
        return states

    def restore(self, state: dict[str, Any]) -> None:
        path = self.run / checkpoints.STATE_FILE
        identity = state["identity"]
        different = [
            f"  {key}: {str(old)[:80]} -> {str(new)[:80]}"
            for key in sorted({*identity, *self.identity})
            if (old := identity.get(key)) != (new := self.identity.get(key))
        ]
        if different:
            raise RunError(
                f"{path} belongs to another training and cannot be continued with this one. What "
                f"differs:\n" + "\n".join(different[:10])
            )
        try:
            self._check_state(state)
            self._set_state(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _damaged(path, error) from error
        logger.info("resumed at step %d after %.0f s of training", self.step, self.seconds)

    def _check_state(self, state: dict[str, Any]) -> None:
        """Refuse a state of the wrong form before any of it is taken over.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: with what is wrong.
        """
        for key, kind in (("step", int), ("seconds", float), ("best", float)):
            value: Any = state[key]
            good = type(value) is kind and not math.isnan(value)
            if not good or (key != "best" and not 0 <= value < math.inf):
                raise ValueError(f"{key} is {str(value)[:80]}, which is no such number")
        for split, values in state["due"].items():
            numbers_only = all(type(each) is float for each in values.values())
            if split not in ("train", "validation") or not numbers_only:
                raise ValueError("due holds something else than lines of the log")
        checkpoints.check_tensors(self.model.state_dict(), state["weights"])
        if (state["average"] is None) != (self.average is None):
            raise ValueError("the average of the weights is missing")
        if self.average is not None:
            checkpoints.check_tensors(self.average.state_dict(), state["average"])
        self._check_optimizer(state["optimizer"])
        if not state["random"]:
            raise ValueError("random states are missing")
        for each in state["random"]:
            checkpoints.check_tensors({"cpu": torch.get_rng_state()}, {"cpu": each["cpu"]})

    def _check_optimizer(self, saved: dict[str, Any]) -> None:
        mine = self.optimizer.state_dict()["param_groups"]
        for old, new in zip(saved["param_groups"], mine, strict=True):
            for key, value in new.items():
                if key != "lr" and key in old and old[key] != value:
                    raise ValueError(f"the optimiser's {key} is {old[key]}, but must be {value}")
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        for index, moments in saved["state"].items():
            like = parameters[index].detach()
            one = torch.zeros((), dtype=torch.float32)
            expected = {"step": one, "exp_avg": like, "exp_avg_sq": like}
            checkpoints.check_tensors(expected, moments)

    def _set_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.due = state["due"]
        rank, count = self.fabric.global_rank, self.fabric.world_size
        if len(state["random"]) == count:
            self._set_random_state(state["random"][rank])
        else:  # other processes than before: numbers that none of them has drawn
            key = np.random.SeedSequence([self.seed, self.step, rank, count])
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def _log(self) -> _Log:
        if not self.fabric.is_global_zero:
            return _NoLog()
        settings = self.identity | {f"training.{k}": v for k, v in dump(self.options).items()}
        names, given = self.options.loggers, list(self.fabric.loggers)
        return _Log(self.run, self.step, self.due, names, given, settings)

    def _progress(self, terms: dict[str, float], split: str) -> Progress:
        fraction = min(self._fraction(), 1.0)
        left = self.seconds / fraction - self.seconds
        return Progress(self.step, fraction, self.seconds, left, terms, split)


def _half_cosine(part: float) -> float:
    """Return what falls from 1 to 0 while a part goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, part))))


class _Log:
    """``metrics.jsonl`` and the loggers, from a given step on.

    Args:
        run: the folder.
        step: that is resumed.
        due: what is to be logged of this step.
        loggers: of the options, by name.
        given: others, which belong to the caller.
        settings: of the training.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        due: Mapping[str, Any],
        loggers: Sequence[str],
        given: Sequence[Any],
        settings: Mapping[str, Any],
    ) -> None:
        # What was logged after the state that is resumed will be logged again.
        kept = [
            line
            for line in (read_metrics(run) if step else [])
            if line["step"] < step or (line["step"] == step and line["split"] not in due)
        ]
        self.path = run / METRICS_FILE
        with checkpoints.atomic_file(self.path) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
        # They begin anew, since they may lack what a killed process had not written yet.
        own = [LOGGERS[name](run) for name in loggers]
        self.loggers: list[Any] = own
        for line in kept:
            self._feed(line)
        # These go on where they were.
        self.given = list(given)
        self.loggers = [*own, *self.given]
        self._each("log_hyperparams", dict(settings))

    def __enter__(self) -> _Log:
        # Unbuffered: a line is in the file, or the error is raised here.
        self.file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.file.close()
        for each in self.loggers:
            try:
                if each in self.given:  # the caller may go on with it
                    getattr(each, "save", lambda: None)()
                else:
                    each.finalize("success" if kind is None else "failed")
            except (OSError, ValueError) as error:
                logger.error("%s is not complete: %s", type(each).__name__, error)

    def write(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Write a line.

        Raises:
            RunError: it cannot be written.
        """
        line = {"step": step, "split": split, **values}
        data = json.dumps(line).encode() + b"\n"
        try:
            if not self.path.exists():
                raise OSError(errno.ENOENT, "it was deleted while the training ran")
            if self.file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._feed(line)
        except OSError as error:
            raise checkpoints.unwritable(self.path, error) from error

    def show(self, name: str, file: Path, step: int) -> None:
        """Show the loggers a picture."""
        self._each("log_media", name, file, step)

    def _feed(self, line: Mapping[str, Any]) -> None:
        named = {
            f"{line['split']}/{name}": value
            for name, value in line.items()
            if name not in ("step", "split")
        }
        self._each("log_metrics", named, line["step"])

    def _each(self, method: str, *arguments: Any) -> None:
        """Call a method of every logger that has it."""
        for each in tuple(self.loggers):
            try:
                getattr(each, method, lambda *_: None)(*arguments)
            except NotImplementedError:  # as that of CSV files says
                pass
            except ValueError as error:  # such as for a folder whose name it cannot write
                self.loggers.remove(each)
                name = type(each).__name__
                reason = " ".join(str(error.__cause__ or error).split())[:300]
                logger.warning("%s is left out: %s", name, reason)


class _NoLog(_Log):
    """The log of all processes but the first: none."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> _NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, *_: Any) -> None:
        pass


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``metrics.jsonl``, none if it has not been written.

    A last line that is torn, as by a process that was killed while it wrote, is left out.

    Raises:
        RunError: another line is damaged.
    """
    path = run / METRICS_FILE
    if not path.exists():
        return []
    texts = path.read_bytes().rstrip(b"\n").split(b"\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        line = _parse_line(text)
        if line is not None:
            lines.append(line)
        elif number < len(texts):
            raise RunError(
                f"Line {number} of {path} is damaged. Remove the line to go on; the other lines "
                f"are good."
            )
    return lines


def _parse_line(text: bytes) -> dict[str, Any] | None:
    """Return a line of ``metrics.jsonl``, or None if it is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    split, values = line.get("split"), {k: v for k, v in line.items() if k != "split"}
    good = isinstance(split, str) and all(type(each) in (int, float) for each in values.values())
    return line if good else None


class _Loss(nn.Module):
    """A model's loss as a function of tensors, which is what Fabric can hand to its processes."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *parts: Any) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        with trusted_arguments():  # looking at every pixel would cost time
            return self.model.loss(SequenceBatch(*parts))


def validation_batches(
    data: SequenceDataset, count: int, batch_size: int = 250
) -> Iterator[SequenceBatch]:
    """Yield complete sequences of the first ``count`` samples, transformations round-robin.

    If the activity of sequences is drawn, theirs is too, always the same.
    """
    indices = torch.arange(min(count, len(data)), device=data.device)
    law = data.activity
    for part in indices.split(batch_size):
        random = data.initial_state == "random"
        yield (
            data.sample(part, data.round_robin(part))
            if law is None
            else data.draw_sequences(part, law, random_starts=random)
        )


def check_samples(data: SequenceDataset, indices: Iterable[int] | Tensor) -> None:
    """Read whole sequences one by one.

    Args:
        data: a data set.
        indices: numbers of the samples.

    Raises:
        DataError: one cannot be read, or its pixels are not in [0, 1]; the message says which.

    Example:
        >>> from flowfactor.data import Sprites
        >>> check_samples(Sprites(10), range(10))
    """
    for index in map(int, indices):
        try:
            data.sample([index])
        except MemoryError:
            raise
        except Exception as error:
            raise DataError(f"Sample {index} is bad: {error}") from error


def _as_floats(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the terms as numbers, and their sum as ``loss`` first."""
    values = {name: float(value.detach()) for name, value in terms.items()}
    return {"loss": sum(values.values()), **values}
