"""How good a model is: errors of flows, alone and composed, likelihoods, and what it rests on.

Also how well its code is disentangled, where the true factors of the images are known. Functions
measure one thing; the registered classes are what :func:`flowfactor.evaluation.evaluate` runs.
"""

from flowfactor.matching import Matching, match_flows
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
from flowfactor.metrics.likelihood import LogLikelihood, log_likelihood
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
    "LogLikelihood",
    "Matching",
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
    "assignments",
    "classify_pairs",
    "closure_error",
    "commutation_error",
    "dci",
    "encode_dataset",
    "equivariance_error",
    "error_table",
    "factor_vae_score",
    "frame_errors",
    "infer_labels",
    "log_likelihood",
    "match_flows",
    "mean_error",
    "mig",
    "path_measures",
    "relative_sharpness",
    "reversal_error",
    "sap",
    "solver_independence",
    "superposition_error",
    "switching_error",
    "variation_predictability",
]
