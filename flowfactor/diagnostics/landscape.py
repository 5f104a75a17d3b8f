"""The landscape of a field's potential with the latent's decoded trajectories over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetBox, OffsetImage, TextArea, VPacker
from torch import Tensor

from flowfactor.diagnostics.label_layout import place_boxes
from flowfactor.diagnostics.plane import Plane
from flowfactor.diagnostics.sampling import (
    decode_latents,
    encode_images,
    evaluating,
    make_time_grid,
    to_numpy,
    to_pixels,
    trace_latents,
)
from flowfactor.diagnostics.style import (
    PAGE_WIDTH,
    PALETTE,
    SEQUENTIAL,
    format_number,
    new_figure,
    plain_text,
    styled,
)
from flowfactor.models.base import PotentialModel
from flowfactor.potentials import Potential, VectorField

Arrows = Literal["ascent", "descent", "none"]

_LEVEL_LINES: dict[str, Any] = {
    "colors": "white",
    "linewidths": 0.4,
    "linestyles": "solid",
    "alpha": 0.7,
}
# Of the gradient part and of the part without divergence.
_ARROWS = ("white", PALETTE[5])
_START: dict[str, Any] = {"markersize": 5, "markerfacecolor": "white", "markeredgecolor": "black"}
_FRAME: dict[str, Any] = {"color": "black", "markersize": 3}
_NOW: dict[str, Any] = {
    "markersize": 6.5,
    "markerfacecolor": PALETTE[1],
    "markeredgecolor": "white",
    "markeredgewidth": 0.8,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """The parts of a field on a grid in a plane, and trajectories projected onto the plane.

    Sizes: P panels (times of the field), G x G grid points, S times of the trajectories,
    B samples, M times of decoded images.

    Attributes:
        name: of the transformation.
        plane: the plane.
        explained: the share of the trajectories' variance along each axis of the plane.
        times: the time of each panel in frames, ``(P,)``.
        x: first coordinates of the grid in latent units, ``(G,)``.
        y: second coordinates, ``(G,)``.
        value: ``u(z, t)`` of the field's gradient part ``grad u``, which is all of it if the field
            is a potential, ``(P, G, G)``; ``value[p, i, j]`` is at ``(x[j], y[i])``.
        gradient: the in-plane components of ``grad u``, ``(P, G, G, 2)``.
        path_times: the times of the trajectories, ``(S,)``.
        path: coordinates of the trajectories, ``(S, B, 2)``.
        image_times: the times of the decoded images, ``(M,)``.
        image_points: where the decoded latents are in the plane, ``(M, B, 2)``.
        images: the decoded images, ``(M, B, C, H, W)``, in [0, 1].
        solenoidal: the in-plane components of the field's part without divergence,
            ``(P, G, G, 2)``; None if the field is a potential.
    """

    name: str
    plane: Plane
    explained: tuple[float, float]
    times: Float[np.ndarray, "p"]
    x: Float[np.ndarray, "g"]
    y: Float[np.ndarray, "g"]
    value: Float[np.ndarray, "p g g"]
    gradient: Float[np.ndarray, "p g g 2"]
    path_times: Float[np.ndarray, "s"]
    path: Float[np.ndarray, "s b 2"]
    image_times: Float[np.ndarray, "m"]
    image_points: Float[np.ndarray, "m b 2"]
    images: Float[Tensor, "m b c h w"]
    solenoidal: Float[np.ndarray, "p g g 2"] | None = None


def landscape_data(
    model: PotentialModel,
    images: Float[Tensor, "b c h w"],
    k: str | int,
    *,
    times: Sequence[float] | None = None,
    image_times: Sequence[float] | None = None,
    plane: Plane | None = None,
    resolution: int = 61,
    substeps: int = 4,
    margin: float = 0.35,
) -> Landscape:
    """Evaluate the parts of a field, ``grad u^k`` and what has no divergence, on a plane.

    The trajectories start at the posterior means of the images and run from 0 to the model's
    horizon, or to the furthest of the given times. The plane is that of their first two principal
    components and passes through their mean, so that u is shown as close to the trajectories as
    one plane can be. They are projected onto it; ``explained`` says how much of their variance
    that keeps.

    Args:
        model: any model with fields that know their parts.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        k: name or index of the transformation.
        times: of the panels, in frames; default: the first, middle and last frame.
        image_times: of the decoded images; default: as ``times`` if there are several, else the
            first, middle and last frame.
        plane: another plane, for instance :meth:`Plane.spanned_by` two directions.
        resolution: grid points along each side.
        substeps: points of a trajectory per frame.
        margin: room around the trajectories as a share of their extent.

    Raises:
        ValueError: images of another shape than the model's; no time, or a number out of range.
        KeyError, IndexError: no such transformation.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8)
        >>> data = landscape_data(model, torch.rand(2, 3, 28, 28), "hue", resolution=11)
        >>> data.value.shape, data.path.shape
        ((3, 11, 11), (33, 2, 2))
    """
    if resolution < 2:
        raise ValueError(f"resolution must be at least 2; it is {resolution}")
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0; it is {margin}")
    middle = [0.0, model.horizon / 2, float(model.horizon)]
    panels = middle if times is None else [float(t) for t in times]
    if not panels:
        raise ValueError("times is empty; a landscape needs at least one")
    if image_times is None:
        image_times = panels if len(panels) > 1 else middle
    if not np.isfinite([*panels, *image_times]).all():
        raise ValueError(f"times must be finite; they are {panels} and {list(image_times)}")
    name = model.names[model.potentials.index(k)]
    field = model.potentials[name]
    with evaluating(model):
        z0 = encode_images(model, images)
        outermost = [0.0, float(model.horizon), *panels, *image_times]
        start, end = np.floor(min(outermost)), np.ceil(max(outermost))
        path_times = make_time_grid(float(start), float(end), substeps).to(z0)
        path = trace_latents(model, z0, field, path_times)
        shown = torch.tensor(sorted(set(map(float, image_times)))).to(z0)
        decoded = trace_latents(model, z0, field, shown) if len(shown) else path[:0]
        plane = Plane.through(path) if plane is None else plane.matching(path)
        x, y = _make_window(plane.project(torch.cat([path, decoded])), resolution, margin)
        grid = plane.lift(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1))
        points = rearrange(grid, "y x d -> (y x) d")

        def arrows(part: VectorField) -> np.ndarray:
            velocities = torch.stack([part.velocity(points, t) for t in panels])
            return to_numpy(
                rearrange(velocities @ plane.axes.T, "p (y x) a -> p y x a", x=resolution)
            )

        potential = field.gradient_part
        values = torch.stack([potential(points, t) for t in panels])
        return Landscape(
            name=name,
            plane=plane,
            explained=plane.explained(path),
            times=np.asarray(panels, dtype=np.float64),
            x=to_numpy(x),
            y=to_numpy(y),
            value=to_numpy(rearrange(values, "p (y x) -> p y x", x=resolution)),
            gradient=arrows(potential),
            path_times=to_numpy(path_times),
            path=to_numpy(plane.project(path)),
            image_times=to_numpy(shown),
            image_points=to_numpy(plane.project(decoded)),
            images=decode_latents(model, decoded) if len(shown) else images[None][:0],
            solenoidal=None if isinstance(field, Potential) else arrows(field.solenoidal_part),
        )


def plot_landscape(
    model: PotentialModel,
    images: Float[Tensor, "b c h w"],
    k: str | int,
    *,
    times: Sequence[float] | None = None,
    image_times: Sequence[float] | None = None,
    plane: Plane | None = None,
    resolution: int = 61,
    arrows: Arrows = "ascent",
) -> Figure:
    """Draw the landscape of a field's potential with decoded trajectories of images over it.

    One panel for each time, because u depends on time, all on one colour scale. Colour and level
    lines are u, white arrows the in-plane part of its gradient, along which the latents move, to
    which a field that is no potential adds what the coloured arrows show, without divergence. A
    ring is t = 0, small dots are frames, the large dot is the latent at the time of its panel.

    Args:
        model: any model with fields that know their parts.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1]; one to four make a clear figure.
        k: name or index of the transformation.
        times: of the panels, in frames; default: the first, middle and last frame.
        image_times: of the decoded images: all are shown if there is one panel, else each in the
            panel of its time.
        plane: another plane than that of the trajectories' principal components.
        resolution: grid points along each side.
        arrows: ``ascent`` draws the parts of the velocity; ``descent`` draws ``-grad u``, and
            reverses the other part, too.

    Raises:
        ValueError, KeyError, IndexError: as of :func:`landscape_data`.
    """
    data = landscape_data(
        model,
        images,
        k,
        times=times,
        image_times=image_times,
        plane=plane,
        resolution=resolution,
    )
    return draw_landscape(data, arrows=arrows)


@styled
def draw_landscape(data: Landscape, *, arrows: Arrows = "ascent") -> Figure:
    """Draw computed landscapes; see :func:`plot_landscape`.

    Raises:
        ValueError: ``arrows`` is another word.
    """
    if arrows not in ("ascent", "descent", "none"):
        raise ValueError(f"arrows is {arrows!r}; it must be 'ascent', 'descent' or 'none'")
    count = len(data.times)
    columns = min(count, 3)
    rows = -(-count // columns)
    labels = 1.3
    side = (PAGE_WIDTH - labels) / columns if columns > 1 else 3.7
    figure = new_figure(side * columns + labels, (side + 0.46) * rows + 0.3)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    levels = np.linspace(data.value.min(), data.value.max(), 15)
    if not levels[-1] > levels[0]:
        # A potential that is constant on the plane still has a colour.
        levels = levels[0] + np.linspace(-1e-6, 1e-6, 15) * max(1.0, abs(levels[0]))
    meshes = []
    for place, axes in enumerate(panels.flat):
        if place >= count:
            axes.set_axis_off()
            continue
        mesh = axes.pcolormesh(
            data.x,
            data.y,
            data.value[place],
            vmin=levels[0],
            vmax=levels[-1],
            cmap=SEQUENTIAL,
            shading="gouraud",
            rasterized=True,
        )
        meshes.append(mesh)
        axes.contour(data.x, data.y, data.value[place], levels, **_LEVEL_LINES)
        axes.set_aspect("equal")
        axes.set_xlim(data.x[0], data.x[-1])
        axes.set_ylim(data.y[0], data.y[-1])
        axes.spines[["top", "right"]].set_visible(True)
        name = plain_text(data.name, 20)
        axes.set_title(f"$u$ of {name} at $t$ = {format_number(float(data.times[place]))}")
        axes.tick_params(labelsize=8)
        if arrows != "none":
            _draw_arrows(axes, data, place, -1.0 if arrows == "descent" else 1.0)
        _draw_paths(axes, data, place)
        axes.set_box_aspect(1)
    unit = ", latent units" if columns < 3 else ""
    first, second = (f"({100 * share:.0f} % of variance){unit}" for share in data.explained)
    for axes in list(panels.flat)[max(0, count - columns) : count]:
        axes.set_xlabel(f"axis 1 {first}")
        axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"axis 2 {second}")
    # Beside one row, the bar is as tall as its panel.
    beside = panels[0, -1] if rows == 1 else panels
    bar = figure.colorbar(meshes[0], ax=beside, pad=0.03, aspect=24)
    bar.set_label("$u$ (latent units$^2$ / frame)")
    bar.ax.tick_params(labelsize=8)
    _draw_legend(figure, several=count > 1, both=data.solenoidal is not None)
    figure.draw_without_rendering()
    for place, axes in enumerate(list(panels.flat)[:count]):
        visible = np.isclose(data.image_times, data.times[place]) | (count == 1)
        _draw_thumbnails(axes, data, visible, named=count == 1)
    return figure


def _draw_arrows(axes: Axes, data: Landscape, place: int, sign: float) -> None:
    """Draw arrows on a coarse grid, those of all panels on one scale."""
    size = len(data.x)
    step = max(1, round(size / (12 if len(data.times) == 1 else 9)))
    part = slice(step // 2, None, step)
    parts = [each for each in (data.gradient, data.solenoidal) if each is not None]
    arrows = sign * np.stack(parts)[:, :, part, part]
    # The longest arrows of one panel must not make those of the others invisible.
    typical = float(np.percentile(np.hypot(arrows[..., 0], arrows[..., 1]), 90))
    spacing = (data.x[-1] - data.x[0]) / (size - 1) * step
    for field, colour in zip(arrows[:, place], _ARROWS, strict=False):
        axes.quiver(
            data.x[part],
            data.y[part],
            field[..., 0],
            field[..., 1],
            color=colour,
            alpha=0.9,
            angles="xy",
            scale_units="xy",
            scale=max(typical, 1e-12) / (0.8 * spacing),
            width=0.005 if len(data.times) == 1 else 0.008,
            headwidth=3.4,
            headlength=3.8,
            headaxislength=3.4,
            minlength=0.5,
            pivot="middle" if len(parts) == 1 else "tail",
        )


def _draw_paths(axes: Axes, data: Landscape, place: int) -> None:
    halo = [patheffects.withStroke(linewidth=2.4, foreground="white")]
    whole = np.isclose(data.path_times, np.round(data.path_times))
    for path in data.path.transpose(1, 0, 2):
        axes.plot(*path.T, color="black", linewidth=1.1, path_effects=halo, zorder=3)
        axes.plot(*path[whole].T, ".", **_FRAME, zorder=4)
        axes.plot(*path[np.abs(data.path_times).argmin()], "o", **_START, zorder=5)
        if len(data.times) > 1:
            now = [np.interp(data.times[place], data.path_times, path[:, i]) for i in (0, 1)]
            axes.plot(*now, "o", **_NOW, zorder=6)


def _draw_legend(figure: Figure, *, several: bool, both: bool) -> None:
    marks = [("$t$ = 0", "o", _START), ("frames", ".", _FRAME)]
    if several:
        marks.append(("latent at the time of the panel", "o", _NOW))
    if both:
        for label, colour in zip(("gradient part", "without divergence"), _ARROWS, strict=True):
            marks.append((label, ">", {"markerfacecolor": colour, "markeredgecolor": "black"}))
    handles = [
        Line2D([], [], linestyle="none", marker=marker, label=label, **style)
        for label, marker, style in marks
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _draw_thumbnails(axes: Axes, data: Landscape, visible: np.ndarray, *, named: bool) -> None:
    """Place the decoded images near their points, where they hide no trajectory."""
    points = data.image_points[visible]
    if not points.size:
        return
    times = np.repeat(data.image_times[visible], points.shape[1])
    pictures = rearrange(data.images[torch.from_numpy(visible)], "m b c h w -> (m b) c h w")
    width, height = axes.bbox.width, axes.bbox.height
    locate = axes.transData.transform
    inches = 0.4 if named else 0.36
    size = inches * axes.figure.get_dpi()
    caption = 0.16 * axes.figure.get_dpi() if named else 0.0
    corner = np.array([axes.bbox.x0, axes.bbox.y0])
    anchors = locate(points.reshape(-1, 2)) - corner
    trail = locate(data.path.reshape(-1, 2)) - corner
    centres = place_boxes(anchors, trail, (size + 4, size + 4 + caption), (width, height))
    for anchor, centre, t, picture in zip(anchors, centres, times, pictures, strict=True):
        pixels = to_pixels(picture)
        image = OffsetImage(
            pixels, zoom=inches * 72 / max(pixels.shape[:2]), cmap="gray", interpolation="nearest"
        )
        image.image.set_clim(0, 1)
        content: OffsetBox = image
        if named:
            words = TextArea(
                f"$t$ = {format_number(float(t))}", textprops={"color": "white", "fontsize": 8}
            )
            content = VPacker(children=[image, words], align="center", pad=0, sep=1.5)
        box = AnnotationBbox(
            content,
            tuple(anchor / (width, height)),
            xybox=tuple(centre / (width, height)),
            xycoords="axes fraction",
            boxcoords="axes fraction",
            pad=0.08,
            frameon=True,
            bboxprops={"edgecolor": "white", "facecolor": "black", "linewidth": 0.8},
            arrowprops={"arrowstyle": "-", "color": "white", "linewidth": 0.8, "shrinkB": 0},
            # Under the trajectories, so that a leader line ends at the rim of a mark.
            zorder=2.5,
        )
        box.set_in_layout(False)
        axes.add_artist(box)


def _make_window(
    points: Float[Tensor, "*n 2"], resolution: int, margin: float
) -> tuple[Float[Tensor, "g"], Float[Tensor, "g"]]:
    """Return a square window around points, so that one unit is as long on both axes."""
    flat = points.reshape(-1, 2)
    low, high = flat.amin(0), flat.amax(0)
    centre = (low + high) / 2
    reach = (high - low).max().clamp_min(1e-6) * (0.5 + margin)
    steps = torch.linspace(-1, 1, resolution, dtype=points.dtype, device=points.device)
    return centre[0] + reach * steps, centre[1] + reach * steps
