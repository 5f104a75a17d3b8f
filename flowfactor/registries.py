"""The registries: what a configuration can name, filled by the modules that define it.

A plug-in adds to them by the same decorators; see ``docs/extending.md``.
"""

from __future__ import annotations

from typing import Any

from solvers.registry import Registry

DATA: Registry[Any] = Registry("data source")
"""Options of data sets, :class:`flowfactor.data.DataOptions`, by ``data.source``."""

MODELS: Registry[Any] = Registry("model")
"""Subclasses of :class:`flowfactor.models.SequenceModel`, by ``model.kind``."""

TERMS: Registry[Any] = Registry("term of the objective")
"""Terms of the flow model's objective, by ``model.objective``."""

METRICS: Registry[Any] = Registry("metric")
"""Metrics of an evaluation, by ``evaluation.metrics``."""

LOGGERS: Registry[Any] = Registry("logger")
"""Functions that make a Fabric logger for a run folder, by ``training.loggers``."""

ENCODERS: Registry[Any] = Registry("encoder")
"""Options of encoders, :class:`flowfactor.networks.NetworkOptions`, by ``model.encoder.kind``."""

DECODERS: Registry[Any] = Registry("decoder")
"""Options of decoders, :class:`flowfactor.networks.NetworkOptions`, by ``model.decoder.kind``."""

OBSERVATIONS: Registry[Any] = Registry("observation model")
"""Functions that make an observation model, by ``model.observation``."""

FIELDS: Registry[Any] = Registry("family of fields")
"""Classes of banks of fields, or functions that make them, by ``model.field``."""
