"""What every model of image sequences offers to training, metrics and diagnostics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from flowfactor.data import SequenceBatch
from flowfactor.flow import flow
from flowfactor.observation import Observation
from flowfactor.potentials import Potential, PotentialBank, Selector
from solvers import Gradient, Method


class NoPotentialsError(ValueError, AttributeError):
    """A model that moves its latent by a rule was asked for potentials.

    A ValueError for whoever needs them, and an AttributeError so that ``hasattr`` says no.
    """


class SequenceModel(nn.Module, ABC):
    """A model that encodes frame 0, moves the latent, and decodes every frame.

    Most have a bank of potentials along whose gradients the latent flows. The others move it by a
    rule of their own, see :class:`~flowfactor.models.TraversalModel`; they know :attr:`names` and
    :meth:`flow` as well, and asking them for ``potentials`` raises :class:`NoPotentialsError`.

    Attributes:
        potentials: the bank of the K transformations, of a model that has one.
        image_shape: ``(C, H, W)``.
        latent_dim: D.
        horizon: the last frame T that the model is trained on.
        method: the solver of its flows; ``gradient``: how it is differentiated. Both belong to the
            potentials.
        observation: the model of the pixels given the decoder's output.
    """

    potentials: PotentialBank
    image_shape: tuple[int, int, int]
    latent_dim: int
    horizon: int
    method: Method
    gradient: Gradient
    observation: Observation

    @classmethod
    def build(cls, *arguments: Any, **options: Any) -> SequenceModel:
        """Make an untrained model from plain data, as each model in ``MODELS`` describes."""
        raise NotImplementedError(f"a {cls.__name__} cannot be built from plain data")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the transformations."""
        return self.potentials.names

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return plain data from which :meth:`build` makes the same model, untrained."""

    @abstractmethod
    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the objective, weighted: their sum is to be minimised."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "b c h w"]) -> Distribution:
        """Return the posterior ``q(z_0 | x_0)``; its ``mean`` is ``(B, D)``."""

    def represent(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the latent that stands for each image, ``(B, D)``: the mean of the posterior.

        It is what flows when a model is measured and drawn.
        """
        mean: Tensor = self.encode(x).mean
        return mean

    @abstractmethod
    def decode_logits(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return the decoder's output, one logit for each pixel."""

    def decode(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return the mean of every pixel, in [0, 1]."""
        return self.observation.mean(self.decode_logits(z))

    def flow(
        self,
        z: Float[Tensor, "b d"],
        k: Potential | Selector,
        t: float | Sequence[float] | Tensor,
        **options: Any,
    ) -> Any:
        """Move latents: :func:`flowfactor.flow` with this model and its solver."""
        return flow(z, k, t, self, **options)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters in the groups of one optimiser, AdamW.

        A group may have options of its own, such as ``lr``, the peak of its learning rate, and
        ``betas``; what it does not name is as in
        :class:`~flowfactor.training.TrainingOptions`. A model with an adversary puts it into a
        group of its own, and in training mode returns its loss as one more term of :meth:`loss`:
        the adversary's loss reaches no other parameters, nor the other terms the adversary, so
        that one backward pass of the sum trains both.
        """
        return [{"params": list(self.parameters())}]

    def __getattr__(self, name: str) -> Any:
        # Reached for every module, since nn.Module keeps them in a dictionary of its own.
        if name == "potentials" and name not in self.__dict__.get("_modules", {}):
            raise NoPotentialsError(
                f"a {type(self).__name__} has no potentials: its latent moves by a rule. Move it "
                f"by model.flow(z, k, t); landscapes, superpositions and densities need a model "
                f"with potentials, such as FlowVAE or PoFlow"
            )
        return super().__getattr__(name)
