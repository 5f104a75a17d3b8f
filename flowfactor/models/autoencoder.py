"""Encoder, decoder and observation model: what all models of this package are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import PlainSerializer, PlainValidator
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

import solvers
from flowfactor.checks import kind_of
from flowfactor.data import SequenceBatch
from flowfactor.errors import ConfigError
from flowfactor.models.base import PotentialModel, SequenceModel
from flowfactor.networks import (
    ConvEncoderOptions,
    MLPDecoderOptions,
    NetworkOptions,
    single_precision,
)
from flowfactor.observation import Observation
from flowfactor.options import KindIn, NameIn, NonNegativeInt, PositiveInt, options
from flowfactor.potentials import FieldBank, RidgePotential, VectorField
from flowfactor.registries import DECODERS, ENCODERS, OBSERVATIONS
from solvers import RK4, Direct, Gradient, Method


def _method(value: Any) -> Method:
    if isinstance(value, Method):
        return value
    return _named(solvers.method_from_name, value, "rk4")  # type: ignore[no-any-return]


def _gradient(value: Any) -> Gradient:
    if isinstance(value, Gradient):
        return value
    return _named(solvers.gradient_from_name, value, "direct")  # type: ignore[no-any-return]


def _named(make: Any, value: Any, default: str) -> Any:
    """Return a method or gradient from its name and options."""
    if not isinstance(value, dict):
        raise ValueError(f"expected keys such as {{name: {default}, ...}}")
    given = {key: each for key, each in value.items() if each is not None}
    try:
        return make(**{"name": default, **given})
    except TypeError as error:  # pydantic reports ValueErrors
        raise ValueError(str(error)) from None


Solver = Annotated[Method, PlainValidator(_method), PlainSerializer(solvers.to_dict)]
Encoder = Annotated[NetworkOptions | nn.Module, KindIn(ENCODERS, "conv", nn.Module)]
Decoder = Annotated[NetworkOptions | nn.Module, KindIn(DECODERS, "mlp", nn.Module)]
ObservationName = Annotated[str | Observation, NameIn(OBSERVATIONS, Observation)]
SolverGradient = Annotated[Gradient, PlainValidator(_gradient), PlainSerializer(solvers.to_dict)]


@options
class AutoencoderOptions:
    """Options that every model has."""

    latent_dim: PositiveInt = 48
    """Size D of the latent."""
    encoder: Encoder = ConvEncoderOptions()
    """Kind and sizes of the encoder; in Python also a module that maps ``(B, C, H, W)`` to
    ``(B, 2 D)``, mean and log standard deviation."""
    decoder: Decoder = MLPDecoderOptions()
    """Kind and sizes of the decoder; in Python also a module that maps ``(B, D)`` to logits
    ``(B, C, H, W)``."""
    observation: ObservationName = "bernoulli"
    """Model of the pixels: ``bernoulli``, ``gaussian`` of unit scale, ``gaussian_learned``, or
    ``laplace``, whose scale is learned as well; in Python also an
    :class:`~flowfactor.observation.Observation`."""

    def check(self, config: Any) -> None:
        """Refuse a configuration whose other sections do not fit this model.

        Raises:
            ConfigError: labels are hidden, which training needs.
        """
        if getattr(config.data, "labelled_fraction", None) is not None:
            raise ConfigError(
                "data.labelled_fraction: hides labels, which this model needs; weak_flow_vae does "
                "not"
            )


@options
class PotentialOptions(AutoencoderOptions):
    """Options of models whose latents flow along fields."""

    width: PositiveInt = 256
    """Size H of a field: its ridge functions, or the units of each hidden layer."""
    frequencies: PositiveInt = 4
    """Number of frequencies of the fields' coefficients in time."""
    rank: NonNegativeInt = 0
    """Number of squares of the fields' quadratic potential; 0 leaves it out."""
    solver: Solver = RK4(steps=2)
    """Solver of the flow: its name and options; the steps of a fixed method are per frame."""
    gradient: SolverGradient = Direct()
    """How the solver is differentiated: name and options."""

    def make_bank(self, names: Sequence[str], horizon: int) -> FieldBank[VectorField]:
        """Return the bank of fields, one for each name."""
        return RidgePotential(
            names,
            self.latent_dim,
            self.width,
            horizon=horizon,
            frequencies=self.frequencies,
            rank=self.rank,
        )


class Autoencoder(SequenceModel):
    """A sequence model with a Gaussian encoder and a decoder of pixel logits.

    Args:
        options: of the model.
        names: of the K transformations.
        image_shape: ``(C, H, W)``.
        horizon: the last frame T.
        encoder: another one than that of the options.
        decoder: likewise.
        latent_dim: the size of the latent that moves, if it is not that of the options.

    Raises:
        ValueError: ``horizon`` is not positive, or sizes do not fit the images.
    """

    Options: ClassVar[type[Any]] = AutoencoderOptions

    def __init__(
        self,
        options: AutoencoderOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__(options, names, image_shape, horizon)
        sizes = self.image_shape, options.latent_dim
        self.encoder = make_network("encoder", options, *sizes) if encoder is None else encoder
        self.decoder = make_network("decoder", options, *sizes) if decoder is None else decoder
        self.observation = make_observation(options)
        self.latent_dim = latent_dim or options.latent_dim

    def encode(self, x: Float[Tensor, "b c h w"]) -> Distribution:
        """Return ``q(z_0 | x_0) = N(mu, diag sigma^2)``, over latents ``(B, D)``."""
        mean, log_scale = self.posterior_parameters(x)
        return diagonal_normal(mean, log_scale.exp())

    def posterior_parameters(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of ``q(z | x)``, ``(B, D)`` each."""
        return split_head(self.encoder(x))

    def decode_logits(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return the logits of every pixel."""
        return single_precision(self.decoder(z))

    def log_likelihood(
        self, z: Float[Tensor, "n d"], sequences: SequenceBatch
    ) -> Float[Tensor, "b f"]:
        """Return ``log p(x_t | z_t)`` of every frame, in nats, from its latent.

        Args:
            z: the latents of all frames in a row, ``(B F, D)``.
            sequences: the frames.
        """
        logits = rearrange(
            self.decode_logits(z), "(b f) c h w -> b f c h w", b=len(sequences.frames)
        )
        return self.observation.log_prob(logits, sequences.frames)


class PotentialAutoencoder(PotentialModel, Autoencoder):
    """An autoencoder whose latents flow along fields.

    Args:
        options: of the model.
        names: of the K transformations.
        image_shape: ``(C, H, W)``.
        horizon: the last frame T.
        networks: others than those of the options, see :class:`Autoencoder`.

    Raises:
        ValueError: sizes or names that do not fit together.
    """

    Options: ClassVar[type[Any]] = PotentialOptions

    def __init__(
        self,
        options: PotentialOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
        **networks: Any,
    ) -> None:
        bank = options.make_bank(names, horizon)
        super().__init__(options, names, image_shape, horizon, **networks)
        if bank.dim != self.latent_dim or bank.names != tuple(names):
            raise ValueError(
                f"the fields {', '.join(bank.names)} act on {bank.dim} dimensions; the model "
                f"has {', '.join(names)} and latent_dim {self.latent_dim}"
            )
        self.potentials = bank
        self.method = options.solver
        self.gradient = options.gradient


def make_network(
    role: Literal["encoder", "decoder"],
    options: AutoencoderOptions,
    image_shape: Sequence[int],
    latent_dim: int,
) -> nn.Module:
    """Return an untrained network from its options; a network of your own as it is.

    Raises:
        ConfigError: a network of your own that returns another shape than it must.
    """
    network: NetworkOptions | nn.Module = getattr(options, role)
    channels, height, width = image_shape
    shape = (channels, height, width)
    if isinstance(network, NetworkOptions):
        network = network.build(shape, latent_dim)
    sizes = {"encoder": (shape, (2 * latent_dim,)), "decoder": ((latent_dim,), shape)}
    _try_network(role, network, *sizes[role])
    return network


def make_observation(options: AutoencoderOptions) -> Observation:
    """Return the observation model that options name; one of your own as it is."""
    named = options.observation
    observation: Observation = OBSERVATIONS[named]() if isinstance(named, str) else named
    return observation


def _try_network(
    role: str, network: nn.Module, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """Require a network to return the shape that it must, by a try on zeros.

    Its weights, the statistics of its normalisations and the state of the generators stay.
    """
    given, wanted = (2, *before), (2, *after)
    needed = f"an {role}" if role == "encoder" else f"a {role}"
    needed += f" maps {_batch(before)} to {_batch(after)}"
    needed += ", mean and log standard deviation" if role == "encoder" else ", a logit each"
    modes = [(module, module.training) for module in network.modules()]
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(()))
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        network.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            x = torch.zeros(given, dtype=like.dtype, device=like.device)
            result = network(x)
    except Exception as error:
        raise ConfigError(
            f"{role}: {type(network).__name__} cannot take zeros {given}: it raises a "
            f"{type(error).__name__}. It must fit: {needed}."
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(result, Tensor) or tuple(result.shape) != wanted:
        raise ConfigError(
            f"{role}: {type(network).__name__} returns {kind_of(result)} for zeros {given}, which "
            f"must be {wanted}: {needed}."
        )


def _batch(sizes: tuple[int, ...]) -> str:
    return f"(B, {', '.join(map(str, sizes))})"


def diagonal_normal(mean: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]) -> Distribution:
    """Return ``N(mean, diag scale^2)``, unchecked: it is made at every training step."""
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


def split_head(head: Float[Tensor, "b m"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Return mean and log standard deviation from the output of an encoder."""
    mean, log_scale = single_precision(head).chunk(2, dim=-1)
    # Beyond these bounds the exponential is useless and its gradient explodes.
    return mean, log_scale.clamp(-8, 4)


def kl_to_standard_normal(posterior: Distribution) -> Float[Tensor, "b"]:
    """Return ``KL(N(mu, diag sigma^2) || N(0, I))`` in nats, in closed form."""
    mean, scale = posterior.mean, posterior.stddev
    return 0.5 * (mean.square() + scale.square() - 1 - 2 * scale.log()).sum(-1)


def sum_over_frames(cost: Float[Tensor, "b f"], sequences: SequenceBatch) -> Float[Tensor, ""]:
    """Return the mean over sequences of the sum over frames, estimated from those given."""
    return (cost * sequences.weights).sum(1).mean()


def flatten_frames(sequences: SequenceBatch) -> Float[Tensor, "n c h w"]:
    """Return every frame as an image of its own, ``(B F, C, H, W)``."""
    return rearrange(sequences.frames, "b f c h w -> (b f) c h w")
