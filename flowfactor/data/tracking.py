"""Moving things in a film: found, followed, and cut out as sequences.

Steps that can be used one by one: :func:`median_background`, :func:`find_blobs`, :func:`link` and
:func:`cut_sequences`; :func:`follow_things` does the first three.

Places are complex numbers ``x + iy`` in pixels, ``x`` to the right and ``y`` *downwards* from the
upper left corner, as in :class:`Pyramids`. Angles are counter-clockwise as one sees them, 0 to the
right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Complex, Float, Int, UInt8
from torch import Tensor

from flowfactor.data.checks import check_choice, check_range
from flowfactor.data.clips import ArrayClips, Clips, Preparation, open_clips
from flowfactor.data.io import (
    HDF5,
    ZARR,
    Array,
    ArrayFile,
    Layout,
    create_images,
    local_path,
    writing_h5,
)
from flowfactor.data.pyramids import Pyramids
from flowfactor.errors import DataError

# Frames that are in memory at once.
_FRAMES = 32
# Grey values that noise of a camera and of compression makes of twice a difference.
_NOISE = 6
# Grey values of a background at least, for a ratio that is more than noise.
_DARK = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Blobs:
    """The connected things in a frame.

    Attributes:
        places: middles, weighted by the difference from the background.
        areas: in pixels.
        axes: angles of the longest axis, in radians, modulo pi.
        skews: of the mass along this axis: positive if the tail is thin in the direction of it.
    """

    places: Complex[np.ndarray, "n"]
    areas: Float[np.ndarray, "n"]
    axes: Float[np.ndarray, "n"]
    skews: Float[np.ndarray, "n"]

    def where(self, chosen: Array) -> Blobs:
        """Return some of them."""
        return Blobs(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """A thing in consecutive frames.

    Attributes:
        first: number of its first frame.
        places: in each of its ``n`` frames.
        areas: in pixels.
        headings: angles in radians, continuous: a full turn adds ``2 pi``.
    """

    first: int
    places: Complex[np.ndarray, "n"]
    areas: Float[np.ndarray, "n"]
    headings: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def speeds(self) -> Float[np.ndarray, "steps"]:
        """Pixels from each frame to the next."""
        return np.abs(np.diff(self.places))

    @property
    def turns(self) -> Float[np.ndarray, "steps"]:
        """Radians from each frame to the next, positive to the left."""
        return np.diff(self.headings)


def open_film(source: Tensor | Array | str | Path, *, grey: bool = False) -> Clips:
    """Return a film whose frames are read as they are needed.

    Args:
        source: a video, a folder of pictures, or an array ``(F, H, W)``, ``(F, H, W, C)`` or
            ``(F, C, H, W)``, or a file with one; of several recordings the first is taken.
        grey: whether colours become their luminance.

    Raises:
        DataError: it cannot be read.
    """
    if not isinstance(source, str | Path):
        array = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
        return open_clips(array[None], Preparation(grey=grey))
    path = local_path(source)
    if path.suffix.lower() in (".npy", ".npz", ZARR, *HDF5):
        file = _OneFilm(path, usual="frames")
        with contextlib.suppress(DataError):
            Layout.of(file, 1)  # else it is of several
            file.shape = (1, *file.shape)
            return ArrayClips(file, None, Preparation(grey=grey), 1 << 30)
    return open_clips(path, Preparation(grey=grey))


class _OneFilm(ArrayFile):
    """An array of frames, as that of one recording."""

    def __getitem__(self, rows: tuple[int, slice]) -> Array:
        return super().__getitem__(rows[1])


def median_background(film: Clips, frames: int = 50) -> Float[np.ndarray, "h w"]:
    """Return the median of some frames, evenly spaced: what does not move, in grey values.

    Args:
        film: from :func:`open_film`.
        frames: how many; a thing that stays in one place in half of them becomes background.
    """
    length = film.lengths[0]
    numbers = np.unique(np.linspace(0, length - 1, min(frames, length)).round().astype(int))
    read = [_grey(film, int(number), 1)[0].astype(np.uint8) for number in numbers]
    median: Array = np.median(np.stack(read), 0).astype(np.float32)
    return median


def find_blobs(
    frame: Float[np.ndarray, "h w"],
    background: Float[np.ndarray, "h w"],
    threshold: float = 30.0,
    areas: tuple[float, float] = (20, math.inf),
) -> Blobs:
    """Return what is connected, differs from the background, and is neither too small nor large.

    Args:
        frame: grey values of 0..255.
        background: the same of :func:`median_background`.
        threshold: by how much a pixel must differ.
        areas: in pixels, the smallest and the largest.

    Example:
        >>> import numpy as np
        >>> empty = np.zeros((20, 30))
        >>> frame = empty.copy()
        >>> frame[5:9, 10:21] = 200
        >>> blobs = find_blobs(frame, empty)
        >>> blobs.places.tolist(), blobs.areas.tolist(), blobs.axes.round(6).tolist()
        ([(15.5+7j)], [44.0], [0.0])
    """
    from scipy import ndimage

    difference = np.abs(frame - background)
    labels, _ = ndimage.label(difference > threshold, np.ones((3, 3)))
    rows, columns = labels.nonzero()
    number = labels[rows, columns] - 1
    area = np.bincount(number).astype(float)
    keep = (area >= areas[0]) & (area <= areas[1])
    if not keep.any():
        empty = np.empty(0)
        return Blobs(empty.astype(complex), empty, empty, empty)
    weight = difference[rows, columns]

    def mean(values: Array) -> Array:
        summed: Array = np.bincount(number, weight * values) / np.bincount(number, weight)
        return summed

    # y is upwards in what follows, so that angles are as one sees them.
    x, y = mean(columns + 0.5), mean(-rows - 0.5)
    dx, dy = columns + 0.5 - x[number], -rows - 0.5 - y[number]
    xx, yy, xy = mean(dx * dx), mean(dy * dy), mean(dx * dy)
    axes = 0.5 * np.arctan2(2 * xy, xx - yy)
    along = dx * np.cos(axes)[number] + dy * np.sin(axes)[number]
    return Blobs(x - 1j * y, area, axes, mean(along**3)).where(keep)


def link(
    found: Sequence[Blobs], max_distance: float, first: int = 0, front: str = "motion"
) -> list[Track]:
    """Return the tracks of things from frame to frame.

    Things of two consecutive frames are matched so that the sum of their distances is smallest
    (Kuhn, 1955). What has no partner within ``max_distance`` begins or ends a track.

    Args:
        found: what each frame shows.
        max_distance: in pixels.
        first: number of the first of the frames.
        front: which end of the longest axis is the front: ``motion``, the one that leads most of
            the time, or ``heavy``, the one that is not a thin tail.

    Raises:
        DataError: a number or choice that is not possible.
    """
    from scipy.optimize import linear_sum_assignment

    check_range("max_distance", max_distance, 0)
    check_choice("front", front, ("motion", "heavy"))
    done: list[list[tuple[int, int]]] = []
    running: list[list[tuple[int, int]]] = []
    for number, blobs in enumerate(found):
        ends = np.array([found[path[-1][0]].places[path[-1][1]] for path in running])
        distances = np.abs(ends[:, None] - blobs.places[None])
        # A distance that is not allowed costs more than any number of those that are.
        costs = np.where(distances <= max_distance, distances, 1e6 * (1 + max_distance))
        pairs = [
            (int(i), int(j))
            for i, j in zip(*linear_sum_assignment(costs), strict=True)
            if distances[i, j] <= max_distance
        ]
        matched = dict(pairs)
        going = [[*running[i], (number, j)] for i, j in pairs]
        done += [path for i, path in enumerate(running) if i not in matched]
        new = set(range(len(blobs.places))) - set(matched.values())
        running = going + [[(number, j)] for j in sorted(new)]
    tracks = [_track(found, path, first, front) for path in done + running]
    return sorted(tracks, key=lambda track: (track.first, track.places[0].real))


def _track(
    found: Sequence[Blobs], path: Sequence[tuple[int, int]], first: int, front: str
) -> Track:
    places, areas, axes, skews = (
        np.array([getattr(found[t], name)[j] for t, j in path])
        for name in ("places", "areas", "axes", "skews")
    )
    headings = np.unwrap(axes, period=np.pi)
    # An axis that was turned over has its skew turned over.
    skews = skews * np.where(np.rint((headings - axes) / np.pi) % 2 == 0, 1, -1)
    if front == "heavy":
        evidence = -skews.sum()
    else:
        steps = np.diff(places).conj()
        evidence = float((steps * np.exp(-1j * (headings[:-1] + headings[1:]) / 2)).real.sum())
    return Track(first + path[0][0], places, areas, headings + (np.pi if evidence < 0 else 0))


def follow_things(
    film: Clips,
    *,
    threshold: float = 30.0,
    areas: tuple[float, float] | None = None,
    max_distance: float | None = None,
    front: str = "motion",
    background: Float[np.ndarray, "h w"] | None = None,
) -> list[Track]:
    """Return the tracks of all things that move before a background that does not.

    Where two touch, their tracks end, and others begin when they part. Each frame is brought to the
    brightness of the background first, so that light that flickers is no motion.

    Args:
        film: from :func:`open_film`.
        threshold: by how many of 255 grey values a pixel differs from the background.
        areas: the smallest and largest thing, in pixels; by default 0.4 to 1.6 times the median of
            all that are found with at least 20.
        max_distance: pixels that a thing may move from a frame to the next one; by default twice
            the side of a square of the median area.
        front: see :func:`link`.
        background: by default :func:`median_background`.

    Raises:
        DataError: nothing moves.

    Example:
        >>> import numpy as np
        >>> film = np.zeros((8, 40, 80), np.uint8)
        >>> for t in range(8):
        ...     film[t, 10:15, 5 + 8 * t : 15 + 8 * t] = 255
        >>> (track,) = follow_things(open_film(film))
        >>> track.places.tolist()[:2], track.headings.tolist()[:2], track.speeds.tolist()[:2]
        ([(10+12.5j), (18+12.5j)], [0.0, 0.0], [8.0, 8.0])
    """
    still = median_background(film) if background is None else background
    found = [find_blobs(_steady(frame, still), still, threshold) for frame in _each_frame(film)]
    sizes = np.concatenate([blobs.areas for blobs in found])
    if not len(sizes):
        raise DataError(
            f"threshold: nothing in {film.names[0]} moves: no pixel differs by more than "
            f"{threshold:g} of 255 from what stays. Lower it, or take another film."
        )
    typical = float(np.median(sizes))
    low, high = (0.4 * typical, 1.6 * typical) if areas is None else areas
    found = [blobs.where((blobs.areas >= low) & (blobs.areas <= high)) for blobs in found]
    if max_distance is None:
        max_distance = 2 * math.sqrt(typical)
    return link(found, max_distance, front=front)


def split_tracks(tracks: Sequence[Track], pieces: int, shortest: int = 1) -> list[Track]:
    """Return tracks in pieces of about equal length, if there are fewer of them than asked for.

    Sequences of one piece share no frame with those of another, so that pieces can be held out.

    Args:
        tracks: of :func:`follow_things`.
        pieces: how many there should be, as far as the tracks are long enough.
        shortest: frames of a piece.

    Example:
        >>> import numpy as np
        >>> track = Track(5, np.arange(20) + 0j, np.ones(20), np.zeros(20))
        >>> [(piece.first, len(piece)) for piece in split_tracks([track], 3, shortest=6)]
        [(5, 7), (12, 6), (18, 7)]
    """
    check_range("pieces", pieces, 1)
    check_range("shortest", shortest, 1)
    if len(tracks) >= pieces:
        return list(tracks)
    length = max(sum(map(len, tracks)) // pieces, shortest)
    found = []
    for track in tracks:
        count = max(len(track) // length, 1)
        cuts = [round(i * len(track) / count) for i in range(count + 1)]
        for begin, end in itertools.pairwise(cuts):
            values = (each[begin:end] for each in (track.places, track.areas, track.headings))
            found.append(Track(track.first + begin, *values))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class CutSequences:
    """Sequences around things of a film.

    Attributes:
        frames: ``(n, f, s, s, c)``, as :class:`Recordings` reads them.
        tracks: number of the track of each sequence.
        begins: number of its first frame in the film.
        turns: by how many radians the thing turned to the left until each of its frames.
        moves: by how many pixels it moved until each of its frames, forwards of where it headed in
            frame 0 (real part) and to the left (imaginary part).
    """

    frames: UInt8[np.ndarray, "n f s s c"]
    tracks: Int[np.ndarray, "n"]
    begins: Int[np.ndarray, "n"]
    turns: Float[np.ndarray, "n f"]
    moves: Complex[np.ndarray, "n f"]

    def with_mirrored(self) -> CutSequences:
        """Return also what a mirror shows: twice as many, left and right exchanged.

        The things and how they move must look alike in a mirror, as animals mostly do.
        """
        return CutSequences(
            np.concatenate([self.frames, self.frames[:, :, :, ::-1]]),
            np.tile(self.tracks, 2),
            np.tile(self.begins, 2),
            np.concatenate([self.turns, -self.turns]),
            np.concatenate([self.moves, self.moves.conj()]),
        )


def cut_sequences(
    film: Clips,
    tracks: Sequence[Track],
    *,
    horizon: int,
    side: float,
    size: int,
    every: int = 1,
    stride: int | None = None,
    heading: str = "first",
    centre: str = "first",
    alone: bool = False,
    background: Float[np.ndarray, "h w"] | None = None,
) -> CutSequences:
    """Return square windows around things, as sequences of ``T + 1`` frames.

    Windows are resampled with antialiasing (:class:`Pyramids`). Beyond its edge the film continues
    with its outermost pixels.

    Args:
        film: that the tracks are from.
        tracks: of :func:`follow_things`; too short ones are left out.
        horizon: ``T``.
        side: of the window, in pixels of the film.
        size: pixels along each side of the result.
        every: n, to keep every n-th frame.
        stride: frames of the film from the beginning of a sequence to that of the next one of the
            same track; by default they share no frame.
        heading: turn the window so that the thing heads upwards in the ``first`` frame, in
            ``each``, or ``no``.
        centre: put the thing into the middle of the ``first`` frame, of ``each``, or ``no`` for
            the middle between first and last place.
        alone: leave out sequences with another thing in or near the window.
        background: if given, frames are grey, bright on black: twice the difference from it, less
            6 of 255. Each frame is brought to its brightness before. So neither light that flickers
            nor noise of the camera shows.

    Raises:
        DataError: no track is long enough; a number or choice that is not possible.
    """
    for name, value in (("horizon", horizon), ("every", every), ("size", size)):
        check_range(name, value, 1)
    check_range("side", side, 1)
    for name, choice in (("heading", heading), ("centre", centre)):
        check_choice(name, choice, ("no", "first", "each"))
    span = horizon * every + 1
    check_range("stride", span if stride is None else stride, 1)
    steps = np.arange(0, span, every)
    begins = [
        (number, begin)
        for number, track in enumerate(tracks)
        for begin in range(0, len(track) - span + 1, span if stride is None else stride)
    ]
    if not begins:
        longest = max(map(len, tracks), default=0)
        raise DataError(f"horizon: a sequence has {span} frames, the longest track {longest}.")
    places = np.stack([tracks[k].places[begin + steps] for k, begin in begins])
    headings = np.stack([tracks[k].headings[begin + steps] for k, begin in begins])
    shown = {"no": (places[:, :1] + places[:, -1:]) / 2, "first": places[:, :1], "each": places}
    turned = {"no": np.full_like(headings[:, :1], np.pi / 2), "first": headings[:, :1]}
    turned["each"] = headings
    middles = np.broadcast_to(shown[centre], places.shape)
    owners = np.array([k for k, _ in begins])
    numbers = np.array([tracks[k].first + begin for k, begin in begins])
    frame_numbers = numbers[:, None] + steps
    if alone:
        free = _are_alone(tracks, owners, frame_numbers, middles, 0.75 * side)
        if not free.any():
            raise DataError("alone: in no sequence a thing is alone in its window.")
    else:
        free = np.ones(len(begins), bool)
    # The window turns so that its upward direction is where the thing heads.
    angles = np.broadcast_to(turned[heading], headings.shape) - np.pi / 2
    frames = _cut(film, frame_numbers[free], middles[free], angles[free], side, size, background)
    moves = (places - places[:, :1]).conj() * np.exp(-1j * headings[:, :1])
    turns = headings - headings[:, :1]
    return CutSequences(frames, owners[free], numbers[free], turns[free], moves[free])


def _are_alone(
    tracks: Sequence[Track],
    owners: Int[np.ndarray, "n"],
    numbers: Int[np.ndarray, "n f"],
    middles: Complex[np.ndarray, "n f"],
    distance: float,
) -> Bool[np.ndarray, "n"]:
    """Return for which sequences no other thing comes nearer than ``distance`` to the middle."""
    alone = np.ones(len(owners), bool)
    for other, track in enumerate(tracks):
        at = numbers - track.first
        there = (at >= 0) & (at < len(track))
        near = np.abs(track.places[at.clip(0, len(track) - 1)] - middles) < distance
        alone &= (owners == other) | ~(near & there).any(1)
    return alone


def _cut(
    film: Clips,
    numbers: Int[np.ndarray, "n f"],
    middles: Complex[np.ndarray, "n f"],
    angles: Float[np.ndarray, "n f"],
    side: float,
    size: int,
    background: Float[np.ndarray, "h w"] | None,
) -> UInt8[np.ndarray, "n f s s c"]:
    """Return windows of frames, reading each frame of the film once, in order."""
    channels, height, width = film.image_shape
    channels = channels if background is None else 1
    windows = np.empty((*numbers.shape, size, size, channels), np.uint8)
    # The smallest upright square that holds a window however it is turned, and a pixel more.
    reach = math.ceil(side / math.sqrt(2)) + 2
    around = np.arange(-reach, reach)
    for number in np.unique(numbers):
        if background is None:
            frame = film.frames(np.array([0]), np.array([[number]]))[0, 0].float() / 255
        else:
            steady = _steady(_grey(film, int(number), 1)[0], background)
            difference = 2 / 255 * np.abs(steady - background)
            frame = torch.from_numpy(difference)[None].clamp(max=1).float()
        which = np.argwhere(numbers == number)
        corner = np.rint(np.stack([middles[tuple(w)] for w in which])).astype(complex)
        pictures = []
        for at in corner:
            rows = np.clip(int(at.imag) + around, 0, height - 1)
            columns = np.clip(int(at.real) + around, 0, width - 1)
            pictures.append(frame[:, rows[:, None], columns[None]])
        places = np.array([middles[tuple(w)] for w in which]) - corner + reach * (1 + 1j)
        turns = np.exp(-1j * np.array([angles[tuple(w)] for w in which]))  # y points downwards
        cut = Pyramids(pictures, max(1.0, side / size)).windows(
            torch.arange(len(which)),
            torch.from_numpy(places.astype(np.complex64))[:, None],
            torch.from_numpy((turns * side / size).astype(np.complex64))[:, None],
            size,
        )
        pixels = rearrange(cut[:, 0], "n c h w -> n h w c").mul(255).round()
        if background is not None:
            pixels = pixels.sub(_NOISE).clamp(min=0)
        windows[which[:, 0], which[:, 1]] = pixels.to(torch.uint8).numpy()
    return windows


def motion_labels(
    cut: CutSequences, turn: float = math.radians(20), move: float = 24.0
) -> list[str]:
    """Return what things do in each sequence, computed from their tracks.

    ``turn left`` or ``turn right`` if they turn by more than ``turn`` radians from the first to the
    last frame, else ``glide`` if they move by more than ``move`` pixels, else ``rest``.
    """
    turned, moved = cut.turns[:, -1], np.abs(cut.moves[:, -1])
    chosen = np.select([turned > turn, turned < -turn, moved > move], [0, 1, 2], 3)
    return [("turn left", "turn right", "glide", "rest")[k] for k in chosen]


def write_sequences(path: str | Path, cut: CutSequences, labels: Sequence[str]) -> None:
    """Write sequences to an HDF5 file that :class:`Recordings` reads, with labels and groups.

    Arrays ``frames`` (N, T+1, H, W, C), ``labels``, ``groups`` (the number of the track, whose
    sequences belong into one split), ``begins``, ``turns`` (radians) and ``moves`` (pixels,
    forwards and to the left).

    Raises:
        DataError: the file exists or cannot be written; another number of labels.
    """
    if len(labels) != len(cut.frames):
        raise DataError(f"labels: {len(labels)} labels of {len(cut.frames)} sequences.")
    with writing_h5(path) as file:
        frames = create_images(file, cut.frames.shape, "frames")
        frames[:] = cut.frames
        file["labels"] = [label.encode() for label in labels]
        file["groups"], file["begins"] = cut.tracks, cut.begins
        file["turns"] = cut.turns
        file["moves"] = np.stack([cut.moves.real, cut.moves.imag], -1)


def _each_frame(film: Clips) -> Iterator[Float[np.ndarray, "h w"]]:
    for first in range(0, film.lengths[0], _FRAMES):
        yield from _grey(film, first, min(_FRAMES, film.lengths[0] - first))


def _steady(
    frame: Float[np.ndarray, "h w"], background: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Return a frame at the brightness of the background, by the median of their ratios."""
    some = slice(None, None, max(1, min(frame.shape) // 250))
    seen, still = frame[some, some], background[some, some]
    lit = still > _DARK
    ratio = float(np.median(seen[lit] / still[lit])) if lit.any() else 1.0
    return frame / ratio if ratio > 0 else frame


def _grey(film: Clips, first: int, count: int) -> Float[np.ndarray, "f h w"]:
    """Return grey values of consecutive frames."""
    frames = film.frames(np.array([0]), np.arange(first, first + count)[None])[0]
    grey = frames[:, 0] if len(frames[0]) == 1 else Preparation(grey=True)(frames[:, :3])[:, 0]
    values: Array = grey.numpy().astype(np.float32)
    return values
