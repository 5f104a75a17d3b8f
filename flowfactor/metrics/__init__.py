"""How good a model is: errors of flows, alone and composed, likelihoods, and what it rests on.

Also how well its code is disentangled, where the true factors of the images are known.
"""

from flowfactor.metrics.composition import (
    Commutation,
    commutation_error,
    reversal_error,
    superposition_error,
    switching_error,
)
from flowfactor.metrics.disentanglement import (
    DCI,
    CodeSource,
    CodeTable,
    dci,
    factor_vae_score,
    mig,
    sap,
)
from flowfactor.metrics.equivariance import (
    EquivarianceError,
    equivariance_error,
    frame_errors,
    mean_error,
)
from flowfactor.metrics.known_factors import (
    GridFactors,
    KnownFactors,
    ModelCodes,
    StartFactors,
    encode_dataset,
    known_factors,
)
from flowfactor.metrics.likelihood import log_likelihood
from flowfactor.metrics.matching import Matching, infer_labels, match_flows
from flowfactor.metrics.paths import PathMeasures, path_measures
from flowfactor.metrics.predictability import (
    ClassifierOptions,
    Predictability,
    classify_pairs,
    variation_predictability,
)
from flowfactor.metrics.solver import SolverChange, solver_independence

__all__ = [
    "DCI",
    "ClassifierOptions",
    "CodeSource",
    "CodeTable",
    "Commutation",
    "EquivarianceError",
    "GridFactors",
    "KnownFactors",
    "Matching",
    "ModelCodes",
    "PathMeasures",
    "Predictability",
    "SolverChange",
    "StartFactors",
    "classify_pairs",
    "commutation_error",
    "dci",
    "encode_dataset",
    "equivariance_error",
    "factor_vae_score",
    "frame_errors",
    "infer_labels",
    "known_factors",
    "log_likelihood",
    "match_flows",
    "mean_error",
    "mig",
    "path_measures",
    "reversal_error",
    "sap",
    "solver_independence",
    "superposition_error",
    "switching_error",
    "variation_predictability",
]
