"""How good a model is: equivariance errors, likelihoods, independence of the solver."""

from flowfactor.metrics.equivariance import EquivarianceError, equivariance_error, mean_error
from flowfactor.metrics.likelihood import log_likelihood
from flowfactor.metrics.solver import SolverChange, solver_independence

__all__ = [
    "EquivarianceError",
    "SolverChange",
    "equivariance_error",
    "log_likelihood",
    "mean_error",
    "solver_independence",
]
