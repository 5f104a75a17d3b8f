"""Models that infer what happens in a sequence, and when: is it right, and what does it explain?"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from flowfactor.activity import Activity
from flowfactor.checks import check_integer, check_method
from flowfactor.data import SequenceBatch, SequenceDataset
from flowfactor.data.activity import ActivityLaw, Directions
from flowfactor.matching import ActivityMatching
from flowfactor.metrics.activity_scores import ActivityScores, match_fields, score_activity
from flowfactor.metrics.base import Metric, MetricContext, MetricOptions
from flowfactor.metrics.pixel_errors import (
    EquivarianceError,
    ErrorSummaries,
    ErrorSummary,
    batches,
    concatenate_errors,
    error_table,
    frame_errors,
    limit_batch,
    mean_errors,
    mean_of,
    selected_indices,
)
from flowfactor.options import PositiveFloat, PositiveInt, options
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table

# Sequences at a time.
_BATCH = 250


@runtime_checkable
class InfersActivity(Protocol):
    """What a model must have whose activity is measured."""

    def infer_activity(self, frames: Float[Tensor, "b f c h w"]) -> Activity:
        """Return what is known of the activity of sequences, from their frames alone."""

    def trace_activity(
        self, z: Float[Tensor, "b d"], coefficients: Float[Tensor, "b n k"]
    ) -> Float[Tensor, "f b d"]:
        """Return the path of latents along fields at speeds that are constant in each step."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inferred:
    """Sequences of one kind, what a model infers of them, and the errors of what it explains.

    Attributes:
        activity: inferred.
        truth: signed speeds of the transformations.
        errors: of frames decoded along the inferred path, and of their own encodings.
    """

    activity: Activity
    truth: Float[Tensor, "b n m"]
    errors: EquivarianceError


@torch.no_grad()
def infer_sequences(
    model: Any, sequences: Iterator[SequenceBatch], frames: int | None = None
) -> Inferred:
    """Infer the activity of sequences, follow it from frame 0, and compare the frames.

    Args:
        model: in evaluation mode, one that :class:`InfersActivity`.
        sequences: complete ones with their true activity, at least one batch.
        frames: the last frame of the errors; None is T.
    """
    activities, truths, errors = [], [], []
    for batch in sequences:
        assert batch.activity is not None
        x = batch.frames.to(model.device)
        activity = model.infer_activity(x)
        z = model.trace_activity(model.represent(x[:, 0]), activity.coefficients)
        last = 1 + (batch.horizon if frames is None else frames)
        errors.append(frame_errors(model, x[:, :last], z[:last], encoded=True))
        activities.append([part.cpu() for part in vars(activity).values()])
        truths.append(batch.activity.cpu())
    return Inferred(
        Activity(*(torch.cat(parts) for parts in zip(*activities, strict=True))),
        torch.cat(truths),
        concatenate_errors(errors),
    )


def ordinary_sequences(
    data: SequenceDataset, indices: Tensor | Sequence[int] | None = None, batch_size: int = _BATCH
) -> Iterator[tuple[int, SequenceBatch]]:
    """Yield each transformation with its sequences, at speed 1 from canonical starts."""
    for k, part in batches(data, indices, batch_size):
        batch = data.sample(part, k)
        activity = torch.zeros(len(part), data.horizon, len(data.names))
        activity[..., k] = 1
        yield k, dataclasses.replace(batch, activity=activity)


def drawn_sequences(
    data: SequenceDataset,
    law: ActivityLaw,
    indices: Tensor | Sequence[int] | None = None,
    *,
    seed: int = 0,
    random_starts: bool = True,
    batch_size: int = _BATCH,
) -> Iterator[SequenceBatch]:
    """Yield sequences whose activity is drawn, see :meth:`SequenceDataset.draw_sequences`."""
    for part in selected_indices(data, indices).split(limit_batch(data, batch_size)):
        yield data.draw_sequences(part, law, seed, random_starts=random_starts)


@torch.no_grad()
def alone_error(
    model: Any,
    data: SequenceDataset,
    coefficients: Sequence[Float[Tensor, "k"]],
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    batch_size: int = _BATCH,
) -> dict[str, EquivarianceError]:
    r"""Return the error of every transformation along one field at a constant speed.

    .. math::

        \begin{aligned}
        E_k &= \mathrm{mean}_{\text{images}} \sum_{t=1}^T \sum_{\text{channels, pixels}}
          |x_t - \mathrm{decode}(z_t)|, \\
        \frac{dz}{dt} &= c_k v^k(z), \qquad z_0 \text{ the encoder mean of } x_0
        \end{aligned}

    The counterpart of :func:`~flowfactor.metrics.equivariance_error`, for models without labels.

    Args:
        model: in evaluation mode, one that :class:`InfersActivity`.
        data: held-out images; its transformations are those of ``coefficients``.
        coefficients: for each transformation the speeds of all fields, all 0 but one.
        indices: which images; None is all of them.
        frames: T.
        batch_size: images at a time; it does not change the result.
    """
    check_method("model", model, "trace_activity")
    check_integer("frames", frames, 1, data.horizon)
    parts = defaultdict(list)
    for k, batch in ordinary_sequences(data, indices, batch_size):
        x = batch.frames[:, : frames + 1].to(model.device)
        z = model.represent(x[:, 0])
        speeds = coefficients[k].to(z).expand(len(z), frames, -1)
        parts[data.names[k]].append(frame_errors(model, x, model.trace_activity(z, speeds)))
    return {name: concatenate_errors(errors) for name, errors in parts.items()}


@options
class ActivityOptions(MetricOptions):
    """What happens in the sequences that are measured, whatever the training showed."""

    speeds: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.5)
    """Between which speeds they move where speeds are random, in steps a frame."""
    directions: Directions = "both"
    """Whether transformations also run backwards."""
    random_starts: bool = True
    """Whether they start anywhere, where the data has random starts."""
    matching_sequences: PositiveInt = 500
    """Sequences by which fields are matched to transformations."""

    def laws(self) -> dict[str, ActivityLaw]:
        """Return the kinds of sequences by name."""
        return {
            "single": ActivityLaw("single", (1.0, 1.0), self.directions),
            "random speed": ActivityLaw("single", self.speeds, self.directions),
            "switch": ActivityLaw("switch", self.speeds, self.directions),
            "pairs": ActivityLaw("pairs", self.speeds, self.directions),
        }


@dataclasses.dataclass(frozen=True)
class KindOfSequences:
    """What is inferred of sequences of one kind.

    Attributes:
        scores: of the activity.
        errors: of frames decoded along it.
    """

    scores: ActivityScores
    errors: ErrorSummary


@dataclasses.dataclass(frozen=True)
class MatchedField:
    """The field of a transformation.

    Attributes:
        field: its index; that of none, beyond the last, if there are too few fields.
        reversed: whether it runs against its transformation.
        speed: the mean coefficient over sequences of the transformation at speed 1, forwards; the
            sign of a field that is reversed is turned.
    """

    field: int
    reversed: bool
    speed: float


@dataclasses.dataclass(frozen=True)
class ActivityResult:
    """How well a model finds out what happens, and when.

    Attributes:
        kinds: by name; ``ordinary`` are sequences at speed 1 from canonical starts.
        fields: which field is which transformation.
        inferred: errors of ordinary sequences along the inferred activity.
        alone: errors of the same along the transformation's field at its mean speed.
        matched_on: the sequences that decided which field is which.
        fields_in_all: K.
    """

    kinds: dict[str, KindOfSequences]
    fields: dict[str, MatchedField]
    inferred: ErrorSummaries
    alone: ErrorSummaries
    matched_on: str
    fields_in_all: int

    def matching(self) -> ActivityMatching:
        """Return which field is which transformation."""
        signs = torch.ones(max(self.fields_in_all, len(self.fields)))
        for field in self.fields.values():
            signs[field.field] = -1.0 if field.reversed else 1.0
        order = tuple(field.field for field in self.fields.values())
        return ActivityMatching(order, signs, self.kinds["ordinary"].scores.accuracy)

    def mean_direction(self) -> float | None:
        """Return the part of directions that is right, over the kinds."""
        found = (each.scores.direction for each in self.kinds.values())
        return mean_of(direction for direction in found if direction is not None)

    def correlation(self, kind: str = "random speed") -> float | None:
        """Return the mean correlation of signed speeds over the transformations."""
        if kind not in self.kinds:
            return None
        return mean_of(r for r in self.kinds[kind].scores.correlation if r is not None)


def _accuracy(kind: str) -> Any:
    return lambda r: r.kinds[kind].scores.accuracy if kind in r.kinds else None


def _switch_error(result: ActivityResult) -> float | None:
    switch = result.kinds.get("switch")
    return None if switch is None else switch.scores.switch_error


@METRICS.register("activity")
class ActivityMetric(Metric):
    """Whether the activity that a model infers is right, and what follows from it.

    Fields are assigned to transformations, and their directions found, on sequences of the
    validation split at random speeds; where there is none, on other draws from the measured one.
    """

    Options = ActivityOptions
    Result = ActivityResult
    default = True
    by_name = False
    order = 30
    description = "inferred activity"
    needs = "a model that infers activity, and data of which it is known"
    columns = (
        Column(
            "inferred_activity", "mean E, activity", "lower", value=lambda r: r.inferred.mean_error
        ),
        Column("field_alone", "mean E, field alone", "lower", value=lambda r: r.alone.mean_error),
        *(
            Column(f"right_{key}", f"right, {kind}", "higher", ".3f", value=_accuracy(kind))
            for key, kind in (
                ("single", "single"),
                ("speed", "random speed"),
                ("switch", "switch"),
                ("pairs", "pairs"),
            )
        ),
        Column("direction", "direction", "higher", ".3f", value=lambda r: r.mean_direction()),
        Column("speed_r", "corr. of speed", "higher", ".3f", value=lambda r: r.correlation()),
        Column("switch_error", "switch, frames off", "lower", ".2f", value=_switch_error),
    )
    options: ActivityOptions

    def applies(self, context: MetricContext) -> bool:
        """Return whether the model infers activity, and the data says what it is."""
        data = context.recorded
        known = data.labels is None or not bool((data.labels < 0).any())
        return isinstance(context.model, InfersActivity) and known

    def measure(self, context: MetricContext) -> ActivityResult:
        """Return the scores of every kind of sequences that the data can have."""
        model, data, frames = context.model, context.recorded, context.frames
        model.check_data(data, names=False)  # which field is which transformation is found here
        matching, fields = self._match(context)
        kinds, indices = {}, context.indices
        ordinary = defaultdict(list)
        for k, batch in ordinary_sequences(data, indices):
            ordinary[data.names[k]].append(infer_sequences(model, iter([batch]), frames))
        parts = [part for each in ordinary.values() for part in each]
        kinds["ordinary"] = _kind(_joined(parts), matching)
        for name, law in self.options.laws().items():
            if data.can_follow(law):
                drawn = drawn_sequences(
                    data,
                    law,
                    indices,
                    seed=context.seed,
                    random_starts=self.options.random_starts,
                )
                kinds[name] = _kind(infer_sequences(model, drawn, frames), matching)
        coefficients = []
        count = parts[0].activity.active.shape[-1]
        for field in fields.values():
            speeds = torch.zeros(max(count, field.field + 1))
            speeds[field.field] = -field.speed if field.reversed else field.speed
            coefficients.append(speeds[:count])
        alone = alone_error(model, data, coefficients, indices, frames=frames)
        return ActivityResult(
            kinds,
            fields,
            ErrorSummaries.of({name: _joined(each).errors for name, each in ordinary.items()}),
            ErrorSummaries.of(alone),
            "measured" if context.validation is None else "validation",
            count,
        )

    def _match(self, context: MetricContext) -> tuple[ActivityMatching, dict[str, MatchedField]]:
        """Return which field is which transformation, and the mean speeds of the fields."""
        model = context.model
        data = context.recorded if context.validation is None else context.validation
        data = model.match_precision(data)
        indices = torch.arange(min(self.options.matching_sequences, len(data)))
        shown = itertools.groupby(ordinary_sequences(data, indices), key=lambda pair: pair[0])
        ordinary = {k: _activities(model, (batch for _, batch in group)) for k, group in shown}
        law = self.options.laws()["random speed"]
        if data.can_follow(law):
            # Another seed than that of what is measured.
            found, truth = _activities(
                model, drawn_sequences(data, law, indices, seed=context.seed + 1)
            )
        else:
            found = _join([activity for activity, _ in ordinary.values()])
            truth = torch.cat([truth for _, truth in ordinary.values()])
        matching = match_fields(found, truth)
        fields = {}
        for k, name in enumerate(data.names):
            field = matching.field_of[k]
            reverse = bool(matching.signs[field] < 0)
            speed = 0.0
            if k in ordinary and field < found.coefficients.shape[-1]:
                speed = float(ordinary[k][0].coefficients[..., field].mean())
            fields[name] = MatchedField(field, reverse, -speed if reverse else speed)
        return matching, fields

    @classmethod
    def properties(cls, result: ActivityResult, evaluation: Evaluation) -> Sequence[Row]:
        """Return the errors along inferred activity and single fields, and what is right."""
        rows = [
            Row("through inferred activity", mean_errors(result.inferred.errors.values())),
            Row("a field alone at its mean speed", mean_errors(result.alone.errors.values())),
        ]
        for name, each in result.kinds.items():
            right = f"{each.scores.accuracy:.1%}"
            rows.append(Row(f"steps with the right fields, {name}", [right, *[None] * 3]))
        return rows

    @classmethod
    def tables(cls, result: ActivityResult, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return a row for each kind of sequences, one for each field, and the errors."""
        columns = [
            Column("fields right", format=".4f"),
            Column("direction right", format=".4f"),
            Column("corr. of signed speed", format=".3f"),
            Column("corr. of absolute speed", format=".3f"),
            Column("switch, frames off", format=".2f"),
            Column("E", bold=True),
            Column("identity"),
            Column("pixel copy"),
            Column("floor"),
            Column("own encodings"),
        ]
        rows = []
        for name, each in result.kinds.items():
            scores, error = each.scores, each.errors
            signed, absolute = (
                mean_of(r for r in correlations if r is not None)
                for correlations in (scores.correlation, scores.speed_correlation)
            )
            quality = [scores.accuracy, scores.direction, signed, absolute, scores.switch_error]
            errors = [error.error, error.identity, error.copy, error.floor, error.encoded]
            rows.append(Row(name, [*quality, *errors]))
        split = "other sequences" if result.matched_on == "measured" else "validation sequences"
        title = f"Inferred activity; fields were assigned to transformations on {split}"
        kinds = Table(columns, rows, title, "sequences").without_empty_columns()
        return {
            "activity": kinds,
            "fields": _field_table(result),
            "activity_errors": error_table(result.inferred, "Errors through inferred activity"),
            "alone": error_table(
                result.alone, "Errors of one field alone at its mean speed, for each transformation"
            ),
        }


def _field_table(result: ActivityResult) -> Table:
    columns = [
        Column("field", format=".0f"),
        Column("direction"),
        Column("mean speed", format=".3f"),
        Column("corr. of signed speed", format=".3f"),
        Column("corr. of absolute speed", format=".3f"),
    ]
    rows = []
    scores = result.kinds["random speed"].scores if "random speed" in result.kinds else None
    for k, (name, field) in enumerate(result.fields.items()):
        correlations: list[float | None] = [None, None]
        if scores is not None:
            correlations = [scores.correlation[k], scores.speed_correlation[k]]
        found = field.field < result.fields_in_all
        values = [
            field.field + 1 if found else None,
            ("reversed" if field.reversed else "forwards") if found else None,
            field.speed if found else None,
        ]
        rows.append(Row(name, [*values, *correlations]))
    title = f"Which of the {result.fields_in_all} fields is which transformation"
    return Table(columns, rows, title, "transformation").without_empty_columns()


def _kind(found: Inferred, matching: ActivityMatching) -> KindOfSequences:
    return KindOfSequences(
        score_activity(found.activity, found.truth, matching), ErrorSummary.of(found.errors)
    )


def _activities(
    model: Any, sequences: Iterable[SequenceBatch]
) -> tuple[Activity, Float[Tensor, "b n m"]]:
    """Return inferred and true activity."""
    found, truths = [], []
    with torch.no_grad():
        for batch in sequences:
            assert batch.activity is not None
            activity = model.infer_activity(batch.frames.to(model.device))
            found.append(Activity(*(part.cpu() for part in vars(activity).values())))
            truths.append(batch.activity.cpu())
    return _join(found), torch.cat(truths)


def _join(parts: Sequence[Activity]) -> Activity:
    tensors = zip(*(vars(part).values() for part in parts), strict=True)
    return Activity(*(torch.cat(each) for each in tensors))


def _joined(parts: Sequence[Inferred]) -> Inferred:
    return Inferred(
        _join([part.activity for part in parts]),
        torch.cat([part.truth for part in parts]),
        concatenate_errors([part.errors for part in parts]),
    )
