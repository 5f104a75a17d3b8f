"""What every model of image sequences offers to training, metrics and diagnostics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution

import flowfactor.flow as flows
from flowfactor.data import SequenceBatch
from flowfactor.observation import Observation
from flowfactor.options import dump, parse
from flowfactor.potentials import Potential, PotentialBank, Selector
from solvers import Gradient, Method

ERROR_FRAMES = 7
"""The last frame of the equivariance error in the published protocol."""


class SequenceModel(nn.Module, ABC):
    """A model that encodes frame 0, moves the latent, and decodes every frame.

    A new model names its :attr:`Options`, has the constructor below, implements the abstract
    methods, and registers itself by ``@MODELS.register("name")``; see ``docs/extending.md``.

    Args:
        options: of the class :attr:`Options`.
        names: the names of the K transformations.
        image_shape: ``(C, H, W)``.
        horizon: the last frame T that the model is trained on.

    Attributes:
        Options: the class of the model's options, decorated by
            :func:`~flowfactor.options.options`: its arguments, its keys in YAML and its spec.
        supervised: whether training needs the label of every sequence.
        names, image_shape, horizon, options: as given.
        latent_dim: the size D of the latent that moves.
        observation: the model of the pixels given the decoder's output.
    """

    Options: ClassVar[type[Any]]
    supervised: ClassVar[bool] = True

    options: Any
    names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    horizon: int
    latent_dim: int
    observation: Observation

    def __init__(
        self, options: Any, names: Sequence[str], image_shape: Sequence[int], horizon: int
    ) -> None:
        super().__init__()
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1; it is {horizon}")
        channels, height, width = image_shape
        self.options = options
        self.image_shape = (int(channels), int(height), int(width))
        self.horizon = horizon

    # ---- making, saving and loading

    @classmethod
    def from_options(
        cls, options: Any, names: Sequence[str], image_shape: Sequence[int], horizon: int
    ) -> Self:
        """Return an untrained model; its weights come from torch's global generator.

        Raises:
            ValueError: options that do not fit the names, the images or the horizon.
        """
        return cls(options, names, image_shape, horizon)

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        image_shape: Sequence[int] = (3, 28, 28),
        *,
        horizon: int = 8,
        **options: Any,
    ) -> Self:
        """Return an untrained model from keywords.

        Args:
            names: of the transformations.
            image_shape: ``(C, H, W)``.
            horizon: the last frame T.
            options: fields of :attr:`Options`, sections of it as mappings.

        Raises:
            ConfigError: an unknown option, or a value that is not allowed.
            ValueError: options that do not fit the names, the images or the horizon.
        """
        return cls.from_options(parse(cls.Options, options), names, image_shape, horizon)

    def spec(self) -> dict[str, Any] | None:
        """Return plain data from which :meth:`from_spec` makes the same model, untrained.

        None if the options hold networks of your own, which plain data cannot describe.
        """
        if any(isinstance(value, nn.Module) for value in vars(self.options).values()):
            return None
        return {
            "names": list(self.names),
            "image_shape": list(self.image_shape),
            "horizon": self.horizon,
            "options": dump(self.options),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Return an untrained model from what :meth:`spec` returned."""
        options = parse(cls.Options, spec["options"])
        return cls.from_options(options, spec["names"], spec["image_shape"], spec["horizon"])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    # ---- what a model computes

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

    @abstractmethod
    def flow(
        self,
        z: Float[Tensor, "b d"],
        k: Potential | Selector,
        t: float | Sequence[float] | Tensor,
        **options: Any,
    ) -> Tensor:
        """Move latents by a transformation.

        Args:
            z: latents ``(B, D)``.
            k: the name or index of a transformation, or one index per sample ``(B,)``.
            t: a number: from time 0 to t. Or times ``(T,)``: from ``t[0]``, where the latents are
                ``z``, through all of them.
            options: of the solver, for a model that has one; see :func:`flowfactor.trace`.

        Returns:
            ``(B, D)`` for a number t, else ``(T, B, D)``, the first being ``z``.
        """

    # ---- what training asks for

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

    def on_step(self, step: int) -> None:
        """Prepare for the loss of a training step, from 0; for models with a schedule."""

    def finish(
        self, training: Iterable[SequenceBatch], validation: Iterable[SequenceBatch]
    ) -> dict[str, Any]:
        """Do what follows training, once, and return the facts worth keeping, as plain data.

        Args:
            training: complete labelled sequences that were trained on.
            validation: complete sequences that were not, labelled as far as labels exist.
        """
        return {}

    def choose(self, sequences: SequenceBatch) -> Int[Tensor, "b"]:
        """Return which flow each sequence follows: here that of its label.

        Raises:
            ValueError: a sequence has no label.
        """
        labels = sequences.labels
        if labels is None or bool((labels < 0).any()):
            raise ValueError(f"a {type(self).__name__} needs the label of every sequence")
        return labels

    @torch.no_grad()
    def measure(
        self, sequences: SequenceBatch, shown: Iterable[SequenceBatch] = ()
    ) -> dict[str, float]:
        """Return what is logged beside the validation loss: the mean equivariance error.

        Args:
            sequences: complete ones, of any transformations.
            shown: complete labelled training sequences, from which a model may learn how its
                latents move before it is measured.
        """
        sequences = sequences.to(self.device)
        z0 = self.represent(sequences.frames[:, 0])
        times = torch.arange(sequences.frames.shape[1], dtype=z0.dtype, device=z0.device)
        return {"error": self.path_error(sequences, self.flow(z0, self.choose(sequences), times))}

    @torch.no_grad()
    def path_error(self, sequences: SequenceBatch, path: Float[Tensor, "f b d"]) -> float:
        """Return ``sum_{t=1..7} sum_{channels, pixels} |x_t - decode(z_t)|``, the mean over b.

        Args:
            sequences: complete ones on the model's device; shorter ones end with their last frame.
            path: latents at the frames.
        """
        last = min(ERROR_FRAMES, sequences.horizon)
        x, z = sequences.frames[:, : last + 1], path[: last + 1]
        decoded = self.decode(rearrange(z, "f b d -> (f b) d"))
        decoded = rearrange(decoded, "(f b) c h w -> b f c h w", f=len(z))
        errors = (x - decoded).abs().flatten(2).sum(-1).double()
        return float(errors[:, 1:].sum(1).mean())


class PotentialModel(SequenceModel):
    """A model whose latents flow along the gradients of potentials.

    Attributes:
        potentials: the bank of the K potentials.
        method: the solver of the flow; the steps of a fixed method are per frame.
        gradient: how the solver is differentiated.
    """

    potentials: PotentialBank
    method: Method
    gradient: Gradient

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the transformations."""
        return self.potentials.names

    def select(self, k: Potential | Selector) -> Potential:
        """Return a potential as it is, or the one that a selector asks for."""
        return k if isinstance(k, Potential) else self.potentials.select(k)

    def flow(
        self,
        z: Float[Tensor, "b d"],
        k: Potential | Selector,
        t: float | Sequence[float] | Tensor,
        *,
        method: Method | None = None,
        gradient: Gradient | None = None,
        **options: Any,
    ) -> Tensor:
        """Move latents along the flow of a potential, by the model's solver if not another.

        Args:
            z: latents ``(B, D)``.
            k: a potential, or the name or index of a transformation, one index per sample ``(B,)``
                or weights ``(B, K)`` of a mixture.
            t: a number: from time 0 to t. Or times ``(T,)``: from ``t[0]`` through all of them.
            method: of another solver than the model's.
            gradient: of another solver than the model's.
            options: others of :func:`flowfactor.trace`.

        Returns:
            ``(B, D)`` for a number t, else ``(T, B, D)``, the first being ``z``.

        Raises:
            KeyError, IndexError: no such transformation.
            ValueError, TypeError, solvers.SolverError: as :func:`flowfactor.trace`.
        """
        solver: dict[str, Any] = {
            "method": method or self.method,
            "gradient": gradient or self.gradient,
        }
        return flows.flow(z, self.select(k), t, **solver, **options)

    def trace(
        self,
        z: Float[Tensor, "b d"],
        k: Potential | Selector,
        t: float | Sequence[float] | Tensor,
        *,
        method: Method | None = None,
        gradient: Gradient | None = None,
        **options: Any,
    ) -> flows.Path:
        """Return the whole path of :meth:`flow`, with its log-density if that is asked for."""
        solver: dict[str, Any] = {
            "method": method or self.method,
            "gradient": gradient or self.gradient,
        }
        return flows.trace(z, self.select(k), t, **solver, **options)


def flow(
    z: Float[Tensor, "b d"],
    k: Potential | Selector,
    t: float | Sequence[float] | Tensor,
    model: SequenceModel | None = None,
    **options: Any,
) -> Tensor:
    """Move latents: by a potential, or by a transformation of a model.

    Args:
        z: latents ``(B, D)``.
        k: a potential; with a model also the name or index of a transformation, one index per
            sample ``(B,)``, or weights ``(B, K)`` of a mixture of potentials.
        t: a number: from time 0 to t. Or times ``(T,)``: from ``t[0]``, where the latents are
            ``z``, through all of them. One frame is one unit of time.
        model: knows the transformations, and the solver if another is not given.
        options: method, gradient and others of :func:`flowfactor.flow.trace`.

    Returns:
        ``z_t``: ``(B, D)`` for a number t, else ``(T, B, D)``, the first being ``z``.

    Raises:
        ValueError: k is no potential and there is no model, shapes that do not match, or times
            that do not run one way.
        KeyError, IndexError: no such transformation.
        solvers.SolverError: the solver did not reach the last time.

    Example:
        >>> import torch, flowfactor
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=4, width=8)
        >>> z = torch.zeros(2, 4)
        >>> flowfactor.flow(z, "hue", [0.0, 0.5, 1.0], model).shape
        torch.Size([3, 2, 4])
        >>> both = model.potentials["rotation"] + 0.5 * model.potentials["hue"]
        >>> flowfactor.flow(z, both, 1.0).shape
        torch.Size([2, 4])
    """
    if model is None:
        return flows.flow(z, _potential(k), t, **options)
    return model.flow(z, k, t, **options)


def trace(
    z: Float[Tensor, "b d"],
    k: Potential | Selector,
    t: float | Sequence[float] | Tensor,
    model: PotentialModel | None = None,
    **options: Any,
) -> flows.Path:
    """Return the whole path of :func:`flow`, with ``log_density=True`` also its density.

    Args:
        z, k, t, options: as of :func:`flow`.
        model: one with potentials.

    Example:
        >>> import torch, flowfactor
        >>> u = flowfactor.RidgePotential(("rotation",), dim=2, width=8)["rotation"]
        >>> path = flowfactor.trace(torch.zeros(1, 2), u, [0.0, 1.0, 2.0], log_density=True)
        >>> path.z.shape, path.log_det.shape
        (torch.Size([3, 1, 2]), torch.Size([3, 1]))
    """
    if model is None:
        return flows.trace(z, _potential(k), t, **options)
    return model.trace(z, k, t, **options)


def _potential(k: Potential | Selector) -> Potential:
    if not isinstance(k, Potential):
        raise ValueError(f"k = {k!r} names a transformation of a model, but there is no model")
    return k
