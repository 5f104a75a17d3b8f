"""The trajectories of many latents in one plane, coloured by transformation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
    chosen_names,
    encode_means,
    evaluating,
    positions,
    time_grid,
)
from flowfactor.diagnostics.style import LineStyle, line_styles, new_figure, styled
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
        horizon: the last time in frames; default: the model's last frame.
        substeps: points per frame.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, a plane of another
            space, or a last time that is not positive.
    """
    chosen = chosen_names(model, names)
    with evaluating(model):
        z0 = encode_means(model, images)
        times = time_grid(0.0, float(model.horizon if horizon is None else horizon), substeps).to(
            z0
        )
        latents = {name: positions(model, z0, name, times) for name in chosen}
    everything = torch.stack(list(latents.values()))
    plane = Plane.through(everything) if plane is None else plane.matching(everything)
    paths = {name: np.asarray(plane.project(path).cpu()) for name, path in latents.items()}
    return Trajectories(plane, plane.explained(everything), np.asarray(times.cpu()), paths)


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
    time, and ends at the last time with the transformation's mark.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; all if not given.
        plane: default: the first two principal components of all points of all trajectories.
        horizon: the last time in frames; default: the model's last frame.
        width: of the figure in inches.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, a plane of another
            space, or a last time that is not positive.
    """
    data = trajectory_data(model, images, names=names, plane=plane, horizon=horizon)
    return draw_trajectories(data, width=width)


@styled
def draw_trajectories(data: Trajectories, *, width: float = 4.6) -> Figure:
    """Draw computed trajectories; see :func:`plot_trajectories`."""
    figure = new_figure(width, 0.86 * width)
    axes = figure.subplots()
    end = f"{data.times[-1]:g}"
    handles = []
    for (name, path), style in zip(
        data.paths.items(), line_styles(tuple(data.paths)).values(), strict=True
    ):
        _draw_fading(axes, path, style)
        handles.append(
            Line2D([], [], color=style.colour, marker=style.marker, label=f"{name}, to $t$ = {end}")
        )
    starts = next(iter(data.paths.values()))[0]
    axes.plot(*starts.T, "o", color="white", markeredgecolor="black", markersize=4.5, zorder=5)
    handles.append(
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markerfacecolor="white",
            markeredgecolor="black",
            label="images, $t$ = 0",
        )
    )
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
