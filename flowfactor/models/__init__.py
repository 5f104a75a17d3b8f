"""Models of image sequences; a new one is a file here and a name in MODELS."""

from flowfactor.models.autoencoder import Autoencoder
from flowfactor.models.base import NoPotentialsError, SequenceModel
from flowfactor.models.displacement import (
    DisplacementFit,
    TraversalModel,
    fit_traversals,
    mean_displacements,
)
from flowfactor.models.factor_vae import FactorVAE
from flowfactor.models.flow_vae import FlowVAE, Objective
from flowfactor.models.poflow import PoFlow, WaveObjective
from flowfactor.models.slow_vae import SlowVAE
from flowfactor.models.topographic_vae import TopographicVAE
from flowfactor.models.vae import VAE
from flowfactor.models.weak_flow_vae import WeakFlowVAE

MODELS: dict[str, type[SequenceModel]] = {
    "flow_vae": FlowVAE,
    "weak_flow_vae": WeakFlowVAE,
    "vae": VAE,
    "factor_vae": FactorVAE,
    "slow_vae": SlowVAE,
    "topographic_vae": TopographicVAE,
    "poflow": PoFlow,
}
"""The models by the name that a run saves them under; a beta-VAE is a ``vae`` with its beta."""

__all__ = [
    "MODELS",
    "VAE",
    "Autoencoder",
    "DisplacementFit",
    "FactorVAE",
    "FlowVAE",
    "NoPotentialsError",
    "Objective",
    "PoFlow",
    "SequenceModel",
    "SlowVAE",
    "TopographicVAE",
    "TraversalModel",
    "WaveObjective",
    "WeakFlowVAE",
    "fit_traversals",
    "mean_displacements",
]
