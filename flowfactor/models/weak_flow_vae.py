"""The weakly supervised flow model: it infers which transformation a sequence undergoes."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.data import SequenceBatch
from flowfactor.errors import ConfigError
from flowfactor.inference import Inference, TransformationPosterior
from flowfactor.matching import match_flows
from flowfactor.models.autoencoder import flatten_frames, kl_to_standard_normal
from flowfactor.models.flow_vae import FlowVAE, FlowVAEOptions
from flowfactor.models.objective import properties_of
from flowfactor.models.unnamed_flows import UnnamedFlows, flow_names
from flowfactor.options import PositiveInt, options
from flowfactor.registries import MODELS

logger = logging.getLogger(__name__)


@options
class WeakFlowVAEOptions(FlowVAEOptions):
    """Options of :class:`WeakFlowVAE`."""

    flows: PositiveInt | None = None
    """Number K of flows; null: one for each transformation of the data."""
    inference: Inference = Inference()
    """How the model infers which flow a sequence follows."""

    def check(self, config: Any) -> None:
        """Accept hidden labels.

        Raises:
            ConfigError: the network to be trusted has never been trained.
        """
        if self.inference.estimator == "fixed" and config.training.initial_weights is None:
            raise ConfigError(
                "model.inference.estimator: fixed trusts a trained inference network; name the "
                "run that has it by training.initial_weights"
            )


@MODELS.register("weak_flow_vae")
class WeakFlowVAE(UnnamedFlows, FlowVAE):
    r"""A :class:`FlowVAE` that finds out by itself which of its K flows a sequence follows.

    The transformation is a latent of each *sequence*, ``k ~ uniform``, inferred from its frames by
    ``q(k | x_0..x_T)``. With ``cost_k`` the negative evidence bound of a sequence under flow k,
    the bound is

    .. math::

        -\log p(x_0, \ldots, x_T) \le \sum_k q(k)\, \mathrm{cost}_k
          + \mathrm{KL}(q(k \mid x_0, \ldots, x_T) \parallel \mathrm{uniform})

    *Enumeration* (variational EM): the minimising q are the responsibilities
    ``softmax(-cost_k / temperature)``; they weigh the costs of all K flows, and the network is
    taught to predict them. *Gumbel*: one flow is drawn from the network's q by the
    straight-through Gumbel-softmax, through which the network learns; the paper's way. *Fixed*: the
    network of another training chooses, and only the rest learns.

    Training begins with the autoencoder alone, on single frames, then lets the temperature fall
    from the mean difference between the flows' costs, so that none of them wins before it has had a
    chance to learn something; see :class:`flowfactor.inference.Inference`.

    A sequence that has its label follows that flow, and it teaches the network: with some labels
    the training is semi-supervised. Which flow has learned what is known when training has ended:
    :meth:`finish` puts the flows in the order of the transformations and names them.

    Args:
        options: :class:`WeakFlowVAEOptions`.
        names: of the transformations of the data.
        image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.

    Attributes:
        names: of the flows; ``flow 1``, ``flow 2``, ... before :meth:`finish`.
        transformations: of the data, as far as their names are known.

    Raises:
        ValueError: fewer flows than transformations, or no number of either.

    Source: Song, Keller, Sebe, Welling, arXiv:2309.13167, section 4, for the model and the Gumbel
    estimator; Neal and Hinton 1998 for EM with any q.
    """

    Options: ClassVar[type[Any]] = WeakFlowVAEOptions
    supervised: ClassVar[bool] = False

    def __init__(
        self,
        options: WeakFlowVAEOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
    ) -> None:
        flows = options.flows or len(names)
        if not max(len(names), 1) <= flows:
            raise ValueError(f"flows must be at least {max(len(names), 1)}; it is {flows}")
        super().__init__(options, flow_names(flows), image_shape, horizon)
        self.transformations = tuple(names)
        self.inference = options.inference
        self.inference_network = TransformationPosterior(self.image_shape, flows, self.horizon)
        self.inference_network.requires_grad_(self.inference.estimator != "fixed")
        self.step = 0
        self.first_temperature: Tensor
        self.register_buffer("first_temperature", torch.zeros(()))
        self.restart_seed: Tensor
        if self.inference.restart:
            self.register_buffer("restart_seed", torch.randint(2**31, ()))

    def inherit(
        self, weights: Mapping[str, Tensor], names: tuple[str, ...] | None
    ) -> dict[str, Tensor]:
        """Return the weights that fit, without the state of the other model's schedule.

        Raises:
            ConfigError: the inference network cannot be taken, and is not to learn.
        """
        taken = super().inherit(weights, names)
        needed = {f"inference_network.{name}" for name in self.inference_network.state_dict()}
        if self.inference.estimator == "fixed" and not needed <= taken.keys():
            raise ConfigError(
                f"it has no inference network of {len(self.names)} flows of images "
                f"{self.image_shape}, which model.inference.estimator = fixed needs"
            )
        return {k: v for k, v in taken.items() if k not in ("first_temperature", "restart_seed")}

    # ---- which flow a sequence follows

    def infer(self, sequences: SequenceBatch) -> Float[Tensor, "b k"]:
        """Return ``log q(k | x_0..x_T)`` for each sequence, from the frames that it has."""
        logits: Tensor = self.inference_network(sequences.frames, sequences.times)
        return logits.log_softmax(-1)

    def choose(self, sequences: SequenceBatch) -> Int[Tensor, "b"]:
        """Return the most likely flow of each sequence, whatever its label."""
        return self.infer(sequences).argmax(-1)

    @torch.no_grad()
    def finish(
        self, training: Iterable[SequenceBatch], validation: Iterable[SequenceBatch]
    ) -> dict[str, Any]:
        """Find out on validation sequences what the flows have learned; order and name them by it.

        Where no sequence has a label, the flows are ordered by how many sequences follow them.
        Flows that came with their names from another model keep them, unless they were compared
        again and there are labels.

        Returns:
            ``matching``: the counts of sequences by transformation and flow, and the flows' names;
            with labels also the accuracy and purity of a :class:`~flowfactor.matching.Matching`.
        """
        batches, count = list(validation), len(self.transformations)
        labelled = [part for part in map(_labelled, batches) if len(part)]
        named = self.names != flow_names(len(self.names)) and (
            self.names[:count] == self.transformations
        )
        if not labelled:
            flows = torch.cat([self.choose(batch.to(self.device)).cpu() for batch in batches])
            counts = torch.bincount(flows, minlength=len(self.names))
            if not named:
                order = counts.argsort(descending=True, stable=True)
                self.arrange(order.tolist(), flow_names(len(order)))
                counts = counts[order]
            logger.info("validation sequences of each flow: %s", counts.tolist())
            return {"matching": {"counts": [counts.tolist()], "flows": list(self.names)}}
        matching = match_flows(self, labelled, count)
        names = self.matched_names()
        if named and self.inference.estimator == "fixed":
            matching = dataclasses.replace(matching, flow_of=tuple(range(count)))
            names = self.names
        self.arrange(matching.order, names)
        logger.info("matching accuracy on validation sequences: %.4f", matching.accuracy)
        return {
            "matching": {
                "accuracy": matching.accuracy,
                "purity": matching.purity,
                "counts": matching.counts[:, list(matching.order)].tolist(),
                "flows": list(names),
            }
        }

    def arrange(self, order: Sequence[int], names: Sequence[str]) -> None:
        """Put the flows in another order, and name them by what they have learned.

        Args:
            order: the present index of each flow, in the order to be.
            names: their new names.

        Raises:
            ValueError: ``order`` is no permutation of the flows, or names are missing or repeat.
        """
        if sorted(order) != list(range(len(self.potentials))):
            raise ValueError(
                f"order must be a permutation of 0..{len(self.potentials) - 1}; it is {list(order)}"
            )
        if len(set(names)) != len(order):
            raise ValueError(f"names must be {len(order)} different ones; they are {list(names)}")
        rows = torch.as_tensor(list(order))
        with torch.no_grad():
            for parameter in (
                *self.potentials.parameters(),
                self.prior.raw_diffusion,
                self.inference_network.logits.weight,
                self.inference_network.logits.bias,
            ):
                parameter.copy_(parameter[rows.to(parameter.device)])
        self.potentials.names = tuple(names)

    # ---- training

    @property
    def schedule_steps(self) -> int:
        """Steps of warm-up and annealing."""
        return self.inference.schedule_steps

    def on_step(self, step: int) -> None:
        """Let the schedule of warm-up and annealing know the training step."""
        self.step = step
        if self.inference.restart and step == self.schedule_steps:
            self._restart()

    @property
    def first_step(self) -> int:
        """Step in which the present weights began, by ``inference.restart`` not the first one."""
        began = self.inference.restart and self.step >= self.schedule_steps
        return self.schedule_steps if began else 0

    @torch.no_grad()
    def _restart(self) -> None:
        """Begin all weights anew, but those of the inference network: always with the same ones."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(int(self.restart_seed))
            fresh = type(self).from_options(
                self.options, self.transformations, self.image_shape, self.horizon
            )
        for name, parameter in self.named_parameters():
            if not name.startswith("inference_network."):
                parameter.copy_(fresh.get_parameter(name))

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        In training mode :meth:`on_step` says where the schedule stands. In evaluation mode every
        sequence is explained by the flow that the network finds most likely.
        """
        options, step = self.inference, self.step
        if not self.training or options.estimator == "fixed":
            return self._explain(sequences)
        if step < options.warmup:
            return self._autoencode(sequences)
        progress = min(1.0, (step - options.warmup) / max(options.anneal, 1))
        if options.estimator == "gumbel":
            return self._draw(sequences, options.last_temperature**progress)
        if progress < 1 or step % options.refresh == 0:
            return self._enumerate(sequences, progress)
        # The inference network does not learn in this step.
        return self._explain(sequences) | {"inference": _zero(self.inference_network)}

    def _autoencode(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Take every frame for itself, all alike: reconstruction and KL of T + 1 images."""
        posterior = self.encode(flatten_frames(sequences))
        log_likelihood = self.log_likelihood(posterior.rsample(), sequences)
        count = sequences.horizon + 1
        return {
            "reconstruction": -count * log_likelihood.mean(),
            "kl": count * self.objective["beta"] * kl_to_standard_normal(posterior).mean(),
            "inference": _zero(self.inference_network, self.potentials, self.prior),
        }

    def _explain(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Explain each sequence by its label, or by the likeliest flow where there is none."""
        with torch.no_grad():
            chosen = self.choose(sequences)
        labels = _labels(sequences)
        context = self.context(sequences, torch.where(labels >= 0, labels, chosen))
        return {name: cost.mean() for name, cost in self.costs(context).items()}

    def _enumerate(self, sequences: SequenceBatch, progress: float) -> dict[str, Float[Tensor, ""]]:
        """Take one step of variational EM over all flows; no flow runs backwards in it."""
        K, B = len(self.potentials), len(sequences)
        start = self.context(sequences, _labels(sequences))
        z0, entropy = start.z0, start.entropy
        flows = repeat(torch.arange(K, device=z0.device), "k -> (k b)", b=B)
        every = dataclasses.replace(
            sequences,
            frames=repeat(sequences.frames, "b ... -> (k b) ...", k=K),
            times=repeat(sequences.times, "b f -> (k b) f", k=K),
            labels=flows,
            first_weight=0.0,  # the encoded frame is explained alike by all flows
        )
        context = self.context(every, flows)
        context.entropy, context.z0 = entropy.repeat(K), z0.repeat(K, 1)
        costs = {
            name: rearrange(cost, "(k b) -> b k", k=K)
            for name, cost in self.costs(context, ("each",)).items()
        }
        with torch.no_grad():
            evidence = [costs["reconstruction"]]
            for name in self.objective.active:
                properties = properties_of(name)
                if properties.evidence:
                    evidence.append(costs[properties.label or name])
            total = torch.stack(evidence).sum(0)
            gap = total - total.min(dim=1, keepdim=True).values
            responsibilities = torch.softmax(-gap / self._temperature(gap, progress), dim=1)
            known, labels = self._one_hot(sequences, responsibilities)
            responsibilities = torch.where(known, labels, responsibilities)
        terms = {name: (responsibilities * cost).sum(1).mean() for name, cost in costs.items()}
        if sequences.first_weight:
            first = self.observation.log_prob(self.decode_logits(z0), sequences.frames[:, 0])
            cost = -sequences.first_weight * first.mean()
            terms["reconstruction"] = terms["reconstruction"] + cost
        terms |= {name: cost.mean() for name, cost in self.costs(start, ("once",)).items()}
        terms["inference"] = -(responsibilities * self.infer(sequences)).sum(1).mean()
        return terms

    def _temperature(self, gap: Float[Tensor, "b k"], progress: float) -> Float[Tensor, ""]:
        """Return the temperature: at first the mean difference of the costs, then falling."""
        lowest = self.inference.last_temperature
        if float(self.first_temperature) == 0:
            self.first_temperature.copy_(gap.mean().clamp(min=lowest))
        ratio = lowest / self.first_temperature
        return self.first_temperature * ratio**progress

    def _draw(self, sequences: SequenceBatch, temperature: float) -> dict[str, Float[Tensor, ""]]:
        """Draw one flow for each sequence by the straight-through Gumbel-softmax."""
        log_q = self.infer(sequences)
        drawn = F.gumbel_softmax(log_q, temperature, hard=True)
        known, labels = self._one_hot(sequences, drawn)
        context = self.context(sequences, torch.where(known, labels, drawn))
        terms = {name: cost.mean() for name, cost in self.costs(context).items()}
        # KL(q || uniform) where the flow is unknown; the label's surprise where it is not.
        uniform = (log_q.exp() * log_q).sum(1) + math.log(log_q.shape[1])
        surprise = -(labels * log_q).sum(1)
        inference = torch.where(known.squeeze(1), surprise, self.inference.weight * uniform)
        return terms | {"inference": inference.mean()}

    def _one_hot(
        self, sequences: SequenceBatch, like: Float[Tensor, "b k"]
    ) -> tuple[Tensor, Tensor]:
        """Return whether each sequence has a label, ``(B, 1)``, and the labels, ``(B, K)``."""
        labels = _labels(sequences)
        one_hot = F.one_hot(labels.clamp(min=0), like.shape[1]).to(like)
        return (labels >= 0).unsqueeze(1), one_hot


def _labels(sequences: SequenceBatch) -> Int[Tensor, "b"]:
    """Return the labels of sequences, -1 where there is none."""
    if sequences.labels is not None:
        return sequences.labels
    return torch.full((len(sequences),), -1, device=sequences.frames.device)


def _labelled(sequences: SequenceBatch) -> SequenceBatch:
    """Return the sequences that have a label."""
    labels = _labels(sequences)
    rows = labels >= 0
    return dataclasses.replace(
        sequences,
        frames=sequences.frames[rows],
        times=sequences.times[rows],
        labels=labels[rows],
    )


def _zero(*modules: nn.Module) -> Float[Tensor, ""]:
    """Return a 0 that reaches all parameters: distributed training waits for their gradients."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return 0.0 * torch.stack([p.reshape(-1)[0] for p in parameters]).sum()
