"""A report in one HTML file: figures, tables and how to read them."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from flowfactor.checkpoints import write_file
from flowfactor.diagnostics.animation import Animation
from flowfactor.diagnostics.io import render
from flowfactor.diagnostics.player import Player
from flowfactor.names import one_line
from flowfactor.tables import Table

_MIME = {
    ".png": "image/png",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Illustration:
    """An image of a report.

    Attributes:
        image: a figure, an animation, frames to be played, or the path of a PNG, GIF or JPEG file.
        caption: what is to be seen; also what a screen reader says.
        file: where the image has been saved, so that it need not be rendered again.
    """

    image: Figure | Animation | Player | str | os.PathLike[str]
    caption: str = ""
    file: str | os.PathLike[str] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """A section of a report.

    Attributes:
        heading: its title.
        text: what one sees and how to read it; an empty line starts a new paragraph.
        illustrations: in this order.
        tables: before the illustrations.
    """

    heading: str
    text: str = ""
    illustrations: Sequence[Illustration | Figure | Animation | Player] = ()
    tables: Sequence[Table] = ()


def write_report(
    folder: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
) -> Path:
    """Write ``report.html`` into a folder: one file, with all images inside.

    It needs no network, no server and no other file, and a browser lets it load none. It follows
    the reader's light or dark mode and fits narrow windows; tables are sorted by a click on a
    heading, and a :class:`~flowfactor.diagnostics.player.Player` has sliders for flow and time.
    All text is escaped: it is shown as it is, never read as HTML, and no other script is run than
    that of this module.

    Args:
        folder: made if missing; an older report in it is replaced.
        title: of the report.
        sections: with a table of contents if there are several.
        subtitle: a line below the title, for instance the command that made the run.

    Returns:
        The path of the report.

    Raises:
        ValueError: an image file of a kind that browsers do not show.
        OSError: an image file cannot be read.
        RunError: the report cannot be written.

    Example:
        >>> import tempfile
        >>> from flowfactor.tables import Column, Row, Table
        >>> table = Table([Column("error")], [Row("hue", (12.5,))], label="transformation")
        >>> section = Section("Errors", "Less is better.", tables=[table])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_report(folder, "A run", [section])
        ...     path.name, "<td>hue</td>" in path.read_text()
        ('report.html', True)
    """
    ids = [f"section-{number}" for number in range(1, len(sections) + 1)]
    contents = ""
    if len(sections) > 1:
        entries = "".join(
            f'<li><a href="#{name}">{_escape(section.heading)}</a></li>'
            for name, section in zip(ids, sections, strict=True)
        )
        contents = f'<nav aria-label="Contents"><ul>{entries}</ul></nav>\n'
    body = "\n".join(map(_render_section, sections, ids))
    below = f'<p class="subtitle">{_escape(subtitle)}</p>\n' if subtitle else ""
    style, script = _read_part("report.css"), f"\n{_read_part('report.js')}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{_escape(title)}</h1>\n{below}</header>\n{contents}"
        f"<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )
    return write_file(Path(folder) / "report.html", page)


def _render_section(section: Section, name: str) -> str:
    parts = [f'<section id="{name}">', f"<h2>{_escape(section.heading)}</h2>"]
    parts += [
        f"<p>{_escape(paragraph)}</p>"
        for paragraph in section.text.split("\n\n")
        if paragraph.strip()
    ]
    parts += [f'<div class="table">{table.to_html()}</div>' for table in section.tables]
    for item in section.illustrations:
        illustration = item if isinstance(item, Illustration) else Illustration(item)
        parts.append(_render_illustration(illustration, section.heading))
    return "\n".join([*parts, "</section>"])


@functools.cache
def _read_part(name: str) -> str:
    """Return a part of the page that lies beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _render_illustration(item: Illustration, heading: str) -> str:
    mime, content = _read_image(item.image if item.file is None else item.file)
    source = f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
    text = _escape(item.caption or heading)
    caption = f"<figcaption>{_escape(item.caption)}</figcaption>" if item.caption else ""
    if isinstance(item.image, Player):
        return f"<figure>{_render_player(item.image, source, text)}{caption}</figure>"
    width, kind = "", ""
    if isinstance(item.image, Figure):
        inches = float(item.image.get_size_inches()[0])
        # A little larger than on paper, so that text in figures is as large as text around them.
        width = f' style="width: {125 * inches:.0f}px"'
        # What does not fit a narrow window is scrolled: its text would become too small to read.
        kind = ' class="wide"' if inches > 5 else ""
    picture = f'<div{kind}><img src="{source}" alt="{text}"{width}></div>'
    return f"<figure>{picture}{caption}</figure>"


def _render_player(player: Player, source: str, text: str) -> str:
    """Return all frames as one image, from which the script makes something to play with."""
    _, _, samples, height, width, _ = player.frames.shape
    data = {
        "labels": [one_line(label, 60) for label in player.labels],
        "times": [round(t, 3) for t in player.times],
        "samples": samples,
        "height": height,
        "width": width,
        "cell": player.cell,
    }
    content = html.escape(json.dumps(data), quote=True)
    picture = f'<img class="sheet" src="{source}" alt="{text}">'
    return f'<div class="player" data-player="{content}">{picture}</div>'


def _escape(text: str) -> str:
    """Return plain text as HTML, in one line."""
    return html.escape(one_line(text))


def _read_image(
    image: Figure | Animation | Player | str | os.PathLike[str],
) -> tuple[str, bytes]:
    if isinstance(image, Figure):
        return "image/png", render(image, ".png", dpi=200)
    if isinstance(image, Animation):
        return "image/gif", image.gif()
    if isinstance(image, Player):
        return image.sheet()
    path = Path(image)
    if path.suffix.lower() not in _MIME:
        raise ValueError(f"a report shows {', '.join(_MIME)} files, not {path.name!r}")
    return _MIME[path.suffix.lower()], path.read_bytes()
