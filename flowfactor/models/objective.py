"""The objective of flow models: registered terms over a shared context, and their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from torch import Tensor
from torch.distributions import Distribution

from flowfactor.data import SequenceBatch
from flowfactor.errors import ConfigError
from flowfactor.flow import LogDensity, Path, trace
from flowfactor.models.autoencoder import PotentialAutoencoder
from flowfactor.options import Weight, adapter, describe
from flowfactor.potentials import Potential
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
        evidence: it is part of the evidence by which a weakly supervised model compares flows.
        enumeration: when all flows are compared, evaluate it for ``each`` flow, ``once`` because it
            does not depend on the flow, or ``never``.
        label: its name among the terms of the loss; the registered name if empty.
    """

    weight: float = 0.0
    density: bool = False
    random_times: bool = False
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
        ...     velocity = context.potential.gradient(at.z[0], at.times[0])
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

    Args:
        model: whose loss it is.
        batch: the sequences, whose labels are not looked at.
        k: the transformation of each sequence, or weights ``(B, K)`` of a mixture.
        log_density: which log-density the path has, see :func:`flowfactor.trace`.
        random_times: whether the path is also known between the frames.
        with_start: whether frame 0 is the first frame of the batch; else it has none.
        prior: the diffusing prior of ``path_kl``.
        force: the force of the Hamilton-Jacobi equation; None is 0.
    """

    def __init__(
        self,
        model: PotentialAutoencoder,
        batch: SequenceBatch,
        k: Int[Tensor, "b"] | Float[Tensor, "b k"],
        *,
        log_density: LogDensity = False,
        random_times: bool = False,
        with_start: bool = True,
        prior: DiffusingPrior | None = None,
        force: Force | None = None,
    ) -> None:
        self.model = model
        self.batch = batch
        self.k = k
        self.log_density = log_density
        self.random_times = random_times
        self.later = slice(1 if with_start else 0, None)
        """The frames of the batch after frame 0."""
        self.prior = prior
        self.force = force

    @cached_property
    def posterior(self) -> Distribution:
        """``q(z_0 | x_0)``."""
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
    def potential(self) -> Potential:
        """The potential that each sequence follows."""
        return self.model.potentials.select(self.k)

    @cached_property
    def _paths(self) -> tuple[Path, Path | None]:
        z0, horizon = self.z0, self.batch.horizon
        solver: dict[str, Any] = {
            "method": self.model.method,
            "gradient": self.model.gradient,
            "log_density": self.log_density,
        }
        if self.random_times:
            return trace_with_random_times(z0, self.potential, horizon, **solver)
        frames = torch.arange(horizon + 1, dtype=z0.dtype, device=z0.device)
        return trace(z0, self.potential, frames, **solver), None

    @property
    def path(self) -> Path:
        """The path of ``z0`` at the times 0..T."""
        return self._paths[0]

    @property
    def between(self) -> Path:
        """The path at one random time in each interval between frames."""
        between = self._paths[1]
        if between is None:
            raise ValueError("a term that reads the path between frames needs random_times=True")
        return between

    @cached_property
    def z(self) -> Float[Tensor, "b f d"]:
        """The path at the times of the batch's frames, ``(B, F, D)``."""
        places = self.batch.times.unsqueeze(-1).expand(-1, -1, self.path.z.shape[-1])
        return rearrange(self.path.z, "t b d -> b t d").gather(1, places)

    @cached_property
    def log_det(self) -> Float[Tensor, "b f"]:
        """``log|det|`` of the path at the times of the batch's frames, ``(B, F)``."""
        if self.path.log_det is None:
            raise ValueError("a term that reads the log-density needs density=True")
        return self.path.log_det.mT.gather(1, self.batch.times)

    @cached_property
    def log_likelihood(self) -> Float[Tensor, "b f"]:
        """``log p(x_t | z_t)`` of the batch's frames, ``(B, F)``."""
        return self.model.log_likelihood(rearrange(self.z, "b f d -> (b f) d"), self.batch)

    @cached_property
    def codes(self) -> Codes:
        """Mean and log standard deviation of ``q(z | x_t)`` of the frames after frame 0."""
        frames = self.batch.frames[:, self.later]
        images = rearrange(frames, "b f c h w -> (b f) c h w")
        mean, log_scale = (
            rearrange(code, "(b f) d -> b f d", b=len(frames))
            for code in self.model.posterior_parameters(images)
        )
        return mean, log_scale

    def encode_frames(
        self, places: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Return mean and log standard deviation of ``q(z | x_t)`` for one frame of each sequence.

        Args:
            places: of the frames in the batch; none of them is frame 0.
        """
        rows = torch.arange(len(places), device=places.device)
        if "codes" in self.__dict__:
            mean, log_scale = (code[rows, places - self.later.start] for code in self.codes)
            return mean, log_scale
        return self.model.posterior_parameters(self.batch.frames[rows, places])
