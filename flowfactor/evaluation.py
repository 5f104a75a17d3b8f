"""Evaluations: which metrics are measured on a trained model, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pydantic
import torch

from flowfactor.checks import check_integer, check_type
from flowfactor.data import SequenceDataset
from flowfactor.errors import ConfigError, FlowFactorError, RunError
from flowfactor.metrics import Metric, MetricContext, infer_labels
from flowfactor.models import SequenceModel
from flowfactor.models.base import ERROR_FRAMES
from flowfactor.options import PositiveInt, dump, options, parse
from flowfactor.records import Evaluation, registered_metrics
from flowfactor.registries import METRICS


@options
class EvaluationOptions:
    """What is measured, and on what."""

    split: Literal["validation", "test"] = "test"
    """The split that is measured on."""
    images: PositiveInt = 1000
    """The number of held-out sequences."""
    frames: PositiveInt | None = None
    """The last frame T of the errors; null: 7, or the last frame of the data if it ends earlier."""
    metrics: dict[str, Any] = pydantic.Field(default_factory=dict, validate_default=True)
    """The metrics by name, each with its options: ``{composition: {}, paths: {}}``.

    Some are measured by default; ``false`` leaves one out.
    """

    @pydantic.field_validator("metrics", mode="before")
    @classmethod
    def _parse_metrics(cls, content: Any) -> dict[str, Any]:
        """Validate the options of each metric, and add the metrics measured by default."""
        if not isinstance(content, Mapping | None):
            raise ConfigError("expected names of metrics with their options, as in {paths: {}}")
        content = dict(content or {})
        for name in content:
            METRICS[name]
        parsed: dict[str, Any] = {}
        for name, metric in registered_metrics():
            value = content.get(name, {} if metric.default else False)
            if not (value is False or isinstance(value, metric.Options)):
                value = parse(metric.Options, None if value is True else value, name)
            if value is not False or metric.default:
                parsed[name] = value
        return parsed


def measured_frames(options: EvaluationOptions, data: SequenceDataset) -> int:
    """Return the last frame T of the errors."""
    return options.frames or min(ERROR_FRAMES, data.horizon)


def evaluate(
    model: SequenceModel,
    data: SequenceDataset,
    options: EvaluationOptions | None = None,
    *,
    source: str = "",
    seed: int = 0,
    held_out: SequenceDataset | None = None,
    held_out_values: str = "",
    validation: SequenceDataset | None = None,
    training: SequenceDataset | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure a trained model on held-out sequences, all of it on the device of the model.

    Args:
        model: in evaluation mode.
        data: the held-out sequences; the first ``options.images`` of them are measured on.
        options: which metrics, among others; those measured by default if None.
        source: the name of the data set, for the record.
        seed: of everything random.
        held_out: sequences of a kind that the training has not seen, if there are such.
        held_out_values: which these are.
        validation: sequences of the validation split, on which metrics choose what they measure,
            such as the field of each transformation; other draws from ``data`` if None.
        training: recordings that were trained on, whose mean films stand beside the model.
        on_stage: called with a description of each measurement when it begins.

    Returns:
        The record; ``training``, ``command`` and ``environment`` are left empty.

    Raises:
        ConfigError: a metric was asked for that does not apply to the model or the data.
        RunError: a metric cannot be measured on these sequences.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> few = {"log_likelihood": {"sequences": 2, "samples": 2}}
        >>> evaluation = evaluate(model, data, EvaluationOptions(metrics=few))
        >>> list(evaluation.metrics)
        ['equivariance', 'log_likelihood', 'solver_independence']
        >>> list(evaluation.tables())
        ['properties', 'errors', 'log_likelihood']
    """
    options = EvaluationOptions() if options is None else options
    check_type("model", model, SequenceModel)
    given = {"held_out": held_out, "validation": validation, "training": training}
    for name, each in {"data": data, **given}.items():
        if each is not None or name == "data":
            check_type(name, each, SequenceDataset)
    check_type("options", options, EvaluationOptions)
    check_integer("seed", seed, 0)
    data = _beside(model, data)
    context = MetricContext(
        model,
        infer_labels(model, data),
        data,
        torch.arange(min(options.images, len(data))),
        measured_frames(options, data),
        seed,
        options.images,
        None if held_out is None else _beside(model, held_out),
        held_out_values,
        None if validation is None else _beside(model, validation),
        None if training is None else _beside(model, training),
    )
    results = {}
    for name, metric in _select_metrics(options, context):
        if on_stage is not None:
            on_stage(metric.description or name)
        try:
            results[name] = metric.measure(context)
        except FlowFactorError:
            raise
        except ValueError as error:
            raise RunError(
                f"evaluation.metrics.{name} cannot be measured: {error}. Leave it out, or measure "
                f"on more samples."
            ) from error
    return Evaluation(
        options.split,
        source,
        len(context.indices),
        context.frames,
        context.transformations,
        results,
        seed,
        dump(options),
    )


def _beside(model: SequenceModel, data: SequenceDataset) -> SequenceDataset:
    """Return a data set on the device of a model, in its precision."""
    return model.match_precision(data).to(model.device)


def check_metrics(model: SequenceModel, data: SequenceDataset, options: EvaluationOptions) -> None:
    """Refuse metrics that do not apply to a model and its data, before it is trained.

    Raises:
        ConfigError: a metric was asked for that does not apply.
    """
    frames = measured_frames(options, data)
    _select_metrics(options, MetricContext(model, data, data, torch.arange(1), frames))


def _select_metrics(options: EvaluationOptions, context: MetricContext) -> list[tuple[str, Metric]]:
    selected = []
    for name, kind in registered_metrics():
        if (content := options.metrics.get(name, False)) is False:
            continue
        metric = kind(content)
        few = kind.by_name and len(context.model.names) < len(context.data.names)
        if metric.applies(context) and not few:
            selected.append((name, metric))
        elif not kind.default:
            needs = "a flow for each transformation" if few else kind.needs
            raise ConfigError(f"evaluation.metrics.{name}: needs {needs}")
    return selected
