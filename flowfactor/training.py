"""The training loop: schedule, validation, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import pydantic
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import flowfactor.loggers  # noqa: F401  (registers them)
from flowfactor import checkpoints
from flowfactor.data import SequenceBatch, SequenceDataset, SequenceLoader
from flowfactor.errors import ConfigError, FlowFactorError, RunError
from flowfactor.models import SequenceModel
from flowfactor.options import (
    NameIn,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Weight,
    options,
)
from flowfactor.registries import LOGGERS
from solvers import SolverError

METRICS_FILE = "metrics.jsonl"
SHOWN_SEQUENCES = 250
"""Training sequences that models without flows learn to move by at a validation."""

logger = logging.getLogger(__name__)


class TrainingError(FlowFactorError):
    """A training that cannot go on, such as one whose loss is no longer finite."""


MomentDecay = Annotated[float, pydantic.Field(ge=0, lt=1)]


@options
class TrainingOptions:
    """How long and how fast to train, on what, and what to write down.

    The learning rate rises linearly over ``warmup`` steps and then follows half a cosine to 0.
    Where it stands on the cosine is the larger of two fractions, of the steps and of the minutes,
    so that a training ends on time with its schedule complete, however fast the machine.
    """

    steps: PositiveInt = 10_000
    """Optimiser steps at most."""
    max_minutes: PositiveFloat | None = None
    """Wall-clock minutes at most, over all resumes; null is no limit."""
    batch_size: PositiveInt = 66
    """Sequences per step and process."""
    frames_per_sequence: PositiveInt | None = 2
    """Random frames of each sequence beside frame 0; null: all of them."""
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
    """Loggers beside ``metrics.jsonl``: ``tensorboard``, ``csv``."""
    accelerator: Literal["auto", "cpu", "cuda", "mps", "gpu"] = "auto"
    """Kind of device."""
    devices: PositiveInt | Literal["auto"] = 1
    """Number of devices, one process each."""
    num_nodes: PositiveInt = 1
    """Number of machines."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several processes train together."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of the networks; potentials and losses are always computed in float32."""


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


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a training ended: steps and seconds in all, and the lowest validation loss."""

    steps: int
    seconds: float
    best_validation: float


@runtime_checkable
class Batches(Protocol):
    """Training batches, a pure function of the step: a :class:`~flowfactor.data.SequenceLoader`."""

    def batch(self, step: int) -> SequenceBatch:
        """Return the batch of a step."""


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
) -> TrainingResult:
    """Train a model and leave the best one, by validation loss, in the run folder.

    Writes ``metrics.jsonl`` (one JSON object a line), the files of the loggers, ``checkpoint.pt``
    (the whole state, for ``resume``) and ``model.pt`` (what :func:`flowfactor.load` reads), the
    last two atomically. An interrupted training saves its state before it ends.

    Args:
        model: it is trained in place.
        training: a data set; or batches as a function of the step, such as a
            :class:`~flowfactor.data.SequenceLoader`.
        validation: a data set, or batches, that are not trained on.
        options: how long and how fast.
        run: the folder.
        fabric: device, precision and processes; by default those of the options.
        resume: continue from ``checkpoint.pt``: the same training, as far as the batches are the
            same functions of the step.
        seed: of the batches and of the posterior's samples.
        on_progress: called after every log and validation.
        measure: called with the model, in evaluation mode, at every validation; what it returns
            stands beside the losses in ``metrics.jsonl``. The time it takes counts as training. By
            default the equivariance error, if ``options.validation_errors`` asks for it.

    Raises:
        TrainingError: the loss or the gradient is not finite. The last good state is kept.
        RunError: there is nothing to resume, or what is there does not fit the model.
        ConfigError: the options name devices that are not there.
        DataError: a sequence has no label, and the model needs all of them.

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
    for data in (training, validation):
        if model.supervised and isinstance(data, SequenceDataset):
            data.require_labels()
    fabric = fabric or make_fabric(options)
    if isinstance(training, SequenceDataset):
        training = training.to(fabric.device)
    if isinstance(validation, SequenceDataset):
        validation = validation.to(fabric.device)
    if measure is None and options.validation_errors:
        measure = _measure_errors(model, training, validation, options.validation_errors)
    if isinstance(validation, SequenceDataset):
        validation = list(validation_batches(validation, options.validation_sequences))
    if isinstance(training, SequenceDataset):
        training = SequenceLoader(
            training,
            options.batch_size,
            frames_per_sequence=options.frames_per_sequence,
            seed=seed,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
    trainer = _Trainer(model, options, Path(run), fabric, seed, measure)
    if resume:
        trainer.restore()
    return trainer.train(training, validation, on_progress)


def make_fabric(options: TrainingOptions) -> Fabric:
    """Return Fabric with the devices and precision of the options, its processes launched.

    Raises:
        ConfigError: there are no such devices.
    """
    try:
        fabric = Fabric(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=options.precision,
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:  # raised for devices that are not there
        raise ConfigError(
            f"training.accelerator, devices, strategy or precision: {error}. "
            f"`--set training.accelerator=cpu` trains on the processor."
        ) from error
    return fabric


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


class _Trainer:
    def __init__(
        self,
        model: SequenceModel,
        options: TrainingOptions,
        run: Path,
        fabric: Fabric,
        seed: int,
        measure: Callable[[SequenceModel], dict[str, float]] | None,
    ) -> None:
        self.measure = measure
        self.options = options
        self.run = run
        self.fabric = fabric
        self.model = model
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
        self.step = 0
        self.seconds = 0.0
        self.best = math.inf
        torch.manual_seed(seed + fabric.global_rank)

    # ---- the loop

    def train(
        self,
        training: Batches,
        validation: Sequence[SequenceBatch],
        on_progress: Callable[[Progress], None] | None,
    ) -> TrainingResult:
        options = self.options
        began = time.monotonic() - self.seconds
        report = on_progress or (lambda _: None)
        self.model.train()
        with self._log() as log:
            try:
                while (fraction := self._fraction()) < 1:
                    rate = self._set_learning_rate(fraction)
                    self.model.on_step(self.step)
                    terms = self._step(training.batch(self.step))
                    self.step += 1
                    self.seconds = self._agree(time.monotonic() - began)
                    ends = self._fraction() >= 1
                    if self.step % options.log_every == 0 or ends:
                        values = _as_floats(terms)
                        log.write("train", self.step, self.seconds, values, rate)
                        report(self._progress(values, "train"))
                    if self.step % options.validate_every == 0 or ends:
                        values = self._validate(validation)
                        log.write("validation", self.step, self.seconds, values)
                        report(self._progress(values, "validation"))
                    if self.step % options.checkpoint_every == 0 or ends:
                        self._save()
            except KeyboardInterrupt:
                self._save()
                raise
        return TrainingResult(self.step, self.seconds, self.best)

    def _fraction(self) -> float:
        """Return how much of the training is done, by steps or by time, whichever is more."""
        by_steps = self.step / self.options.steps
        if self.options.max_minutes is None:
            return by_steps
        return max(by_steps, self.seconds / (60 * self.options.max_minutes))

    def _agree(self, seconds: float) -> float:
        """Let the processes agree on the time, or their learning rates would differ."""
        if self.fabric.world_size == 1:
            return seconds
        return float(self.fabric.broadcast(seconds))

    def _set_learning_rate(self, fraction: float) -> float:
        warm = min(1.0, (self.step + 1) / max(self.options.warmup, 1))
        height = warm * 0.5 * (1 + math.cos(math.pi * fraction))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * height
        return self.options.learning_rate * height

    def _step(self, batch: SequenceBatch) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        try:
            parts = vars(batch.to(self.fabric.device)).values()
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
            raise self._stopped(
                f"the loss or its gradient is not finite ({values}; norm {float(norm):.4g})"
            )
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return terms

    def _stopped(self, reason: str) -> TrainingError:
        """Save the state, which this step has not touched, and return the error to raise."""
        self._save()
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
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        # The samples of the posterior are the same at every validation, and training's own
        # sequence of random numbers is not disturbed.
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            model.eval()
            for batch in validation:
                with self.fabric.autocast():
                    terms = _as_floats(model.loss(batch.to(self.fabric.device)))
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0.0) + value * len(batch)
                count += len(batch)
            measured = {} if self.measure is None else self.measure(model)
        self.model.train()
        means = {name: total / max(count, 1) for name, total in totals.items()}
        if means and means["loss"] < self.best:
            self.best = means["loss"]
            self._save_model(model)
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

    def _save(self) -> None:
        if not self.fabric.is_global_zero:
            return
        if not (self.run / checkpoints.MODEL_FILE).exists():
            # Nothing was validated yet; a run that is stopped early still opens.
            self._save_model(self._evaluated())
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "weights": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        checkpoints.write(state, self.run / checkpoints.STATE_FILE)

    def restore(self) -> None:
        path = self.run / checkpoints.STATE_FILE
        if not path.exists():
            raise RunError(
                f"There is no training to resume in {self.run}: it has no "
                f"{checkpoints.STATE_FILE}, as a training that was ended before its first "
                f"checkpoint. Start it again, without --resume, in a new folder."
            )
        state = checkpoints.read(path)
        try:
            self.model.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None and state["average"] is not None:
                self.average.load_state_dict(state["average"])
            torch.set_rng_state(state["rng"])
            if state["rng_cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(state["rng_cuda"])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.best = float(state["best"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise RunError(
                f"{path} does not fit the model of this configuration: {error}. Resume with the "
                f"configuration that the run was started with."
            ) from error
        logger.info("resumed at step %d after %.0f s of training", self.step, self.seconds)

    def _log(self) -> _Log:
        if not self.fabric.is_global_zero:
            return _NoLog()
        return _Log(self.run, self.step, self.options.loggers)

    def _progress(self, terms: dict[str, float], split: str) -> Progress:
        fraction = min(self._fraction(), 1.0)
        left = self.seconds / fraction - self.seconds
        return Progress(self.step, fraction, self.seconds, left, terms, split)


class _Log:
    """``metrics.jsonl`` and the loggers of the options, from a given step on."""

    def __init__(self, run: Path, step: int, loggers: Sequence[str]) -> None:
        run.mkdir(parents=True, exist_ok=True)
        # What was logged after the state that is resumed will be logged again.
        kept = [line for line in read_metrics(run) if line["step"] <= step] if step else []
        with checkpoints.atomic_file(run / METRICS_FILE) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
        self.run = run
        self.loggers: list[Logger] = [LOGGERS[name](run) for name in loggers]

    def __enter__(self) -> _Log:
        self.file = (self.run / METRICS_FILE).open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        for each in self.loggers:
            each.finalize("success")

    def write(
        self,
        split: str,
        step: int,
        seconds: float,
        terms: dict[str, float],
        learning_rate: float | None = None,
    ) -> None:
        values = {"seconds": round(seconds, 3), **terms}
        if learning_rate is not None:
            values["learning_rate"] = learning_rate
        self.file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self.file.flush()
        for each in self.loggers:
            named = {f"{split}/{name}": value for name, value in values.items()}
            each.log_metrics(named, step)


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

    Raises:
        RunError: a line that is not JSON.
    """
    path = run / METRICS_FILE
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise RunError(
                f"Line {number} of {path} is not JSON ({error.msg}). Remove the line to go on; "
                f"the other lines are good."
            ) from error
    return lines


class _Loss(nn.Module):
    """A model's loss as a function of tensors, which is what Fabric can hand to its processes."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *parts: Any) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        return self.model.loss(SequenceBatch(*parts))


def validation_batches(
    data: SequenceDataset, count: int, batch_size: int = 250
) -> Iterator[SequenceBatch]:
    """Yield complete sequences of the first ``count`` samples, transformations round-robin."""
    indices = torch.arange(min(count, len(data)), device=data.device)
    for part in indices.split(batch_size):
        yield data.sample(part, data.round_robin(part))


def _as_floats(terms: dict[str, Tensor]) -> dict[str, float]:
    """Return the terms as numbers, and their sum as ``loss`` first."""
    values = {name: float(value.detach()) for name, value in terms.items()}
    return {"loss": sum(values.values()), **values}
