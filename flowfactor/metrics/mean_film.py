"""The error of the mean training film, what a recording's label alone says of its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.metrics.base import Metric, MetricContext
from flowfactor.metrics.pixel_errors import batches
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Table


@torch.no_grad()
def mean_film_error(
    training: SequenceDataset,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    batch_size: int = 250,
) -> dict[str, float]:
    """Return the error of the mean training film of each transformation, over frames 1..T.

    It knows the label of a sequence and nothing of its frames, also not frame 0. A model of
    recordings that is no better has learned no more than what usually happens.

    Args:
        training: recordings whose labels are known, at least in part.
        data: likewise, of the same transformations; on these the error is measured.
        indices: which of them; None is all.
        frames: T.
        batch_size: sequences at a time; it does not change the result.

    Returns:
        Sums of absolute pixel errors by transformation, the mean over sequences; those without a
        sequence in both are left out.

    Raises:
        ValueError: other transformations, or no labelled sequence.

    Example:
        >>> import torch
        >>> from flowfactor.data import Recordings
        >>> films = torch.zeros(4, 3, 1, 8, 8)
        >>> films[1] = 1
        >>> recordings = Recordings(films, [0, 0, 1, 1], ["x", "y"])
        >>> mean_film_error(recordings, recordings, frames=2)
        {'x': 64.0, 'y': 0.0}
    """
    if training.names != data.names:
        raise ValueError(
            f"training: its transformations are {training.names}, those of data {data.names}"
        )
    films: dict[int, list[Tensor]] = {}
    for k, batch in batches(training, None, batch_size, frames):
        films.setdefault(k, []).append(_later(training, batch, k, frames).double().sum(0))
    errors: dict[int, list[Tensor]] = {}
    for k, batch in batches(data, indices, batch_size, frames):
        if k in films:
            mean = torch.stack(films[k]).sum(0) / len(training.samples_undergoing(k))
            x = _later(data, batch, k, frames).double()
            errors.setdefault(k, []).append((x - mean).abs().flatten(1).sum(1))
    return {data.names[k]: float(torch.cat(each).mean()) for k, each in errors.items()}


def _later(data: SequenceDataset, batch: Tensor, k: int, frames: int) -> Tensor:
    """Return frames 1..T of some sequences."""
    times = torch.arange(frames + 1).expand(len(batch), -1)
    return data.sample(batch, k, times).frames[:, 1:].cpu()


@dataclass(frozen=True)
class MeanFilm:
    """The errors of mean training films by transformation."""

    errors: dict[str, float]


@METRICS.register("mean_film")
class MeanFilmMetric(Metric):
    """The error of the mean training film of each transformation, :func:`mean_film_error`."""

    Result = MeanFilm
    default = True
    by_name = False
    order = 15
    description = "mean training films"
    needs = "recordings with labels, at a constant rate, and their training split"

    def applies(self, context: MetricContext) -> bool:
        """Return whether there are recordings with labels on both sides, at a constant rate."""
        return all(
            each is not None
            and each.labels is not None
            and each.is_regular
            and bool((each.labels >= 0).any())
            for each in (context.training, context.recorded)
        )

    def measure(self, context: MetricContext) -> MeanFilm:
        """Return the errors."""
        training, data = context.training, context.recorded
        assert training is not None
        return MeanFilm(mean_film_error(training, data, context.indices, frames=context.frames))

    @classmethod
    def tables(cls, result: MeanFilm, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return no table: the tables of errors have a column."""
        return {}


def mean_film_column(evaluation: Evaluation) -> dict[Column, Mapping[str, float]]:
    """Return a column for tables of errors, if the mean films were measured."""
    result = evaluation.result(MeanFilmMetric)
    return {} if result is None else {Column("mean film"): result.errors}
