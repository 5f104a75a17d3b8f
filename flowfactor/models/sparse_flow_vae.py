"""The unsupervised flow model: no label says what happens in a sequence, or when."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

import flowfactor.flow as flows
from flowfactor.activity import Activity, ActivityPrior, Posterior, Projections, SpikeStates
from flowfactor.activity_network import ActivityNetwork, FactorisedPosterior
from flowfactor.checks import check_tensor
from flowfactor.data import SequenceBatch
from flowfactor.matching import match_activity
from flowfactor.models.autoencoder import (
    Autoencoder,
    AutoencoderOptions,
    Solver,
    SolverGradient,
    kl_to_standard_normal,
)
from flowfactor.models.unnamed_flows import UnnamedFlows, flow_names
from flowfactor.observation import Observation
from flowfactor.options import NonNegativeInt, PositiveFloat, PositiveInt, Weight, options
from flowfactor.potentials import RidgeField, Selector, VectorField
from flowfactor.potentials.ridge_field import Parts
from flowfactor.registries import MODELS
from solvers import RK4, Direct

logger = logging.getLogger(__name__)

# The least sum of probabilities that a field acts by which sequences tell anything of its speed.
_SEEN = 1.0
# Sequences that fields settle on, and of each step of fitting them.
_SETTLED, _FITTED = 2000, 128


@options
class Stages:
    """Stages of training a :class:`SparseFlowVAE`, in steps; then fields and decoder alone."""

    autoencoder: NonNegativeInt = 1000
    """Steps in which only the autoencoder learns, on single frames. Few: latents that fold later
    would make new fields run backwards in a part of them."""
    fields: NonNegativeInt | None = None
    """Steps in which only the fields learn, on encoded sequences; null: all that remain."""
    together: NonNegativeInt = 5000
    """Steps after these in which all learn, and the fields follow an encoder that goes on."""
    anneal: NonNegativeInt = 300
    """Steps, of those of the fields, in which the temperature falls to 1."""
    temperature: PositiveFloat = 10.0
    """Initial temperature, a factor of the displacements' variance: so high that no field wins
    before it has learned something, and each finds one direction everywhere."""
    settle: NonNegativeInt = 0
    """Steps after the training in which the fields alone are fitted to the encoded sequences, by
    displacements and by where they lead; see :meth:`SparseFlowVAE.fit_fields`."""


@options
class SparseFlowVAEOptions(AutoencoderOptions):
    """Options of :class:`SparseFlowVAE`."""

    flows: PositiveInt | None = None
    """Number K of fields; null: one for each transformation of the data."""
    width: PositiveInt = 128
    """Number H of ridge functions of a field."""
    parts: Parts = "both"
    """Parts that fields have: ``gradient``, ``solenoidal`` (divergence-free), or ``both``."""
    inference: Literal["exact", "amortised"] = "exact"
    """How activity is inferred: ``exact`` enumerates all sets of at most two fields; ``amortised``
    by a network, for more fields than some ten, or more of them at a time."""
    prior: ActivityPrior = ActivityPrior()
    """Prior of the activity: how rarely fields act and switch, and how fast they are."""
    stages: Stages = Stages()
    """Schedule of the training."""
    pairs: PositiveInt | None = 3
    """Random frames of each sequence that are decoded in a training step; null: all of them."""
    beta: Weight = 1.0
    """Weight of the KL divergences."""
    field_rate: PositiveFloat = 2e-3
    """Peak of the learning rate of the fields."""
    path: Weight = 0.03
    """How much fields learn from the frames that are decoded where they lead, besides the evidence
    of the encoded displacements: 1 is as much as the decoder, but blurs who acts."""
    solver: Solver = RK4(steps=1)
    """Solver of the flow: its name and options; the steps of a fixed method are per frame."""
    gradient: SolverGradient = Direct()
    """How the solver is differentiated: name and options."""

    def check(self, config: Any) -> None:
        """Accept hidden labels."""


@MODELS.register("sparse_flow_vae")
class SparseFlowVAE(UnnamedFlows, Autoencoder):
    r"""An autoencoder of sequences in which a few of K fields act at a time, without any labels.

    .. math::

        \begin{aligned}
        z_0 &\sim N(0, I), \qquad (s, g) \sim \mathrm{ActivityPrior}, \\
        \frac{dz}{dt} &= \sum_k g_{t,k} v^k(z) \text{ from } t \text{ to } t + 1, \qquad
          x_t \sim p(x_t \mid z_t)
        \end{aligned}

    Spikes s say which fields act in a step and in which direction, slabs g how fast; see
    :class:`~flowfactor.activity.ActivityPrior`. Training and validation minimise

    .. math::

        \begin{aligned}
        & -\mathbb{E}_q \Bigl[ \sum_{t=0}^T \log p(x_t \mid z_t) \Bigr]
          + \mathrm{KL}(q(z_0 \mid x_0) \parallel N(0, I)) \\
        & + \mathrm{KL}(q(s, g \mid x_0, \ldots, x_T) \parallel p(s, g))
        \end{aligned}

    the negative evidence bound, for *any* ``q(s, g | x_0..x_T)``. The one here is exact inference
    in another, simpler model, that of the displacements of the encoded means ``m_t``:

    .. math::

        \begin{aligned}
        m_{t+1} - m_t &\sim N \Bigl( \sum_k g_{t,k} v^k \bigl( \tfrac{1}{2} (m_t + m_{t+1}) \bigr),
          \mathrm{diag}(R_t) \Bigr), \\
        R_t &= (T + 1) (\sigma_t^2 + \sigma_{t+1}^2), \\
        q(s, g \mid x) &= \frac{p(s, g)\, N(m_1 - m_0, \ldots \mid g)}{p(m_1 - m_0, \ldots)}
        \end{aligned}

    in which slabs integrate out in closed form and forward-backward takes care of time
    (:class:`~flowfactor.activity.SpikeStates`); or a network approximates it
    (:class:`~flowfactor.activity_network.ActivityNetwork`). Its KL to the prior is in closed form
    as well.
    Fields also maximise the evidence of the displacements, by expectation maximisation, which finds
    them. The variances ``sigma^2`` are those of the encoder, and count ``T + 1`` times because a
    latent explains that many frames: what is left open by a single one. A variance that is learned
    falls far below, the posterior becomes sure, and fields divide the transformations otherwise
    than the data do.

    Training has :class:`stages <Stages>`: the autoencoder alone, on single frames; fields alone;
    all together, where random frames are encoded, flow along the inferred activity to others,
    forwards or backwards, and are decoded there as well; at last the encoder rests, so that the
    fields catch up with it. Nothing that flows teaches the encoder.

    When training has ended, :meth:`finish` lets the fields settle (:meth:`fit_fields`), finds out
    what each has learned, puts them in the order of the transformations, in their directions, and
    names them.

    Args:
        options: :class:`SparseFlowVAEOptions`.
        names: of the transformations of the data.
        image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.

    Attributes:
        names: of the fields; ``flow 1``, ``flow 2``, ... before :meth:`finish`.
        transformations: of the data, as far as their names are known.
        speed: what fields are multiplied with, ``(K,)``: at first to be as fast as displacements,
            1 after :meth:`finish`.

    Raises:
        ValueError: no number of fields, or sizes that do not fit.

    Source: Song, Keller, Yue, Perona, Welling, "Unsupervised Representation Learning from Sparse
    Transformation Analysis", arXiv:2410.05564, for the model; inference is another one here.

    Example:
        >>> import torch
        >>> from flowfactor.models import SparseFlowVAE
        >>> _ = torch.manual_seed(0)
        >>> model = SparseFlowVAE.build(("rotation", "hue"), latent_dim=8, width=16).eval()
        >>> activity = model.infer_activity(torch.rand(4, 9, 3, 28, 28))
        >>> activity.coefficients.shape, activity.evidence.shape
        (torch.Size([4, 8, 2]), torch.Size([4]))
        >>> model.trace_activity(torch.zeros(4, 8), activity.coefficients).shape
        torch.Size([9, 4, 8])
    """

    Options: ClassVar[type[Any]] = SparseFlowVAEOptions
    supervised: ClassVar[bool] = False
    needs_all_frames: ClassVar[bool] = True

    potentials: RidgeField
    options: SparseFlowVAEOptions

    def __init__(
        self,
        options: SparseFlowVAEOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
    ) -> None:
        K = options.flows or len(names)
        if not K:
            raise ValueError("flows must be a number: the data have no names to count")
        bank = RidgeField(
            flow_names(K), options.latent_dim, options.width, parts=options.parts, autonomous=True
        )
        super().__init__(options, bank.names, image_shape, horizon)
        self.potentials = bank
        self.transformations = tuple(names)
        self.method = options.solver
        self.gradient = options.gradient
        self.step = 0
        self.speed: Tensor
        self.register_buffer("speed", torch.ones(K))
        amortised = options.inference == "amortised"
        self.network = ActivityNetwork(options.prior) if amortised else None

    # ---- activity

    @torch.no_grad()
    def infer_activity(self, frames: Float[Tensor, "b f c h w"]) -> Activity:
        """Return which fields act in each step of whole sequences, and how fast.

        Args:
            frames: at least two of each sequence, one step apart.

        Raises:
            TypeError, ValueError: frames of another dtype, shape or device, or too few.
        """
        shape = ("B", "F", *self.image_shape)
        check_tensor("frames", frames, shape, self._parameter(), pixels=True)
        if frames.shape[1] < 2:
            raise ValueError("frames: a single one shows no activity; give at least two")
        return self.posterior(*self.encode_all(frames)).activity()

    def trace_activity(
        self, z: Float[Tensor, "b d"], coefficients: Float[Tensor, "b n k"]
    ) -> Float[Tensor, "f b d"]:
        """Return latents that flow along the fields at given speeds, constant in each step.

        Args:
            z: where they start.
            coefficients: signed speeds; negative ones run backwards.

        Returns:
            ``(n + 1, B, D)``, the first being ``z``.
        """
        path = [z]
        for weights in coefficients.unbind(1):
            path.append(self._move(path[-1], weights))
        return torch.stack(path)

    def posterior(
        self, means: Float[Tensor, "b f d"], scales: Float[Tensor, "b f d"]
    ) -> Posterior | FactorisedPosterior:
        """Return ``q(s, g)`` from means and standard deviations of encoded sequences."""
        return self._infer(self._project(means, scales))

    def _infer(self, projections: Projections) -> Posterior | FactorisedPosterior:
        if self.network is not None:
            return self.network(projections)  # type: ignore[no-any-return]
        states = SpikeStates(len(self.names), self.options.prior, projections.linear.device)
        return states.infer(projections)

    def select(self, k: VectorField | Selector) -> VectorField:
        """Return a field as it is, or at its mean speed the one that a selector asks for."""
        if isinstance(k, int | str):
            index = self.potentials.index(k)
            return self.speed[index] * self.potentials[index]
        if not isinstance(k, Tensor):
            return super().select(k)
        field = self.potentials.select(k)  # which checks it
        if bool((self.speed == 1).all()):
            return field
        weights = k if k.is_floating_point() else F.one_hot(k, len(self.names)).to(self.speed)
        return self.potentials.select(weights * self.speed)

    def choose(self, sequences: SequenceBatch) -> Int[Tensor, "b"]:
        """Return the field that moves each sequence most, whatever its label."""
        coefficients = self.posterior(*self.encode_all(sequences.frames)).first
        return coefficients.abs().sum(1).argmax(-1)

    def encode_all(
        self, frames: Float[Tensor, "b f c h w"]
    ) -> tuple[Float[Tensor, "b f d"], Float[Tensor, "b f d"]]:
        """Return mean and standard deviation of ``q(z | x)`` of every frame of sequences."""
        mean, log_scale = self.posterior_parameters(rearrange(frames, "b f c h w -> (b f) c h w"))
        mean, scale = (
            rearrange(each, "(b f) d -> b f d", b=len(frames)) for each in (mean, log_scale.exp())
        )
        return mean, scale

    def _project(
        self,
        means: Float[Tensor, "b f d"],
        scales: Float[Tensor, "b f d"],
        temperature: float = 1.0,
    ) -> Projections:
        """Return the projections of displacements on the fields at their middles."""
        middles = rearrange((means[:, 1:] + means[:, :-1]) / 2, "b n d -> (b n) d")
        velocities = self.speed.unsqueeze(-1) * self.potentials.velocities(middles, 0.0)
        variances = scales.square()
        return Projections.of(
            means.diff(dim=1),
            rearrange(velocities, "(b n) k d -> b n k d", b=len(means)),
            temperature * (self.horizon + 1) * (variances[:, 1:] + variances[:, :-1]),
        )

    def _move(self, z: Float[Tensor, "b d"], weights: Float[Tensor, "b k"]) -> Tensor:
        """Return where latents are after one step at these speeds."""
        field = self.potentials.select(weights * self.speed)
        return flows.flow(z, field, 1.0, method=self.method, gradient=self.gradient)

    # ---- training

    @property
    def schedule_steps(self) -> int:
        """Steps before all of the model learns."""
        stages = self.options.stages
        return stages.autoencoder + (stages.fields or 0)

    @property
    def _network_parameters(self) -> list[Tensor]:
        return [] if self.network is None else list(self.network.parameters())

    def on_step(self, step: int) -> None:
        """Let the stages know the training step."""
        self.step = step

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the fields with their own learning rate, and the rest."""
        own = list(self.potentials.parameters())
        others = {id(parameter) for parameter in own}
        return [
            {"params": [each for each in self.parameters() if id(each) not in others]},
            {"params": own, "lr": self.options.field_rate},
        ]

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        In evaluation mode the sum is a sample of the negative evidence bound, for ``beta = 1``. In
        training mode :meth:`on_step` says which stage it is.

        Args:
            sequences: complete ones; their labels and activity are ignored.

        Raises:
            ValueError: frames are missing, or out of order.
        """
        if not sequences.is_complete:
            raise ValueError("sequences must have all of their frames, in order")
        stages = self.options.stages
        if not self.training:
            return self._bound(sequences)
        if self.step < stages.autoencoder:
            return self._fit_autoencoder(sequences)
        if stages.fields is None or self.step < self.schedule_steps:
            return self._fit_fields(sequences)
        return self._fit_all(sequences)

    def _fit_autoencoder(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Take some frames, each for itself."""
        rows, chosen = self._draw_frames(sequences)
        x = sequences.frames[rows, chosen].flatten(0, 1)
        rest = *self.potentials.parameters(), *self._network_parameters
        return self._autoencode(x, sequences)[0] | {"evidence": _zero(x, *rest)}

    def _autoencode(
        self, x: Float[Tensor, "n c h w"], sequences: SequenceBatch
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, "n d"]]:
        """Return the costs of frames, each for itself, and a latent of each."""
        posterior = self.encode(x)
        z = posterior.rsample()
        terms = {
            "reconstruction": self._cost(self.decode_logits(z), x, sequences),
            "kl": self.options.beta * kl_to_standard_normal(posterior).mean(),
        }
        return terms, z

    def _fit_fields(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Fit the fields to the displacements of the encoded frames."""
        with torch.no_grad():
            means, scales = self.encode_all(sequences.frames)
        terms, _ = self.explain(means, scales)
        autoencoder = *self.encoder.parameters(), *self.decoder.parameters()
        return {
            **terms,
            "reconstruction": _zero(means, *autoencoder),
            "kl": _zero(means, *self.observation.parameters()),
        }

    def _fit_all(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Decode frames where others arrive, while the encoder goes on or rests."""
        x = sequences.frames
        rows, chosen = self._draw_frames(sequences)
        rests = self.step >= self.schedule_steps + self.options.stages.together
        with torch.set_grad_enabled(torch.is_grad_enabled() and not rests):
            terms, z = self._autoencode(x[rows, chosen].flatten(0, 1), sequences)
        with torch.no_grad():
            means, scales = self.encode_all(x)
        fitted, posterior = self.explain(means, scales)
        start = chosen.flatten()
        end = torch.randint(x.shape[1], start.shape, device=x.device)
        coefficients = posterior.first.repeat_interleave(chosen.shape[1], 0)
        reached = self._reach(z.detach(), coefficients, start, end)
        reached = torch.lerp(reached.detach(), reached, self.options.path)
        seen = x[rows.expand_as(chosen).flatten(), end]
        resting = _zero(means, *self.encoder.parameters())
        return {
            **terms,
            **fitted,
            "prediction": self._cost(self.decode_logits(reached), seen, sequences) + resting,
            "activity": self.options.beta * posterior.kl.mean(),
        }

    def _draw_frames(
        self, sequences: SequenceBatch
    ) -> tuple[Int[Tensor, "b one"], Int[Tensor, "b p"]]:
        """Return the numbers of the sequences, and of the frames that are drawn of each."""
        shape, device = sequences.times.shape, sequences.frames.device
        order = torch.rand(shape, device=device).argsort(dim=1)
        count = min(self.options.pairs or shape[1], shape[1])
        rows = torch.arange(len(sequences), device=device).unsqueeze(1)
        return rows, order[:, :count]

    def _cost(
        self, logits: Float[Tensor, "n c h w"], x: Float[Tensor, "n c h w"], batch: SequenceBatch
    ) -> Float[Tensor, ""]:
        """Return the negative log-likelihood of whole sequences, estimated from some frames."""
        return -(batch.horizon + 1) * self.observation.log_prob(logits, x).mean()

    @torch.no_grad()
    def _start(self, means: Float[Tensor, "b f d"]) -> None:
        """Make fields as fast as displacements."""
        squares = self.potentials.velocities(means[:, 0], 0.0).square().sum(-1).mean(0)
        self.speed.copy_((means.diff(dim=1).square().sum(-1).mean() / squares).sqrt())

    def explain(
        self, means: Float[Tensor, "b f d"], scales: Float[Tensor, "b f d"]
    ) -> tuple[dict[str, Float[Tensor, ""]], Posterior | FactorisedPosterior]:
        """Return the costs of one step of expectation maximisation, and the posterior.

        The first step after those of the autoencoder gives the fields their speed.

        Args:
            means: of encoded sequences.
            scales: standard deviations.
        """
        stages = self.options.stages
        passed = self.step - stages.autoencoder
        if passed == 0:
            self._start(means)
        warmth = max(0.0, 1 - passed / stages.anneal) if stages.anneal else 0.0
        projections = self._project(means, scales, stages.temperature**warmth)
        with torch.no_grad():
            posterior = self._infer(projections)
        expected = projections.expected(posterior.first, posterior.second)
        terms = {"evidence": -expected.sum(1).mean()}
        if self.network is not None:
            terms["inference"] = -self.network(projections.detach()).evidence.mean()
        return terms, posterior

    def _reach(
        self,
        z: Float[Tensor, "b d"],
        coefficients: Float[Tensor, "b n k"],
        start: Int[Tensor, "b"],
        end: Int[Tensor, "b"],
    ) -> Float[Tensor, "b d"]:
        """Follow each latent from a frame to another, forwards or backwards, one step at a time."""
        order = (end - start).abs().argsort(descending=True, stable=True)
        z, coefficients, start, end = (each[order] for each in (z, coefficients, start, end))
        ahead, count = end > start, (end - start).abs()
        sign = torch.where(ahead, 1.0, -1.0).to(z).unsqueeze(-1)
        remaining = torch.bincount(count, minlength=1).flip(0).cumsum(0).flip(0).tolist()
        for passed, left in enumerate(remaining[1:]):
            at = torch.where(ahead, start + passed, start - passed - 1)[:left]
            weights = coefficients[torch.arange(left, device=z.device), at] * sign[:left]
            z = torch.cat([self._move(z[:left], weights), z[left:]])
        return z[order.argsort()]

    # ---- fields for a latent that rests

    @torch.enable_grad()
    def fit_fields(
        self,
        means: Float[Tensor, "b f d"],
        scales: Float[Tensor, "b f d"],
        steps: int,
        *,
        first: int = 0,
        rate: float | None = None,
        path: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        r"""Fit the fields, as far as they may learn, to encoded sequences.

        Besides the evidence of the displacements, the cost has how far latents are from the
        encoded ones where the inferred activity leads them, from a random frame i to another one j:

        .. math::

            \tfrac{n}{2} \sum_d \frac{(z_{i \to j} - m_j)_d^2}{R_{ij,d}}, \qquad
            R_{ij} = (T + 1) (\sigma_i^2 + \sigma_j^2), \qquad
            z_i \sim N(m_i, \mathrm{diag}(\sigma_i^2))

        Displacements alone leave open what fields do beside the encoded latents, where a path gets
        by its own errors; decoded frames would teach it, too, but blur who acts.

        Args:
            means: of the encoded sequences.
            scales: standard deviations.
            steps: of 128 sequences each; the learning rate follows half a cosine.
            first: the step of the training that the first one stands for, of the :class:`Stages`.
            rate: the first learning rate; None is that of the fields.
            path: weight of where the activity leads.
            generator: of the sequences and frames.
        """
        parameters = [*self.potentials.parameters(), *self._network_parameters]
        learning = [each for each in parameters if each.requires_grad]
        optimizer = torch.optim.Adam(learning, rate or self.options.field_rate, (0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        for step in range(first, first + steps):
            self.on_step(step)
            rows = torch.randint(len(means), (_FITTED,), generator=generator).to(means.device)
            chosen = means[rows], scales[rows]
            terms, posterior = self.explain(*chosen)
            if path:
                terms["path"] = path * self._miss(*chosen, posterior.first, generator)
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            schedule.step()

    def _miss(
        self,
        means: Float[Tensor, "b f d"],
        scales: Float[Tensor, "b f d"],
        coefficients: Float[Tensor, "b n k"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Return how far from encoded frames the activity leads from others, in nats."""
        b, f, d = means.shape
        start, end = torch.randint(f, (2, b), generator=generator).to(means.device)
        noise = torch.randn(b, d, generator=generator, dtype=means.dtype).to(means.device)
        rows = torch.arange(b, device=means.device)
        before, after = scales[rows, start], scales[rows, end]
        z = means[rows, start] + before * noise
        reached = self._reach(z, coefficients, start, end)
        variance = (self.horizon + 1) * (before.square() + after.square())
        missed = (reached - means[rows, end]).square() / variance
        return 0.5 * (f - 1) * missed.sum(-1).mean()

    @torch.no_grad()
    def _settle(self, training: Iterable[SequenceBatch]) -> None:
        """Fit the fields once more, to training sequences as they are encoded in the end."""
        stages, encoded, count = self.options.stages, [], 0
        for batch in training if stages.settle else ():
            encoded.append(self.encode_all(batch.frames.to(self.device)))
            count += len(batch)
            if count >= _SETTLED:
                break
        if encoded:
            means, scales = (torch.cat(each) for each in zip(*encoded, strict=True))
            self.fit_fields(
                means,
                scales,
                stages.settle,
                first=stages.autoencoder + stages.anneal + 1,
                rate=self.options.field_rate / 4,
                generator=torch.Generator().manual_seed(0),
            )

    # ---- the bound

    def _bound(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the negative evidence bound, from one sample of each sequence."""
        encoded = self.encode(sequences.frames[:, 0])
        posterior = self.posterior(*self.encode_all(sequences.frames))
        path = self.trace_activity(encoded.rsample(), posterior.draw()[0])
        log_likelihood = self.log_likelihood(rearrange(path, "f b d -> (b f) d"), sequences)
        return {
            "reconstruction": -log_likelihood.sum(1).mean(),
            "kl": self.options.beta * kl_to_standard_normal(encoded).mean(),
            "activity": self.options.beta * posterior.kl.mean(),
        }

    @torch.no_grad()
    def log_weights(
        self,
        frames: Float[Tensor, "b f c h w"],
        samples: int,
        *,
        observation: Observation | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "samples b"]:
        r"""Return the logarithms of importance weights ``p(x, z_0, s, g) / q(z_0, s, g | x)``.

        Their mean estimates the evidence bound, ``logsumexp - log S`` the tighter one of IWAE; both
        are at most ``log p(x_0..x_T)`` in expectation, the first at most the second.

        Args:
            frames: of whole sequences.
            samples: S.
            observation: another observation model than the trained one.
            generator: of the samples, on the model's device.
        """
        observe = observation or self.observation
        encoded = self.encode(frames[:, 0])
        mean, scale = encoded.mean, encoded.stddev
        posterior = self.posterior(*self.encode_all(frames))
        weights = []
        for _ in range(samples):
            noise = torch.randn(
                mean.shape, generator=generator, dtype=mean.dtype, device=mean.device
            )
            z = mean + scale * noise
            coefficients, log_weight = posterior.draw(generator)
            log_weight = log_weight + 0.5 * (noise.square() - z.square()).sum(-1)
            log_weight = log_weight + scale.log().sum(-1)
            for latent, x in zip(
                self.trace_activity(z, coefficients), frames.unbind(1), strict=True
            ):
                log_weight = log_weight + observe.log_prob(self.decode_logits(latent), x)
            weights.append(log_weight)
        return torch.stack(weights)

    # ---- after training

    @torch.no_grad()
    def finish(
        self, training: Iterable[SequenceBatch], validation: Iterable[SequenceBatch]
    ) -> dict[str, Any]:
        """Let the fields settle; order, direct and name them by what they have learned.

        Speeds get their unit. Fields are matched to the transformations of validation sequences of
        which labels or the activity are known (Hungarian method on the steps in which both act);
        the rest follow, by how often they act.

        Returns:
            ``matching``: for each field its name, the part of the steps in which it acts and its
            mean speed then; where the truth is known also the part of the steps whose set of
            fields is right.
        """
        self._settle(training)
        batches = [batch.to(self.device) for batch in validation]
        found = [self.infer_activity(batch.frames) for batch in batches]
        coefficients = torch.cat([each.coefficients for each in found])
        active = torch.cat([each.active for each in found])
        truth = [_truth(batch, len(self.transformations)) for batch in batches]
        often = active.mean((0, 1))
        mean = coefficients.abs().sum((0, 1)) / active.sum((0, 1)).clamp(min=1e-6)
        unit = torch.where(active.sum((0, 1)) > _SEEN, mean, 1.0)
        facts: dict[str, Any] = {}
        known = [i for i, each in enumerate(truth) if each is not None]
        if known and len(self.names) >= len(self.transformations):
            signed = torch.cat([found[i].coefficients for i in known])
            acting = torch.cat([found[i].active for i in known])
            matching = match_activity(
                signed, acting, torch.cat([each for each in truth if each is not None])
            )
            order, signs = matching.order, matching.signs
            names = self.matched_names()
            facts["accuracy"] = matching.accuracy
        else:
            order = tuple(often.argsort(descending=True, stable=True).tolist())
            signs, names = torch.ones_like(often), flow_names(len(order))
        self.potentials.scale_(self.speed * unit * signs.to(self.speed))
        self.speed.fill_(1.0)
        self._arrange(order, names)
        facts["flows"] = list(names)
        facts["active"] = often[list(order)].tolist()
        facts["speed"] = mean[list(order)].tolist()
        logger.info("what the fields have learned: %s", facts)
        return {"matching": facts}

    def _arrange(self, order: Sequence[int], names: Sequence[str]) -> None:
        """Put the fields in another order, and name them."""
        rows = torch.as_tensor(list(order), device=self.device)
        for parameter in self.potentials.parameters():
            parameter.copy_(parameter[rows])
        self.potentials.names = tuple(names)


def _truth(batch: SequenceBatch, count: int) -> Float[Tensor, "b n k"] | None:
    """Return what truly happens in each step, None if it is not known of all sequences."""
    if batch.activity is not None:
        return batch.activity
    if batch.labels is None or bool((batch.labels < 0).any()):
        return None
    one_hot = F.one_hot(batch.labels, count).to(batch.frames)
    return repeat(one_hot, "b k -> b n k", n=batch.horizon)


def _zero(like: Tensor, *parameters: Tensor) -> Float[Tensor, ""]:
    """Return 0; in distributed training one on which all parameters have a gradient of 0.

    Otherwise they have none, and the optimiser's moments of them stay as they are.
    """
    zero = like.new_zeros(())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for parameter in parameters:
            zero = zero + 0.0 * parameter.sum()
    return zero
