"""Recordings whose frames are at times of their own."""

import json

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data import (
    UNLABELLED,
    ActivityLaw,
    Recordings,
    SequenceBatch,
    SequenceDataset,
    SequenceLoader,
)
from flowfactor.data.recordings import RecordingsOptions
from flowfactor.errors import DataError

FILMS = np.random.default_rng(0).integers(256, size=(4, 5, 6, 6), dtype=np.uint8)
SHARED = [0.0, 0.5, 1.0, 3.0, 4.0]
OWN = np.array([SHARED, [0, 1, 2, 3, 4], [0, 0.25, 0.5, 0.75, 2], [0, 2, 2.5, 3, 3.5]])


@pytest.mark.parametrize("times", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("kind", ["argument", "mapping", "npz", "h5", "npy", "json", "csv"])
def test_times_are_given_in_many_ways(tmp_path, times, kind):
    rows = np.broadcast_to(times, (4, 5))
    if kind == "argument":
        recordings = Recordings(FILMS, times=times)
    elif kind == "mapping":
        recordings = Recordings(FILMS, times={str(i): rows[3 - i] for i in range(4)})
        rows = rows[::-1]
    elif kind == "npz":
        np.savez(tmp_path / "a.npz", frames=FILMS, times=times)
        recordings = Recordings(tmp_path / "a.npz")
    elif kind == "h5":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["films"], file["times"], file["labels"] = FILMS, times, [0, 1, 0, 1]
        recordings = Recordings(tmp_path / "a.h5")
    elif kind == "npy":
        np.save(tmp_path / "times.npy", times)
        recordings = Recordings(FILMS, times=tmp_path / "times.npy")
    elif kind == "json":
        (tmp_path / "times.json").write_text(json.dumps(np.array(times).tolist()))
        recordings = Recordings(FILMS, times=tmp_path / "times.json")
    else:
        (tmp_path / "times.csv").write_text("time\n" + "\n".join(map(str, SHARED)))
        recordings, rows = Recordings(FILMS, times=str(tmp_path / "times.csv")), np.array([SHARED])
    batch = recordings.sample(range(4))
    expected = torch.from_numpy(rows.copy()).float().expand(4, 5)
    torch.testing.assert_close(batch.times, expected)
    assert batch.shared_times.ndim == (2 if kind != "csv" and times is OWN else 1)
    assert not batch.is_complete
    some = recordings.sample([1, 2], times=torch.tensor([[0, 3], [2, 1]]))
    assert torch.equal(some.times[0], batch.times[1, [0, 3]])
    assert torch.equal(some.times[1], batch.times[2, [2, 1]])
    assert torch.equal(some.frames[1], batch.frames[2, [2, 1]])


def test_the_grid_is_what_equally_spaced_times_are():
    for spacing in (0.04, 1, 1e9):
        recordings = Recordings(FILMS, times=spacing * np.arange(5))
        batch = recordings.sample([0, 1])
        assert recordings.is_regular
        assert recordings.time_unit == pytest.approx(spacing)
        assert batch.is_complete
        assert torch.equal(batch.times, Recordings(FILMS).sample([0, 1]).times)
    assert not Recordings(FILMS, times=np.arange(5), time_unit=2.0).is_regular


def test_sequences_begin_at_time_0_in_a_unit_that_all_share():
    film = FILMS.reshape(1, 20, 6, 6)
    stamps = np.cumsum([0, *([1, 3] * 9), 1])
    recordings = Recordings(film, times=stamps, horizon=3, stride=5, every=2)
    times = recordings.sample(range(len(recordings))).times
    expected = torch.tensor([[0.0, 1, 2, 3]]).repeat(3, 1)  # 1 + 3 or 3 + 1 is one unit
    assert recordings.is_regular or torch.equal(times, expected)
    recordings = Recordings(film, times=stamps, horizon=3, stride=5)
    begins = np.arange(len(recordings)) * 5
    since = np.stack([stamps[b : b + 4] - stamps[b] for b in begins])
    times = recordings.sample(range(len(recordings))).times
    torch.testing.assert_close(times, torch.from_numpy(since * 3 / since.max()).float())
    assert float(times.max()) == 3
    part = recordings.split(0.25, 0.25)["test"]
    assert part.time_unit == recordings.time_unit


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0, 2, 1, 3, 4], "number 2 is 1, after 2"),
        ([0, 1, 1, 3, 4], "number 2 is 1, after 1"),
        ([0, 1, float("nan"), 3, 4], "number 2 is nan"),
        ([0, 1, 2, 3, float("inf")], "number 4 is inf"),
        ([1, 2, 3, 4, 5], "number 0 is 1"),
        ([0, 1, 2, 3], "there are 4"),
        ([SHARED] * 3, "3 of them for 4"),
        ([SHARED, SHARED, SHARED, SHARED[:4]], "'3'.*there are 4"),
        ({"0": SHARED}, "only"),
        (["0", "1", "2", "x", "4"], "no numbers"),
        ([], "there are 0"),
    ],
)
def test_bad_times(times, words):
    with pytest.raises(DataError, match=f"times.*{words}"):
        Recordings(FILMS, times=times)


@pytest.mark.parametrize("times", [[0, 2, 1], [1, 2, 3], [0, 1, float("nan")], [0, 1], [[0, 1, 2]]])
def test_bad_times_of_batches(times):
    with pytest.raises(DataError, match="times"):
        SequenceBatch.full(torch.rand(2, 3, 1, 4, 4), times=torch.tensor(times))


def test_an_array_of_another_shape_and_units_of_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", frames=FILMS, times=np.zeros((5, 4)))
    with pytest.raises(DataError, match="times"):
        Recordings(tmp_path / "a.npz")
    with pytest.raises(DataError, match="time_unit"):
        Recordings(FILMS, time_unit=2.0)
    with pytest.raises(DataError, match="stamps"):
        Recordings(FILMS, stamps=True)


def test_time_stamps_of_films(tmp_path):
    pictures = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (0, 80, 160, 240)]
    durations = [100, 300, 100, 100]
    pictures[0].save(
        tmp_path / "a.gif", append_images=pictures[1:], save_all=True, duration=durations
    )
    usual = Recordings(tmp_path / "a.gif")
    assert usual.horizon == 5
    assert usual.is_regular
    stamped = Recordings(tmp_path / "a.gif", stamps=True)
    assert stamped.horizon == 3
    batch = stamped.sample([0])
    torch.testing.assert_close(batch.times, torch.tensor([[0.0, 0.6, 2.4, 3.0]]))
    levels = batch.frames.mean((2, 3, 4)) * 255
    torch.testing.assert_close(levels, torch.tensor([[0.0, 80, 160, 240]]))
    seconds = Recordings(tmp_path / "a.gif", stamps=True, time_unit=0.1)
    torch.testing.assert_close(seconds.sample([0]).times, torch.tensor([[0.0, 1, 4, 5]]))


def test_another_file_is_in_the_unit_of_the_training(tmp_path):
    np.savez(tmp_path / "a.npz", frames=FILMS, times=2 * OWN, labels=[0, 0, 0, 0])
    np.savez(tmp_path / "b.npz", frames=FILMS, times=4 * OWN, labels=[0, 0, 0, 0])
    paths = {"path": str(tmp_path / "a.npz"), "test_path": str(tmp_path / "b.npz")}
    options = RecordingsOptions(**paths, validation=1)
    training, test = options.load("train", 0), options.load("test", 0)
    assert test.time_unit == training.time_unit == 2
    torch.testing.assert_close(test.sample(range(4)).times, torch.from_numpy(2 * OWN).float())


def test_activity_needs_a_constant_rate():
    recordings = Recordings(FILMS, names=["a"], times=SHARED, horizon=2)
    assert not recordings.can_follow(ActivityLaw("single", speeds=(1, 2)))
    assert Recordings(FILMS, names=["a"], horizon=2).can_follow(
        ActivityLaw("single", speeds=(1, 2))
    )


class Gauge(SequenceDataset):
    """Grey frames, each as bright as its time, of a class that is not ours."""

    is_regular = False

    def __init__(self, seconds):
        super().__init__(("rise", "fall"), 3, (1, 3, 5), labels=torch.tensor([0, UNLABELLED]))
        self.seconds = torch.as_tensor(seconds)

    def __len__(self):
        return 2

    def times_of(self, indices, numbers):
        return self.seconds[indices].gather(1, numbers)

    def render_frames(self, indices, elapsed, active, starts):
        levels = self.seconds[indices].gather(1, elapsed[0]) / 4
        return levels[..., None, None, None].expand(*levels.shape, *self.image_shape)


def test_a_source_of_ones_own_with_times_of_its_own():
    data = Gauge([[0.0, 0.5, 2.5, 4.0], [0.0, 1.0, 1.5, 2.0]])
    batch = SequenceLoader(data, 4, frames_per_sequence=1).batch(0)
    assert torch.equal(batch.times / 4, batch.frames[..., 0, 0, 0])
    assert sorted(batch.labels.tolist()) == [UNLABELLED, UNLABELLED, 0, 0]
    assert torch.equal(data.sample([1, 0]).times, data.seconds[[1, 0]])
    for wrong in ([0.0, 0.5, 0.5, 4.0], [0.1, 0.5, 2.5, 4.0], [0.0, 2.5, 0.5, 4.0]):
        with pytest.raises(DataError, match="times_of"):
            Gauge([[0.0, 1.0, 2.0, 3.0], wrong]).sample(
                [0, 1], times=torch.tensor([[0, 3, 1, 2]] * 2)
            )
    data.is_regular = True
    with pytest.raises(DataError, match="is_regular"):
        data.sample([0])
