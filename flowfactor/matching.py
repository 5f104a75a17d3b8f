"""Match learned flows to transformations, for models without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.checks import check_integer, check_method, check_type
from flowfactor.data import SequenceBatch

if TYPE_CHECKING:
    from flowfactor.models.base import SequenceModel


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
        correct = sum(int(self.counts[k, flow]) for k, flow in enumerate(self.flow_of))
        return correct / int(self.counts.sum())

    @property
    def purity(self) -> float:
        """The part of the sequences that have the most common transformation of their flow.

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
    model: SequenceModel, batches: Iterable[SequenceBatch], transformations: int
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
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import WeakFlowVAE
        >>> model = WeakFlowVAE.build(("a", "b"), latent_dim=4, width=8).eval()
        >>> batch = SequenceBatch.full(torch.rand(6, 9, 3, 28, 28), torch.tensor([0, 1] * 3))
        >>> matching = match_flows(model, [batch], 2)
        >>> sorted(matching.flow_of), int(matching.counts.sum())
        ([0, 1], 6)
    """
    from scipy.optimize import linear_sum_assignment

    check_method("model", model, "choose")
    flows = len(model.names)
    check_integer("transformations", transformations, 1, flows)
    check_type("batches", batches, Iterable)
    counts = torch.zeros(transformations, flows, dtype=torch.long)
    for batch in batches:
        check_type("each of batches", batch, SequenceBatch)
        labels = None if batch.labels is None else batch.labels.cpu()
        if labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < transformations:
            raise ValueError("batches: all sequences must have a label")
        pairs = labels * flows + model.choose(batch.to(model.device)).cpu()
        counts += torch.bincount(pairs, minlength=transformations * flows).view_as(counts)
    if not int(counts.sum()):
        raise ValueError("batches must hold at least one sequence; there is none")
    _, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return Matching(counts, tuple(columns.tolist()))


@dataclasses.dataclass(frozen=True, eq=False)
class ActivityMatching:
    """An assignment of fields to transformations by when they act, and how well it fits.

    Attributes:
        field_of: for each transformation the index of its field, all different.
        signs: for each field 1, or -1 if it runs against its transformation, ``(K,)``; 1 of spare
            ones.
        accuracy: the part of the steps in which exactly the fields act that should.
    """

    field_of: tuple[int, ...]
    signs: Float[Tensor, "k"]
    accuracy: float

    @property
    def order(self) -> tuple[int, ...]:
        """All fields, those assigned first, in the order of the transformations."""
        spare = [k for k in range(len(self.signs)) if k not in self.field_of]
        return (*self.field_of, *spare)


def match_activity(
    coefficients: Float[Tensor, "b n k"],
    active: Float[Tensor, "b n k"],
    truth: Float[Tensor, "b n m"],
) -> ActivityMatching:
    """Assign fields to the transformations that truly act, and find their directions.

    The assignment maximises the number of steps in which a field and its transformation both act
    (Hungarian method); the direction is that of the sum of products of inferred and true speeds.

    Args:
        coefficients: inferred signed speeds of K fields.
        active: probability that they act.
        truth: true signed speeds of at most K transformations, 0 where they rest.

    Raises:
        ValueError: there are fewer fields than transformations.

    Example:
        >>> import torch
        >>> truth = torch.tensor([[[1.0, 0.0], [0.0, -0.5]]])
        >>> inferred = torch.tensor([[[0.0, 0.9, 0.0], [0.6, 0.0, 0.0]]])
        >>> matching = match_activity(inferred, (inferred != 0).float(), truth)
        >>> matching.field_of, matching.signs.tolist(), matching.accuracy
        ((1, 0), [-1.0, 1.0, 1.0], 1.0)
    """
    from scipy.optimize import linear_sum_assignment

    K, M = coefficients.shape[-1], truth.shape[-1]
    if K < M:
        raise ValueError(f"{K} fields cannot be matched to {M} transformations; there are too few")
    # On the processor, for there are devices without float64.
    acts, should = (active > 0.5).cpu().double(), (truth != 0).cpu().double()
    together = torch.einsum("bnm,bnk->mk", should, acts)
    _, columns = linear_sum_assignment(together.numpy(), maximize=True)
    field_of = tuple(columns.tolist())
    products = torch.einsum("bnm,bnk->mk", truth.cpu().double(), coefficients.cpu().double())
    signs = torch.ones(K, dtype=coefficients.dtype, device=coefficients.device)
    expected = torch.zeros_like(acts)
    for m, k in enumerate(field_of):
        signs[k] = -1 if products[m, k] < 0 else 1
        expected[..., k] = should[..., m]
    return ActivityMatching(field_of, signs, float((acts == expected).all(-1).double().mean()))
