"""What every model of image sequences offers to training, metrics and diagnostics."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Self

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution

import flowfactor.flow as flows
from flowfactor.checks import (
    brief,
    check_integer,
    check_names,
    check_tensor,
    check_times,
    check_type,
    kind_of,
)
from flowfactor.data import SequenceBatch, SequenceDataset
from flowfactor.errors import ConfigError
from flowfactor.observation import Observation
from flowfactor.options import dump, parse
from flowfactor.potentials import FieldBank, Selector, VectorField
from solvers import Direct, Gradient, Method

ERROR_FRAMES = 7
"""The last frame of the equivariance error in the published protocol."""

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusted_arguments() -> Iterator[None]:
    """Let models trust their arguments in this context, as they do where they call themselves.

    For training steps, whose batches come from a data set that has checked them.
    """
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


class SequenceModel(nn.Module, ABC):
    """A model that encodes frame 0, moves the latent, and decodes every frame.

    A new model names its :attr:`Options`, has the constructor below, implements the abstract
    methods, and registers itself by ``@MODELS.register("name")``; see ``docs/extending.md``.

    Images, latents, times and batches are checked where they enter, whichever class implements the
    method: :meth:`encode` of pixels from 0 to 255, for instance, raises a :class:`ValueError` that
    says so. A model that calls its own methods is not checked again.

    Args:
        options: of the class :attr:`Options`.
        names: the names of the K transformations.
        image_shape: ``(C, H, W)``.
        horizon: the last frame T that the model is trained on.

    Attributes:
        Options: the class of the model's options, decorated by
            :func:`~flowfactor.options.options`: its arguments, its keys in YAML and its spec.
        supervised: whether training needs the label of every sequence.
        needs_all_frames: whether the loss takes whole sequences only.
        encodes_any_frame: whether the loss takes sequences of which another frame than frame 0 is
            the first, and is encoded.
        real_times: whether the loss takes frames at any times; else at 0, 1, 2, ... only.
        names, image_shape, horizon, options: as given.
        latent_dim: the size D of the latent that moves.
        observation: the model of the pixels given the decoder's output.
    """

    Options: ClassVar[type[Any]]
    supervised: ClassVar[bool] = True
    needs_all_frames: ClassVar[bool] = False
    encodes_any_frame: bool = False
    real_times: bool = False

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
        check_sizes(names, image_shape, horizon)
        channels, height, width = image_shape
        self.options = options
        self.image_shape = (int(channels), int(height), int(width))
        self.horizon = int(horizon)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_arguments(cls)

    # ---- making, saving and loading

    @classmethod
    def from_options(
        cls, options: Any, names: Sequence[str], image_shape: Sequence[int], horizon: int
    ) -> Self:
        """Return an untrained model; its weights come from torch's global generator.

        Raises:
            ValueError: options that do not fit the names, the images or the horizon.
        """
        check_sizes(names, image_shape, horizon)
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

    def inherit(
        self, weights: Mapping[str, Tensor], names: tuple[str, ...] | None
    ) -> dict[str, Tensor]:
        """Return which weights of another model this one begins with: of the same name and shape.

        A model whose flows get their names from the data takes those of the other one.

        Args:
            weights: of the other model, by name.
            names: of its flows; None if they are not known.

        Raises:
            ConfigError: they are not those of this model.
        """
        if names is not None and names != self.names:
            raise ConfigError(
                f"its transformations are {brief(names)}, those of this model "
                f"{brief(self.names)}; they must be the same, in the same order"
            )
        return self._fitting(weights)

    def _fitting(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mine = {k: v for k, v in self.state_dict().items() if isinstance(v, Tensor)}
        return {
            name: weight
            for name, weight in weights.items()
            if name in mine and getattr(weight, "shape", None) == mine[name].shape
        }

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def match_precision(self, data: SequenceDataset) -> SequenceDataset:
        """Return the data set with its frames in the model's precision, at least float32."""
        like = self._parameter()
        return data if like is None else data.in_dtype(torch.promote_types(like.dtype, torch.float))

    # ---- what a model takes

    def check_images(self, x: Any, *, values: bool = True) -> None:
        """Require images ``(B, C, H, W)`` in [0, 1], of the dtype and device of the parameters.

        Args:
            x: the images.
            values: whether to look at the pixels.

        Raises:
            TypeError: no tensor, or another dtype.
            ValueError: another shape or device, pixels that are not finite or not in [0, 1].
        """
        shape = ("B", *self.image_shape)
        check_tensor("x", x, shape, self._parameter(), pixels=True, values=values)

    def check_latents(self, z: Any, *, values: bool = True) -> None:
        """Require latents ``(B, D)``, finite, of the dtype and device of the parameters.

        Args:
            z: the latents.
            values: whether to look at them.

        Raises:
            TypeError: no tensor, or another dtype.
            ValueError: another shape or device, latents that are not finite.
        """
        check_tensor("z", z, ("B", self.latent_dim), self._parameter(), values=values)

    def check_sequences(
        self, sequences: Any, *, values: bool = True, anywhere: bool = False
    ) -> None:
        """Require a batch of sequences whose frames the model takes, see :meth:`check_images`.

        Args:
            sequences: the batch.
            values: whether to look at the pixels, times and labels.
            anywhere: whether the batch may be on another device than the model.

        Raises:
            TypeError: no :class:`~flowfactor.data.SequenceBatch`, or another dtype.
            ValueError: shapes, devices or values that do not fit.
        """
        wanted = "a SequenceBatch, see SequenceBatch.full(frames, labels)"
        check_type("sequences", sequences, SequenceBatch, wanted)
        frames, times, labels = sequences.frames, sequences.times, sequences.labels
        shape = ("B", "F", *self.image_shape)
        like = self._parameter()
        if anywhere and like is not None and isinstance(frames, Tensor):
            like = torch.empty((), dtype=like.dtype, device=frames.device)
        check_tensor("sequences.frames", frames, shape, like, pixels=True, values=values)
        kinds = {"times": (times, frames.shape[:2], "numbers")}
        if labels is not None:
            kinds["labels"] = (labels, frames.shape[:1], "integers")
        for name, (tensor, sizes, kind) in kinds.items():
            fits = isinstance(tensor, Tensor) and not (
                tensor.is_complex()
                or tensor.dtype == torch.bool
                or (tensor.is_floating_point() and kind == "integers")
            )
            if not fits or tensor.shape != sizes or tensor.device != frames.device:
                raise ValueError(
                    f"sequences.{name} must be {kind} {tuple(sizes)} on {frames.device}; it is "
                    f"{kind_of(tensor)}"
                )
        if not values:
            return
        last = self.known_labels - 1
        if labels is not None and not -1 <= int(labels.min()) <= int(labels.max()) <= last:
            raise ValueError(
                f"sequences.labels must be in 0..{last}; they are in "
                f"{int(labels.min())}..{int(labels.max())}"
            )
        self._check_times(times, sequences.horizon)

    def _check_times(self, times: Tensor, horizon: int) -> None:
        """Require times of frames that the model takes."""
        kind = type(self).__name__
        if not bool(times.isfinite().all()) or float(times.min()) < 0:
            raise ValueError("sequences.times must be finite and at least 0")
        if not self.real_times and bool(((times != times.round()) | (times > horizon)).any()):
            raise ValueError(
                f"sequences.times must be whole numbers in 0..{horizon}: a {kind} knows frames at "
                f"a constant rate only"
            )
        if not self.encodes_any_frame and bool((times[:, 0] != 0).any()):
            raise ValueError(f"sequences.times must begin with 0: a {kind} encodes frame 0")

    @property
    def known_labels(self) -> int:
        """How many transformations the labels of sequences may name."""
        return len(self.names)

    def check_data(self, data: Any, name: str = "data", *, names: bool = True) -> None:
        """Require a data set with the transformations and the image shape of the model.

        Args:
            data: the data set.
            name: of the argument.
            names: whether the transformations must be the model's. Flows to spare, which weak
                supervision may leave, come last.

        Raises:
            TypeError: no data set.
            ValueError: other transformations, images of another shape, or frames that are not at
                a constant rate and should be.
        """
        check_type(name, data, SequenceDataset)
        self.check_rate(data, name)
        known = self.names if self.supervised else self.names[: len(data.names)]
        if names and data.names != known:
            raise ValueError(
                f"{name}: its transformations are {brief(data.names)}, those of the model "
                f"{brief(self.names)}; they must be the same, in the same order"
            )
        if tuple(data.image_shape) != self.image_shape:
            raise ValueError(
                f"{name}: its image_shape is {tuple(data.image_shape)}, the model takes "
                f"{self.image_shape}"
            )

    def check_rate(self, data: SequenceDataset, name: str = "data") -> None:
        """Require frames at a constant rate, unless the model takes them at any times.

        Raises:
            ConfigError: the frames of the data have times of their own.
        """
        if not (data.is_regular or self.real_times):
            raise ConfigError(
                f"{name}: its frames have times of their own (data.times or data.stamps), but a "
                f"{type(self).__name__} knows frames at a constant rate only"
            )

    def _parameter(self) -> Tensor | None:
        """Return the first parameter of floating-point numbers, which has dtype and device."""
        return next((p for p in self.parameters() if p.is_floating_point()), None)

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
        k: VectorField | Selector,
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
        :class:`~flowfactor.training.TrainingOptions`. With a ``span``, two training steps, its
        learning rate falls to 0 between them, and not between the first and the last one. A model
        with an adversary puts it into a group of its own, and in training mode returns its loss as
        one more term of :meth:`loss`: the adversary's loss reaches no other parameters, nor the
        other terms the adversary, so that one backward pass of the sum trains both.
        """
        return [{"params": list(self.parameters())}]

    @property
    def schedule_steps(self) -> int:
        """Steps of a training before all of the model learns; more than 0 if it has a schedule."""
        return 0

    def on_step(self, step: int) -> None:
        """Prepare for the loss of a training step, from 0; for models with a schedule."""

    @property
    def first_step(self) -> int:
        """Step in which the present weights began; the optimiser and its warm-up do so there."""
        return 0

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
        path = self.flow(z0, self.choose(sequences), sequences.shared_times.to(z0))
        return {"error": self.path_error(sequences, path)}

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
        errors = (x - decoded).abs().flatten(2).sum(-1).cpu().double()
        return float(errors[:, 1:].sum(1).mean())


def check_sizes(names: Any, image_shape: Any, horizon: Any) -> None:
    """Require what a model is made of: names, the shape of an image, and a horizon.

    Raises:
        TypeError, ValueError: the message names the argument and says what is allowed.
    """
    check_names("names", names)
    sizes = list(image_shape) if isinstance(image_shape, Sequence) else []
    if len(sizes) != 3 or not all(
        hasattr(size, "__index__") and not isinstance(size, bool) and size > 0 for size in sizes
    ):
        shown = f"{sizes}"[:80] if sizes else kind_of(image_shape)
        raise ValueError(f"image_shape must be (C, H, W), three positive integers; it is {shown}")
    check_integer("horizon", horizon)


def _check_flow(model: SequenceModel, z: Any, k: Any, t: Any) -> None:
    model.check_latents(z)
    if isinstance(k, Tensor) and k.is_floating_point() and isinstance(model, PotentialModel):
        check_tensor("k", k, (len(z), len(model.names)), model._parameter())
    check_times(
        t, ordered=isinstance(model, PotentialModel), each=isinstance(model, PotentialModel)
    )


# What a method's first arguments must be, whichever class implements it.
_DOORS: dict[str, tuple[int, Callable[..., None]]] = {
    "encode": (1, lambda model, x: model.check_images(x)),
    "represent": (1, lambda model, x: model.check_images(x)),
    "decode_logits": (1, lambda model, z: model.check_latents(z)),
    "decode": (1, lambda model, z: model.check_latents(z)),
    "flow": (3, _check_flow),
    "trace": (3, _check_flow),
    "loss": (1, lambda model, sequences: model.check_sequences(sequences)),
    "choose": (1, lambda model, sequences: model.check_sequences(sequences)),
}


def _check_arguments(cls: type[Any]) -> None:
    """Let the methods that a class implements check their arguments when others call them."""
    for name, (count, check) in _DOORS.items():
        method = vars(cls).get(name)
        if inspect.isfunction(method):
            setattr(cls, name, _checked(method, count, check))


def _checked(method: Any, count: int, check: Callable[..., None]) -> Any:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def checked(self: SequenceModel, *args: Any, **kwargs: Any) -> Any:
        if _trusted.get() or torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        given = list(signature.bind(self, *args, **kwargs).arguments.values())
        check(*given[: 1 + count])
        with trusted_arguments():
            return method(self, *args, **kwargs)

    return checked


_check_arguments(SequenceModel)


class PotentialModel(SequenceModel):
    """A model whose latents flow along fields, such as the gradients of potentials.

    Attributes:
        potentials: the bank of the K fields.
        method: the solver of the flow; the steps of a fixed method are per frame.
        gradient: how the solver is differentiated.
    """

    potentials: FieldBank[VectorField]
    method: Method
    gradient: Gradient

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the transformations."""
        return self.potentials.names

    def select(self, k: VectorField | Selector) -> VectorField:
        """Return a field as it is, or the one that a selector asks for."""
        if isinstance(k, int | str | Tensor):
            return self.potentials.select(k)
        return _field(k)

    def flow(
        self,
        z: Float[Tensor, "b d"],
        k: VectorField | Selector,
        t: float | Sequence[float] | Tensor,
        *,
        method: Method | None = None,
        gradient: Gradient | None = None,
        **options: Any,
    ) -> Tensor:
        """Move latents along the flow of a field, by the model's solver if not another.

        Args:
            z: latents ``(B, D)``.
            k: a field, or the name or index of a transformation, one index per sample ``(B,)``
                or weights ``(B, K)`` of a mixture.
            t: a number: from time 0 to t. Or times ``(T,)``: from ``t[0]`` through all of them;
                ``(B, T)`` are those of each latent, see :func:`flowfactor.trace`.
            method: of another solver than the model's.
            gradient: of another solver than the model's.
            options: others of :func:`flowfactor.trace`.

        Returns:
            ``(B, D)`` for a number t, else ``(T, B, D)``, the first being ``z``.

        Raises:
            KeyError, IndexError: no such transformation.
            ValueError, TypeError, solvers.SolverError: as :func:`flowfactor.trace`.
        """
        solver = self._solver(t, method, gradient)
        return flows.flow(z, self.select(k), t, **solver, **options)

    def trace(
        self,
        z: Float[Tensor, "b d"],
        k: VectorField | Selector,
        t: float | Sequence[float] | Tensor,
        *,
        method: Method | None = None,
        gradient: Gradient | None = None,
        **options: Any,
    ) -> flows.Path:
        """Return the whole path of :meth:`flow`, with its log-density if that is asked for."""
        solver = self._solver(t, method, gradient)
        return flows.trace(z, self.select(k), t, **solver, **options)

    def _solver(self, t: Any, method: Method | None, gradient: Gradient | None) -> dict[str, Any]:
        """Return the solver's options; times of each latent need its direct gradient."""
        own = isinstance(t, Tensor) and t.ndim == 2
        usual = Direct() if own else self.gradient
        return {"method": method or self.method, "gradient": gradient or usual}


def flow(
    z: Float[Tensor, "b d"],
    k: VectorField | Selector,
    t: float | Sequence[float] | Tensor,
    model: SequenceModel | None = None,
    **options: Any,
) -> Tensor:
    """Move latents: by a field, or by a transformation of a model.

    Args:
        z: latents ``(B, D)``.
        k: a field, such as a potential; with a model also the name or index of a transformation,
            one index per sample ``(B,)``, or weights ``(B, K)`` of a mixture of fields.
        t: a number: from time 0 to t. Or times ``(T,)``: from ``t[0]``, where the latents are
            ``z``, through all of them. One frame is one unit of time.
        model: knows the transformations, and the solver if another is not given.
        options: method, gradient and others of :func:`flowfactor.flow.trace`.

    Returns:
        ``z_t``: ``(B, D)`` for a number t, else ``(T, B, D)``, the first being ``z``.

    Raises:
        ValueError: k is no field and there is no model, shapes that do not match, or times
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
        return flows.flow(*_check_field_flow(z, k, t), **options)
    check_type("model", model, SequenceModel)
    return model.flow(z, k, t, **options)


def trace(
    z: Float[Tensor, "b d"],
    k: VectorField | Selector,
    t: float | Sequence[float] | Tensor,
    model: PotentialModel | None = None,
    **options: Any,
) -> flows.Path:
    """Return the whole path of :func:`flow`, with ``log_density=True`` also its density.

    Args:
        z, k, t, options: as of :func:`flow`.
        model: one with fields.

    Example:
        >>> import torch, flowfactor
        >>> u = flowfactor.RidgePotential(("rotation",), dim=2, width=8)["rotation"]
        >>> path = flowfactor.trace(torch.zeros(1, 2), u, [0.0, 1.0, 2.0], log_density=True)
        >>> path.z.shape, path.log_det.shape
        (torch.Size([3, 1, 2]), torch.Size([3, 1]))
    """
    if model is None:
        return flows.trace(*_check_field_flow(z, k, t), **options)
    check_type("model", model, PotentialModel, "a model with potentials")
    return model.trace(z, k, t, **options)


def _check_field_flow(z: Any, k: Any, t: Any) -> tuple[Tensor, VectorField, Any]:
    """Return the arguments of a flow without a model, after checking them."""
    if isinstance(k, int | str | Tensor):
        raise ValueError(
            f"k is {kind_of(k)}, a transformation of a model, but there is no model: "
            f"flow(z, k, t, model)"
        )
    field = _field(k)
    like = next((p for p in field.tensors() if p.is_floating_point() and p.ndim), None)
    check_tensor("z", z, ("B", field.dim), like)
    check_times(t, each=True)
    return z, field, t


def _field(k: Any) -> VectorField:
    """Return a field as it is.

    Raises:
        TypeError: it is something else; the message says how to make a field of it.
    """
    if isinstance(k, VectorField):
        return k
    hint = ""
    if isinstance(k, FieldBank | SequenceModel):
        names = k.names
        hint = f": choose one of its transformations, {', '.join(map(repr, names[:5]))}"
    elif callable(k) and not isinstance(k, type):
        hint = ": make one of a function u(z, t) by AutogradPotential(function, dim=D)"
    elif isinstance(k, Sequence):
        hint = ": one index per sample is a tensor, torch.tensor(k)"
    raise TypeError(
        f"k must be a field, or with a model the name or index of a transformation; it is "
        f"{kind_of(k)}{hint}"
    )
