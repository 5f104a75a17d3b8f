"""How good a model is: errors of flows, alone and composed, likelihoods, and what it rests on.

Also how well its code is disentangled, where the true factors of the images are known. Functions
measure one thing; the registered classes are what :func:`flowfactor.evaluation.evaluate` runs.
"""

from flowfactor.matching import Matching, match_flows
from flowfactor.metrics.activity import (
    ActivityMetric,
    ActivityOptions,
    ActivityResult,
    InfersActivity,
    alone_error,
    drawn_sequences,
    infer_sequences,
    ordinary_sequences,
)
from flowfactor.metrics.activity_scores import (
    ActivityScores,
    arrange,
    find_switch,
    match_fields,
    score_activity,
)
from flowfactor.metrics.base import Metric, MetricContext, MetricOptions
from flowfactor.metrics.closure import Closure, ClosureMetric, closure_error
from flowfactor.metrics.codes import CodeSource, CodeTable, ModelCodes, encode_dataset
from flowfactor.metrics.composition import (
    Commutation,
    Composition,
    commutation_error,
    reversal_error,
    superposition_error,
    switching_error,
)
from flowfactor.metrics.disentanglement import (
    DCI,
    Disentanglement,
    dci,
    factor_vae_score,
    mig,
    sap,
)
from flowfactor.metrics.equivariance import Equivariance, Traversals
from flowfactor.metrics.extrapolation import Extrapolation
from flowfactor.metrics.held_out import HeldOut
from flowfactor.metrics.inferred import Inferred, assignments, infer_labels
from flowfactor.metrics.intervals import proportion_interval
from flowfactor.metrics.likelihood import LogLikelihood, log_likelihood
from flowfactor.metrics.mean_film import MeanFilm, MeanFilmMetric, mean_film_error
from flowfactor.metrics.paths import PathMeasures, Paths, path_measures
from flowfactor.metrics.pixel_errors import (
    EquivarianceError,
    ErrorSummaries,
    ErrorSummary,
    equivariance_error,
    error_table,
    frame_errors,
    mean_error,
)
from flowfactor.metrics.predictability import (
    ClassifierOptions,
    PairClassification,
    Predictability,
    classify_pairs,
    variation_predictability,
)
from flowfactor.metrics.sharpness import Sharpness, SharpnessMetric, relative_sharpness
from flowfactor.metrics.solver import SolverChange, SolverIndependence, solver_independence

__all__ = [
    "DCI",
    "ActivityMetric",
    "ActivityOptions",
    "ActivityResult",
    "ActivityScores",
    "ClassifierOptions",
    "Closure",
    "ClosureMetric",
    "CodeSource",
    "CodeTable",
    "Commutation",
    "Composition",
    "Disentanglement",
    "Equivariance",
    "EquivarianceError",
    "ErrorSummaries",
    "ErrorSummary",
    "Extrapolation",
    "HeldOut",
    "Inferred",
    "InfersActivity",
    "LogLikelihood",
    "Matching",
    "MeanFilm",
    "MeanFilmMetric",
    "Metric",
    "MetricContext",
    "MetricOptions",
    "ModelCodes",
    "PairClassification",
    "PathMeasures",
    "Paths",
    "Predictability",
    "Sharpness",
    "SharpnessMetric",
    "SolverChange",
    "SolverIndependence",
    "Traversals",
    "alone_error",
    "arrange",
    "assignments",
    "classify_pairs",
    "closure_error",
    "commutation_error",
    "dci",
    "drawn_sequences",
    "encode_dataset",
    "equivariance_error",
    "error_table",
    "factor_vae_score",
    "find_switch",
    "frame_errors",
    "infer_labels",
    "infer_sequences",
    "log_likelihood",
    "match_fields",
    "match_flows",
    "mean_error",
    "mean_film_error",
    "mig",
    "ordinary_sequences",
    "path_measures",
    "proportion_interval",
    "relative_sharpness",
    "reversal_error",
    "sap",
    "score_activity",
    "solver_independence",
    "superposition_error",
    "switching_error",
    "variation_predictability",
]
