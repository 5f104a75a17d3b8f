"""Flow factorized representation learning: transformations as gradient flows in latent space.

``flow(z, k, t)`` moves latents along the gradient of a potential, ``trace`` returns the whole path,
``load`` opens a trained run, ``FlowVAE`` is the model, and the potentials are the functions whose
gradients move the latents.
"""

import flowfactor.canvas  # noqa: F401  (registers its networks)
from flowfactor.checkpoints import load, save_model
from flowfactor.flow import Path
from flowfactor.hub import from_pretrained, push_to_hub, save_pretrained
from flowfactor.models import FlowVAE, Objective, PotentialModel, SequenceModel
from flowfactor.models.base import flow, trace
from flowfactor.potentials import (
    AutogradField,
    AutogradPotential,
    Derivatives,
    Hutchinson,
    IndependentPotentials,
    MLPPotential,
    Potential,
    PotentialBank,
    RidgeField,
    RidgePotential,
    VectorField,
)
from flowfactor.training import TrainingOptions, fit

__version__ = "0.1.0"

__all__ = [
    "AutogradField",
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
    "RidgeField",
    "RidgePotential",
    "SequenceModel",
    "TrainingOptions",
    "VectorField",
    "fit",
    "flow",
    "from_pretrained",
    "load",
    "push_to_hub",
    "save_model",
    "save_pretrained",
    "trace",
]
