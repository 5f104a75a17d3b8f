"""Files of figures, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowfactor.checkpoints import write_file
from flowfactor.diagnostics.style import styled

FORMATS = (".png", ".pdf", ".svg")
"""Suffixes of the files that :func:`save` writes."""


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: float = 200) -> Path:
    """Write a figure to a file, in the format of its suffix; missing folders are made.

    The file appears under its name when it is complete, or not at all; an older one is replaced.
    Figures of this package are not known to ``pyplot``, so that none has to be closed afterwards.

    Args:
        figure: any figure of matplotlib.
        path: ends in ``.png``, ``.pdf`` or ``.svg``.
        dpi: pixels per inch of a PNG, and of the images within a PDF or SVG.

    Returns:
        The path.

    Raises:
        ValueError: another suffix.
        RunError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Figure(), f"{folder}/figures/empty.png").exists()
        True
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"a figure cannot be saved as {target.name!r}: the name must end in "
            f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )
    return write_file(target, render(figure, suffix, dpi))


@styled
def render(figure: Figure, suffix: str = ".png", dpi: float = 200) -> bytes:
    """Return the content of the file of a figure; the same figure gives the same bytes."""
    date = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    metadata: dict[str, Any] = dict(date)
    buffer = io.BytesIO()
    with _missing_letters():
        figure.savefig(buffer, format=suffix[1:], dpi=dpi, metadata=metadata)
    return buffer.getvalue()


@contextlib.contextmanager
def _missing_letters() -> Iterator[None]:
    """Say nothing of a letter whose font is not installed: it is an empty box."""
    logger = logging.getLogger("matplotlib.mathtext")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            warnings.filterwarnings("ignore", "Matplotlib currently does not support")
            yield
    finally:
        logger.setLevel(level)
