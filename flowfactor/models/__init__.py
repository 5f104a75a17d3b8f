"""Models of image sequences; a new one is a file here and a name in MODELS."""

from flowfactor.models.base import SequenceModel
from flowfactor.models.flow_vae import FlowVAE, Objective
from flowfactor.models.weak_flow_vae import WeakFlowVAE

MODELS: dict[str, type[FlowVAE]] = {"flow_vae": FlowVAE, "weak_flow_vae": WeakFlowVAE}

__all__ = ["MODELS", "FlowVAE", "Objective", "SequenceModel", "WeakFlowVAE"]
