"""How figures look: sizes, fonts, and colours that remain distinct for everyone and in grey."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import matplotlib
import matplotlib.font_manager
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from flowfactor.names import one_line

COLUMN_WIDTH = 3.3
"""Width in inches of a figure in one column of a two-column paper."""

PAGE_WIDTH = 6.9
"""Width in inches of a figure over the whole page."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours of Okabe and Ito, which readers with any common colour blindness tell apart."""

SEQUENTIAL = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.78, 256)))
"""Colour map of potentials: perceptually uniform, so that it is monotone in grey.

It is viridis without its bright end, on which white arrows would be lost.
"""

INK, MUTED, FAINT = "#222222", "#6E6E6E", "#D9D9D9"

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[tuple[int, tuple[float, ...] | None], ...] = (
    (0, None),
    (0, (5, 1.6)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (3, 1.2, 1, 1.2, 1, 1.2)),
)

# Fonts of scripts that DejaVu Sans lacks; those that are installed are used for their letters.
_MORE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Hiragino Sans",
    "WenQuanYi Zen Hei",
    "Unifont",
)
_INSTALLED = {font.name for font in matplotlib.font_manager.fontManager.ttflist}

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", *(font for font in _MORE_FONTS if font in _INSTALLED)],
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "axes.titlepad": 4,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.borderaxespad": 0.3,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "figure.dpi": 100,
    "image.interpolation": "nearest",
    # Text stays text in a PDF, and the same figure gives the same SVG.
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "flowfactor",
}

P = ParamSpec("P")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class LineStyle:
    """How one transformation is drawn everywhere: colour, marker and dashes all differ.

    Attributes:
        colour: a hexadecimal colour of the palette.
        marker: a marker of matplotlib.
        dash: a line style of matplotlib, ``(offset, on-off lengths in points)``.
    """

    colour: str
    marker: str
    dash: tuple[int, tuple[float, ...] | None]


def line_styles(names: Sequence[str]) -> dict[str, LineStyle]:
    """Return one style for each name, by its place; no two of the first 60 or so are alike.

    Example:
        >>> styles = line_styles(("scaling", "rotation"))
        >>> styles["scaling"].colour, styles["rotation"].marker
        ('#0072B2', 's')
    """
    return {
        name: LineStyle(
            PALETTE[i % len(PALETTE)], _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)]
        )
        for i, name in enumerate(names)
    }


@contextmanager
def paper_style() -> Iterator[None]:
    """Use the package's settings of matplotlib within a ``with`` block.

    Example:
        >>> import matplotlib
        >>> with paper_style():
        ...     matplotlib.rcParams["font.size"]
        8.0
    """
    with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws, so that it runs in :func:`paper_style`."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with paper_style():
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, size in inches, that no global state of matplotlib knows of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_grid(axes: Axes) -> None:
    """Draw faint horizontal lines to read values by, behind everything else."""
    axes.grid(True, axis="y")
    # Ticks are made when the figure is drawn, perhaps outside of this style.
    axes.tick_params(labelsize=8)


def plain_text(text: str, length: int = 40) -> str:
    r"""Return text that anyone may have chosen as labels take it: in one line, nothing a formula.

    Args:
        text: any text.
        length: letters to keep; of a longer text, the middle is left out.

    Example:
        >>> plain_text("$x$"), plain_text("_x")
        ('\\$x\\$', ' _x')
    """
    line = one_line(text, length).replace("$", r"\$")
    # Legends leave out what begins with an underscore.
    return f" {line}" if line.startswith("_") else line


def format_number(value: float) -> str:
    """Return a number as labels show it, with a minus sign and not a hyphen.

    Example:
        >>> format_number(-2.50)
        '−2.5'
    """
    return f"{value:g}".replace("-", "−")
