"""A small room with one object in it, ray traced: light as linear coefficients of five colours.

The pixel of a matt surface is its colour times how much light falls on it. An image is therefore

    image = sum_s map_s colour_s,   s = floor, wall, object, sky, highlight,

where the maps depend on the geometry (size and shape of the object, direction of the camera) and
not on any colour. One ray tracing of a geometry serves all colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flowfactor.data.checks import check_choice, check_range
from flowfactor.data.rendering import hue_to_rgb
from flowfactor.errors import DataError

SURFACES = ("floor", "wall", "object", "sky", "highlight")
"""What a map is the coefficient of, in the order of the maps."""

SHAPES = ("cube", "cylinder", "sphere", "capsule")
"""Shapes of the object, in the order of their index in 3D Shapes."""

_SKY, _WHITE = (0.62, 0.82, 0.93), (1.0, 1.0, 1.0)

# Lengths are in units of the room, whose floor is z = 0 and whose object stands at its origin.
_ROOM, _WALL_HEIGHT = 3.2, 1.9
_DISTANCE, _CAMERA_HEIGHT, _LOOK_AT = 2.9, 1.55, 0.6
_TAN_HALF_VIEW = 0.52
# The light comes from the front, high up, in the plane x = 0, so that views of opposite
# orientation are mirror images of each other.
_LIGHT = (0.0, -0.55, 0.835)
# Ambient and directed light of each surface; together with the highlight they stay below 1.
_FLOOR, _WALL, _OBJECT, _HIGHLIGHT = (0.5, 0.4), (0.5, 0.42), (0.42, 0.42), 0.13
_SHININESS = 24
_EPSILON = 1e-4
# Rays that are traced at a time, for an even use of memory.
_RAYS = 2**17

_Hit = tuple[Tensor, Tensor]


def render_maps(
    scale: Float[Tensor, "g"],
    shape: str,
    orientation: Float[Tensor, "g"],
    *,
    side: int = 64,
    samples: int = 4,
) -> Float[Tensor, "g 5 side side"]:
    """Return coefficient maps of geometries, each pixel the mean of ``samples`` squared rays.

    Args:
        scale: size of the object, positive; 3D Shapes has 0.75 to 1.25.
        shape: one of :data:`SHAPES`.
        orientation: direction of the camera around the object, degrees; 3D Shapes has -30 to 30.
        side: height and width of the maps.
        samples: rays along each side of a pixel.

    Raises:
        DataError: an unknown shape, a number out of range.

    Returns:
        Not negative, at most 1 in sum over the surfaces.

    Example:
        >>> import torch
        >>> maps = render_maps(torch.ones(2), "sphere", torch.tensor([0.0, 30.0]), side=16)
        >>> tuple(maps.shape), bool(maps.sum(1).max() <= 1)
        ((2, 5, 16, 16), True)
        >>> maps[0, :, 10, 8].argmax().item() == SURFACES.index("object")
        True
    """
    check_choice("shape", shape, SHAPES)
    check_range("side", side, 1)
    check_range("samples", samples, 1)
    if not bool((scale > 0).all()):
        raise DataError(f"scale must be positive, but it is {scale.tolist()}.")
    chunk = max(1, _RAYS // (side * samples) ** 2)
    parts = [
        _trace(s, shape, o, side, samples)
        for s, o in zip(scale.split(chunk), orientation.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def colour(
    maps: Float[Tensor, "b 5 h w"],
    floor: Float[Tensor, "b"],
    wall: Float[Tensor, "b"],
    object_: Float[Tensor, "b"],
) -> Float[Tensor, "b 3 h w"]:
    """Return images of coefficient maps with the given hues of the floor, the wall and the object.

    Args:
        maps: from :func:`render_maps`.
        floor: hue of the floor in turns: 0 is red, 1/3 green, 2/3 blue.
        wall: hue of the wall.
        object_: hue of the object.

    Example:
        >>> import torch
        >>> red = torch.zeros(1)
        >>> maps = render_maps(torch.ones(1), "cube", torch.zeros(1), side=8)
        >>> image = colour(maps, red + 1 / 3, red, red + 2 / 3)
        >>> image[0, :, 7, 0].argmax().item(), image[0, :, 4, 4].argmax().item()
        (1, 2)
    """
    colours = maps.new_empty(len(maps), 3, len(SURFACES))
    # The three hues are coloured in one go: each kernel counts where batches are small.
    colours[:, :, :3] = hue_to_rgb(360 * torch.stack([floor, wall, object_], 1)).mT
    colours[:, :, 3] = maps.new_tensor(_SKY)
    colours[:, :, 4] = maps.new_tensor(_WHITE)
    return torch.bmm(colours, maps.flatten(2)).reshape(len(maps), 3, *maps.shape[2:])


def _trace(scale: Tensor, shape: str, orientation: Tensor, side: int, samples: int) -> Tensor:
    origin, way = _rays(orientation, side * samples)
    size = scale[:, None, None]
    hit_object = _INTERSECTIONS[shape]
    light = way.new_tensor(_LIGHT)
    light = light / light.norm()

    to_floor = torch.where(way[..., 2] < 0, -origin[..., 2] / way[..., 2], torch.inf)
    to_wall, wall_normal = _wall(origin, way)
    to_object, normal = hit_object(origin, way, size)
    wall_top = origin[..., 2] + to_wall * way[..., 2]

    is_object = to_object < torch.minimum(to_floor, to_wall)
    is_floor = ~is_object & (to_floor < to_wall)
    is_wall = ~is_object & ~is_floor & (wall_top < _WALL_HEIGHT)

    # A point is in the object's shadow if the way from it to the light meets the object.
    point = origin + torch.where(is_floor, to_floor, 0).unsqueeze(-1) * way
    lit = hit_object(point, light.expand_as(point), size)[0].isinf()
    # Light falls off a little towards the walls, without which the floor looks like a sheet.
    fall = 1 / (1 + 0.03 * (point[..., 0] ** 2 + point[..., 1] ** 2))
    floor = (_FLOOR[0] + _FLOOR[1] * lit) * fall

    facing = (wall_normal * light).sum(-1).clamp(min=0) / 0.55
    wall = _WALL[0] + _WALL[1] * facing

    # Where a ray misses the object its normal means nothing, but must not make NaN of 0 * inf.
    towards = (normal * light).sum(-1).clamp(-1, 1)
    mirrored = 2 * towards.unsqueeze(-1) * normal - light
    gleam = (-mirrored * way).sum(-1).clamp(0, 1)
    # Half Lambert: the side away from the light still shows its roundness.
    object_ = _OBJECT[0] + _OBJECT[1] * (0.5 + 0.5 * towards) ** 1.5
    shine = _HIGHLIGHT * gleam**_SHININESS * (towards > 0)

    maps = torch.stack(
        [
            floor * is_floor,
            wall * is_wall,
            object_ * is_object,
            (~(is_object | is_floor | is_wall)).to(way.dtype),
            shine * is_object,
        ],
        dim=1,
    )
    return F.avg_pool2d(maps, samples)


def _rays(orientation: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the camera, ``(g, 1, 1, 3)``, and directions through its pixels, ``(g, h, w, 3)``."""
    angle = torch.deg2rad(orientation)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    sine, cosine = angle.sin(), angle.cos()
    origin = torch.stack([_DISTANCE * sine, -_DISTANCE * cosine, _CAMERA_HEIGHT * one], -1)
    right = torch.stack([cosine, sine, zero], -1)
    down = (_CAMERA_HEIGHT - _LOOK_AT) / math.hypot(_DISTANCE, _CAMERA_HEIGHT - _LOOK_AT)
    level = math.sqrt(1 - down**2)
    forward = torch.stack([-sine * level, cosine * level, -down * one], -1)
    up = torch.linalg.cross(right, forward)
    across = (2 * torch.arange(side, dtype=angle.dtype, device=angle.device) + 1) / side - 1
    across = across * _TAN_HALF_VIEW
    way = (
        forward[:, None, None]
        + across[None, None, :, None] * right[:, None, None]
        - across[None, :, None, None] * up[:, None, None]
    )
    return origin[:, None, None], way / way.norm(dim=-1, keepdim=True)


def _wall(origin: Tensor, way: Tensor) -> _Hit:
    """Return the walls seen from within: the nearer of the two that a ray may meet."""
    sides = torch.where(way[..., :2] > 0, _ROOM, -_ROOM)
    distance = (sides - origin[..., :2]) / way[..., :2]
    distance = torch.where(way[..., :2] == 0, torch.inf, distance)
    nearest, axis = distance.min(-1)
    along = F.one_hot(axis, 3).to(way.dtype)
    return nearest, -along * way.sign()


def _cube(origin: Tensor, way: Tensor, size: Tensor) -> _Hit:
    """Return where rays enter a cube: the last of the three pairs of planes they enter."""
    half = 0.5 * size
    relative = origin - _up(half)
    # A ray along a plane never meets it; a tiny component says so without dividing by 0.
    safe = torch.where(way.abs() < 1e-9, 1e-9, way)
    first, second = (-half[..., None] - relative) / safe, (half[..., None] - relative) / safe
    enter, axis = torch.minimum(first, second).max(-1)
    leave = torch.maximum(first, second).amin(-1)
    normal = -F.one_hot(axis, 3).to(way.dtype) * way.sign()
    return torch.where((enter < leave) & (enter > _EPSILON), enter, torch.inf), normal


def _sphere(origin: Tensor, way: Tensor, size: Tensor) -> _Hit:
    radius = 0.58 * size
    return _ball(origin, way, _up(radius), radius)


def _ball(origin: Tensor, way: Tensor, centre: Tensor, radius: Tensor) -> _Hit:
    relative = origin - centre
    b = (relative * way).sum(-1)
    root = (b**2 - (relative**2).sum(-1) + radius**2).clamp(min=-1e-12)
    distance = -b - root.clamp(min=0).sqrt()
    distance = torch.where((root > 0) & (distance > _EPSILON), distance, torch.inf)
    return distance, (relative + _finite(distance) * way) / radius[..., None]


def _tube(origin: Tensor, way: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> _Hit:
    """Return the side of an upright cylinder between two heights."""
    a = (way[..., :2] ** 2).sum(-1).clamp(min=1e-12)
    b = (origin[..., :2] * way[..., :2]).sum(-1)
    root = b**2 - a * ((origin[..., :2] ** 2).sum(-1) - radius**2)
    distance = (-b - root.clamp(min=0).sqrt()) / a
    height = origin[..., 2] + distance * way[..., 2]
    met = (root > 0) & (distance > _EPSILON) & (height > low) & (height < high)
    distance = torch.where(met, distance, torch.inf)
    point = origin + _finite(distance) * way
    flat = torch.cat([point[..., :2], torch.zeros_like(point[..., 2:])], -1)
    return distance, flat / radius[..., None]


def _cylinder(origin: Tensor, way: Tensor, size: Tensor) -> _Hit:
    radius, height = 0.5 * size, 1.0 * size
    side, side_normal = _tube(origin, way, radius, torch.zeros_like(height), height)
    # Only the top can be seen; the light of the shadow's rays comes from above too, and leaves
    # through it after having met the side, or from the floor beneath, which nobody sees.
    distance = (height - origin[..., 2]) / torch.where(way[..., 2] == 0, 1e-9, way[..., 2])
    point = origin + distance[..., None] * way
    inside = (point[..., :2] ** 2).sum(-1) < radius**2
    top = torch.where(inside & (distance > _EPSILON), distance, torch.inf)
    upwards = torch.tensor([0.0, 0.0, 1.0], dtype=way.dtype, device=way.device)
    return torch.minimum(side, top), torch.where((top < side)[..., None], upwards, side_normal)


def _capsule(origin: Tensor, way: Tensor, size: Tensor) -> _Hit:
    radius, height = 0.4 * size, 1.3 * size
    distance, normal = _tube(origin, way, radius, radius, height - radius)
    for centre in (radius, height - radius):
        other, other_normal = _ball(origin, way, _up(centre), radius)
        normal = torch.where((other < distance)[..., None], other_normal, normal)
        distance = torch.minimum(distance, other)
    return distance, normal


def _up(height: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(height), torch.zeros_like(height), height], -1)


def _finite(distance: Tensor) -> Tensor:
    return torch.where(distance.isinf(), 0, distance).unsqueeze(-1)


_INTERSECTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], _Hit]] = {
    "cube": _cube,
    "cylinder": _cylinder,
    "sphere": _sphere,
    "capsule": _capsule,
}
