"""Flows that a weakly supervised model infers from the frames of a sequence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from flowfactor.checks import brief, check_integer, check_method, check_type
from flowfactor.data import SequenceBatch, SequenceDataset
from flowfactor.matching import Matching
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.intervals import proportion_interval
from flowfactor.metrics.mean_film import mean_film_column
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


def _labels_and_flows(
    model: SequenceModel, data: SequenceDataset, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the true transformation of each sequence, and the flow that the model chooses."""
    labels, flows = [], []
    for part in indices.split(limit_batch(data, _BATCH)):
        sequences = data.sample(part)
        assert sequences.labels is not None
        labels.append(sequences.labels.cpu())
        flows.append(model.choose(sequences.to(model.device)).cpu())
    return torch.cat(labels), torch.cat(flows)


def _meanings(model: SequenceModel, known: Sequence[SequenceDataset | None]) -> Tensor | None:
    """Return the transformation that most sequences of each flow undergo, -1 of unused flows."""
    total = None
    for data in known:
        if data is None:
            continue
        indices = torch.arange(len(data))
        if data.labels is not None:
            indices = indices[data.labels.cpu() >= 0]
        if len(indices):
            labels, flows = _labels_and_flows(model, data, indices)
            counts = torch.zeros(len(model.names), len(data.names))
            counts.index_put_((flows, labels), torch.ones(()), accumulate=True)
            total = counts if total is None else total + counts
    return None if total is None else torch.where(total.any(1), total.argmax(1), -1)


@dataclasses.dataclass(frozen=True)
class InferredErrors(ErrorSummaries):
    """Errors of inferred flows, and how they match the transformations.

    Attributes:
        counts: sequences by transformation and flow; by flow alone where there are no labels.
        accuracy: the part of the sequences whose flow has the name of their transformation, which
            it got from validation sequences; None where there are no labels.
        purity: the part of the sequences that have the most common transformation of their flow.
        flows: the names of the flows.
        interval: of the accuracy, with 95 % confidence, :func:`proportion_interval`; sequences of a
            group of recordings are not independent.
        common: the accuracy of the most common transformation for all sequences.
        majority: the accuracy if each flow means the transformation that most sequences of it
            undergo, of the training if those are given and of validation; several flows can share
            one. None if neither is known.
        majority_interval: its interval.
    """

    counts: list[list[int]]
    accuracy: float | None = None
    purity: float | None = None
    # Earlier evaluations lack these.
    flows: list[str] = dataclasses.field(default_factory=list)
    interval: list[float] | None = None
    common: float | None = None
    majority: float | None = None
    majority_interval: list[float] | None = None


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
        labels, flows = _labels_and_flows(model, recorded, indices)
        shape = (len(recorded.names), len(model.names))
        pairs = torch.bincount(labels * shape[1] + flows, minlength=math.prod(shape))
        matching = Matching(pairs.view(shape), tuple(range(shape[0])))
        groups = getattr(recorded, "groups", None)
        groups = None if groups is None else groups[indices.cpu()]
        right, majority = labels == flows, None
        if (meanings := _meanings(model, [context.training, context.validation])) is not None:
            majority = labels == meanings[flows]
        return InferredErrors(
            *errors,
            matching.counts.tolist(),
            matching.accuracy,
            matching.purity,
            list(model.names),
            list(proportion_interval(right, groups)),
            int(matching.counts.sum(1).max()) / len(indices),
            None if majority is None else float(majority.double().mean()),
            None if majority is None else list(proportion_interval(majority, groups)),
        )

    @classmethod
    def properties(cls, result: InferredErrors, evaluation: Evaluation) -> Sequence[Row]:
        """Return the mean error of inferred flows, and how many are right."""
        rows = [Row("the inferred flow", mean_errors(result.errors.values()))]
        if result.accuracy is not None:
            shown = {"sequences whose flow is right": (result.accuracy, result.interval)}
            if result.majority is not None and result.majority != result.accuracy:
                name = "sequences whose flow mostly means what is right"
                shown[name] = (result.majority, result.majority_interval)
            if result.accuracy < 1 and result.common is not None:
                shown["sequences of the most common transformation"] = (result.common, None)
            for name, (share, interval) in shown.items():
                text = f"{share:.1%}"
                if interval is not None:
                    text += " ({:.1%} to {:.1%})".format(*interval)
                rows.append(Row(name, [text, None, None, None]))
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
        extra = mean_film_column(evaluation)
        return {"inferred": error_table(result, title, extra=extra), "assignments": counts}
