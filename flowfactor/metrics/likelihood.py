"""The importance-weighted bound of the log-likelihood of a sequence."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from flowfactor.checks import check_integer, check_type
from flowfactor.data import SequenceBatch
from flowfactor.metrics.base import Metric, MetricContext, MetricOptions
from flowfactor.metrics.pixel_errors import limit_batch
from flowfactor.models import SequenceModel
from flowfactor.observation import Gaussian, Observation
from flowfactor.options import PositiveInt, options
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table

_DECODED = 2**18
"""Frames that the metric decodes for each bound, at most."""

Follow = Callable[[Float[Tensor, "n d"]], Iterable[Float[Tensor, "n d"]]]
"""Returns the latents at each frame from those at the first one."""

# What tables call the observation models.
_NAMES = {
    "bernoulli": "Bernoulli",
    "gaussian": "Gaussian",
    "gaussian_learned": "learned Gaussian",
    "laplace": "Laplace",
}


@torch.no_grad()
def log_likelihood(
    model: SequenceModel,
    sequences: SequenceBatch,
    samples: int = 64,
    *,
    observation: Observation | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 2000,
) -> Float[Tensor, "b"]:
    r"""Return the IWAE bound of ``log p(x_0..x_T | k)`` for each sequence, in nats.

    .. math::

        \log \frac{1}{S} \sum_{s=1}^S
          \frac{p(x_0, \ldots, x_T \mid z^s, k)\, p(z^s)}{q(z^s \mid x_0)},
        \qquad z^s \sim q(z_0 \mid x_0)

    The transitions are deterministic, so that a sample of ``z_0`` fixes the whole path. The bound
    grows with S in expectation and reaches the log-likelihood as S goes to infinity.

    Args:
        model: in evaluation mode.
        sequences: complete ones, frames 0..T, with their labels.
        samples: S.
        observation: another observation model than the trained one, for instance the unit
            ``Gaussian()``, by which different models can be compared.
        generator: of the samples, on the CPU, so that every device gets the same numbers.
        batch_size: frames decoded at a time; it does not change the result.

    Raises:
        ValueError: ``samples`` is not positive; the sequences lack frames or labels.

    Source: Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import SequenceBatch
        >>> model = flowfactor.FlowVAE.build(("rotation",), latent_dim=4, width=8).eval()
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 0]))
        >>> log_likelihood(model, films, samples=3).shape
        torch.Size([2])
    """
    check_type("model", model, SequenceModel)
    check_integer("samples", samples)
    check_integer("batch_size", batch_size)
    check_type("observation", observation, (Observation, type(None)), "an observation model")
    model.check_sequences(sequences, anywhere=True)
    frames = sequences.horizon + 1
    if sequences.frames.shape[1] != frames or sequences.labels is None:
        raise ValueError(
            f"sequences must have labels and all of their {frames} frames; these have "
            f"{sequences.frames.shape[1]} frames"
        )
    x_all, labels = sequences.frames.to(model.device), sequences.labels.to(model.device)
    observe = (observation or model.observation).to(x_all)
    chunk = count_at_once(samples, frames, batch_size)
    bounds = []
    shared, every = sequences.shared_times.to(x_all), sequences.times.to(x_all)
    for x, k, own in zip(*(each.split(chunk) for each in (x_all, labels, every)), strict=True):
        flows = repeat(k, "b -> (s b)", s=samples)
        times = shared if shared.ndim == 1 else repeat(own, "b f -> (s b) f", s=samples)
        follow = functools.partial(model.flow, k=flows, t=times)
        bounds.append(bound_along(model, x, follow, samples, observe, generator))
    return torch.cat(bounds)


def bound_along(
    model: SequenceModel,
    frames: Float[Tensor, "b f c h w"],
    follow: Follow,
    samples: int,
    observation: Observation,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b"]:
    """Return the bound of :func:`log_likelihood` for latents that follow any path.

    Args:
        model: in evaluation mode.
        frames: of the sequences.
        follow: the path; it is given S times all sequences in a row.
        samples: S.
        observation: what the frames are like, given the logits.
        generator: of the samples, on the CPU.
    """
    posterior = model.encode(frames[:, 0])
    mean, scale = posterior.mean, posterior.stddev
    noise = torch.randn(samples, *mean.shape, generator=generator, dtype=mean.dtype)
    z0 = mean + scale * noise.to(mean.device)
    log_weight = _normal(torch.zeros_like(mean), torch.ones_like(scale)).log_prob(z0)
    log_weight = log_weight - _normal(mean, scale).log_prob(z0)
    path = follow(rearrange(z0, "s b d -> (s b) d"))
    for x, z in zip(frames.unbind(1), path, strict=True):
        logits = rearrange(model.decode_logits(z), "(s b) c h w -> s b c h w", s=samples)
        log_weight = log_weight + observation.log_prob(logits, x.expand_as(logits))
    return torch.logsumexp(log_weight, dim=0) - math.log(samples)


def count_at_once(samples: int, frames: int, batch_size: int = 2000) -> int:
    """Return how many sequences are decoded at a time."""
    return max(1, batch_size // (samples * frames))


def _normal(mean: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


@options
class LikelihoodOptions(MetricOptions):
    """Options of the log-likelihood."""

    sequences: PositiveInt = 300
    """The number of sequences; fewer of sequences that are very long."""
    samples: PositiveInt = 50
    """The number of importance samples of each."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """The mean of a bound over sequences, in nats.

    Attributes:
        observation: the name of the observation model.
        per_sequence: of the whole sequence.
        per_frame: the same, divided by the number of frames.
        standard_error: of ``per_sequence``, from its spread over sequences.
    """

    observation: str
    per_sequence: float
    per_frame: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """Bounds under the trained observation model and under the unit Gaussian."""

    sequences: int
    samples: int
    trained: Bound
    unit_gaussian: Bound


@METRICS.register("log_likelihood")
class LogLikelihood(Metric):
    """The importance-weighted bound, see :func:`log_likelihood`."""

    Options = LikelihoodOptions
    Result = Likelihoods
    default = True
    order = 40
    description = "log-likelihoods"
    options: LikelihoodOptions

    def measure(self, context: MetricContext) -> Likelihoods:
        """Return both bounds, of sequences that cycle through the transformations."""
        model, data = context.model, context.data
        # Of long sequences fewer are measured; the result says how many.
        most = max(2, _DECODED // (self.options.samples * (data.horizon + 1)))
        indices = torch.arange(min(self.options.sequences, len(data), most))
        chunk = count_at_once(self.options.samples, data.horizon + 1)
        # In whole chunks, so that the parts draw the numbers that all sequences at once would.
        parts = indices.split(chunk * -(-limit_batch(data, len(indices)) // chunk))

        def bound(observation: Observation | None) -> Bound:
            generator = torch.Generator().manual_seed(context.seed)
            bounds = [
                log_likelihood(
                    model,
                    data.sample(part),
                    self.options.samples,
                    observation=observation,
                    generator=generator,
                )
                for part in parts
            ]
            nats = torch.cat(bounds).cpu().double()
            count, mean = len(nats), float(nats.mean())
            return Bound(
                _name_of(model) if observation is None else "gaussian",
                mean,
                mean / (data.horizon + 1),
                float(nats.std() / count**0.5) if count > 1 else 0.0,
            )

        return Likelihoods(len(indices), self.options.samples, bound(None), bound(Gaussian()))

    @classmethod
    def columns_for(cls, evaluations: Sequence[Evaluation]) -> Sequence[Column]:
        """Return a column for each bound; trained ones are ranked only under the same model."""
        results = [result for each in evaluations if (result := each.result(cls))]
        names = {result.trained.observation for result in results}
        trained = Column(
            "log_likelihood_trained",
            "log p, as trained",
            "higher" if len(names) < 2 else None,
            value=lambda result: result.trained.per_sequence,
        )
        if len(names) == 1:
            name = names.pop()
            trained = dataclasses.replace(trained, heading=f"log p, {_NAMES.get(name, name)}")
        unit = Column(
            "log_likelihood",
            "log p, unit Gaussian",
            "higher",
            value=lambda result: result.unit_gaussian.per_sequence,
        )
        return [unit, trained]

    @classmethod
    def tables(cls, result: Likelihoods, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return both bounds."""
        labels = {
            f"{result.trained.observation} (trained)": result.trained,
            "unit Gaussian": result.unit_gaussian,
        }
        rows = [
            Row(label, [bound.per_sequence, bound.standard_error, bound.per_frame])
            for label, bound in labels.items()
        ]
        title = (
            f"IWAE bound of log p(x_0..x_T | k), {result.samples} samples, "
            f"{result.sequences} sequences, nats"
        )
        columns = [Column("nats per sequence"), Column("± s.e."), Column("nats per frame")]
        return {"log_likelihood": Table(columns, rows, title, "observation model")}


def _name_of(model: SequenceModel) -> str:
    """Return what a configuration calls the observation model, else its class."""
    named = getattr(model.options, "observation", None)
    if isinstance(named, str):
        return named
    learned = any(True for _ in model.observation.parameters())
    return type(model.observation).__name__.lower() + "_learned" * learned
