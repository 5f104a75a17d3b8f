"""Flow factorized representation learning: transformations as gradient flows in latent space.

``flow(z, k, t)`` moves latents along the gradient of a potential, ``trace`` returns the whole path,
``load`` opens a trained run, ``FlowVAE`` is the model, and the potentials are the functions whose
gradients move the latents.
"""

from flowfactor.checkpoints import load, save_model
from flowfactor.flow import Path
from flowfactor.models import FlowVAE, Objective, PotentialModel, SequenceModel
from flowfactor.models.base import flow, trace
from flowfactor.potentials import (
    AutogradPotential,
    Derivatives,
    Hutchinson,
    IndependentPotentials,
    MLPPotential,
    Potential,
    PotentialBank,
    RidgePotential,
)
from flowfactor.training import TrainingOptions, fit

__version__ = "0.1.0"

__all__ = [
    "AutogradPotential",
    "Derivatives",
    "FlowVAE",
    "Hutchinson",
    "IndependentPotentials",
    "MLPPotential",
    "Objective",
    "Path",
    "Potential",
    "PotentialBank",
    "PotentialModel",
    "RidgePotential",
    "SequenceModel",
    "TrainingOptions",
    "fit",
    "flow",
    "load",
    "save_model",
    "trace",
]
