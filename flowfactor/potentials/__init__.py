"""Fields ``v^k(z, t)`` and potentials ``u^k(z, t)``: closed forms, banks, and their algebra."""

from flowfactor.potentials.autograd import AutogradField, AutogradPotential
from flowfactor.potentials.bank import (
    FieldBank,
    IndependentFields,
    IndependentPotentials,
    PotentialBank,
    Selector,
)
from flowfactor.potentials.base import (
    CombinedFields,
    Derivatives,
    LinearCombination,
    Potential,
    VectorField,
    ZeroPotential,
)
from flowfactor.potentials.hutchinson import Hutchinson, LaplacianEstimate
from flowfactor.potentials.mlp import MLPPotential
from flowfactor.potentials.query import Query, Time
from flowfactor.potentials.ridge import RidgePotential
from flowfactor.potentials.ridge_field import Parts, RidgeField
from flowfactor.potentials.stacked import StackedFields, StackedPotentials

__all__ = [
    "AutogradField",
    "AutogradPotential",
    "CombinedFields",
    "Derivatives",
    "FieldBank",
    "Hutchinson",
    "IndependentFields",
    "IndependentPotentials",
    "LaplacianEstimate",
    "LinearCombination",
    "MLPPotential",
    "Parts",
    "Potential",
    "PotentialBank",
    "Query",
    "RidgeField",
    "RidgePotential",
    "Selector",
    "StackedFields",
    "StackedPotentials",
    "Time",
    "VectorField",
    "ZeroPotential",
]
