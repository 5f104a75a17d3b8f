"""The models of a configuration: what its ``model`` section may say, and what it stands for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

import solvers
from experiments.datasets import Natural, Positive, Section
from flowfactor.inference import Inference
from flowfactor.models import MODELS, SequenceModel, WaveObjective

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SolverConfig(Section):
    """A method of the solver layer and its options."""

    name: str = "rk4"
    steps: Positive | None = None
    rtol: PositiveFloat | None = None
    atol: PositiveFloat | None = None
    max_steps: Positive | None = None
    solver: str | None = None
    options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _exists(self) -> SolverConfig:
        solvers.method_from_name(**self.chosen())
        return self

    def chosen(self) -> dict[str, Any]:
        """Return what was given."""
        return self.model_dump(exclude_none=True)


class GradientConfig(Section):
    """How the solver is differentiated."""

    name: str = "direct"
    rtol: PositiveFloat | None = None
    atol: PositiveFloat | None = None
    every: Positive | None = None
    seminorm: bool | None = None
    method: SolverConfig | None = None

    @model_validator(mode="after")
    def _exists(self) -> GradientConfig:
        solvers.gradient_from_name(**self.chosen())
        return self

    def chosen(self) -> dict[str, Any]:
        """Return what was given."""
        return self.model_dump(exclude_none=True)


class InferenceConfig(Section):
    """How a model learns which transformation a sequence undergoes, if nobody says so."""

    estimator: Literal["enumerate", "gumbel"] = Inference.estimator
    warmup: Natural = Inference.warmup
    anneal: Natural = Inference.anneal
    temperature: PositiveFloat | None = Inference.temperature
    refresh: Positive = Inference.refresh
    weight: Weight = Inference.weight


class EncoderConfig(Section):
    """Kind and sizes of the encoder; what is left out is the network's default."""

    kind: Literal["conv", "residual"] = "conv"
    channels: tuple[Positive, ...] | None = None
    hidden: Positive | None = None
    blocks: Positive | None = None
    norm: Literal["none", "group"] | None = None

    @model_validator(mode="after")
    def _fits_the_kind(self) -> EncoderConfig:
        for name in ("blocks", "norm"):
            if self.kind != "residual" and getattr(self, name) is not None:
                raise ValueError(f"the {self.kind} encoder has no {name}; `kind: residual` has")
        return self

    def options(self) -> dict[str, Any]:
        """Return what was given, as plain data."""
        return self.model_dump(exclude_none=True, mode="json")


class DecoderConfig(Section):
    """Kind and sizes of the decoder; what is left out is the network's default."""

    kind: Literal["mlp", "conv", "residual"] = "mlp"
    channels: tuple[Positive, ...] | None = None
    hidden: Positive | tuple[Positive, ...] | None = None
    blocks: Positive | None = None
    norm: Literal["none", "group"] | None = None
    upsampling: Literal["transposed", "nearest"] | None = None
    brightness: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _fits_the_kind(self) -> DecoderConfig:
        if self.kind == "mlp" and self.channels is not None:
            raise ValueError("the mlp decoder has no channels; `kind: conv` has")
        for name in ("blocks", "norm", "upsampling"):
            if self.kind != "residual" and getattr(self, name) is not None:
                raise ValueError(f"the {self.kind} decoder has no {name}; `kind: residual` has")
        if self.hidden is not None and isinstance(self.hidden, tuple) != (self.kind == "mlp"):
            form = "a list of widths" if self.kind == "mlp" else "one width"
            raise ValueError(f"hidden of the {self.kind} decoder is {form}")
        return self

    def options(self) -> dict[str, Any]:
        """Return what was given, as plain data."""
        return self.model_dump(exclude_none=True, mode="json")


class ModelSection(Section):
    """What every model has: an encoder, a decoder and a model of the pixels."""

    kind: str
    latent_dim: Positive = 48
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    observation: Literal["bernoulli", "gaussian", "gaussian_learned"] = "bernoulli"

    @property
    def weak(self) -> bool:
        """Whether the model is never told which transformation a sequence undergoes."""
        return False

    def build(
        self,
        names: list[str],
        shape: tuple[int, int, int],
        horizon: int,
        objective: dict[str, float],
    ) -> SequenceModel:
        """Return the model, untrained, its weights drawn from the global generator.

        Args:
            names: of the transformations.
            shape: of the images.
            horizon: the last frame.
            objective: the weights of the flow model's terms.

        Raises:
            ValueError: sizes that do not fit together.
        """
        return MODELS[self.kind].build(
            names, shape, horizon=horizon, **self._common(), **self._own()
        )

    def _common(self) -> dict[str, Any]:
        return {
            "latent_dim": self.latent_dim,
            "encoder": self.encoder.options(),
            "decoder": self.decoder.options(),
            "observation": self.observation,
        }

    def _own(self) -> dict[str, Any]:
        """Return the options that only this kind has: by default all that are numbers."""
        common = set(ModelSection.model_fields)
        return self.model_dump(exclude=common)


class PotentialSection(ModelSection):
    """What models with potentials have besides: those, and a solver."""

    width: Positive = 256
    frequencies: Positive = 4
    rank: Natural = 0
    solver: SolverConfig = SolverConfig(steps=2)
    gradient: GradientConfig = GradientConfig()

    def _own(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "frequencies": self.frequencies,
            "rank": self.rank,
            "method": self.solver.chosen(),
            "gradient": self.gradient.chosen(),
        }


def flow_names(count: int) -> list[str]:
    """Return the names of flows of which nobody knows which transformations they are."""
    return [f"flow {i + 1}" for i in range(count)]


class FlowVAEConfig(PotentialSection):
    """The flow model, told the transformations or not."""

    kind: Literal["flow_vae"] = "flow_vae"
    supervision: Literal["full", "weak"] = "full"
    flows: Positive | None = None
    inference: InferenceConfig = InferenceConfig()
    potential: Literal["ridge", "mlp"] = "ridge"
    autonomous: bool = False
    force: Literal["zero", "learned"] = "zero"
    diffusion: PositiveFloat = 0.05
    density: Literal["integral", "discrete"] = "integral"

    @model_validator(mode="after")
    def _density_fits_the_solver(self) -> FlowVAEConfig:
        if self.density == "discrete" and self.solver.name != "euler":
            raise ValueError(
                f"density `discrete` is the determinant of the steps of Euler's method, but the "
                f"solver is {self.solver.name}; take `solver: {{name: euler, steps: 4}}`, or "
                f"`density: integral`"
            )
        return self

    @property
    def weak(self) -> bool:
        """Whether the model is never told which transformation a sequence undergoes."""
        return self.supervision == "weak"

    def build(
        self,
        names: list[str],
        shape: tuple[int, int, int],
        horizon: int,
        objective: dict[str, float],
    ) -> SequenceModel:
        """Return the model, untrained; a weak one has flows without names."""
        kind, more = "flow_vae", {}
        if self.weak:
            if self.flows is not None and self.flows < len(names):
                raise ValueError(
                    f"flows: {self.flows} is too few for a flow of its own for each of the "
                    f"{len(names)} transformations ({', '.join(names)})"
                )
            names = flow_names(self.flows or len(names))
            kind, more = "weak_flow_vae", {"inference": self.inference.model_dump()}
        return MODELS[kind].build(
            names,
            shape,
            horizon=horizon,
            **self._common(),
            **self._own(),
            potential=self.potential,
            autonomous=self.autonomous,
            force=self.force,
            diffusion=self.diffusion,
            density=self.density,
            objective=objective,
            **more,
        )


class VAEConfig(ModelSection):
    """A VAE of single frames; with ``beta > 1`` a beta-VAE."""

    kind: Literal["vae"]
    beta: Weight = 1.0


class FactorVAEConfig(ModelSection):
    """A VAE whose aggregated code is told from a factorised one by a discriminator."""

    kind: Literal["factor_vae"]
    gamma: Weight = 35.0
    discriminator_width: Positive = 1000
    discriminator_layers: Positive = 6
    discriminator_rate: PositiveFloat = 1e-4


class SlowVAEConfig(ModelSection):
    """A VAE of pairs of frames whose latents change sparsely."""

    kind: Literal["slow_vae"]
    beta: Weight = 1.0
    gamma: Weight = 10.0
    laplace_rate: PositiveFloat = 6.0


class TopographicVAEConfig(ModelSection):
    """A VAE whose latents are rolled along capsules; it needs every frame of a sequence."""

    kind: Literal["topographic_vae"]
    latent_dim: Positive = 324
    capsules: Positive = 18
    window: Natural = 2
    mu: Annotated[float, Field(allow_inf_nan=False)] = 30.0


class PoFlowConfig(PotentialSection):
    """Latent flows whose potentials obey the wave equation."""

    kind: Literal["poflow"]
    beta: Weight = WaveObjective.beta
    wave: Weight = WaveObjective.wave
    initial: Weight = WaveObjective.initial
    jacobian: Weight = WaveObjective.jacobian

    def _own(self) -> dict[str, Any]:
        weights = self.model_dump(include={"beta", "wave", "initial", "jacobian"})
        return {**super()._own(), "objective": weights}


MODEL_SECTIONS: dict[str, type[ModelSection]] = {
    "flow_vae": FlowVAEConfig,
    "vae": VAEConfig,
    "factor_vae": FactorVAEConfig,
    "slow_vae": SlowVAEConfig,
    "topographic_vae": TopographicVAEConfig,
    "poflow": PoFlowConfig,
}


def _kind(model: Any) -> Any:
    """Say which section a ``model`` section is; a kind that does not exist is reported as such."""
    return model.get("kind", "flow_vae") if isinstance(model, dict) else model.kind


ModelConfig = Annotated[
    Annotated[FlowVAEConfig, Tag("flow_vae")]
    | Annotated[VAEConfig, Tag("vae")]
    | Annotated[FactorVAEConfig, Tag("factor_vae")]
    | Annotated[SlowVAEConfig, Tag("slow_vae")]
    | Annotated[TopographicVAEConfig, Tag("topographic_vae")]
    | Annotated[PoFlowConfig, Tag("poflow")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message=f"no kind of model has this name; known are "
        f"{', '.join(MODEL_SECTIONS)}",
    ),
]
