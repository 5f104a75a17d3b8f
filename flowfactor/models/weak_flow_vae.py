"""The weakly supervised flow model: nobody says which transformation a sequence undergoes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.data import SequenceBatch
from flowfactor.inference import Inference, TransformationPosterior
from flowfactor.models.autoencoder import kl_to_standard_normal
from flowfactor.models.flow_vae import FlowVAE


class WeakFlowVAE(FlowVAE):
    r"""A :class:`FlowVAE` that finds out by itself which of its K flows a sequence follows.

    The transformation is a latent of each *sequence*, ``k ~ uniform``, inferred from its frames by
    ``q(k | x_0..x_T)``. With ``cost_k`` the negative evidence bound of a sequence under flow k,
    the bound is

    .. code-block:: text

        - log p(x_0..x_T) <= sum_k q(k) cost_k + KL(q(k | x_0..x_T) || uniform)

    *Enumeration* (variational EM): the minimising q are the responsibilities
    ``softmax(-cost_k / temperature)``; they weigh the costs of all K flows, and the network is
    taught to predict them. *Gumbel*: one flow is drawn from the network's q by the
    straight-through Gumbel-softmax, through which the network learns; the paper's way.

    Training begins with the autoencoder alone, on single frames, then lets the temperature fall
    from the mean difference between the flows' costs, so that none of them wins before it has had a
    chance to learn something; see :class:`flowfactor.inference.Inference`.

    A sequence whose ``labels`` is not -1 is labelled: its flow is that one, and it teaches the
    network. With some labels the training is semi-supervised.

    Which flow has learned what is only known afterwards, see
    :func:`flowfactor.metrics.match_flows` and :meth:`arrange`.

    Args:
        arguments: those of :class:`FlowVAE`.
        inference: how the transformations are inferred.

    Source: Song, Keller, Sebe, Welling, arXiv:2309.13167, section 4, for the model and the Gumbel
    estimator; Neal and Hinton 1998 for EM with any q.
    """

    def __init__(self, *arguments: Any, inference: Inference = Inference(), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.inference = inference
        self.inference_network = TransformationPosterior(
            self.image_shape, len(self.potentials), self.horizon
        )
        self.trained_steps: Tensor
        self.register_buffer("trained_steps", torch.zeros((), dtype=torch.long))
        self.first_temperature: Tensor
        self.register_buffer("first_temperature", torch.zeros(()))

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        image_shape: Sequence[int] = (3, 28, 28),
        *,
        inference: dict[str, Any] | None = None,
        **options: Any,
    ) -> WeakFlowVAE:
        """Make a model from plain data.

        Args:
            names: what to call the flows, until it is known what they do.
            image_shape: ``(C, H, W)``.
            inference: options of :class:`~flowfactor.inference.Inference`.
            options: those of :meth:`FlowVAE.build`.

        Raises:
            ValueError: a size, name or option that is not allowed.
        """
        model = super().build(tuple(names), tuple(image_shape), **options)  # type: ignore[arg-type]
        assert isinstance(model, WeakFlowVAE)
        model.inference = Inference(**(inference or {}))
        assert model._spec is not None
        model._spec["inference"] = dataclasses.asdict(model.inference)
        return model

    def infer(self, sequences: SequenceBatch) -> Float[Tensor, "b k"]:
        """Return ``log q(k | x_0..x_T)`` for each sequence, from the frames that it has."""
        logits: Tensor = self.inference_network(sequences.frames, sequences.times)
        return logits.log_softmax(-1)

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
        stacked = [*self.potentials.parameters(), self.prior.raw_diffusion]
        with torch.no_grad():
            for parameter in (
                *stacked,
                self.inference_network.logits.weight,
                self.inference_network.logits.bias,
            ):
                parameter.copy_(parameter[rows.to(parameter.device)])
        self.potentials.names = tuple(names)
        if self._spec is not None:
            self._spec["names"] = list(names)

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        In training mode a call is a step of the schedule. In evaluation mode every sequence is
        explained by the flow that the network finds most likely.
        """
        options = self.inference
        if not self.training:
            return self._explained(sequences, self.infer(sequences).argmax(-1), {})
        step = int(self.trained_steps)
        self.trained_steps += 1
        if step < options.warmup:
            return self._autoencoder(sequences)
        progress = min(1.0, (step - options.warmup) / max(options.anneal, 1))
        if options.estimator == "gumbel":
            temperature = 1.0 * options.last_temperature**progress
            return self._drawn(sequences, temperature)
        if progress < 1 or step % options.refresh == 0:
            return self._enumerated(sequences, progress)
        with torch.no_grad():
            k = self.infer(sequences).argmax(-1)
        return self._explained(sequences, k, self._untaught())

    def _autoencoder(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Every frame for itself: reconstruction and KL, in the proportion of images."""
        frames = sequences.frames
        posterior = self.encode(frames.flatten(0, 1))
        logits = self.decode_logits(posterior.rsample()).unflatten(0, frames.shape[:2])
        weights = sequences.weights
        log_likelihood = (self.observation.log_prob(logits, frames) * weights).sum(1)
        kl = kl_to_standard_normal(posterior).unflatten(0, frames.shape[:2])
        return {
            "reconstruction": -log_likelihood.mean(),
            "kl": self.objective.beta * (kl * weights).sum(1).mean(),
            "inference": self._zero(self.inference_network, self.potentials, self.prior),
        }

    def _explained(
        self, sequences: SequenceBatch, k: Int[Tensor, "b"], more: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """The supervised objective with the transformations k, or the labels where there are."""
        k = torch.where(sequences.labels >= 0, sequences.labels, k)
        return super().loss(dataclasses.replace(sequences, labels=k)) | more

    def _enumerated(
        self, sequences: SequenceBatch, progress: float
    ) -> dict[str, Float[Tensor, ""]]:
        """One step of variational EM over all flows; no flow runs backwards in it."""
        K, B = len(self.potentials), len(sequences)
        later = dataclasses.replace(
            sequences, frames=sequences.frames[:, 1:], times=sequences.times[:, 1:]
        )
        posterior = self.encode(sequences.frames[:, 0])
        z0, entropy = posterior.rsample(), posterior.entropy()
        at_start = self.observation.log_prob(self.decode_logits(z0), sequences.frames[:, 0])
        each = self.costs(
            SequenceBatch(
                later.frames.repeat(K, 1, 1, 1, 1),
                later.times.repeat(K, 1),
                later.labels.repeat(K),
                later.horizon,
            ),
            torch.arange(K, device=z0.device).repeat_interleave(B),
            entropy.repeat(K),
            z0.repeat(K, 1),
        )
        costs = {name: cost.view(K, B).mT for name, cost in each.items()}
        with torch.no_grad():
            evidence = ("reconstruction", "path_kl", "consistency")
            total = torch.stack([costs[name] for name in evidence if name in costs]).sum(0)
            gap = total - total.min(dim=1, keepdim=True).values
            responsibilities = torch.softmax(-gap / self._temperature(gap, progress), dim=1)
            labels = F.one_hot(sequences.labels.clamp(min=0), K).to(responsibilities)
            known = (sequences.labels >= 0).unsqueeze(1)
            responsibilities = torch.where(known, labels, responsibilities)
        terms = {name: (responsibilities * cost).sum(1).mean() for name, cost in costs.items()}
        terms["reconstruction"] = terms["reconstruction"] - at_start.mean()
        terms["kl"] = self.objective.beta * kl_to_standard_normal(posterior).mean()
        terms["inference"] = -(responsibilities * self.infer(sequences)).sum(1).mean()
        return terms

    def _temperature(self, gap: Float[Tensor, "b k"], progress: float) -> Float[Tensor, ""]:
        """Between the mean difference of the costs when annealing began, and the last one."""
        lowest = self.inference.last_temperature
        if float(self.first_temperature) == 0:
            self.first_temperature.copy_(gap.mean().clamp(min=lowest))
        ratio = lowest / self.first_temperature
        return self.first_temperature * ratio**progress

    def _drawn(self, sequences: SequenceBatch, temperature: float) -> dict[str, Float[Tensor, ""]]:
        """One flow for each sequence, drawn by the straight-through Gumbel-softmax."""
        log_q = self.infer(sequences)
        drawn = F.gumbel_softmax(log_q, temperature, hard=True)
        known = sequences.labels >= 0
        labels = F.one_hot(sequences.labels.clamp(min=0), log_q.shape[1]).to(drawn)
        weights = torch.where(known.unsqueeze(1), labels, drawn)
        posterior = self.encode(sequences.frames[:, 0])
        later = self.codes(sequences)
        costs = self.costs(sequences, weights, posterior.entropy(), posterior.rsample(), later)
        costs |= self.reversal(sequences, weights, later)
        terms = {name: cost.mean() for name, cost in costs.items()}
        terms["kl"] = self.objective.beta * kl_to_standard_normal(posterior).mean()
        # KL(q || uniform) where the flow is unknown; the label's surprise where it is not.
        uniform = (log_q.exp() * log_q).sum(1) + math.log(log_q.shape[1])
        told = -(labels * log_q).sum(1)
        terms["inference"] = torch.where(known, told, self.inference.weight * uniform).mean()
        return terms

    def _untaught(self) -> dict[str, Tensor]:
        """The term of a step in which the inference network does not learn."""
        return {"inference": self._zero(self.inference_network)}

    @staticmethod
    def _zero(*modules: nn.Module) -> Tensor:
        """A 0 that reaches all parameters: distributed training waits for each one's gradient."""
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        return 0.0 * torch.stack([p.reshape(-1)[0] for p in parameters]).sum()
