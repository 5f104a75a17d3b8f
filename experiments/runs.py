"""Run folders: what is in them, and the steps that fill them: train and evaluate.

A run folder holds ``config.yaml`` (every key written out), ``train.log``, ``metrics.jsonl``,
``checkpoint.pt`` (to resume), ``model.safetensors`` (to load), ``training.json`` (once the training
has ended), ``evaluation.json``, ``assignments.csv`` (if the model infers flows), ``figures/``,
``report.html`` and what the loggers write; ``initial.json`` says with which weights it began, if
these are another run's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import flowfactor
from experiments import environment
from experiments.config import (
    CONFIG_FILE,
    Config,
    differences,
    flatten,
    read_config,
    to_dict,
    to_yaml,
)
from flowfactor import checkpoints, machine
from flowfactor.checkpoints import STATE_FILE
from flowfactor.data import SequenceDataset
from flowfactor.errors import ConfigError, DataError, RunError
from flowfactor.evaluation import check_metrics
from flowfactor.evaluation import evaluate as evaluate_model
from flowfactor.metrics import assignments, infer_labels
from flowfactor.models import PotentialModel, SequenceModel
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS, MODELS
from flowfactor.training import (
    MAY_CHANGE,
    Progress,
    TrainingOptions,
    TrainingResult,
    check_options,
    check_samples,
    decide,
    fit,
    lock_of,
    make_fabric,
    read_metrics,
    take_initial_weights,
    validation_batches,
)

TRAINING_FILE = "training.json"
EVALUATION_FILE = "evaluation.json"
ASSIGNMENTS_FILE = "assignments.csv"
INITIAL_FILE = "initial.json"
LOG_FILE = "train.log"
FIGURES = "figures"

# What may change when a training is resumed: nothing that the model or its batches depend on.
_MAY_CHANGE = (
    "description",
    "plugins",
    "evaluation.",
    "data.root",
    "data.path",
    "data.labels",
    "data.test",
    *(f"training.{key}" for key in MAY_CHANGE),
)

logger = logging.getLogger(__name__)


# ---- training


def train(
    config: Config,
    run: Path,
    *,
    resume: bool = False,
    check_data: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Train a configuration into a run folder.

    Args:
        config: what to train.
        run: the folder; new or empty, unless resumed.
        resume: continue the training in the folder, or start it again if it was ended before its
            first checkpoint.
        check_data: read every sample before the training begins, those of the evaluation too.
        on_progress: called at every log and validation.

    Raises:
        RunError: the folder is in use, or cannot be resumed with this configuration.
        DataError, ConfigError, TrainingError: as their names say.
    """
    config = config.replace(data=config.data.resolve())
    check_folder = check_resumable if resume else _check_free
    check_folder(config, run)
    # Everything that can be wrong with data and model is found before the folder is made.
    splits = {
        split: config.data.load(split, config.seed).with_activity(config.data.law)
        for split in ("train", "validation", *([config.evaluation.split] if check_data else []))
    }
    training, validation = splits["train"], splits["validation"]
    model = build_model(config, training)
    if model.supervised:
        for data in splits.values():
            data.require_labels()
    for split, data in splits.items():
        model.check_rate(data, split)
    check_frames(config, training.horizon)
    check_options(model, config.training)
    initial = None if resume and is_begun(run) else _begin(model, config.training)
    check_metrics(model, validation, config.evaluation)
    if check_data:
        check_splits(**splits)
    options, chosen = decide(config.training, run if resume else None)
    fabric = make_fabric(options)
    with lock_of(run, fabric), machine.threads(options.threads):
        if fabric.is_global_zero:
            check_folder(config, run)  # others had it in the meantime
        if initial is not None and fabric.is_global_zero:
            write_json(run / INITIAL_FILE, initial)
        return _train(
            config, run, model, training, validation, options, chosen, fabric, resume, on_progress
        )


def _train(
    config: Config,
    run: Path,
    model: SequenceModel,
    training: SequenceDataset,
    validation: SequenceDataset,
    options: TrainingOptions,
    chosen: Mapping[str, str],
    fabric: Any,
    resume: bool,
    on_progress: Callable[[Progress], None] | None,
) -> TrainingResult:
    again = resume and not is_begun(run)
    fingerprint = config.data.fingerprint()
    if fabric.is_global_zero:
        checkpoints.write_file(run / CONFIG_FILE, to_yaml(config))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with _log_to(run / LOG_FILE, enabled=fabric.is_global_zero):
        logger.info("%s", environment.command())
        if again:
            logger.info("%s was ended before its first checkpoint and starts again", run)
        logger.info(
            "%d training samples from %s, %d held out for validation; %d parameters",
            len(training),
            config.source,
            len(validation),
            parameters,
        )
        logger.info("training.accelerator: %s", fabric.device)
        for key, reason in chosen.items():
            logger.info("training.%s: %s", key, reason)
        training, validation = training.to(fabric.device), validation.to(fabric.device)
        seen = training, validation
        if not model.supervised:
            fraction = config.data.labelled_fraction or 0.0
            seen = training.without_labels(fraction, config.seed), validation.without_labels()

        def report(progress: Progress) -> None:
            (run / TRAINING_FILE).unlink(missing_ok=True)  # it has not ended any more
            if on_progress is not None:
                on_progress(progress)

        result = fit(
            model,
            *seen,
            options,
            run,
            fabric=fabric,
            resume=resume and not again,
            seed=config.seed,
            on_progress=report if fabric.is_global_zero else None,
            settings={
                key: value
                for key, value in flatten(to_dict(config)).items()
                if key.startswith("data.") and not key.startswith(_MAY_CHANGE)
            }
            | {f"checksum of data.{key}": value for key, value in fingerprint.items()},
        )
        logger.info("finished: %d steps in %.0f s", result.steps, result.seconds)
        if fabric.is_global_zero:
            facts = {
                "command": environment.command(),
                "seed": config.seed,
                "steps": result.steps,
                "seconds": round(result.seconds, 1),
                "best_validation_loss": result.best_validation,
                "parameters": parameters,
                "training_samples": len(training),
                "data_fingerprint": fingerprint,
                "chosen": dict(chosen),
                **_initial(run),
                **environment.describe(fabric.device),
                **_finish(run, training, validation, config.training.validation_sequences),
            }
            write_json(run / TRAINING_FILE, facts)
    return result


def _begin(model: SequenceModel, options: TrainingOptions) -> dict[str, Any] | None:
    """Let a model begin with the weights of another run, and return what is known of that.

    It is written down, for the other run may be gone when it is asked for.
    """
    if options.initial_weights is None:
        return None
    anew = take_initial_weights(model, options)
    run = Path(options.initial_weights)
    ships = not run.exists()
    return {
        "run": options.initial_weights,
        "sha256": checkpoints.digest(run),
        "begun_anew": list(anew),
        "training": {} if ships else read_training(checkpoints.model_file(run).parent),
    }


def _initial(run: Path) -> dict[str, Any]:
    """Return with which weights a training began, empty if they were drawn."""
    path = run / INITIAL_FILE
    return {"initial_weights": read_json(path)} if path.is_file() else {}


def check_splits(**splits: SequenceDataset) -> None:
    """Read every sample.

    Args:
        splits: data sets by the names of their splits.

    Raises:
        DataError: the first sample that cannot be read.
    """
    for name, data in splits.items():
        try:
            check_samples(data, range(len(data)))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        logger.info("%s: all %d samples can be read", name, len(data))


def build_model(config: Config, data: SequenceDataset) -> SequenceModel:
    """Return the untrained model of a configuration, initialised from its seed.

    Args:
        config: of the run.
        data: what it will be trained on.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    torch.manual_seed(config.seed)
    try:
        model: SequenceModel = MODELS[config.kind].from_options(
            config.model, data.names, data.image_shape, data.horizon
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: {error}") from error
    return model


def check_frames(config: Config, horizon: int) -> None:
    """Refuse more frames than sequences have.

    Raises:
        ConfigError: with the key that asks for them.
    """
    for key, frames in (
        ("training.frames_per_sequence", config.training.frames_per_sequence),
        ("evaluation.frames", config.evaluation.frames),
    ):
        if frames is not None and frames > horizon:
            raise ConfigError(
                f"{key}: is {frames}, but the sequences have {horizon} frames after the first"
            )


def is_first_process() -> bool:
    """Return whether this process is the first, or the only one, that trained."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )


def _finish(
    run: Path, training: SequenceDataset, validation: SequenceDataset, count: int
) -> dict[str, Any]:
    """Let the best model learn what it learns after the training, and save it."""
    saved = checkpoints.read(checkpoints.model_file(run))["facts"]
    if saved is not None:  # the training ended after the model was finished
        return dict(saved)
    model = flowfactor.load(run, device=training.device)
    if validation.labels is not None and bool((known := validation.labels >= 0).any()):
        validation = validation.subset(known.nonzero()[:, 0])
    batches = validation_batches(training, len(training)), validation_batches(validation, count)
    if facts := model.finish(*batches):
        checkpoints.save_model(model, run, facts)
    return facts


def is_begun(run: Path) -> bool:
    """Return whether a run has something to resume: it was trained to its first checkpoint."""
    return (run / STATE_FILE).is_file() or (run / TRAINING_FILE).is_file()


def _check_free(config: Config, run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file; a run needs a folder. Choose another one with --out.")
    if not run.is_dir() or checkpoints.is_empty(run):
        return
    if (run / CONFIG_FILE).is_file() and not is_begun(run):
        raise RunError(
            f"{run} holds a training without a checkpoint, and nothing in it was changed. Start it "
            f"again with --resume, or choose another folder with --out."
        )
    raise RunError(
        f"{run} exists and is not empty, and nothing in it was changed. Continue its training with "
        f"--resume, or choose another folder with --out."
    )


def check_resumable(config: Config, run: Path) -> None:
    """Refuse to resume a run with another configuration.

    Raises:
        RunError: with what differs; or the folder is no run, or its checkpoint is gone.
        ConfigError: its configuration is damaged.
    """
    if run.is_dir() and checkpoints.is_empty(run):
        return
    before = read_run_config(run, config.general.plugins)
    if not (run / STATE_FILE).is_file():
        lines = read_metrics(run)
        if lines and lines[-1]["step"] > before.training.checkpoint_every:
            raise RunError(
                f"{run} was trained beyond its first checkpoint, but its {STATE_FILE} is missing, "
                f"and nothing was changed. Restore it, or train into another folder with --out."
            )
    changed = [
        change for change in differences(before, config) if not change.startswith(_MAY_CHANGE)
    ]
    if changed:
        listed = "\n".join(f"  {change}" for change in changed)
        raise RunError(
            f"{run} was started with another configuration and cannot be continued with this one. "
            f"What differs:\n{listed}\nUse the configuration of the run ({run / CONFIG_FILE}), or "
            f"train into another folder with --out."
        )


# ---- reading runs


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        path: its folder.
        config: its configuration, whose plug-ins are loaded.
        device: where model and data are, and everything is computed.
    """

    path: Path
    config: Config
    device: torch.device

    @functools.cached_property
    def model(self) -> SequenceModel:
        """The model, in evaluation mode."""
        model: SequenceModel = flowfactor.load(self.path, device=self.device)
        return model

    @property
    def potential_model(self) -> PotentialModel:
        """The model, if it has potentials.

        Raises:
            RunError: it has none.
        """
        if not isinstance(self.model, PotentialModel):
            raise RunError(f"{self.path} holds a {self.config.kind}, which has no potentials.")
        return self.model

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """What was measured."""
        return read_evaluation(self.path)

    def data(self, split: str | None = None, *, held_out: bool = False) -> SequenceDataset:
        """Return sequences; what those without a label undergo is inferred.

        Args:
            split: ``train``, ``validation`` or ``test``; None is that of the evaluation.
            held_out: take what the configuration keeps from the training.

        Raises:
            DataError: they cannot be read, are not those of the training, or nothing was kept.
        """
        self.config.data.check_fingerprint(read_training(self.path).get("data_fingerprint"))
        load = self.config.data.load_held_out if held_out else self.config.data.load
        data = load(split or self.config.evaluation.split, self.config.seed)
        return infer_labels(self.model, data.to(self.device))


def open_run(folder: Path, plugin_names: Iterable[str] = (), device: str | None = None) -> Run:
    """Return a trained run, after loading its plug-ins.

    Args:
        folder: of the run.
        plugin_names: plug-ins besides those that the run names.
        device: what computes; None is what the configuration says.

    Raises:
        RunError: the folder is no run.
        ConfigError: its configuration is damaged, a plug-in is missing, or there is no such device.
    """
    config = read_run_config(folder, plugin_names)
    return Run(folder, config, find_device(config, device))


def find_device(config: Config, name: str | None = None) -> torch.device:
    """Return the device that computes.

    Args:
        config: whose ``training.accelerator`` holds.
        name: of another one.

    Raises:
        ConfigError: there is no such device.
    """
    try:
        return machine.find_device(config.training.accelerator if name is None else name)
    except ConfigError as error:
        key = "training.accelerator" if name is None else "--device"
        raise ConfigError(f"{key}: {error}") from None


def read_run_config(run: Path, plugin_names: Iterable[str] = ()) -> Config:
    """Return the configuration of a run, after loading its plug-ins.

    Args:
        run: the folder.
        plugin_names: plug-ins besides those that the run names.

    Raises:
        RunError: the folder is no run.
        ConfigError: its configuration is damaged, or a plug-in is missing.
    """
    if not run.exists():
        raise RunError(
            f"There is no run folder {run}. `flowfactor train CONFIG --out {run}` makes one."
        )
    if not (run / CONFIG_FILE).is_file():
        raise RunError(
            f"{run} is no run folder: it has no {CONFIG_FILE}. Give a folder that "
            f"`flowfactor train` has written."
        )
    return read_config(str(run / CONFIG_FILE), plugin_names=plugin_names)[1]


def read_evaluation(run: Path) -> Evaluation:
    """Return what was measured of a run, of the weights that it has now.

    Raises:
        RunError: nothing yet, other weights, or a file is damaged.
    """
    if not (run / EVALUATION_FILE).is_file():
        raise RunError(
            f"{run} has not been evaluated yet: it has no {EVALUATION_FILE}. "
            f"`flowfactor evaluate {run}` writes it."
        )
    evaluation = Evaluation.read(run / EVALUATION_FILE)
    model = checkpoints.find_model(run)
    if model is not None and checkpoints.digest(model) != evaluation.weights:
        raise RunError(
            f"The {EVALUATION_FILE} of {run} was measured with other weights than those of its "
            f"{model.name}, as it is after more training. `flowfactor evaluate {run}` measures it "
            f"again."
        )
    return evaluation


def read_training(run: Path) -> dict[str, Any]:
    """Return the facts of a training that has ended, none of another.

    Raises:
        RunError: the file is damaged.
    """
    path = run / TRAINING_FILE
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of a run.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"There is no file {path}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} is damaged: {error}. Remove it and run the command that writes it again."
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object. Remove it and write it again.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    checkpoints.write_file(path, json.dumps(content, indent=2) + "\n")


# ---- evaluation


def evaluate(
    folder: Path,
    *,
    split: str | None = None,
    images: int | None = None,
    device: str | None = None,
    plugin_names: Iterable[str] = (),
    on_stage: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure a trained run on held-out samples and write ``evaluation.json``.

    If the model infers flows, ``assignments.csv`` says which sequence got which, and how surely.

    Args:
        folder: of the run.
        split: ``validation`` or ``test``; None is what the configuration says.
        images: how many samples; None is what the configuration says.
        device: what computes; None is what the configuration says.
        plugin_names: plug-ins besides those that the run names.
        on_stage: called with what is being measured.

    Raises:
        RunError, DataError: the run or its data cannot be read.
        ConfigError: a metric does not apply, or a plug-in is missing.
    """
    run = open_run(folder, plugin_names, device)
    weights = checkpoints.digest(folder)  # before they are loaded: a training may replace them
    config, model = run.config, run.model
    changes = {"split": split, "images": images}
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    options = dataclasses.replace(config.evaluation, **given)
    training = read_training(folder)
    config.data.check_fingerprint(training.get("data_fingerprint"))
    unseen = config.data.describe_held_out()
    data = config.data.load(options.split, config.seed)
    validation = None
    if not model.supervised and options.split != "validation":
        validation = config.data.load("validation", config.seed)
    recorded = data.labels is not None
    evaluation = evaluate_model(
        model,
        data,
        options,
        source=config.source,
        seed=config.seed,
        held_out=config.data.load_held_out(options.split, config.seed) if unseen else None,
        held_out_values=unseen or "",
        validation=validation,
        training=config.data.load("train", config.seed) if recorded else None,
        on_stage=on_stage,
    )
    origin = environment.origin(run.device)
    origin["environment"]["data"] = config.data.fingerprint()
    evaluation = dataclasses.replace(evaluation, training=training, weights=weights, **origin)
    evaluation.write(folder / EVALUATION_FILE)
    if not model.supervised:
        table = assignments(model, model.match_precision(data), torch.arange(evaluation.images))
        checkpoints.write_file(folder / ASSIGNMENTS_FILE, table.to_csv())
    return evaluation


def measure(
    run: Run,
    data: SequenceDataset,
    metric: str,
    content: Mapping[str, Any] | None = None,
    *,
    frames: int | None = None,
) -> Evaluation:
    """Return one metric of a trained run on all samples of some data.

    Args:
        run: whose model is measured.
        data: for instance other data than the run's.
        metric: its name.
        content: its options.
        frames: the last frame of errors; None is what the configuration says.

    Raises:
        ConfigError, RunError: the metric does not apply, or cannot be measured.
    """
    options = dataclasses.replace(
        run.config.evaluation,
        images=len(data),
        frames=frames or run.config.evaluation.frames,
        metrics={**dict.fromkeys(METRICS, False), metric: content or {}},
    )
    evaluation = evaluate_model(
        run.model, data, options, source=run.config.source, seed=run.config.seed
    )
    return dataclasses.replace(evaluation, **environment.origin(run.device))


@contextlib.contextmanager
def _log_to(path: Path, *, enabled: bool) -> Iterator[None]:
    """Copy what the packages log into a file, from the first process only."""
    if not enabled:
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("flowfactor", "experiments")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.INFO)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
        handler.close()
