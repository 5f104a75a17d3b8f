"""Cut sequences around the things that move in a film, with labels computed from their tracks."""

import importlib.util
import math
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from experiments.console import run_script, say
from flowfactor.data.io import HDF5
from flowfactor.data.tracking import (
    cut_sequences,
    follow_things,
    median_background,
    motion_labels,
    open_film,
    split_tracks,
    write_sequences,
)
from flowfactor.errors import DataError

# Of tracks at least, so that a tenth of them can be held out.
_PIECES = 10
_FISH = {f"zebrafish_{letter}": f"test_{letter}.avi" for letter in "AB"}


class Front(StrEnum):
    """Which end of a thing is its front."""

    MOTION = "motion"
    HEAVY = "heavy"


class Aligned(StrEnum):
    """What the window follows."""

    NO = "no"
    FIRST = "first"
    EACH = "each"


def find_film(name: str) -> Path:
    """Return the path of a film, or of one of those in the package idtrackerai."""
    if name not in _FISH:
        return Path(name)
    spec = importlib.util.find_spec("idtrackerai")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{name} is a film in the package idtrackerai (GPL). Install it with `pip install "
            "--no-deps idtrackerai==6.0.14`, or give the path of a film."
        )
    return Path(spec.submodule_search_locations[0]) / "data" / _FISH[name]


def check_new(out: Path) -> None:
    """Refuse a file that cannot be written, before hours of work are in it.

    Raises:
        DataError: it exists, or is called as if it was another kind of file.
    """
    if out.suffix.lower() not in HDF5:
        raise DataError(f"{out} will be an HDF5 file; its name must end with one of {list(HDF5)}.")
    if out.exists():
        raise DataError(f"The file {out} exists. Remove it, or choose another name.")


def main(
    film: Annotated[
        str,
        typer.Argument(
            help="A video, a folder of pictures or an array; or zebrafish_A or zebrafish_B, the "
            "films in the package idtrackerai."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The HDF5 file to write.")],
    horizon: Annotated[int, typer.Option(min=1, help="T, the number of the last frame.")] = 8,
    every: Annotated[int, typer.Option(min=1, help="Keep every n-th frame.")] = 1,
    stride: Annotated[
        int, typer.Option(min=1, help="Frames from one sequence of a track to the next.")
    ] = 2,
    side: Annotated[float, typer.Option(min=1, help="Of the window, in pixels of the film.")] = 144,
    size: Annotated[int, typer.Option(min=4, help="Pixels along each side of the result.")] = 32,
    threshold: Annotated[
        float, typer.Option(min=1, help="Of 255, by which things differ from what stays.")
    ] = 30,
    front: Annotated[
        Front, typer.Option(help="Of a thing: the end that leads, or the one without a thin tail.")
    ] = Front.HEAVY,
    heading: Annotated[
        Aligned, typer.Option(help="In which frames a thing heads upwards.")
    ] = Aligned.FIRST,
    centre: Annotated[
        Aligned, typer.Option(help="In which frames a thing is in the middle.")
    ] = Aligned.FIRST,
    turn: Annotated[float, typer.Option(min=0, help="Degrees, above which a thing turns.")] = 20,
    move: Annotated[float, typer.Option(min=0, help="Pixels, above which it glides.")] = 24,
    alone: Annotated[bool, typer.Option(help="Leave out windows with other things.")] = True,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Also what a mirror shows: twice as many sequences.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Frames as they are, not their difference from rest.")
    ] = False,
) -> None:
    """Cut sequences around the things that move in a film, with labels computed from their tracks.

    The labels are turn left, turn right, glide and rest. They are for evaluation: hide them with
    `model.kind: weak_flow_vae`. The defaults are those for the fish.

    Example: python experiments/scripts/cut_things.py zebrafish_A data/zebrafish/train.h5
    """
    check_new(out)
    opened = open_film(find_film(film), grey=not plain)
    if len(opened.names) > 1:
        say(f"Of {len(opened.names)} films in {film} the first is cut: {opened.names[0]}")
    still = median_background(opened)
    tracks = follow_things(opened, threshold=threshold, front=front.value, background=still)
    tracks = split_tracks(tracks, _PIECES, shortest=horizon * every + 1)
    cut = cut_sequences(
        opened,
        tracks,
        horizon=horizon,
        side=side,
        size=size,
        every=every,
        stride=stride,
        heading=heading.value,
        centre=centre.value,
        alone=alone,
        background=None if plain else still,
    )
    if mirror:
        cut = cut.with_mirrored()
    labels = motion_labels(cut, math.radians(turn), move)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_sequences(out, cut, labels)
    counts = ", ".join(f"{count} {label}" for label, count in sorted(Counter(labels).items()))
    say(f"{len(labels)} sequences of {len(set(cut.tracks))} tracks ({counts}) are in {out}")


if __name__ == "__main__":
    run_script(main)
