"""The objective of flow models: registered terms over a shared context, and their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from torch import Tensor
from torch.distributions import Distribution

from flowfactor.data import SequenceBatch
from flowfactor.errors import ConfigError
from flowfactor.flow import LogDensity, Path, trace, trace_between
from flowfactor.models.autoencoder import PotentialAutoencoder
from flowfactor.options import Weight, adapter, describe
from flowfactor.potentials import VectorField
from flowfactor.priors import DiffusingPrior
from flowfactor.registries import TERMS
from flowfactor.transport import Force, trace_with_random_times
from solvers.registry import suggest

Codes = tuple[Float[Tensor, "b f d"], Float[Tensor, "b f d"]]
"""Mean and log standard deviation of ``q(z | x)`` for some frames of each sequence."""


@dataclasses.dataclass(frozen=True)
class Term:
    """What a model has to know of a term of the objective besides its function.

    Attributes:
        weight: its default weight.
        density: it reads the log-density along the path, :attr:`Context.log_det`.
        random_times: it reads :attr:`Context.between`, the path between the frames.
        potential: it needs fields that are potentials.
        evidence: it is part of the evidence by which a weakly supervised model compares flows.
        enumeration: when all flows are compared, evaluate it for ``each`` flow, ``once`` because it
            does not depend on the flow, or ``never``.
        label: its name among the terms of the loss; the registered name if empty.
    """

    weight: float = 0.0
    density: bool = False
    random_times: bool = False
    potential: bool = False
    evidence: bool = False
    enumeration: Literal["each", "once", "never"] = "each"
    label: str = ""


Cost = Callable[["Context"], Float[Tensor, "b"]]
"""A term: the cost of each sequence, in nats or squared units, before its weight."""


def term(**properties: Any) -> Callable[[Cost], Cost]:
    """Return a decorator that gives a term's function the properties of a :class:`Term`.

    Example:
        >>> from flowfactor.models import term
        >>> @term(random_times=True)
        ... def speed(context):
        ...     at = context.between
        ...     velocity = context.field.velocity(at.z[0], at.times[:, 0])
        ...     return velocity.square().sum(-1)
        >>> speed.term.random_times, speed.term.weight
        (True, 0.0)

    ``@TERMS.register("speed")`` above it makes it a key of ``model.objective``.
    """

    def decorate(cost: Cost) -> Cost:
        cost.term = Term(**properties)  # type: ignore[attr-defined]
        return cost

    return decorate


def properties_of(name: str) -> Term:
    """Return the properties of a registered term: those given by :func:`term`, or the defaults."""
    properties: Term = getattr(TERMS[name], "term", Term())
    return properties


class Objective(Mapping[str, float]):
    """The weights of the objective's terms: a mapping from all registered terms to numbers.

    Args:
        weights: of some terms; the others have their defaults. All are finite and at least 0.
        more: likewise, as keywords.

    Raises:
        ConfigError: no such term, or a weight that is not allowed.

    Example:
        >>> from flowfactor.models import Objective
        >>> objective = Objective(path_kl=0.1)
        >>> objective["path_kl"], objective["beta"], objective["initial"]
        (0.1, 1.0, 0.0)
        >>> list(objective.active)
        ['beta', 'path_kl', 'hamilton_jacobi']
    """

    def __init__(self, weights: Mapping[str, float] | None = None, **more: float) -> None:
        given = {**(weights or {}), **more}
        try:
            self._weights = _validate(given)
        except ValidationError as error:
            raise ConfigError(
                "; ".join(describe(problem, where="objective") for problem in error.errors())
            ) from None

    @property
    def active(self) -> dict[str, float]:
        """The terms whose weight is not 0, in the order in which they are computed."""
        return {name: weight for name, weight in self.items() if weight > 0}

    def replace(self, **weights: float) -> Objective:
        """Return the objective with other weights of some terms."""
        return Objective({**self._weights, **weights})

    def __getitem__(self, name: str) -> float:
        default = properties_of(name).weight
        return self._weights.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(TERMS)

    def __len__(self) -> int:
        return len(TERMS)

    def __hash__(self) -> int:
        return hash(tuple(self._weights.items()))

    def __repr__(self) -> str:
        return f"Objective({', '.join(f'{name}={weight}' for name, weight in self.items())})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """Return the schema of a section of weights."""
        return core_schema.no_info_plain_validator_function(
            cls._parse, serialization=core_schema.plain_serializer_function_ser_schema(cls._dump)
        )

    @classmethod
    def _parse(cls, value: Any) -> Objective:
        if isinstance(value, Objective):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise ValueError("expected the weights of terms, such as {path_kl: 0.1}")
        objective = cls()
        objective._weights = _validate(dict(value or {}))
        return objective

    def _dump(self) -> dict[str, float]:
        # A term of a plug-in that is not used is left out: the file can be read without it.
        return {
            name: weight
            for name, weight in self.items()
            if name in self._weights or TERMS.plugin_of(name) is None
        }


def _validate(weights: dict[str, Any]) -> dict[str, float]:
    """Return weights as numbers.

    Raises:
        ValidationError: with all unknown names and all values that are not allowed.
    """
    valid: dict[str, float] = {}
    problems: list[Any] = []
    for name, weight in weights.items():
        if name not in TERMS:
            message = f"unknown key; {suggest(name, TERMS)}"
        else:
            try:
                valid[name] = adapter(Weight).validate_python(weight)
                continue
            except ValidationError as error:
                message = describe(error.errors()[0])
        custom = PydanticCustomError("nested", "{message}", {"message": message})
        problems.append({"type": custom, "loc": (name,), "input": weight})
    if problems:
        raise ValidationError.from_exception_data("Objective", problems)
    return valid


class Context:
    """What the terms of one loss are computed from; each part is computed when first read, once.

    A batch of whole sequences on the grid is followed from frame 0 through all frames in turn. Of
    other batches every later frame is reached from the encoded one over its own interval, in the
    same number of steps whatever its length.

    Args:
        model: whose loss it is.
        batch: the sequences; their labels are ignored.
        k: the transformation of each sequence, or weights ``(B, K)`` of a mixture.
        interval_steps: steps of a fixed method over an interval; None: those of a whole sequence.
        log_density: which log-density the path has, see :func:`flowfactor.trace`. The discrete one
            follows all frames in turn, from frame 0.
        random_times: whether the path is also known between the frames.
        prior: the diffusing prior of ``path_kl``.
        force: the force of the Hamilton-Jacobi equation; None is 0.
    """

    def __init__(
        self,
        model: PotentialAutoencoder,
        batch: SequenceBatch,
        k: Int[Tensor, "b"] | Float[Tensor, "b k"],
        *,
        interval_steps: int | None = None,
        log_density: LogDensity = False,
        random_times: bool = False,
        prior: DiffusingPrior | None = None,
        force: Force | None = None,
    ) -> None:
        self.model = model
        self.batch = batch
        self.k = k
        self.interval_steps = interval_steps
        self.log_density = log_density
        self.random_times = random_times
        self.prior = prior
        self.force = force

    @cached_property
    def posterior(self) -> Distribution:
        """``q(z_s | x_s)`` of the encoded frame, the first of the batch, at its time s."""
        return self.model.encode(self.batch.frames[:, 0])

    @cached_property
    def z0(self) -> Float[Tensor, "b d"]:
        """A sample of the posterior, where the flow starts, ``(B, D)``."""
        sample: Tensor = self.posterior.rsample()
        return sample

    @cached_property
    def entropy(self) -> Float[Tensor, "b"]:
        """The entropy of the posterior, ``(B,)``."""
        entropy: Tensor = self.posterior.entropy()
        return entropy

    @cached_property
    def field(self) -> VectorField:
        """The field that each sequence follows."""
        return self.model.potentials.select(self.k)

    @cached_property
    def times(self) -> Float[Tensor, "b f"]:
        """The times of the batch's frames, in the latents' dtype."""
        return self.batch.times.to(self.z0.dtype)

    @cached_property
    def elapsed(self) -> Float[Tensor, "b n"]:
        """How far the n later frames are from the encoded one, negative before it."""
        return self.times[:, 1:] - self.times[:, :1]

    @cached_property
    def later_weights(self) -> Float[Tensor, "b n"]:
        """The weights of the later frames; 0 for the encoded frame itself."""
        return self.batch.later_weight * (self.elapsed != 0).to(self.elapsed)

    @property
    def z(self) -> Float[Tensor, "b f d"]:
        """The path at the times of the batch's frames, ``(B, F, D)``; the first is ``z0``."""
        return self._reached.z

    @property
    def log_det(self) -> Float[Tensor, "b f"]:
        """``log|det|`` of the flow from the encoded frame to each of the batch, ``(B, F)``."""
        if self._reached.log_det is None:
            raise ValueError("a term that reads the log-density needs density=True")
        return self._reached.log_det

    @property
    def between(self) -> Path:
        """Points of the path at random times between frames, with times for each sequence.

        One in each interval of a whole sequence; of other batches one on the way to each later
        frame. So ``z`` is ``(n, B, D)`` and ``times`` are ``(B, n)``.
        """
        if self._reached.between is None:
            raise ValueError("a term that reads the path between frames needs random_times=True")
        return self._reached.between

    @cached_property
    def log_likelihood(self) -> Float[Tensor, "b f"]:
        """``log p(x_t | z_t)`` of the frames that count, those of ``batch.counted``."""
        counted = self.batch.counted
        z = self.z[:, -counted.frames.shape[1] :]
        return self.model.log_likelihood(rearrange(z, "b f d -> (b f) d"), counted)

    @cached_property
    def codes(self) -> Codes:
        """Mean and log standard deviation of ``q(z | x_t)`` of the later frames, ``(B, n, D)``."""
        frames = self.batch.frames[:, 1:]
        images = rearrange(frames, "b n c h w -> (b n) c h w")
        mean, log_scale = (
            rearrange(code, "(b n) d -> b n d", b=len(frames))
            for code in self.model.posterior_parameters(images)
        )
        return mean, log_scale

    def encode_frames(
        self, places: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Return mean and log standard deviation of ``q(z | x_t)`` for one frame of each sequence.

        Args:
            places: of the frames in the batch; none of them is the first.
        """
        rows = torch.arange(len(places), device=places.device)
        if "codes" in self.__dict__:
            mean, log_scale = (code[rows, places - 1] for code in self.codes)
            return mean, log_scale
        return self.model.posterior_parameters(self.batch.frames[rows, places])

    def reach(
        self,
        z: Float[Tensor, "b d"],
        field: VectorField,
        start: Float[Tensor, "b"],
        end: Float[Tensor, "b"],
        fractions: Sequence[float] = (),
        log_density: bool = False,
    ) -> Path:
        """Follow each latent over its own interval, by the solver of the model.

        See :func:`~flowfactor.flow.trace_between`. The parts of an interval share its steps.
        """
        method = self.model.method
        steps: Any = getattr(method, "steps", None)
        if steps is not None:  # a fixed method
            whole = self.interval_steps
            if whole is None:
                whole = sum(steps) if isinstance(steps, tuple) else steps * self.batch.horizon
            each: Any = {"steps": -(-whole // (1 + len(fractions)))}
            method = dataclasses.replace(method, **each)
        return trace_between(
            z,
            field,
            start,
            end,
            method=method,
            gradient=self.model.gradient,
            log_density=log_density,
            fractions=fractions,
        )

    @cached_property
    def _reached(self) -> _Reached:
        if self.log_density == "discrete" or self.batch.is_complete:
            return self._follow_frames()
        return self._follow_intervals()

    def _follow_frames(self) -> _Reached:
        """Follow the whole sequence from frame 0, on a grid that all sequences share."""
        z0, batch = self.z0, self.batch
        solver: dict[str, Any] = {
            "method": self.model.method,
            "gradient": self.model.gradient,
            "log_density": self.log_density,
        }
        between = None
        if self.random_times:
            path, inner = trace_with_random_times(z0, self.field, batch.horizon, **solver)
            between = inner._replace(times=inner.times.expand(len(batch), -1))
        else:
            frames = torch.arange(batch.horizon + 1, dtype=z0.dtype, device=z0.device)
            path = trace(z0, self.field, frames, **solver)
        numbers = batch.times.long()
        places = numbers.unsqueeze(-1).expand(-1, -1, z0.shape[-1])
        z = rearrange(path.z, "t b d -> b t d").gather(1, places)
        log_det = None if path.log_det is None else path.log_det.mT.gather(1, numbers)
        return _Reached(z, log_det, between)

    def _follow_intervals(self) -> _Reached:
        """Follow each sequence from its encoded frame to each later one, over that interval."""
        assert isinstance(self.log_density, bool)
        z0, B, n = self.z0, len(self.batch), self.batch.times.shape[1] - 1
        if n == 0:
            raise ValueError("a flow needs a second frame of each sequence to lead to")
        start, field = z0, self.field
        if n > 1:
            start = z0.repeat_interleave(n, 0)
            field = self.model.potentials.select(self.k.repeat_interleave(n, 0))
        fractions: list[float] = []
        if self.random_times:
            # Drawn on the processor, where the solver wants to know it.
            fractions = [float(torch.rand(()).clamp(1e-3, 0.999))]
        path = self.reach(
            start,
            field,
            self.times[:, :1].expand(-1, n).reshape(-1),
            self.times[:, 1:].reshape(-1),
            fractions,
            self.log_density,
        )
        ends = rearrange(path.z[-1], "(b n) d -> b n d", n=n)
        z = torch.cat([z0.unsqueeze(1), ends], dim=1)
        log_det = between = None
        if path.log_det is not None:
            log_det = F.pad(path.log_det[-1].view(B, n), (1, 0))
        if self.random_times:
            points = rearrange(path.z[1], "(b n) d -> n b d", n=n)
            between = Path(points, None, path.times[:, 1].view(B, n), path.stats)
        return _Reached(z, log_det, between)


class _Reached(NamedTuple):
    """The path at the batch's frames, from the encoded one, and between them."""

    z: Float[Tensor, "b f d"]
    log_det: Float[Tensor, "b f"] | None
    between: Path | None
