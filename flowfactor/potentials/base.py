"""What moves a latent: vector fields, the potentials among them, and their algebra."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, overload

from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.potentials.query import (
    Quantity,
    Query,
    Time,
    as_step,
    as_time,
    as_vector,
    check_latents,
    log_abs_det_of_identity_plus,
)

DERIVATIVES = ("value", "time", "gradient", "laplacian")


class VectorField(nn.Module, ABC):
    r"""A function ``v(z, t)`` that moves the latent: ``dz/dt = v(z, t)``.

    A subclass has a ``dim`` and implements :meth:`compute`; the rest follows. Fields form a vector
    space: ``v + w``, ``v - w``, ``a * v``, ``v / a`` and ``-v`` are fields, evaluated at the cost
    of their terms and never by automatic differentiation. A
    :class:`~flowfactor.potentials.Potential` is a field, its gradient.

    Latents have the shape ``(B, D)`` with ``D == dim``. A time is one number for the batch or a
    tensor ``(B,)`` of one time per sample; one frame of a sequence is one unit of time.
    """

    dim: int
    size: int | None = None
    """The only size of a batch that it can be evaluated for; None: any."""
    quantities: ClassVar[dict[str, Quantity]] = {
        "velocity": "velocity",
        "divergence": "divergence",
        "jacobian": "jacobian",
        "jvp": "jvp",
    }
    """What it can be asked for, by the words that ask for it."""

    @abstractmethod
    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities in the asked order, computing nothing else.

        This is what a new field implements. Every quantity is linear in the field.
        """

    def evaluate(
        self,
        z: Float[Tensor, "b d"],
        t: Time,
        quantities: Sequence[str],
        vector: Float[Tensor, "b d"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the asked ``quantities`` in the asked order, computing nothing else.

        Every quantity is linear in the field, so that sums and mixtures add them.

        Args:
            z: latents ``(B, D)``.
            t: a number, or a tensor ``()`` or ``(B,)``.
            quantities: any of ``"velocity" (B, D)``, ``"divergence" (B,)``, ``"jacobian"
                (B, D, D)`` and ``"jvp" (B, D)``. A potential also has ``"value" (B,)`` and
                ``"time" (B,)``, and calls the others ``"gradient"``, ``"laplacian"``,
                ``"hessian"`` and ``"hvp"``, too.
            vector: ``(B, D)``, what the Jacobian is multiplied with in ``"jvp"``.

        Raises:
            ValueError: shapes that do not fit, a quantity that does not exist, or ``"jvp"`` without
                a vector.
        """
        check_latents(z, self.dim, self.size)
        for quantity in quantities:
            if quantity not in self.quantities:
                raise ValueError(
                    f"there is no quantity {quantity!r} of this field; there are "
                    f"{', '.join(self.quantities)}"
                )
        named = [self.quantities[quantity] for quantity in quantities]
        vector = as_vector(vector, z) if "jvp" in named else None
        return self.compute(Query(z, as_time(t, z), named, vector))

    def velocity(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b d"]:
        """Return ``v(z, t)``, shape ``(B, D)``."""
        return self.evaluate(z, t, ("velocity",))[0]

    def divergence(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b"]:
        """Return ``sum_i dv_i/dz_i``, the trace of the Jacobian, shape ``(B,)``.

        Along the flow the log-density falls at this rate.
        """
        return self.evaluate(z, t, ("divergence",))[0]

    def jacobian(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b d d"]:
        """Return ``dv_i/dz_j``, shape ``(B, D, D)``; :meth:`jvp` is cheaper than a product."""
        return self.evaluate(z, t, ("jacobian",))[0]

    def jvp(
        self, z: Float[Tensor, "b d"], t: Time, v: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b d"]:
        """Return the Jacobian times a vector, ``dv(z, t)/dz v``, shape ``(B, D)``.

        Raises:
            ValueError: ``v`` has another shape than ``z``.
        """
        return self.evaluate(z, t, ("jvp",), v)[0]

    def log_det(self, z: Float[Tensor, "b d"], t: Time, h: float | Tensor) -> Float[Tensor, "b"]:
        """Return ``log|det(I + h dv/dz)|``, shape ``(B,)``.

        This is the exact change of volume by the discrete Euler step ``z -> z + h v(z, t)``; its
        first order in h is h times the divergence. Minus infinity where the step folds space.

        Args:
            z: latents ``(B, D)``.
            t: a number, or a tensor ``()`` or ``(B,)``.
            h: the step, a number or a tensor ``()``; negative for a step back in time.

        Raises:
            ValueError: ``h`` is a tensor of another shape.
        """
        size = as_step(h, z)
        return log_abs_det_of_identity_plus(size * self.jacobian(z, t))

    @property
    def gradient_part(self) -> Potential:
        """The potential whose gradient the field is but for its :attr:`solenoidal_part`.

        Raises:
            ValueError: the field does not know its parts.
        """
        raise ValueError(f"the parts of a {type(self).__name__} are not known")

    @property
    def solenoidal_part(self) -> VectorField:
        """What is left without the :attr:`gradient_part`; its divergence is 0.

        Raises:
            ValueError: the field does not know its parts.
        """
        raise ValueError(f"the parts of a {type(self).__name__} are not known")

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the field depends on, for the continuous adjoint."""
        return tuple(self.parameters())

    def combine(self, terms: list[tuple[float | Tensor, VectorField]]) -> VectorField:
        """Return a linear combination in which the field takes part."""
        return CombinedFields(terms)

    # Of two fields the kind that is less special decides what their sum is.

    def __add__(self, other: VectorField) -> VectorField:
        return _combine((1.0, self), (1.0, other))

    def __radd__(self, other: object) -> VectorField:
        # sum([u, w]) starts from 0.
        if isinstance(other, (int, float)) and other == 0:
            return self
        return NotImplemented

    def __sub__(self, other: VectorField) -> VectorField:
        return _combine((1.0, self), (-1.0, other))

    def __mul__(self, factor: float | Tensor) -> VectorField:
        return _combine((factor, self))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> VectorField:
        return _combine((1.0 / divisor, self))

    def __neg__(self) -> VectorField:
        return _combine((-1.0, self))


class CombinedFields(VectorField):
    """``sum_i a_i v_i``: what the operators ``+ - *`` on fields return.

    Args:
        terms: pairs ``(a_i, v_i)`` of a factor and a field, all of the same ``dim``.

    Raises:
        ValueError: there is no term, or the fields act on latents of different sizes.

    Example:
        >>> import torch
        >>> from flowfactor import RidgeField
        >>> bank = RidgeField(("rotation", "hue"), dim=4, width=8)
        >>> both = bank["rotation"] + 0.5 * bank["hue"]
        >>> z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> expected = bank["rotation"].velocity(z, 1.0) + 0.5 * bank["hue"].velocity(z, 1.0)
        >>> torch.allclose(both.velocity(z, 1.0), expected)
        True
    """

    def __init__(self, terms: Iterable[tuple[float | Tensor, VectorField]]) -> None:
        super().__init__()
        pairs = list(terms)
        if not pairs:
            raise ValueError("a linear combination of fields needs at least one term")
        sizes = {field.dim for _, field in pairs}
        if len(sizes) > 1:
            raise ValueError(
                f"fields on latents of different sizes cannot be added: dim is "
                f"{', '.join(map(str, sorted(sizes)))}; all must act on the same latent space"
            )
        self.dim = sizes.pop()
        self.factors = [factor for factor, _ in pairs]
        self.fields = nn.ModuleList([field for _, field in pairs])

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities: every one of them is linear in the field."""
        total: list[Tensor] | None = None
        for factor, field in self.terms():
            parts = [factor * part for part in field.evaluate(*query)]
            total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
        assert total is not None
        return tuple(total)

    def log_det(self, z: Float[Tensor, "b d"], t: Time, h: float | Tensor) -> Float[Tensor, "b"]:
        """Return ``log|det(I + h dv/dz)|``; of a single term as cheaply as the term itself."""
        if len(self.factors) == 1:
            ((factor, field),) = self.terms()
            return field.log_det(z, t, as_step(h, z) * factor)
        return super().log_det(z, t, h)

    @property
    def gradient_part(self) -> Potential:
        """The combination of the terms' gradient parts."""
        parts: Any = sum(factor * field.gradient_part for factor, field in self.terms())
        return parts  # type: ignore[no-any-return]

    @property
    def solenoidal_part(self) -> VectorField:
        """The combination of the terms' solenoidal parts."""
        parts: Any = sum(factor * field.solenoidal_part for factor, field in self.terms())
        return parts  # type: ignore[no-any-return]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of all terms, and the factors that are tensors, each once."""
        found: dict[int, Tensor] = {}
        for factor, field in self.terms():
            owned = field.tensors() + ((factor,) if isinstance(factor, Tensor) else ())
            found.update((id(tensor), tensor) for tensor in owned)
        return tuple(found.values())

    def terms(self) -> list[tuple[float | Tensor, VectorField]]:
        """Return the pairs ``(a_i, v_i)``."""
        return list(zip(self.factors, self.fields, strict=True))  # type: ignore[arg-type]


def _combine(*weighted: tuple[float | Tensor, VectorField]) -> VectorField:
    """Return a flat combination, so that ``(u + w) - v`` has three terms and no nesting.

    ``NotImplemented`` is what Python expects where something else is added or multiplied.
    """
    terms: list[tuple[float | Tensor, VectorField]] = []
    for factor, field in weighted:
        if not isinstance(field, VectorField):
            return NotImplemented
        if not (
            isinstance(factor, (int, float)) or (isinstance(factor, Tensor) and factor.ndim == 0)
        ):
            return NotImplemented  # type: ignore[no-any-return]
        if isinstance(field, CombinedFields):
            terms += [(factor * inner, part) for inner, part in field.terms()]
        else:
            terms.append((factor, field))
    return terms[0][1].combine(terms)


class Derivatives(NamedTuple):
    """Everything the method needs of a potential at ``(z, t)``, from one evaluation.

    Shapes for a batch of ``B`` latents of size ``D``: ``value (B,)``, ``time (B,)`` (the partial
    derivative du/dt), ``gradient (B, D)`` and ``laplacian (B,)`` (the trace of the Hessian).
    """

    value: Float[Tensor, "b"]
    time: Float[Tensor, "b"]
    gradient: Float[Tensor, "b d"]
    laplacian: Float[Tensor, "b"]


class Potential(VectorField):
    r"""A scalar function ``u(z, t)`` whose gradient moves the latent: ``dz/dt = grad u(z, t)``.

    It is the vector field ``grad u``: its velocity is the gradient, its divergence the Laplacian,
    its Jacobian the Hessian, which is symmetric. A subclass has a ``dim`` and implements
    :meth:`compute`; the rest follows. Sums and multiples of potentials are potentials.

    Source: Song, Keller, Sebe, Welling, "Flow Factorized Representation Learning",
    NeurIPS 2023, arXiv:2309.13167.
    """

    quantities: ClassVar[dict[str, Quantity]] = {
        "value": "value",
        "time": "time",
        "gradient": "velocity",
        "laplacian": "divergence",
        "hessian": "jacobian",
        "hvp": "jvp",
        **VectorField.quantities,
    }

    def forward(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b"]:
        """Return the value ``u(z, t)``, shape ``(B,)``; a potential is called: ``u(z, t)``."""
        return self.evaluate(z, t, ("value",))[0]

    def gradient(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b d"]:
        """Return ``grad u(z, t)``, the velocity of the latent, shape ``(B, D)``."""
        return self.velocity(z, t)

    def laplacian(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b"]:
        """Return ``sum_i d2u/dz_i2``, the trace of the Hessian, shape ``(B,)``."""
        return self.divergence(z, t)

    def hessian(self, z: Float[Tensor, "b d"], t: Time) -> Float[Tensor, "b d d"]:
        """Return the matrix of second derivatives, shape ``(B, D, D)``.

        To multiply it with a vector, :meth:`hvp` is cheaper; for the determinant of an Euler step,
        :meth:`log_det`.
        """
        return self.jacobian(z, t)

    def hvp(
        self, z: Float[Tensor, "b d"], v: Float[Tensor, "b d"], t: Time
    ) -> Float[Tensor, "b d"]:
        """Return the Hessian times a vector, ``Hessian u(z, t) v``, shape ``(B, D)``.

        Along a path it is the acceleration that the bending of the potential causes: the second
        derivative of ``z_t`` is ``hvp(z, grad u, t)`` plus the time derivative of the gradient.

        Raises:
            ValueError: ``v`` has another shape than ``z``.
        """
        return self.jvp(z, t, v)

    def derivatives(self, z: Float[Tensor, "b d"], t: Time) -> Derivatives:
        """Return value, time derivative, gradient and Laplacian together."""
        return Derivatives(*self.evaluate(z, t, DERIVATIVES))

    @property
    def gradient_part(self) -> Potential:
        """The potential itself."""
        return self

    @property
    def solenoidal_part(self) -> VectorField:
        """A field at rest."""
        return ZeroPotential(self.dim)

    def combine(self, terms: list[tuple[float | Tensor, VectorField]]) -> VectorField:
        """Return a linear combination: a potential if all terms are."""
        if all(isinstance(field, Potential) for _, field in terms):
            return LinearCombination(terms)
        return super().combine(terms)

    # What the operators of fields return, as far as it is known before they run.

    @overload
    def __add__(self, other: Potential) -> Potential: ...
    @overload
    def __add__(self, other: VectorField) -> VectorField: ...
    def __add__(self, other: VectorField) -> VectorField:
        return super().__add__(other)

    def __radd__(self, other: object) -> Potential:
        result: Any = super().__radd__(other)
        return result  # type: ignore[no-any-return]

    @overload
    def __sub__(self, other: Potential) -> Potential: ...
    @overload
    def __sub__(self, other: VectorField) -> VectorField: ...
    def __sub__(self, other: VectorField) -> VectorField:
        return super().__sub__(other)

    def __mul__(self, factor: float | Tensor) -> Potential:
        result: Any = super().__mul__(factor)
        return result  # type: ignore[no-any-return]

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> Potential:
        result: Any = super().__truediv__(divisor)
        return result  # type: ignore[no-any-return]

    def __neg__(self) -> Potential:
        result: Any = super().__neg__()
        return result  # type: ignore[no-any-return]


class LinearCombination(CombinedFields, Potential):
    """``sum_i a_i u_i``: what the operators ``+ - *`` on potentials return.

    Args:
        terms: pairs ``(a_i, u_i)`` of a factor and a potential, all of the same ``dim``.

    Raises:
        ValueError: there is no term, or the potentials act on latents of different sizes.

    Example:
        >>> import torch
        >>> from flowfactor import RidgePotential
        >>> bank = RidgePotential(("rotation", "hue"), dim=4, width=8)
        >>> both = bank["rotation"] + 0.5 * bank["hue"]
        >>> z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> expected = bank["rotation"](z, 1.0) + 0.5 * bank["hue"](z, 1.0)
        >>> torch.allclose(both(z, 1.0), expected)
        True
    """

    gradient_part = Potential.gradient_part
    solenoidal_part = Potential.solenoidal_part


class ZeroPotential(Potential):
    """The potential that is 0: nothing moves.

    Args:
        dim: the latent size D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return zeros."""
        z = query.z
        shapes = {"velocity": z.shape, "jvp": z.shape, "jacobian": (*z.shape, self.dim)}
        return tuple(z.new_zeros(shapes.get(each, z.shape[:1])) for each in query.quantities)
