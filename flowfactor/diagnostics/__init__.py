"""Figures of what a model learned, and the report that shows them.

Every ``plot_`` function takes a model and images (or the numbers to draw) and returns a figure of
matplotlib, which :func:`save` writes; none needs a display or touches ``pyplot``. Beside it are a
function that only computes (``landscape_data``) and one that only draws (``draw_landscape``).
"""

from flowfactor.diagnostics.activity import (
    ActivityRaster,
    activity_data,
    activity_strips,
    draw_activity,
    plot_activity,
)
from flowfactor.diagnostics.animation import Animation, animate, draw_animation
from flowfactor.diagnostics.curves import plot_training
from flowfactor.diagnostics.error_curves import ErrorCurve, plot_errors
from flowfactor.diagnostics.explorer import Discrepancy, Explorer, View, Window
from flowfactor.diagnostics.film_strips import (
    FilmStrips,
    Marks,
    comparison_data,
    composition_data,
    draw_film_strips,
    film_strip_data,
    plot_comparison,
    plot_film_strips,
)
from flowfactor.diagnostics.io import save
from flowfactor.diagnostics.landscape import (
    Landscape,
    draw_landscape,
    landscape_data,
    plot_landscape,
)
from flowfactor.diagnostics.latent_grid import (
    LatentGrid,
    draw_latent_grid,
    explore_latent,
    latent_grid_data,
    plot_weights,
    weights_data,
)
from flowfactor.diagnostics.plane import Plane
from flowfactor.diagnostics.player import Player, player_data
from flowfactor.diagnostics.report import Illustration, Section, write_report
from flowfactor.diagnostics.style import LineStyle, line_styles, paper_style
from flowfactor.diagnostics.trajectories import (
    Trajectories,
    draw_trajectories,
    plot_trajectories,
    trajectory_data,
)
from flowfactor.diagnostics.transport_plots import (
    TransportCurves,
    draw_transport,
    plot_transport,
    transport_data,
)

__all__ = [
    "ActivityRaster",
    "Animation",
    "Discrepancy",
    "ErrorCurve",
    "Explorer",
    "FilmStrips",
    "Illustration",
    "Landscape",
    "LatentGrid",
    "LineStyle",
    "Marks",
    "Plane",
    "Player",
    "Section",
    "Trajectories",
    "TransportCurves",
    "View",
    "Window",
    "activity_data",
    "activity_strips",
    "animate",
    "comparison_data",
    "composition_data",
    "draw_activity",
    "draw_animation",
    "draw_film_strips",
    "draw_landscape",
    "draw_latent_grid",
    "draw_trajectories",
    "draw_transport",
    "explore_latent",
    "film_strip_data",
    "landscape_data",
    "latent_grid_data",
    "line_styles",
    "paper_style",
    "player_data",
    "plot_activity",
    "plot_comparison",
    "plot_errors",
    "plot_film_strips",
    "plot_landscape",
    "plot_training",
    "plot_trajectories",
    "plot_transport",
    "plot_weights",
    "save",
    "trajectory_data",
    "transport_data",
    "weights_data",
    "write_report",
]
