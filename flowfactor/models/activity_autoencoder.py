"""An autoencoder of frames with fields in its latent, by which activity is inferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.activity import ActivityPrior, Posterior, Projections, SpikeStates
from flowfactor.activity_network import ActivityNetwork, FactorisedPosterior
from flowfactor.data import SequenceBatch
from flowfactor.models.autoencoder import (
    AutoencoderOptions,
    diagonal_normal,
    kl_to_standard_normal,
    make_network,
    make_observation,
    split_head,
)
from flowfactor.models.unnamed_flows import flow_names
from flowfactor.networks import single_precision
from flowfactor.observation import Observation
from flowfactor.options import NonNegativeInt, PositiveFloat, PositiveInt, Weight, options
from flowfactor.potentials import RidgeField
from flowfactor.potentials.ridge_field import Parts

# What a training step adds to the running mean of the evidence of each start.
_RECENT = 0.02


@options
class Stages:
    """Stages of training an :class:`ActivityAutoencoder`, in steps."""

    autoencoder: NonNegativeInt = 1000
    """Steps in which its autoencoder learns, on single frames. Few: latents that fold later would
    make fields run backwards in a part of them."""
    fields: NonNegativeInt = 1000
    """Steps after these in which its fields learn, on encoded sequences."""
    anneal: NonNegativeInt = 300
    """Steps, of those of the fields, in which the temperature falls."""
    temperature: PositiveFloat = 10.0
    """Initial temperature, a factor of the displacements' variance: so high that no field wins
    before it has learned something, and each finds one direction everywhere."""
    final_temperature: PositiveFloat = 1.0
    """Temperature to which it falls: less where a step moves latents by little, compared with
    their deviations, or fields come to share what acts."""

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.autoencoder + self.fields

    def temperature_after(self, steps: int) -> float:
        """Return the temperature after some steps of the fields."""
        warmth = max(0.0, 1 - steps / self.anneal) if self.anneal else 0.0
        return float(self.final_temperature * (self.temperature / self.final_temperature) ** warmth)


@options
class ActivityAutoencoderOptions(AutoencoderOptions):
    """Options of :class:`ActivityAutoencoder`."""

    flows: PositiveInt | None = None
    """Number K of fields; null: one for each transformation of the data."""
    width: PositiveInt = 128
    """Number H of ridge functions of a field."""
    parts: Parts = "both"
    """Parts that fields have: ``gradient``, ``solenoidal`` (divergence-free), or ``both``."""
    inference: Literal["exact", "amortised"] = "exact"
    """How activity is inferred: ``exact`` enumerates all sets of at most two fields; ``amortised``
    by a network, for more of them at a time; the fields themselves learn by enumeration."""
    prior: ActivityPrior = ActivityPrior()
    """Prior of the activity: how rarely fields act and switch, and how fast they are."""
    sureness: PositiveFloat = 2.0
    """How many times surer of displacements inference is than the fields are while they learn."""
    stages: Stages = Stages()
    """Schedule of the teacher, which finds the activity; the model itself learns after it."""
    starts: PositiveInt = 1
    """Sets of fields that the teacher learns beside each other; the one of the highest evidence
    stays. More than one needs exact inference."""
    field_rate: PositiveFloat = 2e-3
    """Peak of the learning rate of the teacher's fields."""
    pairs: PositiveInt | None = 3
    """Random frames of each sequence that are encoded and decoded in a training step; null: all."""
    beta: Weight = 1.0
    """Weight of the KL divergences."""

    def __post_init__(self) -> None:
        """Refuse several starts for a network, which learns from one.

        Raises:
            ValueError: there are several starts, and inference is amortised.
        """
        if self.starts > 1 and self.inference == "amortised":
            raise ValueError(f"starts must be 1 with amortised inference; it is {self.starts}")

    def make_bank(self, count: int) -> RidgeField:
        """Return untrained fields; the teacher and the model each have some of their own."""
        return RidgeField(
            flow_names(count), self.latent_dim, self.width, parts=self.parts, autonomous=True
        )


class ActivityAutoencoder(nn.Module):
    r"""An autoencoder of frames, K fields that explain how its latents move, and exact inference.

    Activity is inferred in a model of the displacements of the encoded means ``m_t``:

    .. math::

        \begin{aligned}
        m_{t+1} - m_t &\sim N \Bigl( \sum_k g_{t,k} v^k \bigl( \tfrac{1}{2} (m_t + m_{t+1}) \bigr),
          \mathrm{diag}(R_t) \Bigr), \\
        R_t &= \frac{T + 1}{\mathrm{sureness}} (\sigma_t^2 + \sigma_{t+1}^2), \\
        q(s, g \mid x) &= \frac{p(s, g)\, N(m_1 - m_0, \ldots \mid g)}{p(m_1 - m_0, \ldots)}
        \end{aligned}

    in which slabs integrate out in closed form and forward-backward takes care of time
    (:class:`~flowfactor.activity.SpikeStates`); or a network approximates it
    (:class:`~flowfactor.activity_network.ActivityNetwork`).

    The autoencoder learns first, on single frames, each of which counts ``T + 1`` times. Then it
    stays as it is, and the fields maximise the evidence of the displacements, by expectation
    maximisation, which finds them. The variances ``sigma^2`` are those of the encoder, and count
    ``T + 1`` times because a latent explains that many frames: what is left open by a single one.
    A variance that is learned falls far below, the posterior becomes sure, and fields divide the
    transformations otherwise than the data do. Once fields have learned, inference that is
    ``sureness`` times as sure finds switches and second fields better.

    Fields that divide the transformations otherwise are a maximum as well, but a lower one: of
    several ``starts``, which learn from the same sequences, the best is kept.

    Args:
        options: :class:`ActivityAutoencoderOptions`.
        count: the number K of fields.
        image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.
        decoder: whether it has a decoder and rivals, which only its training needs.

    Attributes:
        step: of the training, see :class:`Stages`.
        speed: what fields are multiplied with, ``(K,)``: as fast as displacements at first.
        rivals: the other sets of fields, as long as it is open which one stays.
    """

    def __init__(
        self,
        options: ActivityAutoencoderOptions,
        count: int,
        image_shape: Sequence[int],
        horizon: int,
        *,
        decoder: bool = True,
    ) -> None:
        super().__init__()
        self.options = options
        self.image_shape = tuple(image_shape)
        self.horizon = horizon
        sizes = image_shape, options.latent_dim
        self.encoder = make_network("encoder", options, *sizes)
        self.decoder = make_network("decoder", options, *sizes) if decoder else None
        self.observation: Observation | None = make_observation(options) if decoder else None
        self.potentials = options.make_bank(count)
        self.speed: Tensor
        self.register_buffer("speed", torch.ones(count))
        others = options.starts - 1 if decoder else 0
        self.rivals = nn.ModuleList(options.make_bank(count) for _ in range(others))
        self.rival_speeds: Tensor | None
        self.evidences: Tensor | None
        self.register_buffer("rival_speeds", torch.ones(others, count) if others else None)
        self.register_buffer("evidences", torch.zeros(1 + others) if others else None)
        amortised = options.inference == "amortised"
        self.network = ActivityNetwork(options.prior) if amortised else None
        self.step = 0

    # ---- inference

    def infer(self, frames: Float[Tensor, "b f c h w"]) -> Posterior | FactorisedPosterior:
        """Return ``q(s, g)`` of whole sequences."""
        return self.posterior(*self.encode_all(frames))

    def posterior(
        self, means: Float[Tensor, "b f d"], scales: Float[Tensor, "b f d"]
    ) -> Posterior | FactorisedPosterior:
        """Return ``q(s, g)`` from means and standard deviations of encoded sequences."""
        temperature = 1 / self.options.sureness
        return self._infer(self._project(means, scales, temperature, self.potentials, self.speed))

    def encode_all(
        self, frames: Float[Tensor, "b f c h w"]
    ) -> tuple[Float[Tensor, "b f d"], Float[Tensor, "b f d"]]:
        """Return mean and standard deviation of ``q(z | x)`` of every frame of sequences."""
        head = self.encoder(rearrange(frames, "b f c h w -> (b f) c h w"))
        mean, log_scale = (
            rearrange(each, "(b f) d -> b f d", b=len(frames)) for each in split_head(head)
        )
        return mean, log_scale.exp()

    def _infer(self, projections: Projections) -> Posterior | FactorisedPosterior:
        if self.network is not None:
            return self.network(projections)  # type: ignore[no-any-return]
        return self._list_states().infer(projections)

    def _list_states(self) -> SpikeStates:
        return SpikeStates(len(self.speed), self.options.prior, self.speed.device)

    def _project(
        self,
        means: Float[Tensor, "b f d"],
        scales: Float[Tensor, "b f d"],
        temperature: float,
        fields: RidgeField,
        speed: Float[Tensor, "k"],
    ) -> Projections:
        """Return the projections of displacements on the fields at their middles."""
        middles = rearrange((means[:, 1:] + means[:, :-1]) / 2, "b n d -> (b n) d")
        velocities = speed.unsqueeze(-1) * fields.velocities(middles, 0.0)
        variances = scales.square()
        return Projections.of(
            means.diff(dim=1),
            rearrange(velocities, "(b n) k d -> b n k d", b=len(means)),
            temperature * (self.horizon + 1) * (variances[:, 1:] + variances[:, :-1]),
        )

    # ---- training

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the autoencoder's objective, or of that of the fields, in nats."""
        stages = self.options.stages
        if self.step < stages.autoencoder:
            return self._fit_autoencoder(sequences)
        with torch.no_grad():
            means, scales = self.encode_all(sequences.frames)
        passed = self.step - stages.autoencoder
        if passed == 0:
            self.start_fields(means)
        return self.explain(means, scales, stages.temperature_after(passed))

    def _fit_autoencoder(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Take some frames, each for itself."""
        assert self.decoder is not None
        assert self.observation is not None
        rows, chosen = draw_frames(sequences, self.options.pairs)
        x = sequences.frames[rows, chosen].flatten(0, 1)
        mean, log_scale = split_head(self.encoder(x))
        posterior = diagonal_normal(mean, log_scale.exp())
        logits = single_precision(self.decoder(posterior.rsample()))
        return {
            "reconstruction": -(self.horizon + 1) * self.observation.log_prob(logits, x).mean(),
            "kl": self.options.beta * kl_to_standard_normal(posterior).mean(),
        }

    @torch.no_grad()
    def start_fields(self, means: Float[Tensor, "b f d"]) -> None:
        """Make fields as fast as the displacements of encoded sequences, by :attr:`speed`."""
        moved = means.diff(dim=1).square().sum(-1).mean()
        for fields, speed in self._starts():
            squares = fields.velocities(means[:, 0], 0.0).square().sum(-1).mean(0)
            speed.copy_((moved / squares).sqrt())

    def _starts(self) -> list[tuple[RidgeField, Float[Tensor, "k"]]]:
        """Return all sets of fields with their speeds; the first one infers."""
        rivals = (each for each in self.rivals if isinstance(each, RidgeField))
        speeds = () if self.rival_speeds is None else self.rival_speeds
        return [(self.potentials, self.speed), *zip(rivals, speeds, strict=True)]

    @torch.no_grad()
    def keep_best(self) -> None:
        """Infer from now on with the fields of the start that explained the last sequences best."""
        if self.evidences is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(self.evidences, 0)
        fields, speed = self._starts()[int(self.evidences.argmax())]
        self.potentials.load_state_dict(fields.state_dict())
        self.speed.copy_(speed)
        self.evidences[0] = torch.inf  # no other is better again

    def finish(self) -> None:
        """Keep what infers, and nothing that only training needs."""
        self.keep_best()
        self.decoder = self.observation = None
        self.rivals = nn.ModuleList()
        self.rival_speeds = self.evidences = None

    def explain(
        self,
        means: Float[Tensor, "b f d"],
        scales: Float[Tensor, "b f d"],
        temperature: float = 1.0,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the costs of one step of expectation maximisation, in nats a sequence.

        ``evidence`` teaches the fields, always by exact inference; with rivals it is a mean over
        all starts. ``inference`` teaches the network, if there is one, the same posterior: while
        fields have learned nothing its own bound is highest if nothing ever acts, and stays there.

        Args:
            means: of encoded sequences.
            scales: standard deviations.
            temperature: factor of the displacements' variance.
        """
        costs, evidences, states = [], [], self._list_states()
        for fields, speed in self._starts():
            projections = self._project(means, scales, temperature, fields, speed)
            with torch.no_grad():
                posterior = states.infer(projections)
            expected = projections.expected(posterior.first, posterior.second)
            costs.append(-expected.sum(1).mean())
            evidences.append(posterior.evidence.mean())
        if self.evidences is not None:
            self.evidences.lerp_(torch.stack(evidences), _RECENT)
        terms = {"evidence": torch.stack(costs).mean()}
        if self.network is not None:
            terms["inference"] = self.network(projections.detach()).cross_entropy(posterior).mean()
        return terms


def draw_frames(
    sequences: SequenceBatch, count: int | None
) -> tuple[Int[Tensor, "b one"], Int[Tensor, "b p"]]:
    """Return the numbers of the sequences, and of some frames of each; None is all of them."""
    shape, device = sequences.times.shape, sequences.frames.device
    order = torch.rand(shape, device=device).argsort(dim=1)
    rows = torch.arange(len(sequences), device=device).unsqueeze(1)
    return rows, order[:, :count]
