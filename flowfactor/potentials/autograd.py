"""Potentials and fields given by any function or network, differentiated automatically."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.checks import check_integer, check_type, kind_of
from flowfactor.potentials.base import Potential, VectorField
from flowfactor.potentials.hutchinson import Hutchinson, LaplacianEstimate
from flowfactor.potentials.query import Quantity, Query, Time, as_time, check_latents


class AutogradPotential(Potential):
    """``u(z, t) = function(z, t)`` for a network of your own; the oracle of the closed forms.

    The gradient is one backward pass, the exact Laplacian D of them (vectorised), so that a closed
    form is several times cheaper; use this one to try a network, or to check a closed form. Where
    D is large, ``laplacian=Hutchinson(probes=P)`` estimates the Laplacian by P passes.

    Args:
        function: takes ``z (B, D)`` and ``t``, a tensor ``()`` or ``(B,)``, and returns ``(B,)``.
            Sample i of the result must depend on sample i of z only (no batch normalisation). A
            module's parameters are trained with the potential.
        dim: the latent size D.
        laplacian: how to estimate the Laplacian; None computes it exactly. The Hessian, and with
            it :meth:`log_det`, stay exact. Assign the attribute to change it, for instance the
            seed after a training step.

    Raises:
        TypeError: the function does not take ``(z, t)``.
        ValueError: it returns another shape than ``(B,)``, when it is called.

    Example:
        >>> import torch
        >>> u = AutogradPotential(lambda z, t: t * z.pow(3).sum(-1), dim=2)
        >>> u.derivatives(torch.tensor([[1.0, 2.0]]), 0.5).laplacian   # 6 t (z_1 + z_2)
        tensor([9.])
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        dim: int,
        laplacian: Hutchinson | None = None,
    ) -> None:
        super().__init__()
        _check_function(function)
        check_integer("dim", dim)
        check_type("laplacian", laplacian, (Hutchinson, type(None)), "Hutchinson(probes=P) or None")
        self.dim = dim
        self.function = function
        self.estimator = laplacian

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities by automatic differentiation, also under ``no_grad``."""
        z, time, quantities, vector = query
        known: dict[Quantity, Tensor] = {}
        for quantity in quantities:
            if quantity == "value":
                known[quantity] = self._value(z, time)
            elif quantity == "time":
                known[quantity] = self._time_derivative(z, time)
            elif quantity == "velocity":
                known[quantity] = self._gradient(z, time)
            elif quantity == "divergence":
                if self.estimator is None:
                    known[quantity] = self._laplacian(z, time)
                else:
                    known[quantity] = self._quadratic_forms(z, time, self.estimator).mean(0)
            elif quantity == "jacobian":
                known[quantity] = self._hessian(z, time)
            else:
                assert vector is not None
                (known[quantity],) = self._second_order(z, time)(vector)
        return tuple(known[quantity] for quantity in quantities)

    def estimate_laplacian(self, z: Float[Tensor, "b d"], t: Time) -> LaplacianEstimate:
        """Return the estimate of the Laplacian with its standard error, each ``(B,)``.

        Raises:
            ValueError: the potential computes its Laplacian exactly, or by a single probe, whose
                error is not known.
        """
        check_latents(z, self.dim)
        if self.estimator is None or self.estimator.probes < 2:
            raise ValueError(
                "the standard error of a Laplacian needs at least two probes; the potential has "
                f"laplacian={self.estimator}, give it laplacian=Hutchinson(probes=16)"
            )
        each = self._quadratic_forms(z, as_time(t, z), self.estimator)
        return LaplacianEstimate(each.mean(0), each.std(0) / self.estimator.probes**0.5)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of the function: those of a potential, or a module's parameters."""
        if isinstance(self.function, Potential):
            return self.function.tensors()
        return tuple(self.function.parameters()) if isinstance(self.function, nn.Module) else ()

    def _value(self, z: Tensor, t: Tensor) -> Tensor:
        value = self.function(z, t)
        if not isinstance(value, Tensor) or value.shape != z.shape[:1]:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"the function of an AutogradPotential must return a tensor (B,); it returned "
                    f"{kind_of(value)}"
                )
            hint = ": squeeze(-1) the last axis" if value.shape == (*z.shape[:1], 1) else ""
            raise ValueError(
                f"the function of an AutogradPotential returned the shape {tuple(value.shape)} "
                f"for z of shape {tuple(z.shape)}; it must return one value per sample, "
                f"({z.shape[0]},){hint}"
            )
        return value

    def _gradient(self, z: Tensor, t: Tensor) -> Tensor:
        # The samples do not interact, so the gradient of the sum is the gradient of each.
        gradient: Tensor = torch.func.grad(lambda x: self._value(x, t).sum())(z)
        return gradient

    def _time_derivative(self, z: Tensor, t: Tensor) -> Tensor:
        # One t serves many samples, so that a backward pass gives only sum_i v_i du_i/dt; that is
        # linear in v, and its gradient in v is what is wanted. Two backward passes, where forward
        # mode would ask more of a user's network.
        pulled: Any = torch.func.vjp(lambda at: self._value(z, at), t)
        value, pullback = pulled
        rate: Tensor = torch.func.grad(lambda v: pullback(v)[0].sum())(torch.ones_like(value))
        return rate

    def _hessian(self, z: Tensor, t: Tensor) -> Tensor:
        multiply = self._second_order(z, t)
        basis = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        rows: Tensor = torch.func.vmap(lambda e: multiply(e.expand_as(z))[0])(basis)
        return rows.transpose(0, 1)

    def _laplacian(self, z: Tensor, t: Tensor) -> Tensor:
        multiply = self._second_order(z, t)
        basis = torch.eye(self.dim, dtype=z.dtype, device=z.device)

        def second(direction: Tensor) -> Tensor:
            """Return ``e . Hessian e`` of every sample, for one unit vector e."""
            return _dot(multiply(direction.expand_as(z))[0], direction)

        rows: Tensor = torch.func.vmap(second)(basis)
        return rows.sum(0)

    def _quadratic_forms(self, z: Tensor, t: Tensor, estimator: Hutchinson) -> Tensor:
        """Return ``e_p . Hessian e_p``, ``(P, B)``."""
        multiply = self._second_order(z, t)
        forms: Tensor = torch.func.vmap(lambda e: _dot(multiply(e)[0], e))(estimator.draw(z))
        return forms

    def _second_order(self, z: Tensor, t: Tensor) -> Callable[[Tensor], tuple[Tensor]]:
        """Return the map from vectors ``(B, D)`` to Hessian-vector products."""
        pulled: Any = torch.func.vjp(lambda x: self._gradient(x, t), z)
        multiply: Callable[[Tensor], tuple[Tensor]] = pulled[1]
        return multiply


class AutogradField(VectorField):
    """``v(z, t) = function(z, t)`` for a function or network of your own.

    The Jacobian and its trace are D backward passes, vectorised; a product with it is two.

    Args:
        function: takes ``z (B, D)`` and ``t``, a tensor ``()`` or ``(B,)``, and returns ``(B, D)``.
            Sample i of the result must depend on sample i of z only. A module's parameters are
            trained with the field.
        dim: the latent size D.

    Raises:
        TypeError: the function does not take ``(z, t)``.
        ValueError: it returns another shape than ``(B, D)``, when it is called.

    Example:
        >>> import torch
        >>> from flowfactor import flow
        >>> from solvers import RK4
        >>> turn = AutogradField(lambda z, t: torch.stack([-z[:, 1], z[:, 0]], dim=1), dim=2)
        >>> z = torch.tensor([[1.0, 2.0]])
        >>> [round(x, 2) for x in flow(z, turn, torch.pi / 2, method=RK4(steps=8))[0].tolist()]
        [-2.0, 1.0]
        >>> turn.divergence(z, 0.0).item()
        0.0
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], dim: int) -> None:
        super().__init__()
        _check_function(function)
        check_integer("dim", dim)
        self.dim = dim
        self.function = function

    def compute(self, query: Query) -> tuple[Tensor, ...]:
        """Return the asked quantities by automatic differentiation, also under ``no_grad``."""
        z, time, quantities, vector = query
        pulled: Any = torch.func.vjp(lambda x: self._velocity(x, time), z)
        velocity, pullback = pulled
        basis = torch.eye(self.dim, dtype=z.dtype, device=z.device)

        def row(direction: Tensor) -> Tensor:
            """Return a row of every sample's Jacobian."""
            found: Tensor = pullback(direction.expand_as(z))[0]
            return found

        known: dict[Quantity, Tensor] = {}
        for quantity in quantities:
            if quantity == "velocity":
                known[quantity] = velocity
            elif quantity == "divergence":
                rows: Tensor = torch.func.vmap(lambda e: _dot(row(e), e))(basis)
                known[quantity] = rows.sum(0)
            elif quantity == "jacobian":
                rows = torch.func.vmap(row)(basis)
                known[quantity] = rows.transpose(0, 1)
            else:
                assert vector is not None
                # The pullback is linear, so that its own pullback is the product.
                twice: Any = torch.func.vjp(lambda w: pullback(w)[0], torch.zeros_like(z))
                known[quantity] = twice[1](vector)[0]
        return tuple(known[quantity] for quantity in quantities)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the parameters of the function, if it is a module."""
        return tuple(self.function.parameters()) if isinstance(self.function, nn.Module) else ()

    def _velocity(self, z: Tensor, t: Tensor) -> Tensor:
        velocity = self.function(z, t)
        if not isinstance(velocity, Tensor) or velocity.shape != z.shape:
            kind = tuple(velocity.shape) if isinstance(velocity, Tensor) else kind_of(velocity)
            raise ValueError(
                f"the function of an AutogradField must return a velocity for each latent, "
                f"{tuple(z.shape)}; it returned {kind}"
            )
        return velocity


def _check_function(function: Any) -> None:
    """Require a function that can be called with ``(z, t)``.

    Raises:
        TypeError: it takes other arguments; the message says what to do.
    """
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"function must be a function of (z, t); it is {kind_of(function)}")
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # of a builtin nothing is known
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"function must take (z, t): latents (B, D) and a time; {type(function).__name__} "
            f"takes {signature}. Write a module whose forward(z, t) calls it, for instance "
            f"network(torch.cat([z, t.expand(len(z), 1)], dim=1)).squeeze(-1)"
        ) from None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = a * b
    return product.sum(-1)
