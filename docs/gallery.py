"""Figures of the tutorials: what a block of code calls ``figure`` is shown below it."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def show_figures(
    block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any], **_: Any
) -> str:
    """Save the figure of a block, and return the text that shows it."""
    figure = block_vars["example_globals"].pop("figure", None)
    if not isinstance(figure, Figure):
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return str(figure_rst([path], gallery_conf["src_dir"]))
