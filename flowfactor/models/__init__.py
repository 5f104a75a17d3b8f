"""Models of image sequences; a new one is a file with a class that registers itself."""

from flowfactor.models.activity_autoencoder import (
    ActivityAutoencoder,
    ActivityAutoencoderOptions,
)
from flowfactor.models.autoencoder import (
    Autoencoder,
    AutoencoderOptions,
    PotentialAutoencoder,
    PotentialOptions,
)
from flowfactor.models.base import PotentialModel, SequenceModel
from flowfactor.models.factor_vae import FactorVAE, FactorVAEOptions
from flowfactor.models.flow_vae import FlowVAE, FlowVAEOptions
from flowfactor.models.objective import Context, Objective, Term, term
from flowfactor.models.poflow import PoFlow, PoFlowOptions
from flowfactor.models.slow_vae import SlowVAE, SlowVAEOptions
from flowfactor.models.sparse_flow_vae import SparseFlowVAE, SparseFlowVAEOptions
from flowfactor.models.topographic_vae import TopographicVAE, TopographicVAEOptions
from flowfactor.models.traversal import TraversalModel, fit_traversals, mean_displacements
from flowfactor.models.unnamed_flows import UnnamedFlows
from flowfactor.models.vae import VAE, VAEOptions
from flowfactor.models.weak_flow_vae import WeakFlowVAE, WeakFlowVAEOptions
from flowfactor.registries import MODELS

__all__ = [
    "MODELS",
    "VAE",
    "ActivityAutoencoder",
    "ActivityAutoencoderOptions",
    "Autoencoder",
    "AutoencoderOptions",
    "Context",
    "FactorVAE",
    "FactorVAEOptions",
    "FlowVAE",
    "FlowVAEOptions",
    "Objective",
    "PoFlow",
    "PoFlowOptions",
    "PotentialAutoencoder",
    "PotentialModel",
    "PotentialOptions",
    "SequenceModel",
    "SlowVAE",
    "SlowVAEOptions",
    "SparseFlowVAE",
    "SparseFlowVAEOptions",
    "Term",
    "TopographicVAE",
    "TopographicVAEOptions",
    "TraversalModel",
    "UnnamedFlows",
    "VAEOptions",
    "WeakFlowVAE",
    "WeakFlowVAEOptions",
    "fit_traversals",
    "mean_displacements",
    "term",
]
