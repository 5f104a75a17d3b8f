"""Planes in latent space, onto which figures project it."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """A plane in latent space: ``origin + a axes[0] + b axes[1]``.

    Attributes:
        origin: a point of the plane, ``(D,)``; it has the coordinates (0, 0).
        axes: two orthonormal directions, ``(2, D)``.
    """

    origin: Float[Tensor, "d"]
    axes: Float[Tensor, "2 d"]

    @classmethod
    def through(cls, points: Float[Tensor, "*n d"]) -> Plane:
        """Return the plane of the first two principal components of points.

        It is the plane with the least sum of squared distances from the points; its origin is
        their mean. Each axis points to where its largest coefficient is positive, so that the
        same points give the same picture on any machine.

        Raises:
            ValueError: fewer than two points, or latents of fewer than two dimensions.

        Example:
            >>> import torch
            >>> points = torch.tensor([[0.0, 0, 1], [3, 0, 1], [0, 1, 1], [3, 1, 1]])
            >>> Plane.through(points).axes.abs()
            tensor([[1., 0., 0.],
                    [0., 1., 0.]])
        """
        flat = points.reshape(-1, points.shape[-1])
        if flat.shape[0] < 2 or flat.shape[1] < 2:
            raise ValueError(
                f"points must be at least two, of at least two dimensions; their shape is "
                f"{tuple(points.shape)}"
            )
        origin = flat.mean(0)
        # Complete, so that there is a second axis also for points on a line.
        axes = torch.linalg.svd(flat - origin, full_matrices=True)[2][:2]
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        return cls(origin, axes * torch.where(largest < 0, -1.0, 1.0))

    @classmethod
    def spanned_by(
        cls,
        first: Float[Tensor, "d"],
        second: Float[Tensor, "d"],
        origin: Float[Tensor, "d"],
    ) -> Plane:
        """Return the plane through ``origin`` along two directions, made orthonormal.

        Args:
            first: becomes the first axis, but for its length.
            second: its part orthogonal to ``first`` becomes the second axis.
            origin: the mean of trajectories, to put the plane amid them.

        Raises:
            ValueError: the directions are (nearly) parallel, or one is zero.

        Example:
            >>> import torch
            >>> east, north_east = torch.tensor([[2.0, 0.0], [5.0, 3.0]])
            >>> Plane.spanned_by(east, north_east, torch.zeros(2)).axes
            tensor([[1., 0.],
                    [0., 1.]])
        """
        a = first / first.norm()
        rest = second - (second @ a) * a
        if not bool(rest.norm() > 1e-5 * second.norm()):
            raise ValueError("the directions of a plane must be neither zero nor parallel")
        b = rest / rest.norm()
        b = b - (b @ a) * a
        return cls(origin, torch.stack([a, b / b.norm()]))

    def project(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 2"]:
        """Return the coordinates of the nearest points in the plane."""
        return (z - self.origin) @ self.axes.T

    def lift(self, coordinates: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n d"]:
        """Return the latents of coordinates in the plane."""
        return self.origin + coordinates @ self.axes

    def explained(self, points: Float[Tensor, "*n d"]) -> tuple[float, float]:
        """Return the share of the points' variance along each axis; the sum is at most 1."""
        flat = points.reshape(-1, points.shape[-1]).cpu().double()
        centred = flat - flat.mean(0)
        total = centred.square().sum()
        along = (centred @ self.axes.cpu().double().T).square().sum(0)
        share = along / total.clamp_min(1e-300)
        return float(share[0]), float(share[1])

    def matching(self, z: Float[Tensor, "*n d"]) -> Plane:
        """Return this plane in the dtype and on the device of latents.

        Raises:
            ValueError: the plane is one of another latent space.
        """
        if self.axes.shape[1] != z.shape[-1]:
            raise ValueError(
                f"the plane must lie in the space of the latents, of {z.shape[-1]} dimensions; "
                f"it has {self.axes.shape[1]}"
            )
        return Plane(self.origin.to(z), self.axes.to(z))
