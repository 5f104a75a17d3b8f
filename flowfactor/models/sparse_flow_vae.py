"""The unsupervised flow model: no label says what happens in a sequence, or when."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

import flowfactor.flow as flows
from flowfactor.activity import Activity, refine_speeds, steady_speeds
from flowfactor.checks import check_tensor
from flowfactor.data import SequenceBatch
from flowfactor.matching import match_activity
from flowfactor.models.activity_autoencoder import (
    ActivityAutoencoder,
    ActivityAutoencoderOptions,
    draw_frames,
)
from flowfactor.models.autoencoder import (
    Autoencoder,
    Decoder,
    Solver,
    SolverGradient,
    kl_to_standard_normal,
)
from flowfactor.models.unnamed_flows import UnnamedFlows, flow_names
from flowfactor.observation import Observation
from flowfactor.options import options, parse
from flowfactor.potentials import RidgeField
from flowfactor.registries import MODELS
from solvers import RK4, Direct

logger = logging.getLogger(__name__)

# The least sum of probabilities that a field acts by which sequences tell anything of its speed.
_SEEN = 1.0


@options
class SparseFlowVAEOptions(ActivityAutoencoderOptions):
    """Options of :class:`SparseFlowVAE`."""

    teacher_decoder: Decoder | None = None
    """Decoder with which the teacher learns; null: one like the model's own."""
    speeds: Literal["step", "run", "frames"] = "frames"
    """From what speeds are estimated: each ``step`` for itself; ``run``: all steps in which the
    same fields act, for which a speed lasts; ``frames``: as ``run``, and then refined so that
    decoded frames are those that were seen. Training never refines."""
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
    :class:`~flowfactor.activity.ActivityPrior`. Validation measures

    .. math::

        \begin{aligned}
        & -\mathbb{E}_q \Bigl[ \sum_{t=0}^T \log p(x_t \mid z_t) \Bigr]
          + \mathrm{KL}(q(z_0 \mid x_0) \parallel N(0, I)) \\
        & + \mathrm{KL}(q(s, g \mid x_0, \ldots, x_T) \parallel p(s, g))
        \end{aligned}

    the negative evidence bound, for *any* ``q(s, g | x_0..x_T)``. The one here is that of a
    *teacher*, an :class:`ActivityAutoencoder` with a latent
    and fields of its own, whose inference is exact, and whose KL to the prior is in closed form.

    The teacher learns first, in two stages, from single frames and from how its encoded latents
    move. Then it stays as it is, and the model learns from what it says: of each sequence random
    frames are encoded, flow along the inferred activity to others, forwards or backwards, and are
    decoded there, as in a :class:`FlowVAE` that is told the transformation. All of it learns from
    the decoded frames, the encoder as well, so that latents and flows fit each other.

    When training has ended, :meth:`finish` finds out what each field has learned, puts them in the
    order of the transformations, in their directions and at their mean speed, and names them.

    Args:
        options: :class:`SparseFlowVAEOptions`.
        names: of the transformations of the data.
        image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.
        finished: it is to have learned already: its teacher needs no decoder.

    Attributes:
        names: of the fields; ``flow 1``, ``flow 2``, ... before :meth:`finish`.
        transformations: of the data, as far as their names are known.
        teacher: infers the activity.

    Raises:
        ValueError: no number of fields, or sizes that do not fit.

    Source: Song, Keller, Yue, Perona, Welling, "Unsupervised Representation Learning from Sparse
    Transformation Analysis", arXiv:2410.05564, for the model; inference and training are others.

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
        *,
        finished: bool = False,
    ) -> None:
        K = options.flows or len(names)
        if not K:
            raise ValueError("flows must be a number: the data have no names to count")
        bank = options.make_bank(K)
        super().__init__(options, bank.names, image_shape, horizon)
        self.potentials = bank
        self.transformations = tuple(names)
        self.method = options.solver
        self.gradient = options.gradient
        apart = copy.deepcopy(options)  # networks of your own become two
        if apart.teacher_decoder is not None:
            apart = dataclasses.replace(apart, decoder=apart.teacher_decoder)
        self.teacher = ActivityAutoencoder(
            apart, K, self.image_shape, self.horizon, decoder=not finished
        )

    def spec(self) -> dict[str, Any] | None:
        """Return plain data from which :meth:`from_spec` makes the same model, untrained."""
        spec = super().spec()
        return spec and spec | {"finished": self.teacher.decoder is None}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Return an untrained model from what :meth:`spec` returned."""
        options = parse(cls.Options, spec["options"])
        sizes = spec["names"], spec["image_shape"], spec["horizon"]
        model = cls(options, *sizes, finished=bool(spec["finished"]))
        model.potentials.names = tuple(spec["flows"])
        return model

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
        posterior = self.teacher.infer(frames)
        activity = posterior.activity()
        if self.options.speeds == "step":
            return activity
        directions = (2 * activity.forward - 1).sign() * (activity.active > 0.5)
        slab = self.options.prior.slab
        speeds = steady_speeds(posterior.projections, directions, slab)
        if self.options.speeds == "frames" and not self.training:
            z = self.represent(frames[:, 0])

            def predict(speeds: Float[Tensor, "b n k"]) -> Float[Tensor, "b n c h w"]:
                path = rearrange(self.trace_activity(z, speeds)[1:], "n b d -> (b n) d")
                return rearrange(self.decode(path), "(b n) c h w -> b n c h w", b=len(z))

            speeds = refine_speeds(predict, frames[:, 1:], speeds, directions, slab)
        return dataclasses.replace(activity, coefficients=speeds)

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

    def trace_between(
        self,
        z: Float[Tensor, "b d"],
        coefficients: Float[Tensor, "b n k"],
        start: Int[Tensor, "b"],
        end: Int[Tensor, "b"],
    ) -> Float[Tensor, "b d"]:
        """Follow each latent from a frame to another, forwards or backwards, one step at a time.

        Args:
            z: where they start.
            coefficients: signed speeds of whole sequences.
            start: the frame of each latent.
            end: where it is to go.
        """
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

    def choose(self, sequences: SequenceBatch) -> Int[Tensor, "b"]:
        """Return the field that moves each sequence most, whatever its label."""
        return self.teacher.infer(sequences.frames).first.abs().sum(1).argmax(-1)

    def _move(self, z: Float[Tensor, "b d"], weights: Float[Tensor, "b k"]) -> Tensor:
        """Return where latents are after one step at these speeds."""
        field = self.potentials.select(weights)
        return flows.flow(z, field, 1.0, method=self.method, gradient=self.gradient)

    # ---- training

    @property
    def schedule_steps(self) -> int:
        """Steps in which the teacher learns; one that is finished does not."""
        return 0 if self.teacher.decoder is None else self.options.stages.total

    @property
    def first_step(self) -> int:
        """Step in which the model itself begins to learn, as soon as it does."""
        return self.schedule_steps if self.teacher.step >= self.schedule_steps else 0

    def on_step(self, step: int) -> None:
        """Let the stages know the training step."""
        self.teacher.step = step
        if step == self.schedule_steps:
            self.teacher.keep_best()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters of the model, and those of the teacher, its fields apart."""
        teacher, stages = self.teacher, self.options.stages
        fields = [*teacher.potentials.parameters(), *teacher.rivals.parameters()]
        network = [] if teacher.network is None else list(teacher.network.parameters())
        apart = {id(each) for each in (*fields, *network)}
        coding = [each for each in teacher.parameters() if id(each) not in apart]
        apart |= {id(each) for each in coding}
        own = [each for each in self.parameters() if id(each) not in apart]
        late = (stages.autoencoder, stages.total)
        groups: list[dict[str, Any]] = [
            {"params": own},
            {"params": coding, "span": (0, stages.autoencoder)},
            {"params": fields, "span": late, "lr": self.options.field_rate},
            {"params": network, "span": late},
        ]
        return groups if network else groups[:-1]

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        In evaluation mode the sum is a sample of the negative evidence bound, for ``beta = 1``. In
        training mode :meth:`on_step` says whether it is the teacher that learns.

        Args:
            sequences: complete ones; their labels and activity are ignored.

        Raises:
            ValueError: frames are missing, or out of order.
        """
        if not sequences.is_complete:
            raise ValueError("sequences must have all of their frames, in order")
        if not self.training:
            return self._bound(sequences)
        teaches = self.teacher.step >= self.schedule_steps
        terms = self._learn(sequences) if teaches else self.teacher.loss(sequences)
        first = next(iter(terms))
        return terms | {first: terms[first] + self._zero()}

    def _learn(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Encode some frames, let them flow to others as the teacher says, and decode them."""
        x = sequences.frames
        coefficients = self.infer_activity(x).coefficients
        rows, chosen = draw_frames(sequences, self.options.pairs)
        rows, start = rows.expand_as(chosen).flatten(), chosen.flatten()
        end = torch.randint(x.shape[1], start.shape, device=x.device)
        posterior = self.encode(x[rows, start])
        z = self.trace_between(posterior.rsample(), coefficients[rows], start, end)
        log_likelihood = self.observation.log_prob(self.decode_logits(z), x[rows, end])
        return {
            "reconstruction": -(self.horizon + 1) * log_likelihood.mean(),
            "kl": self.options.beta * kl_to_standard_normal(posterior).mean(),
        }

    def _zero(self) -> Float[Tensor, ""] | float:
        """Return 0; in distributed training one on which every parameter has a gradient."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 0.0
        return 0.0 * torch.stack([each.sum() for each in self.parameters()]).sum()

    # ---- the bound

    def _bound(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the negative evidence bound, from one sample of each sequence."""
        encoded = self.encode(sequences.frames[:, 0])
        posterior = self.teacher.infer(sequences.frames)
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
        posterior = self.teacher.infer(frames)
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
        """Order, direct and name the fields by what they have learned.

        Speeds get their unit. Fields are matched to the transformations of validation sequences of
        which labels or the activity are known (Hungarian method on the steps in which both act);
        the rest follow, by how often they act.

        Returns:
            ``matching``: for each field its name, the part of the steps in which it acts and its
            mean speed then; where the truth is known also the part of the steps whose set of
            fields is right.
        """
        self.teacher.finish()
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
        factors = unit * signs.to(unit)
        self.teacher.potentials.scale_(self.teacher.speed * factors)
        self.teacher.speed.fill_(1.0)
        self.potentials.scale_(factors)
        for bank in (self.potentials, self.teacher.potentials):
            _arrange(bank, order, names)
        facts["flows"] = list(names)
        facts["active"] = often[list(order)].tolist()
        facts["speed"] = mean[list(order)].tolist()
        logger.info("what the fields have learned: %s", facts)
        return {"matching": facts}


def _arrange(bank: RidgeField, order: Sequence[int], names: Sequence[str]) -> None:
    """Put fields in another order, and name them."""
    for parameter in bank.parameters():
        parameter.copy_(parameter[torch.as_tensor(list(order), device=parameter.device)])
    bank.names = tuple(names)


def _truth(batch: SequenceBatch, count: int) -> Float[Tensor, "b n k"] | None:
    """Return what truly happens in each step, None if it is not known of all sequences."""
    if batch.activity is not None:
        return batch.activity
    if batch.labels is None or bool((batch.labels < 0).any()):
        return None
    one_hot = F.one_hot(batch.labels, count).to(batch.frames)
    return repeat(one_hot, "b k -> b n k", n=batch.horizon)
