"""Which learned flow is which transformation? For models that were not told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from flowfactor.data import Recordings, SequenceBatch
from flowfactor.models import WeakFlowVAE


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """An assignment of flows to transformations, and how well it fits.

    Attributes:
        counts: ``(transformations, flows)``: sequences of a transformation whose most likely flow
            is this one.
        flow_of: for each transformation the index of its flow, all different.
    """

    counts: Int[Tensor, "n k"]
    flow_of: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """The part of the sequences whose flow is the one assigned to their transformation."""
        right = sum(int(self.counts[k, flow]) for k, flow in enumerate(self.flow_of))
        return right / int(self.counts.sum())

    @property
    def purity(self) -> float:
        """The part of the sequences that have the transformation commonest in their flow.

        Unlike the accuracy it does not suffer when several flows share one transformation.
        """
        return int(self.counts.max(dim=0).values.sum()) / int(self.counts.sum())

    @property
    def order(self) -> tuple[int, ...]:
        """All flows, those assigned first, in the order of the transformations."""
        spare = [k for k in range(self.counts.shape[1]) if k not in self.flow_of]
        return (*self.flow_of, *spare)


@torch.no_grad()
def match_flows(
    model: WeakFlowVAE, batches: Iterable[SequenceBatch], transformations: int
) -> Matching:
    """Assign the flows of a model to the transformations that sequences truly undergo.

    Each sequence counts for its transformation and the flow that the model finds most likely. The
    assignment maximises the number of sequences on it (Hungarian method).

    Args:
        model: in evaluation mode, with at least as many flows as there are transformations.
        batches: labelled sequences, not trained on.
        transformations: how many there are.

    Raises:
        ValueError: too few flows, or a sequence without its label.

    Source: Kuhn, "The Hungarian method for the assignment problem", 1955, by SciPy's
    ``linear_sum_assignment``.

    Example:
        >>> import torch
        >>> from flowfactor.data import Recordings, SequenceBatch
        >>> from flowfactor.models import WeakFlowVAE
        >>> model = WeakFlowVAE.build(("a", "b"), latent_dim=4, width=8).eval()
        >>> films = SequenceBatch.full(torch.rand(6, 9, 3, 28, 28), torch.tensor([0, 1] * 3))
        >>> matching = match_flows(model, [films], 2)
        >>> sorted(matching.flow_of), int(matching.counts.sum())
        ([0, 1], 6)
    """
    from scipy.optimize import linear_sum_assignment

    flows = len(model.potentials)
    if transformations > flows:
        raise ValueError(
            f"{transformations} transformations cannot each have a flow of their own: the model "
            f"has {flows}"
        )
    counts = torch.zeros(transformations, flows, dtype=torch.long)
    device = next(model.parameters()).device
    for batch in batches:
        if int(batch.labels.min()) < 0 or int(batch.labels.max()) >= transformations:
            raise ValueError("the sequences to match by must all have their label")
        chosen = model.infer(batch.to(device)).argmax(-1).cpu()
        places = batch.labels.cpu() * flows + chosen
        counts += torch.bincount(places, minlength=transformations * flows).view_as(counts)
    _, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return Matching(counts, tuple(int(k) for k in np.asarray(columns)))


@torch.no_grad()
def infer_labels(model: WeakFlowVAE, data: Recordings, *, batch_size: int = 250) -> Recordings:
    """Recordings that undergo, where nobody knows what, the flow that a model finds most likely.

    What is known stays as it is: the model's first flows must be the transformations of the data,
    unless no sequence has its label.

    Args:
        model: in evaluation mode.
        data: some or all of its labels may be unknown.
        batch_size: sequences at a time; it does not change the result.

    Returns:
        The same sequences; the names of their transformations are those of the model's flows,
        unless nothing was unknown.

    Raises:
        ValueError: known transformations that are not the model's first flows.

    Example:
        >>> import torch
        >>> from flowfactor.data import Recordings
        >>> from flowfactor.models import WeakFlowVAE
        >>> model = WeakFlowVAE.build(("a", "b"), latent_dim=4, width=8).eval()
        >>> films = Recordings(torch.rand(6, 9, 3, 28, 28), names=["turn", "grow"])
        >>> films.labels.tolist()
        [-1, -1, -1, -1, -1, -1]
        >>> inferred = infer_labels(model, films)
        >>> inferred.names, int(inferred.labels.min()) >= 0
        (('a', 'b'), True)
    """
    labels = data.labels.clone()
    if not bool((labels < 0).any()):
        return data
    if bool((labels >= 0).any()) and data.names != model.names[: len(data.names)]:
        raise ValueError(
            f"the data undergoes {', '.join(data.names)}, but the model's flows are "
            f"{', '.join(model.names)}; the first of them must be the same, in the same order"
        )
    device = next(model.parameters()).device
    for unknown in (labels < 0).nonzero()[:, 0].split(batch_size):
        found = model.infer(data.sample(unknown).to(device)).argmax(-1)
        labels[unknown] = found.to(labels.device)
    return data.relabelled(model.names, labels)
