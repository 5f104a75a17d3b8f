"""Potentials ``u^k(z, t)``: closed forms, banks of them, and their algebra."""

from flowfactor.potentials.autograd import AutogradPotential
from flowfactor.potentials.bank import (
    Choice,
    IndependentPotentials,
    PotentialBank,
    WeightedPotentials,
)
from flowfactor.potentials.base import Derivatives, LinearCombination, Potential, Time
from flowfactor.potentials.ridge import RidgePotential

__all__ = [
    "AutogradPotential",
    "Choice",
    "Derivatives",
    "IndependentPotentials",
    "LinearCombination",
    "Potential",
    "PotentialBank",
    "RidgePotential",
    "Time",
    "WeightedPotentials",
]
