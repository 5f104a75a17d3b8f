"""Potentials ``u^k(z, t)``: closed forms, banks of them, and their algebra."""

from flowfactor.potentials.autograd import AutogradPotential
from flowfactor.potentials.bank import (
    IndependentPotentials,
    PotentialBank,
    Selector,
    WeightedPotentials,
)
from flowfactor.potentials.base import Derivatives, LinearCombination, Potential, Time
from flowfactor.potentials.hutchinson import Hutchinson, LaplacianEstimate
from flowfactor.potentials.mlp import MLPPotential
from flowfactor.potentials.ridge import RidgePotential
from flowfactor.potentials.stacked import StackedPotentials

__all__ = [
    "AutogradPotential",
    "Derivatives",
    "Hutchinson",
    "IndependentPotentials",
    "LaplacianEstimate",
    "LinearCombination",
    "MLPPotential",
    "Potential",
    "PotentialBank",
    "RidgePotential",
    "Selector",
    "StackedPotentials",
    "Time",
    "WeightedPotentials",
]
