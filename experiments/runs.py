"""Run folders: what is in them, and the steps that fill them: train and evaluate.

A run folder holds ``config.yaml`` (every key written out), ``train.log``, ``metrics.jsonl``,
``tensorboard/``, ``checkpoint.pt`` (to resume), ``model.pt`` (to load), ``training.json`` (once the
training has ended), ``evaluation.json``, ``figures/`` and ``report.html``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

import flowfactor
from experiments import environment
from experiments.config import Config, differences, dump, read_config
from experiments.datasets import DigitsConfig, GridSection, RecordingsConfig
from experiments.generalization import composition, extrapolation, summaries
from experiments.models import FlowVAEConfig, flow_names
from flowfactor import checkpoints
from flowfactor.data import (
    Recordings,
    SequenceBatch,
    SequenceDataset,
    SequenceLoader,
    SequenceSource,
    Unlabelled,
    round_robin,
)
from flowfactor.errors import ConfigError, RunError
from flowfactor.metrics import (
    CodeTable,
    EquivarianceError,
    dci,
    encode_dataset,
    equivariance_error,
    factor_vae_score,
    frame_errors,
    infer_labels,
    known_factors,
    log_likelihood,
    match_flows,
    mean_error,
    mig,
    path_measures,
    sap,
    solver_independence,
    variation_predictability,
)
from flowfactor.models import (
    SequenceModel,
    TraversalModel,
    WeakFlowVAE,
    fit_traversals,
    mean_displacements,
)
from flowfactor.observation import Gaussian
from flowfactor.training import Progress, TrainingResult, fit, validation_batches

CONFIG_FILE = "config.yaml"
TRAINING_FILE = "training.json"
EVALUATION_FILE = "evaluation.json"
LOG_FILE = "train.log"

# What may change when a training is resumed: nothing that the model or its batches depend on.
_MAY_CHANGE = (
    "description",
    "evaluation.",
    "data.root",
    "data.path",
    "data.test",
    "training.steps",
    "training.max_minutes",
    "training.learning_rate",
    "training.clip",
    "training.log_every",
    "training.validate_every",
    "training.checkpoint_every",
    "training.accelerator",
)

_INFERRED_AT_ONCE = 250
_PATH_IMAGES = 250

# Of the equivariance error, in the published protocol.
_FRAMES = 7

# How many training sequences of each transformation show how latents move, with how many of them
# every dimension is tried, and how far.
_RULE_SEQUENCES = 250
_RULE_IMAGES = 16
_RULE_RANGES = (-4.0, -2.0, 2.0, 4.0)

logger = logging.getLogger(__name__)


# ---- data and model of a configuration


def load_data(config: Config, split: str) -> SequenceDataset:
    """Return the sequences of a split.

    Args:
        config: of the run.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        DataError: they cannot be read.
        ConfigError: nothing says how many transformations they undergo.
    """
    data = config.data.load(split, config.seed)
    if not (isinstance(config.data, RecordingsConfig) and isinstance(config.model, FlowVAEConfig)):
        return data
    assert isinstance(data, Recordings)
    if not config.model.weak or data.labelled or config.data.names is not None:
        return data
    if config.model.flows is None:
        raise ConfigError(
            f"The recordings in {config.data.path} have no labels, so that nothing says how many "
            f"transformations there are: give their number as model.flows, or their names as "
            f"data.names."
        )
    return data.relabelled(flow_names(config.model.flows), torch.full((len(data),), -1))


def load_measured(
    config: Config, split: str, model: SequenceModel, *, held_out: bool = False
) -> SequenceDataset:
    """Return sequences to measure a trained model on.

    What recordings without a label undergo is what a weakly supervised model infers.

    Args:
        config: of the run.
        split: ``train``, ``validation`` or ``test``.
        model: the trained one.
        held_out: take what the configuration keeps from training.

    Raises:
        DataError: they cannot be read.
    """
    data = config.data.load_held_out(split, config.seed) if held_out else load_data(config, split)
    return _with_labels(data, model)


def _with_labels(data: SequenceDataset, model: SequenceModel) -> SequenceDataset:
    if isinstance(model, WeakFlowVAE) and isinstance(data, Recordings):
        return infer_labels(model, data)
    return data


def build_model(config: Config, data: SequenceSource) -> SequenceModel:
    """Return the untrained model of a configuration, initialised from its seed.

    Args:
        config: of the run.
        data: what it will be trained on.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    torch.manual_seed(config.seed)
    try:
        return config.model.build(
            list(data.names), data.image_shape, data.horizon, config.objective.model_dump()
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: {error}.") from error


# ---- training


def train(
    config: Config,
    run: Path,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Train a configuration into a run folder.

    Args:
        config: what to train.
        run: the folder; new or empty, unless resumed.
        resume: continue the training in the folder.
        on_progress: called as the training goes on.

    Raises:
        RunError: the folder is in use, or cannot be resumed with this configuration.
        DataError, ConfigError, TrainingError: as their names say.
    """
    config = _with_resolved_source(config)
    if resume:
        _check_resumable(config, run)
    else:
        _check_free(run)
    # Everything that can be wrong with data and model is found before the folder is made.
    training = load_data(config, "train")
    held_out = load_data(config, "validation")
    _check_frames(config, training.horizon)
    model = build_model(config, training)
    fabric = _fabric(config)

    if fabric.is_global_zero:
        run.mkdir(parents=True, exist_ok=True)
        _write_text(run / CONFIG_FILE, dump(config))
    with _log_to(run / LOG_FILE, enabled=fabric.is_global_zero):
        logger.info("%s", environment.command())
        logger.info(
            "%d training samples from %s, %d held out for validation; %d parameters",
            len(training),
            config.data.source,
            len(held_out),
            sum(parameter.numel() for parameter in model.parameters()),
        )
        source: SequenceSource = training.to(fabric.device)
        held_out = held_out.to(fabric.device)
        validated: SequenceSource = held_out
        if config.model.weak:
            source = Unlabelled(source, config.data.labelled_fraction or 0.0, config.seed)
            validated = Unlabelled(held_out)
        loader = SequenceLoader(
            source,
            config.training.batch_size,
            frames_per_sequence=config.training.frames_per_sequence,
            random_starts=config.data.start == "random",
            seed=config.seed,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
        validation = list(validation_batches(validated, config.training.validation_sequences))
        result = fit(
            model,
            loader,
            validation,
            config.training.options(),
            run,
            fabric=fabric,
            resume=resume,
            seed=config.seed,
            on_progress=on_progress if fabric.is_global_zero else None,
            measure=_validation_error(config, training, validated),
        )
        logger.info("finished: %d steps in %.0f s", result.steps, result.seconds)
    facts = {
        "command": environment.command(),
        "seed": config.seed,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "best_validation_loss": result.best_validation,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_samples": len(training),
        **environment.describe(fabric.device),
    }
    if fabric.is_global_zero:
        if config.model.weak:
            facts["matching"] = _name_flows(run, held_out, config)
        if isinstance(model, TraversalModel):
            facts["rules"] = _learn_rules(run, training)
        write_json(run / TRAINING_FILE, facts)
    return result


def is_first_process() -> bool:
    """Whether this process is the first, or the only one, of those that have trained together."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )


def _name_flows(run: Path, held_out: SequenceDataset, config: Config) -> dict[str, Any]:
    """Find out on validation sequences what the flows have learned; order and name them by it."""
    model = flowfactor.load(run)
    assert isinstance(model, WeakFlowVAE)
    if isinstance(held_out, Recordings):
        labelled = (held_out.labels >= 0).nonzero()[:, 0]
        if not len(labelled):
            return _count_flows(run, model, held_out)
        held_out = held_out.subset(labelled)
    batches = validation_batches(held_out, config.training.validation_sequences)
    matching = match_flows(model, batches, len(held_out.names))
    spare = len(model.names) - len(held_out.names)
    names = (*held_out.names, *(f"spare {i + 1}" for i in range(spare)))
    model.arrange(matching.order, names)
    checkpoints.save_model(model, run)
    logger.info("matching accuracy on validation sequences: %.4f", matching.accuracy)
    return {
        "accuracy": matching.accuracy,
        "purity": matching.purity,
        "counts": matching.counts[:, list(matching.order)].tolist(),
        "flows": list(names),
    }


def _count_flows(run: Path, model: WeakFlowVAE, held_out: Recordings) -> dict[str, Any]:
    """Order the flows by how many validation sequences they have, where there are no labels."""
    chosen = infer_labels(model, held_out).labels
    counts = torch.bincount(chosen, minlength=len(model.names))
    order = counts.argsort(descending=True, stable=True)
    model.arrange(order.tolist(), flow_names(len(order)))
    checkpoints.save_model(model, run)
    logger.info("validation sequences of each flow: %s", counts[order].tolist())
    return {"counts": [counts[order].tolist()], "flows": list(model.names)}


def _learn_rules(run: Path, training: SequenceDataset) -> dict[str, Any]:
    """Learn how the latents of a model without flows move, and take the rule that does it best.

    What it is learned from and chosen by are training sequences.
    """
    model = flowfactor.load(run)
    assert isinstance(model, TraversalModel)
    count = _RULE_SEQUENCES * len(training.names)
    batches = list(validation_batches(training, count))
    fit_traversals(model, batches, images=_RULE_IMAGES, ranges=_RULE_RANGES)
    errors = {}
    for rule in model.TRAVERSALS:
        model.rule = rule
        errors[rule] = _sequence_error(model, batches[0].to(_device(model)))
    model.rule = min(errors, key=lambda rule: errors[rule])
    checkpoints.save_model(model, run)
    logger.info(
        "errors of the rules on training sequences: %s",
        ", ".join(f"{rule} {error:.1f}" for rule, error in errors.items()),
    )
    return {"chosen": model.rule, "training_errors": errors}


def _validation_error(
    config: Config, training: SequenceDataset, held_out: SequenceSource
) -> Callable[[SequenceModel], dict[str, float]] | None:
    """Return what measures the equivariance error during a training, if that is asked for.

    The flow of a weakly supervised model is inferred; a model without flows moves by its mean
    displacement over training sequences, or by a rule that need not be learned.
    """
    count = config.training.validation_errors
    if not count:
        return None
    watched = next(validation_batches(held_out, count, batch_size=count))
    # The sequences of weak supervision may have no labels at all.
    shown = [] if config.model.weak else list(validation_batches(training, _RULE_SEQUENCES))

    def measure(model: SequenceModel) -> dict[str, float]:
        sequences = watched.to(_device(model))
        if not isinstance(model, TraversalModel):
            return {"error": _sequence_error(model, sequences)}
        displacements = mean_displacements(model, shown)[sequences.labels]
        z0 = model.represent(sequences.frames[:, 0])
        path = (z0.unsqueeze(1) + displacements).transpose(0, 1)
        errors = [_path_error(model, sequences, path)]
        if model.rule not in TraversalModel.TRAVERSALS:
            errors.append(_sequence_error(model, sequences))
        return {"error": min(errors)}

    return measure


def _device(model: SequenceModel) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def _sequence_error(model: SequenceModel, sequences: SequenceBatch) -> float:
    """Return the mean equivariance error over sequences of any transformations."""
    weak = isinstance(model, WeakFlowVAE)
    flows = model.infer(sequences).argmax(-1) if weak else sequences.labels
    z0 = model.represent(sequences.frames[:, 0])
    times = torch.arange(sequences.frames.shape[1], dtype=z0.dtype, device=z0.device)
    return _path_error(model, sequences, model.flow(z0, flows, times))


def _path_error(model: SequenceModel, sequences: SequenceBatch, path: Tensor) -> float:
    frames = min(_FRAMES, sequences.horizon)
    x = sequences.frames[:, : frames + 1]
    return frame_errors(model, x, path[: frames + 1]).error


def _with_resolved_source(config: Config) -> Config:
    """Say which digits `auto` stands for, so that the evaluation takes the same."""
    if not isinstance(config.data, DigitsConfig):
        return config
    return config.model_copy(update={"data": config.data.resolved()})


def _check_frames(config: Config, horizon: int) -> None:
    """The schema cannot know how long sequences are whose data set decides it."""
    some = config.training.frames_per_sequence
    if some is not None and some > horizon:
        raise ConfigError(
            f"training.frames_per_sequence is {some}, but the sequences have only {horizon} frames "
            "after the first."
        )
    if config.evaluation.frames is not None and config.evaluation.frames > horizon:
        raise ConfigError(
            f"evaluation.frames is {config.evaluation.frames}, but the sequences end at frame "
            f"{horizon}."
        )


def _fabric(config: Config) -> Fabric:
    options = config.training
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


def _check_free(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file; a run needs a folder. Choose another one with --out.")
    if (run / CONFIG_FILE).is_file() and not (run / checkpoints.STATE_FILE).is_file():
        raise RunError(
            f"{run} holds a training that was ended before its first checkpoint: there is nothing "
            f"to continue, and nothing in it was changed. Delete the folder to start again, or "
            f"choose another one with --out."
        )
    if run.is_dir() and any(run.iterdir()):
        raise RunError(
            f"{run} exists and is not empty, and nothing in it was changed. Continue its training "
            f"with --resume, or choose another folder with --out."
        )


def _check_resumable(config: Config, run: Path) -> None:
    before = read_run_config(run)
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


# ---- reading a run


def read_run_config(run: Path) -> Config:
    """Return the configuration of a run.

    Raises:
        RunError: the folder is no run.
        ConfigError: its configuration is damaged.
    """
    if not run.is_dir():
        raise RunError(
            f"There is no run folder {run}. `flowfactor train CONFIG --out {run}` makes one."
        )
    if not (run / CONFIG_FILE).is_file():
        raise RunError(
            f"{run} is no run folder: it has no {CONFIG_FILE}. Give a folder that "
            f"`flowfactor train` has written."
        )
    return read_config(str(run / CONFIG_FILE))[1]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"There is no {path}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} is damaged: {error}. Remove it and run the command that writes it again."
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object. Remove it and write it again.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    _write_text(path, json.dumps(content, indent=2) + "\n")


# ---- evaluation


def evaluate(
    run: Path,
    *,
    split: str | None = None,
    images: int | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure a trained run on held-out samples and write ``evaluation.json``.

    Args:
        run: the folder.
        split: ``validation`` or ``test``; None is what the configuration says.
        images: how many samples; None is what the configuration says.
        on_stage: called with what is being measured.

    Raises:
        RunError, DataError: the run or its data cannot be read.
    """
    config = read_run_config(run)
    options = config.evaluation
    split = split or options.split
    report = on_stage or (lambda _: None)
    model = flowfactor.load(run)
    known = load_data(config, split)
    data = _with_labels(known, model)
    indices = torch.arange(min(images or options.images, len(data)))
    frames = frames_measured(config, data)

    report(f"equivariance errors on {len(indices)} samples")
    errors = equivariance_error(model, data, indices, frames=frames)
    result: dict[str, Any] = {
        "split": split,
        "source": config.data.source,
        "images": len(indices),
        "frames": frames,
        **_summary(errors),
    }
    if isinstance(model, TraversalModel):
        report("its other rules")
        result["rule"] = model.rule
        result["rules"] = _rules(model, data, indices, errors, frames)
    else:
        report("the same with an accurate solver")
        changes = solver_independence(model, data, indices, frames=frames, trained=errors)
        result["solver_independence"] = {k: change._asdict() for k, change in changes.items()}
    if isinstance(model, WeakFlowVAE):
        report("which flow is which transformation")
        result["inferred"] = _inferred(model, data, known, indices, frames)
    report("log-likelihoods")
    result["log_likelihood"] = _likelihoods(model, data, config)
    if options.composition:
        report("flows at once, in turn, and backwards")
        result["composition"] = composition(model, data, indices, frames=frames)
    if options.extrapolation:
        report("frames after those of the training")
        result["extrapolation"] = extrapolation(model, data, indices)
    if options.paths:
        report("the paths of the latents")
        paths = path_measures(model, data, indices[:_PATH_IMAGES], frames=frames)
        result["paths"] = {name: measures._asdict() for name, measures in paths.items()}
    if options.predictability:
        report("how well flows can be told apart")
        with _as_run_error("predictability"):
            told = variation_predictability(model, data, indices, time=frames, seed=config.seed)
        result["predictability"] = dataclasses.asdict(told)
    if options.disentanglement:
        report("disentanglement")
        with _as_run_error("disentanglement"):
            result["disentanglement"] = _disentanglement(model, config, split)
    left_out = config.data.held_out_values()
    if left_out is not None:
        report("what was held out of the training")
        unseen = config.data.load_held_out(split, config.seed)
        others = torch.arange(min(images or options.images, len(unseen)))
        unseen_errors = equivariance_error(model, unseen, others, frames=frames)
        result["held_out"] = {
            "what": left_out,
            "images": len(others),
            **_summary(unseen_errors),
        }
    if (run / TRAINING_FILE).is_file():
        result["training"] = read_json(run / TRAINING_FILE)
    result |= environment.origin()
    write_json(run / EVALUATION_FILE, result)
    return result


def frames_measured(config: Config, data: SequenceDataset) -> int:
    """Return up to which frame a run is measured."""
    return config.evaluation.frames or min(_FRAMES, data.horizon)


def _summary(errors: dict[str, EquivarianceError]) -> dict[str, Any]:
    """Return errors as plain data, as they stand in an evaluation."""
    return {"mean_error": mean_error(errors), "errors": summaries(errors)}


def _rules(
    model: TraversalModel,
    data: SequenceDataset,
    indices: Tensor,
    chosen: dict[str, EquivarianceError],
    frames: int,
) -> dict[str, Any]:
    """Measure every rule by which the latents of a model may move, not only the chosen one."""
    best, found = model.rule, {}
    for rule in model.TRAVERSALS:
        model.rule = rule
        errors = chosen if rule == best else equivariance_error(model, data, indices, frames=frames)
        found[rule] = _summary(errors)
    model.rule = best
    return found


def _disentanglement(model: SequenceModel, config: Config, split: str) -> dict[str, Any]:
    """Score the code of images whose factors are known: of a grid all, else held-out ones."""
    options = config.evaluation
    data = load_data(config, "all" if isinstance(config.data, GridSection) else split)
    known = known_factors(data)
    codes, factors = encode_dataset(model, known, options.codes, seed=config.seed)
    trees = dci(codes, factors, trees=options.trees, seed=config.seed)
    return {
        "factors": list(known.names),
        "codes": options.codes,
        "trees": options.trees,
        "factor_vae": factor_vae_score(CodeTable(codes, factors), seed=config.seed),
        "mig": mig(codes, factors),
        "dci_disentanglement": trees.disentanglement,
        "dci_completeness": trees.completeness,
        "dci_informativeness": trees.informativeness,
        "sap": sap(codes, factors, seed=config.seed),
    }


def _inferred(
    model: WeakFlowVAE,
    data: SequenceDataset,
    known: SequenceDataset,
    indices: Tensor,
    frames: int,
) -> dict[str, Any]:
    """Measure a weakly supervised model with the transformation inferred, not given.

    Args:
        model: in evaluation mode.
        data: held-out sequences.
        known: the same before the model has labelled any.
        indices: which of them.
        frames: T.
    """
    errors = equivariance_error(model, data, indices, frames=frames, choose="inferred")
    if isinstance(known, Recordings):
        labelled = indices[known.labels[indices].cpu() >= 0]
        if not len(labelled):
            assert isinstance(data, Recordings)
            counts = torch.bincount(data.labels[indices], minlength=len(model.names))
            return {"counts": [counts.tolist()], **_summary(errors)}
        indices = labelled
    batches = (
        known.sample(part, round_robin(known, part)) for part in indices.split(_INFERRED_AT_ONCE)
    )
    matching = match_flows(model, batches, len(known.names))
    return {
        # With the names from validation; the test sequences may not choose them.
        "accuracy": sum(int(matching.counts[k, k]) for k in range(len(known.names))) / len(indices),
        "purity": matching.purity,
        "counts": matching.counts.tolist(),
        **_summary(errors),
    }


def _likelihoods(model: SequenceModel, data: SequenceDataset, config: Config) -> dict[str, Any]:
    """Return IWAE bounds per sequence and frame, under two models of the pixels."""
    count = min(config.evaluation.likelihood_sequences, len(data))
    indices = torch.arange(count)
    sequences = data.sample(indices, round_robin(data, indices))
    samples = config.evaluation.likelihood_samples
    found: dict[str, Any] = {"sequences": count, "samples": samples}
    for name, observation in (("trained", None), ("unit_gaussian", Gaussian())):
        generator = torch.Generator().manual_seed(config.seed)
        bound = log_likelihood(
            model, sequences, samples, observation=observation, generator=generator
        ).double()
        found[name] = {
            "observation": config.model.observation if observation is None else "gaussian",
            "per_sequence": float(bound.mean()),
            "per_frame": float(bound.mean()) / (data.horizon + 1),
            "standard_error": float(bound.std() / count**0.5) if count > 1 else 0.0,
        }
    return found


# ---- small things


@contextlib.contextmanager
def _as_run_error(option: str) -> Iterator[None]:
    """Say which part of an evaluation refused its data: too few samples, factors that are alike."""
    try:
        yield
    except ValueError as error:
        raise RunError(
            f"evaluation.{option} cannot be measured here: {error}. Leave it out, or take more "
            f"samples (evaluation.images, evaluation.codes)."
        ) from error


def _write_text(path: Path, text: str) -> None:
    with checkpoints.atomic_file(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def _log_to(path: Path, *, enabled: bool) -> Iterator[None]:
    """Copy what the packages log into a file, from the first process only."""
    if not enabled:
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("flowfactor", "experiments")]
    for each in loggers:
        each.addHandler(handler)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)
        handler.close()
