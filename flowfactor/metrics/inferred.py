"""Flows that a weakly supervised model infers from the frames of a sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from flowfactor.checks import brief, check_integer, check_method, check_type
from flowfactor.data import SequenceBatch, SequenceDataset
from flowfactor.matching import match_flows
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import (
    ErrorSummaries,
    batches,
    equivariance_error,
    error_table,
    limit_batch,
    mean_errors,
    selected_indices,
)
from flowfactor.models import SequenceModel
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table

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


@torch.no_grad()
def assignments(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    batch_size: int = _BATCH,
) -> Table:
    """Return which sequence gets which flow, and how surely.

    Args:
        model: a weakly supervised one, in evaluation mode.
        data: its sequences, with the labels that they came with. Samples of which the
            transformation can be chosen undergo each of them.
        indices: which samples; None is all of them.
        batch_size: sequences at a time; it does not change the result.

    Returns:
        A row for each sequence, by the number of its sample: its ``name`` (such as that of a file)
        if it has one, its ``transformation`` if it is known, the likeliest ``flow``, and its
        ``probability`` if the model has a method ``infer`` that tells it.

    Raises:
        TypeError: the model cannot choose flows.

    Example:
        >>> import torch
        >>> from flowfactor.data import Recordings
        >>> from flowfactor.models import WeakFlowVAE
        >>> model = WeakFlowVAE.build(("a", "b"), latent_dim=4, width=8).eval()
        >>> data = Recordings(torch.rand(2, 9, 3, 28, 28), [0, 1], ["turn", "grow"])
        >>> table = assignments(model, data)
        >>> [column.key for column in table.columns], len(table.rows)
        (['transformation', 'flow', 'probability'], 2)
    """
    check_type("data", data, SequenceDataset)
    check_method("model", model, "choose")
    infer = getattr(model, "infer", None)
    rows = []
    for part, sequences in _sequences(data, indices, limit_batch(data, batch_size)):
        moved = sequences.to(model.device)
        flows = model.choose(moved)
        chances = [None] * len(part)
        if infer is not None:
            chances = infer(moved).exp().gather(1, flows[:, None])[:, 0].tolist()
        labels = [-1] * len(part) if sequences.labels is None else sequences.labels.tolist()
        for sample, label, flow, chance in zip(
            part.tolist(), labels, flows.tolist(), chances, strict=True
        ):
            name = data.name_of(sample)
            named = None if name == str(sample) else name
            known = None if label < 0 else data.names[label]
            rows.append(Row(str(sample), [named, known, model.names[flow], chance]))
    columns = [Column("name"), Column("transformation"), Column("flow")]
    columns.append(Column("probability", format=".4f"))
    return Table(columns, rows, label="sample").without_empty_columns()


def _sequences(
    data: SequenceDataset, indices: Tensor | Sequence[int] | None, size: int
) -> Iterator[tuple[Tensor, SequenceBatch]]:
    """Yield numbers of samples with all frames of their sequences."""
    if data.labels is None:
        for k, part in batches(data, indices, size):
            yield part, data.sample(part, k)
    else:
        for part in selected_indices(data, indices).split(size):
            yield part, data.sample(part)


@dataclasses.dataclass(frozen=True)
class InferredErrors(ErrorSummaries):
    """Errors of inferred flows, and how they match the transformations.

    Attributes:
        counts: sequences by transformation and flow; by flow alone where there are no labels.
        accuracy: the part of the sequences whose flow has the name of their transformation, which
            it got from validation sequences; None where there are no labels.
        purity: the part of the sequences that have the most common transformation of their flow.
        flows: the names of the flows.
    """

    counts: list[list[int]]
    accuracy: float | None = None
    purity: float | None = None
    flows: list[str] = dataclasses.field(default_factory=list)  # earlier evaluations lack it


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
            return InferredErrors(*errors, [counts.tolist()], flows=list(model.names))
        size = limit_batch(recorded, _BATCH)
        labelled = (recorded.sample(part) for part in indices.split(size))
        matching = match_flows(model, labelled, len(recorded.names))
        return InferredErrors(
            *errors,
            matching.counts.tolist(),
            int(matching.counts.diagonal().sum()) / len(indices),
            matching.purity,
            list(model.names),
        )

    @classmethod
    def properties(cls, result: InferredErrors, evaluation: Evaluation) -> Sequence[Row]:
        """Return the mean error of inferred flows, and how many are right."""
        rows = [Row("the inferred flow", mean_errors(result.errors.values()))]
        if result.accuracy is not None:
            right = f"{result.accuracy:.1%}"
            rows.append(Row("sequences whose flow is right", [right, None, None, None]))
        return rows

    @classmethod
    def tables(cls, result: InferredErrors, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the errors, with the accuracy in the title, and the sequences of each flow."""
        title = "Flows inferred from the frames; no sequence has a label to compare with"
        if result.accuracy is not None:
            title = (
                f"Transformations inferred from the frames: {result.accuracy:.2%} as named on "
                f"validation sequences"
            )
        names = evaluation.transformations
        rows = names if len(result.counts) == len(names) > 1 else ("sequences",)
        flows = result.flows or [f"flow {i + 1}" for i in range(len(result.counts[0]))]
        counts = Table(
            [Column(flow, format=",.0f") for flow in flows],
            [Row(name, counts) for name, counts in zip(rows, result.counts, strict=True)],
            "Sequences by what they undergo and the flow that they get",
            "transformation",
        )
        return {"inferred": error_table(result, title), "assignments": counts}
