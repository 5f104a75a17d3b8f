"""Flows that a weakly supervised model infers from the frames of a sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from flowfactor.checks import brief, check_integer, check_method, check_type
from flowfactor.data import SequenceDataset
from flowfactor.matching import match_flows
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import (
    ErrorSummaries,
    equivariance_error,
    error_table,
    limit_batch,
)
from flowfactor.models import SequenceModel
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Table

# Sequences at a time.
_BATCH = 250


@torch.no_grad()
def infer_labels(
    model: SequenceModel, data: SequenceDataset, *, batch_size: int = _BATCH
) -> SequenceDataset:
    """Return recordings with the flow that a model chooses for those without a label.

    Known labels stay as they are: the model's first flows must be the transformations of the data,
    unless no sequence has its label.

    Args:
        model: in evaluation mode; one that needs labels changes nothing.
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
        >>> data = Recordings(torch.rand(6, 9, 3, 28, 28), names=["turn", "grow"])
        >>> data.labels.tolist()
        [-1, -1, -1, -1, -1, -1]
        >>> inferred = infer_labels(model, data)
        >>> inferred.names == model.names, int(inferred.labels.min()) >= 0
        (True, True)
    """
    check_type("data", data, SequenceDataset)
    check_integer("batch_size", batch_size)
    supervised = getattr(model, "supervised", False)
    if supervised or data.labels is None or not bool((data.labels < 0).any()):
        return data
    check_method("model", model, "choose")
    labels = data.labels.clone()
    if bool((labels >= 0).any()) and data.names != model.names[: len(data.names)]:
        raise ValueError(
            f"data: its transformations are {brief(data.names)}, the flows of the model "
            f"{brief(model.names)}; the first of these must be the same, in the same order"
        )
    for unknown in (labels < 0).nonzero()[:, 0].split(limit_batch(data, batch_size)):
        labels[unknown] = model.choose(data.sample(unknown).to(model.device)).to(labels.device)
    return data.relabel(model.names, labels)


@dataclasses.dataclass(frozen=True)
class InferredErrors(ErrorSummaries):
    """Errors of inferred flows, and how they match the transformations.

    Attributes:
        counts: sequences by transformation and flow; by flow alone where there are no labels.
        accuracy: the part of the sequences whose flow has the name of their transformation, which
            it got from validation sequences; None where there are no labels.
        purity: the part of the sequences that have the most common transformation of their flow.
    """

    counts: list[list[int]]
    accuracy: float | None = None
    purity: float | None = None


@METRICS.register("inferred")
class Inferred(Metric):
    """The equivariance error of the flow that the model infers for each sequence."""

    Result = InferredErrors
    default = True
    order = 30
    description = "which flow is which transformation"
    needs = "a weakly supervised model"
    columns = (
        Column("inferred_error", "mean E, k inferred", "lower", value=lambda r: r.mean_error),
        Column("accuracy", "matching accuracy", "higher", ".3f", lambda r: r.accuracy),
    )

    def applies(self, context: MetricContext) -> bool:
        """Return whether the model was trained without labels."""
        return not context.model.supervised

    def measure(self, context: MetricContext) -> InferredErrors:
        """Return the errors and the matching."""
        model, data, indices = context.model, context.data, context.indices
        summaries = ErrorSummaries.of(
            equivariance_error(model, data, indices, frames=context.frames, flows=model.choose)
        )
        errors = (summaries.mean_error, summaries.errors)
        recorded = context.recorded
        if recorded.labels is not None:
            indices = indices[recorded.labels[indices].cpu() >= 0]
        if not len(indices):
            assert data.labels is not None
            counts = torch.bincount(data.labels[context.indices], minlength=len(model.names))
            return InferredErrors(*errors, [counts.tolist()])
        size = limit_batch(recorded, _BATCH)
        batches = (recorded.sample(part) for part in indices.split(size))
        matching = match_flows(model, batches, len(recorded.names))
        return InferredErrors(
            *errors,
            matching.counts.tolist(),
            int(matching.counts.diagonal().sum()) / len(indices),
            matching.purity,
        )

    @classmethod
    def tables(cls, result: InferredErrors, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the errors, with the accuracy in the title."""
        title = "Flows inferred from the frames; no sequence has a label to compare with"
        if result.accuracy is not None:
            title = (
                f"Transformations inferred from the frames: {result.accuracy:.2%} as named on "
                f"validation sequences"
            )
        return {"inferred": error_table(result, title)}
