"""Layout of small pictures beside points, so that they hide neither points nor each other."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def place_boxes(
    anchors: Float[np.ndarray, "n 2"],
    obstacles: Float[np.ndarray, "m 2"],
    size: tuple[float, float],
    area: tuple[float, float],
) -> Float[np.ndarray, "n 2"]:
    """Return a centre for the box of each anchor: near it, inside, hiding as little as possible.

    Boxes move one at a time to the best of many places around their anchors. A place costs for
    covering another box, an anchor or an obstacle, for a leader line that crosses that of another
    box or passes under it, and for its distance.

    Args:
        anchors: the points that the boxes belong to.
        obstacles: points to keep free.
        size: width and height of every box.
        area: width and height of the area, whose lower left corner is the origin.
    """
    half = np.asarray(size) / 2
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    radii = np.linspace(0.8, 3.5, 15)
    offsets = (radii[:, None, None] * ring * size).reshape(-1, 2)
    candidates = np.clip(anchors[:, None] + offsets, half + 2, np.asarray(area) - half - 2)

    def count_covered(points: np.ndarray, rim: float) -> np.ndarray:
        """Count the points under a box at each candidate, ``(n, candidates)``."""
        inside = np.abs(candidates[:, :, None] - points) < half + rim
        return np.asarray(inside.all(-1).sum(-1))

    distance = np.linalg.norm((candidates - anchors[:, None]) / size, axis=-1)
    alone = 1.2 * distance + 0.5 * count_covered(obstacles, 2) + 6.0 * count_covered(anchors, 8)
    along = np.linspace(0.0, 1.0, 12)[:, None]
    centres: np.ndarray = candidates[np.arange(len(anchors)), alone.argmin(1)]
    for _ in range(4):
        for i, anchor in enumerate(anchors):
            others = np.arange(len(anchors)) != i
            boxes, ends = centres[others], anchors[others]
            here = candidates[i]
            taken = (np.abs(here[:, None] - boxes) < 2 * half + 3).all(-1).sum(1)
            line = here[:, None] + along * (anchor - here)[:, None]
            under = (np.abs(line[:, :, None] - boxes) < half).all(-1).any(1).sum(1)
            over = np.zeros(len(here))
            for box, end in zip(boxes, ends, strict=True):
                theirs = box + along * (end - box)
                over += (np.abs(here[:, None] - theirs) < half).all(-1).any(1)
                over += _cross(here, anchor, box, end)
            cost = alone[i] + 30.0 * taken + 4.0 * under + 4.0 * over
            centres[i] = here[cost.argmin()]
    return centres


def _cross(
    starts: Float[np.ndarray, "n 2"],
    end: Float[np.ndarray, "2"],
    a: Float[np.ndarray, "2"],
    b: Float[np.ndarray, "2"],
) -> Bool[np.ndarray, "n"]:
    """Return which of the lines from ``starts`` to ``end`` cross the line from a to b."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        u, v = q - p, r - p
        return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])

    theirs: np.ndarray = side(a, b, starts) * side(a, b, end) < 0
    ours = side(starts, end, a) * side(starts, end, b) < 0
    crossing: np.ndarray = theirs & ours
    return crossing
