"""Recordings that belong together, one long film, a film for the test only."""

import numpy as np
import pytest
import torch

from flowfactor.data import Recordings, RecordingsOptions
from flowfactor.errors import DataError

# Each pixel of a frame says which recording it is from, and which frame it is.
CLIPS = 12
FILMS = np.stack(
    [np.full((10, 4, 6), 20 * clip) + np.arange(10)[:, None, None] for clip in range(CLIPS)]
).astype(np.uint8)
GROUPS = [clip // 3 for clip in range(CLIPS)]


def seen(data):
    """Return all frames of a part, by what their pixels say."""
    frames = data.sample(range(len(data))).frames[..., 0, 0].mul(255).round().int()
    return set(frames.flatten().tolist())


def test_a_group_is_in_one_split(tmp_path):
    data = Recordings(FILMS, groups=GROUPS, horizon=3, stride=1)
    parts = data.split(validation=0.25, test=1, seed=2)
    films = {name: {value // 60 for value in seen(part)} for name, part in parts.items()}
    assert [len(each) for each in films.values()] == [2, 1, 1]
    assert len(set.union(*films.values())) == 4
    np.savez(tmp_path / "a.npz", frames=FILMS, groups=GROUPS)
    again = Recordings(tmp_path / "a.npz", horizon=3, stride=1).split(0.25, 1, 2)
    assert seen(again["test"]) == seen(parts["test"])
    lines = "\n".join(f"{clip},film {group}" for clip, group in enumerate(GROUPS))
    (tmp_path / "groups.csv").write_text("name,group\n" + lines)
    np.save(tmp_path / "a.npy", FILMS)
    options = RecordingsOptions(
        path=str(tmp_path / "a.npy"),
        groups=str(tmp_path / "groups.csv"),
        horizon=3,
        stride=1,
        validation=1,
        test=1,
    )
    assert {value // 60 for value in seen(options.load("test", 0))} < {0, 1, 2, 3}
    # One that is unknown is on its own.
    alone = Recordings(FILMS, groups=[0] * 10 + [None, ""]).split(1, 1)
    assert [len(part) for part in alone.values()].count(10) == 1


@pytest.mark.parametrize("groups", [[0, 1], [0.5] * CLIPS, {"0": 1}])
def test_groups_that_do_not_fit(groups):
    with pytest.raises(DataError, match="groups"):
        Recordings(FILMS, groups=groups)


def test_forty_recordings_are_enough():
    data = Recordings(np.tile(FILMS, (4, 1, 1, 1))[:40])
    assert [len(part) for part in data.split(4, 0.25).values()] == [26, 4, 10]
    with pytest.raises(DataError, match="leave none"):
        data.split(20, 20)


def test_a_single_film_is_cut_in_time():
    """Windows overlap, but no frame of the test or of validation is seen in training."""
    film = np.arange(100, dtype=np.uint8)[None, :, None, None] + np.zeros((1, 100, 4, 4), np.uint8)
    data = Recordings(film, horizon=4, stride=1)
    parts = data.split(validation=0.2, test=0.1)
    assert [len(part) for part in parts.values()] == [66, 16, 6]
    assert seen(parts["train"]) == set(range(70))
    assert seen(parts["validation"]) == set(range(70, 90))
    assert seen(parts["test"]) == set(range(90, 100))
    # Longer sequences do not reach into another part either.
    assert parts["train"].max_horizon == 4
    assert parts["validation"].subset([0]).max_horizon == 19
    assert list(data.split(validation=0)) == ["train", "test"]
    for bad in ({"horizon": 4}, {"horizon": 20, "stride": 1}):
        with pytest.raises(DataError, match=r"validation|stride"):
            Recordings(film, **bad).split()


def test_another_film_for_the_test(tmp_path):
    labels = np.array(["b", "a"] * 6)
    np.savez(tmp_path / "train.npz", frames=FILMS, labels=labels, groups=GROUPS)
    np.savez(tmp_path / "test.npz", frames=FILMS[:3] + 5, labels=np.array(["b", "b", "b"]))
    given = {"path": str(tmp_path / "train.npz"), "test_path": str(tmp_path / "test.npz")}
    options = RecordingsOptions(**given, horizon=4, validation=1)
    parts = {split: options.load(split, 0) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 9,
        "validation": 3,
        "test": 3,
    }
    assert all(part.names == ("a", "b") for part in parts.values())
    assert parts["test"].labels.tolist() == [1, 1, 1]
    assert sorted(options.fingerprint()) == ["path", "test_path"]
    np.savez(tmp_path / "test.npz", frames=FILMS[:3], labels=np.array(["b", "c", "b"]))
    with pytest.raises(DataError, match="'c'"):
        options.load("test", 0)


def test_a_part_of_each_frame():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 10, 3), dtype=np.uint8)
    data = Recordings(frames, crop=(1, 2, 4, 6))
    expected = torch.from_numpy(frames[:, :, 1:5, 2:8]).permute(0, 1, 4, 2, 3) / 255
    torch.testing.assert_close(data.sample([0, 1]).frames, expected)
    assert Recordings(frames, crop=(1, 2, 4, 6), size=2).image_shape == (3, 2, 2)
    for crop in ((5, 0, 4, 4), (0, 5, 4, 6), (-1, 0, 4, 4), (0, 0, 0, 4)):
        with pytest.raises(DataError, match="crop"):
            Recordings(frames, crop=crop)


def test_moving_mnist_has_frames_first(tmp_path):
    """Its file has the shape (20, 10000, 64, 64)."""
    np.save(tmp_path / "moving.npy", FILMS.swapaxes(0, 1))
    for source in (tmp_path / "moving.npy", FILMS.swapaxes(0, 1)):
        data = Recordings(source, frames_first=True, horizon=4)
        assert len(data) == CLIPS
        shown = data.sample([7]).frames[0, :, 0, 0, 0].mul(255).round().tolist()
        assert shown == [140, 141, 142, 143, 144]
