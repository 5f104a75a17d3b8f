"""How far the flows are from optimal transport: Hamilton-Jacobi residual, energy, straightness."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flowfactor.diagnostics.sampling import (
    encode_images,
    evaluating,
    make_time_grid,
    select_names,
    to_numpy,
)
from flowfactor.diagnostics.style import (
    PAGE_WIDTH,
    LineStyle,
    draw_grid,
    line_styles,
    new_figure,
    plain_text,
    styled,
)
from flowfactor.models.base import PotentialModel
from flowfactor.potentials import Potential
from flowfactor.transport import along_path, straightness


@dataclasses.dataclass(frozen=True, eq=False)
class TransportCurves:
    """Transport terms of B latents at N times along the flow of one transformation.

    Attributes:
        times: in frames, ``(N,)``.
        residual: ``du/dt + 1/2 ||grad u||^2 - f`` in latent units^2 / frame^2, ``(N, B)``.
        energy: ``1/2 ||grad u||^2`` in latent units^2 / frame^2, ``(N, B)``.
        speed: ``||dz/dt|| = ||grad u||`` in latent units / frame, ``(N, B)``.
        straightness: distance over length of each path, ``(B,)``; 1 is a straight line.
    """

    times: Float[np.ndarray, "n"]
    residual: Float[np.ndarray, "n b"]
    energy: Float[np.ndarray, "n b"]
    speed: Float[np.ndarray, "n b"]
    straightness: Float[np.ndarray, "b"]


def transport_data(
    model: PotentialModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    substeps: int = 4,
) -> dict[str, TransportCurves]:
    """Evaluate the transport terms along the flows of images under each transformation.

    Args:
        model: any model with potentials; its learned force is f, if it has one, else f = 0.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; all if not given.
        substeps: times per frame.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, or a field that is no
            gradient of a potential.
    """
    curves = {}
    with evaluating(model):
        z0 = encode_images(model, images)
        times = make_time_grid(0.0, float(model.horizon), substeps).to(z0)
        for name in select_names(model, names):
            potential = model.potentials[name]
            if not isinstance(potential, Potential):
                raise ValueError(f"the Hamilton-Jacobi equation of {name} needs a potential")
            path = model.trace(z0, potential, times)
            terms = along_path(potential, path, getattr(model, "force", None))
            curves[name] = TransportCurves(
                times=to_numpy(times),
                residual=to_numpy(terms.residual),
                energy=to_numpy(terms.kinetic_energy),
                speed=to_numpy((2 * terms.kinetic_energy).sqrt()),
                straightness=to_numpy(straightness(path)),
            )
    return curves


def plot_transport(
    model: PotentialModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    substeps: int = 4,
) -> Figure:
    """Draw Hamilton-Jacobi residual, kinetic energy and speed over time, by transformation.

    The line of the residual is its root mean square over the images, the others are medians; the
    bands are the 10th to 90th percentile of (absolute) values. The legend has the mean
    straightness.

    Args:
        model: any model with potentials.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; all if not given.
        substeps: times per frame.

    Raises:
        ValueError: as of :func:`transport_data`.
    """
    return draw_transport(transport_data(model, images, names=names, substeps=substeps))


@styled
def draw_transport(curves: Mapping[str, TransportCurves]) -> Figure:
    """Draw computed transport terms; see :func:`plot_transport`.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError("curves is empty; there is nothing to draw")
    figure = new_figure(PAGE_WIDTH, 2.35)
    residual, energy, speed = figure.subplots(1, 3, gridspec_kw={"wspace": 0.08})
    for name, style in line_styles(tuple(curves)).items():
        curve = curves[name]
        label = f"{plain_text(name, 24)} (straightness {curve.straightness.mean():.3f})"
        size = np.abs(curve.residual)
        rms = np.sqrt(np.square(curve.residual).mean(1))
        _draw_band(residual, curve.times, rms, size, style, label)
        _draw_band(energy, curve.times, np.median(curve.energy, 1), curve.energy, style, label)
        _draw_band(speed, curve.times, np.median(curve.speed, 1), curve.speed, style, label)
    squared = "latent units$^2$ / frame$^2$"
    for axes, title, unit in (
        (residual, "Hamilton–Jacobi residual, RMS", squared),
        (energy, r"kinetic energy $\frac{1}{2}\Vert\nabla u\Vert^2$", squared),
        (speed, r"speed $\Vert dz/dt\Vert$", "latent units / frame"),
    ):
        axes.set_title(title)
        axes.set_xlabel("time $t$ (frames)")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        draw_grid(axes)
    handles, labels = residual.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def _draw_band(
    axes: Axes,
    times: np.ndarray,
    line: np.ndarray,
    values: np.ndarray,
    style: LineStyle,
    label: str,
) -> None:
    low, high = np.percentile(values, (10, 90), axis=1)
    axes.fill_between(times, low, high, color=style.colour, alpha=0.15, linewidth=0)
    look: dict[str, Any] = {"color": style.colour, "linestyle": style.dash, "marker": style.marker}
    whole = np.flatnonzero(np.isclose(times, np.round(times))).tolist()
    axes.plot(times, line, **look, markevery=whole, markersize=3.5, label=label)
