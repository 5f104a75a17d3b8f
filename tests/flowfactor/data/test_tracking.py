"""Things in films: ellipses that move as the test says are found, followed, cut out and named."""

import math

import numpy as np
import pytest

from flowfactor.data import Recordings
from flowfactor.data.tracking import (
    cut_sequences,
    find_blobs,
    follow_things,
    link,
    median_background,
    motion_labels,
    open_film,
    write_sequences,
)
from flowfactor.errors import DataError

FRAMES, HEIGHT, WIDTH = 30, 120, 160
LONG, SHORT = 9.0, 3.5


def draw(places, headings, tail=0.0):
    """Return a frame of ellipses on an uneven, noisy background; angles are counter-clockwise."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    frame = 60 + 20 * columns / WIDTH + np.random.default_rng(0).normal(0, 2, columns.shape)
    for place, heading in zip(places, headings, strict=True):
        offset = ((columns - place.real) - 1j * (rows - place.imag)) * np.exp(-1j * heading)
        wide = SHORT * (1 + tail * offset.real / LONG)
        d = (offset.real / LONG) ** 2 + (offset.imag / wide) ** 2
        frame = np.where(d < 1, 200.0, frame)
    return frame.astype(np.uint8)


def paths():
    """Return places and headings: one goes right, one circles to the left, one to the right."""
    t = np.arange(FRAMES)
    straight = 20 + 4 * t + 15j, 0 * t
    left = math.radians(8) * t
    right = -math.radians(6) * t
    # A circle of which the heading is the tangent; rows are counted downwards.
    circle = 45 + 70j + 22 * (np.exp(1j * (left - np.pi / 2))).conj(), left
    other = 115 + 75j + 24 * (np.exp(1j * (right + np.pi / 2))).conj(), right
    return [straight, circle, other]


@pytest.fixture(scope="module")
def film():
    return np.stack(
        [draw(*zip(*[(p[t], h[t]) for p, h in paths()], strict=True)) for t in range(FRAMES)]
    )


@pytest.fixture(scope="module")
def tracks(film):
    return follow_things(open_film(film))


def test_tracks_are_those_that_were_drawn(tracks):
    assert len(tracks) == 3
    for places, headings in paths():
        track = min(tracks, key=lambda each: abs(each.places[0] - places[0]))
        assert track.first == 0
        assert np.abs(track.places - places).max() < 0.5
        assert np.abs(np.angle(np.exp(1j * (track.headings - headings)))).max() < math.radians(6)
        assert track.headings[-1] - track.headings[0] == pytest.approx(headings[-1], abs=0.1)
        assert track.speeds.mean() == pytest.approx(np.abs(np.diff(places)).mean(), rel=0.05)
        assert np.allclose(track.areas, np.pi * LONG * SHORT, rtol=0.1)


def test_windows_turn_with_what_they_follow(film, tracks):
    """In windows that follow place and heading the thing is upright in the middle."""
    film = open_film(film)
    still = median_background(film)
    options = {"horizon": 6, "side": 40, "size": 20, "background": still}
    each = cut_sequences(film, tracks, heading="each", centre="each", **options)
    assert each.frames.shape == (3 * 4, 7, 20, 20, 1)
    rows, columns = np.mgrid[:20, :20] - 9.5
    weights = np.where(each.frames[..., 0] > 100, 1.0, 0.0)
    assert np.abs((weights * columns).sum((2, 3)) / weights.sum((2, 3))).max() < 0.5
    upright = (weights * rows**2).sum((2, 3)) / (weights * columns**2).sum((2, 3))
    assert upright.min() > 3
    assert weights.mean() == pytest.approx(np.pi * LONG * SHORT / 40**2, rel=0.2)

    first = cut_sequences(film, tracks, **options)
    assert np.abs(first.frames[:, 0].astype(float) - each.frames[:, 0]).max() <= 1
    assert np.abs(first.frames[:, 6].astype(float) - each.frames[:, 6]).mean() > 5
    upwards = (np.where(first.frames[..., 0] > 100, rows, 0).sum((2, 3)))[:, [0, 6]]
    assert (upwards[:, 1] < upwards[:, 0]).all()  # they swim upwards, out of the middle
    upright = cut_sequences(film, tracks, heading="no", centre="no", **options)
    assert np.abs(upright.frames[:, 0].astype(float) - first.frames[:, 0]).mean() > 5


def test_labels_are_those_of_the_tracks(film, tracks):
    cut = cut_sequences(open_film(film), tracks, horizon=8, side=30, size=8, stride=4)
    labels = np.array(motion_labels(cut))
    for k, label in enumerate(("glide", "turn left", "turn right")):
        places, headings = paths()[k]
        owner = min(range(3), key=lambda j: abs(tracks[j].places[0] - places[0]))
        assert set(labels[cut.tracks == owner]) == {label}
        assert np.allclose(cut.turns[cut.tracks == owner, -1], headings[8], atol=0.15)
    forwards = cut.moves[labels == "glide", -1]
    assert np.allclose(forwards, 32, atol=1)
    lefts = cut.moves[labels == "turn left", -1]
    assert (lefts.imag > 5).all()
    assert set(motion_labels(cut, turn=10, move=100)) == {"rest"}


def test_the_front_is_the_end_that_leads_or_has_no_tail():
    """Things that go backwards, their thin ends first."""
    t = np.arange(8)
    frames = np.stack([draw([30 + 9j * i + 10j], [-np.pi / 2], tail=0.8) for i in t])
    found = [find_blobs(f.astype(float), draw([], []).astype(float)) for f in frames]
    (leads,), (heavy,) = link(found, 20), link(found, 20, front="heavy")
    assert abs(np.angle(np.exp(1j * (leads.headings.mean() - heavy.headings.mean())))) < 0.1
    backwards = found[::-1]
    (leads,), (heavy,) = link(backwards, 20), link(backwards, 20, front="heavy")
    assert abs(np.angle(np.exp(1j * (leads.headings.mean() - heavy.headings.mean())))) > 3


def test_tracks_end_where_things_touch_and_windows_can_be_left_to_one():
    t = np.arange(30)
    frames = np.stack([draw([20 + 4 * i + 60j, 140 - 4 * i + 61j], [0, np.pi]) for i in t])
    tracks = follow_things(open_film(frames))
    assert len(tracks) >= 4
    assert max(len(track) for track in tracks) < 16
    every = {"horizon": 3, "side": 60, "size": 8, "stride": 1}
    cut = cut_sequences(open_film(frames), tracks, **every)
    alone = cut_sequences(open_film(frames), tracks, alone=True, **every)
    assert 0 < len(alone.frames) < len(cut.frames)
    assert set(zip(alone.tracks, alone.begins, strict=True)) <= set(
        zip(cut.tracks, cut.begins, strict=True)
    )


def test_what_is_written_is_read_as_recordings(tmp_path, film, tracks):
    cut = cut_sequences(open_film(film), tracks, horizon=4, side=30, size=12)
    write_sequences(tmp_path / "things.h5", cut, motion_labels(cut))
    data = Recordings(tmp_path / "things.h5")
    assert data.image_shape == (1, 12, 12)
    assert data.horizon == 4
    assert [data.names[k] for k in data.labels] == motion_labels(cut)
    with pytest.raises(DataError, match="exists"):
        write_sequences(tmp_path / "things.h5", cut, motion_labels(cut))
    with pytest.raises(DataError, match="labels"):
        write_sequences(tmp_path / "other.h5", cut, ["glide"])


def test_a_film_in_a_file(tmp_path, film):
    for name, array in (("one", film), ("colour", np.stack([film] * 3, -1)), ("two", film[None])):
        np.save(tmp_path / f"{name}.npy", array)
        opened = open_film(tmp_path / f"{name}.npy", grey=True)
        frames = opened.frames(np.array([0]), np.array([[3, 29]]))[0, :, 0]
        assert np.abs(frames.numpy().astype(int) - film[[3, 29]]).max() <= 1


def test_nothing_moves(film, tracks):
    with pytest.raises(DataError, match="threshold"):
        follow_things(open_film(film[:1].repeat(5, 0)))
    with pytest.raises(DataError, match="horizon"):
        cut_sequences(open_film(film), tracks, horizon=60, side=30, size=8)
    with pytest.raises(DataError, match="heading"):
        cut_sequences(open_film(film), tracks, horizon=2, side=30, size=8, heading="up")


def test_a_mirror_shows_left_turns_as_right_ones(film, tracks):
    cut = cut_sequences(open_film(film), tracks, horizon=8, side=30, size=8, stride=4)
    both = cut.with_mirrored()
    n = len(cut.frames)
    assert np.array_equal(both.frames[n:], np.flip(cut.frames, axis=3))
    labels = motion_labels(both)
    other = {"turn left": "turn right", "turn right": "turn left"}
    assert labels[n:] == [other.get(label, label) for label in labels[:n]]
    assert set(other) & set(labels)
    assert both.tracks[:n].tolist() == both.tracks[n:].tolist()


def test_light_that_flickers_does_not_show(film, tracks):
    """A lamp on the mains beside a camera: whole frames are brighter or darker by a few percent."""
    light = 1 + 0.08 * np.sin(2.4 * np.arange(FRAMES))
    flickering = (film * light[:, None, None]).round().astype(np.uint8)
    opened = open_film(flickering)
    still = median_background(opened)
    found = follow_things(opened, threshold=15, background=still)
    assert len(found) == len(tracks)
    for track, usual in zip(found, tracks, strict=True):
        assert len(track) == len(usual) == FRAMES
        assert np.abs(track.places - usual.places).max() < 0.5
    options = {"horizon": 8, "side": 40, "size": 20}
    cut = cut_sequences(opened, tracks, background=still, **options).frames.astype(float)
    steady = open_film(film)
    usual = cut_sequences(steady, tracks, background=median_background(steady), **options).frames
    assert np.abs(cut - usual).mean() < 3
    dark = usual < 40  # what is no thing in either
    assert abs(cut[dark].mean() - usual[dark].mean()) < 2
