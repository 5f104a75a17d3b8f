"""The trajectories of many latents in one plane, coloured by transformation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from flowfactor.diagnostics.plane import Plane
from flowfactor.diagnostics.sampling import (
    encode_images,
    evaluating,
    make_time_grid,
    select_names,
    to_numpy,
    trace_latents,
)
from flowfactor.diagnostics.style import LineStyle, line_styles, new_figure, plain_text, styled
from flowfactor.models.base import SequenceModel


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectories:
    """Trajectories of B latents under several transformations, in one plane.

    Attributes:
        plane: the plane that all are projected onto.
        explained: the share of their variance along each of its axes.
        times: in frames, ``(N,)``.
        paths: coordinates ``(N, B, 2)`` for each transformation.
    """

    plane: Plane
    explained: tuple[float, float]
    times: Float[np.ndarray, "n"]
    paths: dict[str, Float[np.ndarray, "n b 2"]]


def trajectory_data(
    model: SequenceModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    plane: Plane | None = None,
    horizon: float | None = None,
    substeps: int = 4,
) -> Trajectories:
    """Trace images under each transformation and project all paths onto one plane.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; all if not given.
        plane: default: the first two principal components of all points of all trajectories.
        horizon: the last time in frames; default: the model's.
        substeps: points per frame.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, a plane of another
            space, or a horizon that is not positive.
    """
    names = select_names(model, names)
    end = float(model.horizon if horizon is None else horizon)
    with evaluating(model):
        z0 = encode_images(model, images)
        times = make_time_grid(0.0, end, substeps).to(z0)
        latents = torch.stack([trace_latents(model, z0, name, times) for name in names])
    plane = Plane.through(latents) if plane is None else plane.matching(latents)
    paths = dict(zip(names, to_numpy(plane.project(latents)), strict=True))
    return Trajectories(plane, plane.explained(latents), to_numpy(times), paths)


def plot_trajectories(
    model: SequenceModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    plane: Plane | None = None,
    horizon: float | None = None,
    width: float = 4.6,
) -> Figure:
    """Draw the trajectories of images under each transformation in one shared plane.

    Each image is a dot, at t = 0; one line leaves it for each transformation, gets darker with
    time, and ends at the horizon with the transformation's mark.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; all if not given.
        plane: default: the first two principal components of all points of all trajectories.
        horizon: the last time in frames; default: the model's.
        width: of the figure in inches.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, a plane of another
            space, or a horizon that is not positive.
    """
    data = trajectory_data(model, images, names=names, plane=plane, horizon=horizon)
    return draw_trajectories(data, width=width)


@styled
def draw_trajectories(data: Trajectories, *, width: float = 4.6) -> Figure:
    """Draw computed trajectories; see :func:`plot_trajectories`."""
    figure = new_figure(width, 0.86 * width)
    axes = figure.subplots()
    handles = []
    for name, style in line_styles(tuple(data.paths)).items():
        _draw_fading(axes, data.paths[name], style)
        label = f"{plain_text(name, 24)}, to $t$ = {data.times[-1]:g}"
        handles.append(Line2D([], [], color=style.colour, marker=style.marker, label=label))
    starts = next(iter(data.paths.values()))[0]
    ring: dict[str, Any] = {"color": "white", "markeredgecolor": "black"}
    axes.plot(*starts.T, "o", **ring, markersize=4.5, zorder=5)
    handles.append(Line2D([], [], linestyle="none", marker="o", label="images, $t$ = 0", **ring))
    first, second = (f"{100 * share:.0f} % of variance" for share in data.explained)
    axes.set_xlabel(f"axis 1 ({first}), latent units")
    axes.set_ylabel(f"axis 2 ({second}), latent units")
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelsize=8)
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _draw_fading(axes: Axes, path: np.ndarray, style: LineStyle) -> None:
    """Draw lines from light at t = 0 to the full colour at the end."""
    pieces = np.stack([path[:-1], path[1:]], axis=2)
    strength = np.linspace(0.25, 1.0, len(pieces))[:, None]
    colours = 1 - strength * (1 - np.array(to_rgb(style.colour)))
    for i in range(path.shape[1]):
        axes.add_collection(
            LineCollection(
                list(pieces[:, i]), colors=colours, linewidths=1.2 if path.shape[1] < 30 else 0.7
            )
        )
    axes.plot(
        *path[-1].T,
        linestyle="none",
        marker=style.marker,
        color=style.colour,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=4,
    )
