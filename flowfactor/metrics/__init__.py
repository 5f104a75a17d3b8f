"""How good a model is: equivariance errors, likelihoods, independence of the solver."""

from flowfactor.metrics.equivariance import EquivarianceError, equivariance_error, mean_error
from flowfactor.metrics.likelihood import log_likelihood
from flowfactor.metrics.matching import Matching, match_flows
from flowfactor.metrics.solver import SolverChange, solver_independence

__all__ = [
    "EquivarianceError",
    "Matching",
    "SolverChange",
    "equivariance_error",
    "log_likelihood",
    "match_flows",
    "mean_error",
    "solver_independence",
]
