"""The typed record of an evaluation: what was measured, how, and its columns and tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowfactor.checkpoints import write_file
from flowfactor.errors import RunError
from flowfactor.options import adapter
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Table


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The numbers of a trained model and how they were measured: ``evaluation.json``.

    Attributes:
        split: of the data.
        source: the data set.
        images: number of held-out sequences.
        frames: the last frame T of the errors.
        transformations: names of what the sequences undergo; errors by other names are those of
            flows to spare.
        metrics: the results by the names of their metrics. The result of a metric that is not
            registered, because its plug-in is not loaded, is plain data.
        seed: of everything random in it.
        options: that it was measured with, as plain data.
        training: facts of the training: ``seed, steps, seconds, parameters, hardware``, ...
        command: that made it.
        environment: versions and hardware.
        weights: SHA-256 of the model file that was measured; empty if the model was in no file.

    Example:
        >>> from flowfactor.metrics import PairClassification
        >>> score = PairClassification.Result(0.9, 0.5, 20, 80)
        >>> evaluation = Evaluation("test", "sprites", 10, 7, ("x", "y"), {"predictability": score})
        >>> Evaluation.from_json(evaluation.to_json()) == evaluation
        True
        >>> evaluation.result(PairClassification).accuracy
        0.9
    """

    split: str
    source: str
    images: int
    frames: int
    transformations: tuple[str, ...]
    metrics: Mapping[str, Any]
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = ""

    def result(self, metric: type[Any]) -> Any:
        """Return the result of a metric, or None if it was not measured."""
        return self.metrics.get(METRICS.name_of(metric) or "")

    def tables(self) -> dict[str, Table]:
        """Return :meth:`properties`, then the tables of all metrics, in their order, by name."""
        tables = {} if (summary := self.properties()) is None else {"properties": summary}
        for metric, result in self._measured():
            tables |= metric.tables(result, self)
        return tables

    def properties(self) -> Table | None:
        """Return what the model can do, a line for each property; None if there is only one."""
        rows = [
            row for metric, result in self._measured() for row in metric.properties(result, self)
        ]
        columns = [
            Column("value", bold=True),
            Column("identity"),
            Column("pixel copy"),
            Column("floor"),
        ]
        title = f"Properties of the model on {self.images} {self.split} samples"
        table = Table(columns, rows, title, "property")
        return table.without_empty_columns() if len(rows) > 1 else None

    def _measured(self) -> list[tuple[Any, Any]]:
        """Return the metrics with their results."""
        return [
            (metric, self.metrics[name])
            for name, metric in registered_metrics()
            if name in self.metrics
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the record as JSON, ended by a line feed."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the record into a file, atomically."""
        write_file(path, self.to_json())

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """Return the record of plain data.

        Raises:
            RunError: a key is missing or has another type.
        """
        kind: Any = cls
        try:
            record: Evaluation = adapter(kind).validate_python(content)
            results = {
                name: adapter(METRICS[name].Result).validate_python(result)
                if name in METRICS
                else result
                for name, result in record.metrics.items()
            }
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            missing = first["type"] == "missing"
            reason = f"{where} is missing" if missing else f"{where}: {first['msg']}"
            raise RunError(
                f"this is no evaluation, as `flowfactor evaluate` writes one: {reason}."
            ) from error
        return dataclasses.replace(record, metrics=results)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Return the record of a JSON text.

        Raises:
            RunError: it is damaged.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise RunError(f"this is no JSON: {error}. Evaluate the run again.") from error
        return cls.from_dict(content)

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Return the record in a file.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"There is no file {path}.") from None
        except (RunError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: {error}") from error


def evaluation_columns(evaluations: Sequence[Evaluation]) -> list[Column]:
    """Return the columns of all registered metrics; their ``value`` takes an evaluation.

    Args:
        evaluations: that the table shows; some columns depend on them.
    """
    columns: list[Column] = []
    for name, metric in registered_metrics():
        columns.extend(
            dataclasses.replace(column, value=_value_of(name, column))
            for column in metric.columns_for(evaluations)
        )
    return columns


def _value_of(name: str, column: Column) -> Callable[[Evaluation], float | None]:
    def value(evaluation: Evaluation) -> float | None:
        result = evaluation.metrics.get(name)
        return None if result is None or column.value is None else column.value(result)

    return value


def registered_metrics() -> list[tuple[str, Any]]:
    """Return the classes of all registered metrics with their names, in the order of tables."""
    return sorted(METRICS.items(), key=lambda item: item[1].order)
