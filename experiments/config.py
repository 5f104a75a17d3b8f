"""The schema of a configuration: what a YAML file may say, and what it means."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from experiments.datasets import (
    SECTIONS,
    DataConfig,
    DigitsConfig,
    MotionConfig,
    MoveConfig,
    Natural,
    Positive,
    Section,
    TransformationConfig,
)
from experiments.models import (
    MODEL_SECTIONS,
    FlowVAEConfig,
    ModelConfig,
    PositiveFloat,
    PotentialSection,
    TopographicVAEConfig,
    Weight,
)
from experiments.shipped_files import complaint, descriptions, find
from flowfactor.errors import ConfigError
from flowfactor.models import Objective
from flowfactor.training import TrainingOptions


class ObjectiveConfig(Section):
    """Weights of the objective's terms."""

    beta: Weight = Objective.beta
    path_kl: Weight = Objective.path_kl
    hamilton_jacobi: Weight = Objective.hamilton_jacobi
    initial: Weight = Objective.initial
    consistency: Weight = Objective.consistency
    reversal: Weight = Objective.reversal
    commutator: Weight = Objective.commutator


class TrainingConfig(Section):
    """How long, how fast, and on what."""

    steps: Positive = TrainingOptions.steps
    max_minutes: PositiveFloat | None = None
    batch_size: Positive = 66
    frames_per_sequence: Positive | None = 2
    learning_rate: PositiveFloat = TrainingOptions.learning_rate
    warmup: Natural = TrainingOptions.warmup
    weight_decay: Weight = TrainingOptions.weight_decay
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        TrainingOptions.betas
    )
    clip: PositiveFloat | None = TrainingOptions.clip
    average: Annotated[float, Field(gt=0, lt=1)] | None = TrainingOptions.average
    log_every: Positive = TrainingOptions.log_every
    validate_every: Positive = TrainingOptions.validate_every
    checkpoint_every: Positive = TrainingOptions.checkpoint_every
    validation_sequences: Positive = 1000
    validation_errors: Natural = 0
    accelerator: Literal["auto", "cpu", "cuda", "mps", "gpu"] = "auto"
    devices: Positive | Literal["auto"] = 1
    num_nodes: Positive = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def options(self) -> TrainingOptions:
        """Return the options of the training loop."""
        known = {field.name for field in dataclasses.fields(TrainingOptions)}
        return TrainingOptions(**self.model_dump(include=known))


class EvaluationConfig(Section):
    """What is measured on held-out samples; frames are seven, or all if there are fewer.

    ``codes`` and ``trees`` are those of the scores of disentanglement.
    """

    split: Literal["validation", "test"] = "test"
    images: Positive = 1000
    frames: Positive | None = None
    composition: bool = False
    extrapolation: bool = False
    disentanglement: bool = False
    predictability: bool = False
    paths: bool = False
    codes: Annotated[int, Field(ge=100)] = 10_000
    trees: Positive = 100
    likelihood_sequences: Positive = 300
    likelihood_samples: Positive = 50


class Config(Section):
    """A whole run."""

    description: str = ""
    seed: Natural = 0
    data: DataConfig = DigitsConfig()
    model: ModelConfig = FlowVAEConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _supervision_fits(self) -> Config:
        if self.evaluation.composition and self.data.source == "recordings":
            raise ValueError(
                "evaluation.composition needs frames that undergo two transformations, which "
                "recorded sequences do not have"
            )
        if self.evaluation.composition and not isinstance(self.model, PotentialSection):
            raise ValueError(
                f"evaluation.composition adds potentials up, but a {self.model.kind} has none; its "
                f"latent moves by a rule"
            )
        if self.evaluation.disentanglement and self.data.source in ("recordings", "images"):
            raise ValueError(
                "evaluation.disentanglement needs images whose factors are known: digits, sprites "
                "or a grid of factors"
            )
        if not self.model.weak:
            if isinstance(self.model, FlowVAEConfig) and self.model.flows is not None:
                raise ValueError(
                    "model.flows is for weak supervision; with full supervision each "
                    "transformation has one flow"
                )
            if self.data.labelled_fraction is not None:
                raise ValueError(
                    "data.labelled_fraction hides labels, which full supervision needs; take "
                    "`model.supervision: weak`"
                )
        return self

    @model_validator(mode="after")
    def _objective_is_the_models(self) -> Config:
        if not isinstance(self.model, FlowVAEConfig):
            if self.objective != ObjectiveConfig():
                raise ValueError(
                    f"objective holds the weights of flow_vae; those of {self.model.kind} are "
                    f"keys of model. Leave objective out, or set it to {{}}"
                )
        elif self.model.force == "learned" and self.objective.hamilton_jacobi == 0:
            raise ValueError(
                "model.force is learned through the Hamilton-Jacobi term, whose weight "
                "objective.hamilton_jacobi is 0; give it a weight, or take `force: zero`"
            )
        return self

    @model_validator(mode="after")
    def _frames_fit(self) -> Config:
        if self.training.frames_per_sequence and isinstance(self.model, TopographicVAEConfig):
            raise ValueError(
                "training.frames_per_sequence must be null for a topographic_vae, which sums over "
                "neighbouring frames"
            )
        horizon, some = self.data.horizon, self.training.frames_per_sequence
        if horizon is None:  # it is the data's own, and checked when that is read
            return self
        if some is not None and some > horizon:
            raise ValueError(
                f"training.frames_per_sequence is {some}, but the sequences have only "
                f"{horizon} frames after the first (data.horizon)"
            )
        if self.evaluation.frames is not None and self.evaluation.frames > horizon:
            raise ValueError(
                f"evaluation.frames is {self.evaluation.frames}, but the sequences end at frame "
                f"{horizon} (data.horizon)"
            )
        return self


# ---- reading and writing


def shipped() -> dict[str, str]:
    """Return the names of the configurations that ship, and what each is for."""
    return descriptions()


def read_config(name: str, overrides: list[str] | None = None) -> tuple[str, Config]:
    """Read a configuration and apply ``key.path=value`` overrides.

    Args:
        name: a YAML file, or the name of a configuration that ships.
        overrides: each ``key.path=value``, the value being YAML.

    Returns:
        The configuration's name and its content.

    Raises:
        ConfigError: no such file, no YAML, a key that is unknown or a value that is not allowed.
    """
    title, text = _find(name)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {_one_line(error)}.") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name} must hold sections such as `training:` with keys below them; it holds a "
            f"{type(content).__name__}."
        )
    for override in overrides or []:
        _apply(content, override)
    return title, validate(content, name)


def validate(content: dict[str, Any], source: str) -> Config:
    """Check plain data against the schema.

    Raises:
        ConfigError: with the path of every key that is wrong and what is allowed there.
    """
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(problem)}" for problem in error.errors())
        raise ConfigError(f"{source} is no valid configuration:\n{problems}") from error


def dump(config: Config) -> str:
    """Return a configuration as YAML, every key written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differences(old: Config, new: Config) -> list[str]:
    """Return ``key: old -> new`` for every key in which two configurations differ."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _find(name: str) -> tuple[str, str]:
    title, text = find(name)
    if text is not None:
        return title, text
    near = difflib.get_close_matches(title, shipped(), n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise ConfigError(
        f"There is no configuration {name}: neither a file of that name nor one that ships.{hint} "
        f"`flowfactor configs` lists those that ship."
    )


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {override}: expected key.path=value, for instance `--set training.steps=2000`."
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: the value is not YAML: {_one_line(error)}."
        ) from error
    *parents, leaf = key.strip().split(".")
    section = content
    for parent in parents:
        below = section.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section.")
        section = below
    section[leaf] = value


def _describe(problem: Any) -> str:
    location = list(problem["loc"])
    section: type[Section] | None = Config
    kinds = _KINDS.get(location[0], {}) if location else {}
    if len(location) > 1 and location[1] in kinds:
        # The kind of data set or model is no key of the file.
        section = kinds[location.pop(1)]
    path = ".".join(str(part) for part in location) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(location, section)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    return f"{path}: {complaint(problem)}"


# Sections of which there are several kinds.
_KINDS: dict[Any, dict[Any, type[Section]]] = {"data": {**SECTIONS}, "model": {**MODEL_SECTIONS}}

# What is below a name of the user's choice.
_NAMED = {"transformations": TransformationConfig, "motions": MotionConfig, "moves": MoveConfig}


def _keys_beside(location: list[int | str], section: type[Section] | None) -> list[str]:
    """Return the keys that are known where an unknown one was found.

    Args:
        location: of the unknown key.
        section: the whole configuration, or that of the data set or model if the key is in it.
    """
    parts = location[:-1]
    below: Any = section
    for part in parts if section is Config else parts[1:]:
        if str(part) in _NAMED:
            below = _NAMED[str(part)]
            break
        field = below.model_fields.get(str(part)) if _is_section(below) else None
        below = field.annotation if field is not None else None
    return list(below.model_fields) if _is_section(below) else []


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Section)


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
