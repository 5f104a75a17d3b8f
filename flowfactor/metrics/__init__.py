"""How good a model is: errors of flows, alone and composed, likelihoods, and what it rests on."""

from flowfactor.metrics.composition import (
    Commutation,
    commutation_error,
    reversal_error,
    superposition_error,
    switching_error,
)
from flowfactor.metrics.equivariance import EquivarianceError, equivariance_error, mean_error
from flowfactor.metrics.likelihood import log_likelihood
from flowfactor.metrics.matching import Matching, match_flows
from flowfactor.metrics.solver import SolverChange, solver_independence

__all__ = [
    "Commutation",
    "EquivarianceError",
    "Matching",
    "SolverChange",
    "commutation_error",
    "equivariance_error",
    "log_likelihood",
    "match_flows",
    "mean_error",
    "reversal_error",
    "solver_independence",
    "superposition_error",
    "switching_error",
]
