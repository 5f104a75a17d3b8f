"""What a metric is: a measurement with options, a typed result, columns and tables."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.metrics.pixel_errors import EquivarianceError, equivariance_error
from flowfactor.models import SequenceModel
from flowfactor.options import options
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table


@options
class MetricOptions:
    """Options of a metric that has none; the base of those that have some."""


@dataclasses.dataclass(frozen=True, eq=False)
class MetricContext:
    """What metrics are measured on.

    Attributes:
        model: in evaluation mode.
        data: held-out sequences. What recordings without a label undergo was inferred by a weakly
            supervised model.
        recorded: the same sequences with the labels that they came with.
        indices: which of them to measure on.
        frames: up to which frame, T.
        seed: of everything random.
        images: on how many sequences to measure at most.
        held_out: sequences of a kind that the training has not seen, if there are such.
        held_out_values: which these are, for titles.
        validation: sequences of the validation split, for what is chosen before it is measured, if
            another split is measured.
        training: recordings of the training split, for what they show on average.
    """

    model: SequenceModel
    data: SequenceDataset
    recorded: SequenceDataset
    indices: Int[Tensor, "n"]
    frames: int
    seed: int = 0
    images: int = 1000
    held_out: SequenceDataset | None = None
    held_out_values: str = ""
    validation: SequenceDataset | None = None
    training: SequenceDataset | None = None

    @functools.cached_property
    def errors(self) -> dict[str, EquivarianceError]:
        """The equivariance errors, which several metrics need; computed once."""
        return equivariance_error(self.model, self.data, self.indices, frames=self.frames)

    @functools.cached_property
    def transformations(self) -> tuple[str, ...]:
        """The names of the transformations that the sequences undergo, without spare flows.

        Where no sequence has a label these are the names of the model's flows.
        """
        labels = self.recorded.labels
        unknown = labels is not None and bool((labels < 0).all())
        return self.data.names if unknown else self.recorded.names


class Metric(ABC):
    """A measurement of a trained model, registered with ``@METRICS.register(name)``.

    From then on ``evaluation.metrics`` can name it, an :class:`~flowfactor.records.Evaluation`
    holds its result, and tables and figures show its columns.

    Attributes:
        Options: the class of its options, the keys below ``evaluation.metrics.NAME``.
        Result: the dataclass of its result, stored as JSON: numbers, text, lists, dictionaries
            with text as keys, and dataclasses of these.
        default: whether it is measured wherever it applies, without being asked for.
        by_name: whether it asks the model for the flow of each transformation; it does not apply
            to a model with fewer flows then.
        order: its place among the metrics, in evaluations and tables.
        description: what is measured, for progress messages.
        needs: what it needs, for the error message where it does not apply.
        columns: numbers of the result that tables of several models show; their ``value`` takes a
            result.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Size:
        ...     latent: int
        >>> class LatentSize(Metric):  # below @METRICS.register("latent_size")
        ...     Result = Size
        ...     columns = (Column("latent", "D", format=".0f", value=lambda size: size.latent),)
        ...     def measure(self, context):
        ...         return Size(context.model.latent_dim)
        >>> print(LatentSize.tables(Size(8), None)["LatentSize"].to_markdown(), end="")
        | | value |
        |---|---:|
        | D | 8 |
    """

    Options: ClassVar[type[Any]] = MetricOptions
    Result: ClassVar[type[Any]]
    default: ClassVar[bool] = False
    by_name: ClassVar[bool] = True
    order: ClassVar[int] = 1000
    description: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    columns: ClassVar[Sequence[Column]] = ()

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def applies(self, context: MetricContext) -> bool:
        """Return whether the metric can be measured; it must not cost more than a moment."""
        return True

    @abstractmethod
    def measure(self, context: MetricContext) -> Any:
        """Return an object of :attr:`Result`.

        Raises:
            ValueError: the data cannot be measured, with the reason.
        """

    @classmethod
    def columns_for(cls, evaluations: Sequence[Evaluation]) -> Sequence[Column]:
        """Return the columns of a table of evaluations: :attr:`columns`, unless overridden.

        Args:
            evaluations: all of the table, with or without a result of this metric.
        """
        return cls.columns

    @classmethod
    def properties(cls, result: Any, evaluation: Evaluation) -> Sequence[Row]:
        """Return its lines in the summary of an evaluation, :meth:`Evaluation.properties`.

        Args:
            result: of the metric.
            evaluation: that it belongs to.

        Returns:
            Rows of a measured number, and of those to compare it with: the same number for latents
            that do not move, for frame 0 as it is, and the floor of the autoencoder. By
            default the columns that have a ``summary``, as text.
        """
        return [
            Row(column.summary, [text, None, None, None])
            for column in cls.columns_for([evaluation])
            if column.summary and (text := column.text_of(result)) is not None
        ]

    @classmethod
    def tables(cls, result: Any, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the tables of one result by their names: a line for each column by default.

        Args:
            result: of the metric.
            evaluation: that it belongs to.
        """
        rows = [
            Row(column.heading or column.key, [text])
            for column in cls.columns_for([evaluation])
            if (text := column.text_of(result)) is not None
        ]
        name = METRICS.name_of(cls) or cls.__name__
        title = cls.description[:1].upper() + cls.description[1:]
        return {name: Table([Column("value")], rows, title)} if rows else {}
