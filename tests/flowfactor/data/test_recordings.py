import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data import (
    GivenFactor,
    Recordings,
    SequenceLoader,
    SequenceSource,
    round_robin,
    samples_undergoing,
)
from flowfactor.data.films import LazyFilms, natural
from flowfactor.errors import DataError

# Four recordings of six frames in colour, and the same in grey.
FILMS = np.random.default_rng(0).integers(0, 256, (4, 6, 3, 8, 10), dtype=np.uint8)
GREY = FILMS[:, :, :1]
TRUTH = torch.from_numpy(FILMS) / 255


def reads(recordings: Recordings) -> list:
    """Count, from now on, what is read from files."""
    films = recordings._films
    assert isinstance(films, LazyFilms)
    found, read = [], films._read

    def spy(*args):
        found.append(args)
        return read(*args)

    films._read = spy
    return found


def save_pictures(root, films, names=None, suffix=".png"):
    for i, film in enumerate(films):
        folder = root / (names[i] if names else f"film{i}")
        folder.mkdir(parents=True)
        for t, frame in enumerate(film):
            pixels = frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / f"frame{t + 7}{suffix}")
    return root


def save_hdf5(path, **arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def save_video(path, film, codec="libx264", options=None, gop=4):
    """A film of frames `(T+1, H, W, 3)` in a tiny file; H.264 in RGB keeps every bit."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = options or {"crf": "1"}
        for pixels in film:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rising(frames=150, height=32, width=48, base=0):
    """A film whose frame `t` is all of brightness `base + t`."""
    levels = (base + np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def levels(frames: torch.Tensor) -> torch.Tensor:
    return (frames.mean((-3, -2, -1)) * 255).round()


@pytest.mark.parametrize(
    ("frames", "truth"),
    [
        (FILMS, TRUTH),
        (torch.from_numpy(FILMS), TRUTH),
        (FILMS.transpose(0, 1, 3, 4, 2), TRUTH),
        (FILMS / 255, TRUTH),
        ((FILMS / 255).astype(np.float32), TRUTH),
        (torch.from_numpy(FILMS) / 255, TRUTH),
        (GREY, TRUTH[:, :, :1]),
        (GREY[:, :, 0], TRUTH[:, :, :1]),
        (GREY.transpose(0, 1, 3, 4, 2) / 255, TRUTH[:, :, :1]),
    ],
    ids=["bytes", "tensor", "last", "float64", "float32", "floats", "grey", "plain", "grey-last"],
)
def test_arrays(frames, truth):
    recordings = Recordings(frames)
    assert isinstance(recordings, SequenceSource)
    assert isinstance(recordings, GivenFactor)
    batch = recordings.sample([2, 0])
    torch.testing.assert_close(batch.frames, truth[[2, 0]], rtol=0, atol=1e-6)
    assert recordings.image_shape == tuple(truth.shape[2:])
    assert (len(recordings), recordings.horizon, recordings.start_size) == (4, 5, 0)
    assert recordings.names == ("transformation",)
    assert batch.labels.tolist() == [0, 0]
    assert recordings.to("meta").device.type == "meta"


@pytest.fixture(params=["npy", "float-npy", "npz", "h5", "last-h5", "folder", "bmp"])
def stored(request, tmp_path):
    """The films in every kind of file that keeps each bit."""
    kind = request.param
    if kind in ("npy", "float-npy"):
        np.save(tmp_path / "a.npy", FILMS if kind == "npy" else FILMS / 255)
        return tmp_path / "a.npy"
    if kind == "npz":
        np.savez_compressed(tmp_path / "a.npz", films=FILMS)
        return str(tmp_path / "a.npz")
    if kind == "h5":
        return save_hdf5(tmp_path / "a.h5", frames=FILMS, other=np.zeros(3))
    if kind == "last-h5":
        return save_hdf5(tmp_path / "a.hdf5", x=FILMS.transpose(0, 1, 3, 4, 2) / 255)
    return save_pictures(tmp_path / "films", FILMS, suffix=".png" if kind == "folder" else ".BMP")


def test_files(stored):
    recordings = Recordings(stored)
    times = torch.tensor([[0, 5], [0, 3], [0, 1]])
    batch = recordings.sample([3, 1, 3], times=times)
    expected = TRUTH[torch.tensor([3, 1, 3])[:, None], times]
    torch.testing.assert_close(batch.frames, expected, rtol=0, atol=1e-6)
    copied = pickle.loads(pickle.dumps(recordings))
    assert torch.equal(copied.sample([3, 1, 3], times=times).frames, batch.frames)
    small = Recordings(stored, size=5, grey=True)
    assert small.image_shape == (1, 5, 5)
    held = Recordings(FILMS, size=5, grey=True)
    assert torch.equal(small.sample([2]).frames, held.sample([2]).frames)


def test_files_are_read_when_asked_for_and_kept(stored):
    recordings = Recordings(stored)
    if not isinstance(recordings._films, LazyFilms):
        return
    assert not recordings._films._kept
    read = reads(recordings)
    first = recordings.sample([1, 3]).frames
    assert read == [(1, 0, 6), (3, 0, 6)]
    assert torch.equal(recordings.sample([1, 3]).frames, first)
    assert len(read) == 2


def test_memory_is_limited(tmp_path):
    np.save(tmp_path / "a.npy", FILMS)
    recordings = Recordings(tmp_path / "a.npy", memory_limit=2 * FILMS[0].nbytes)
    read = reads(recordings)
    for index in (0, 1, 0, 2, 0, 1):
        recordings.sample([index])
    assert [recording for recording, *_ in read] == [0, 1, 2, 1]
    assert recordings._films._bytes == 2 * FILMS[0].nbytes
    # Less than a single recording is no reason to fail.
    tight = Recordings(tmp_path / "a.npy", memory_limit=1)
    torch.testing.assert_close(tight.sample(range(4)).frames, TRUTH, rtol=0, atol=1e-6)


def test_pickles_do_not_carry_what_was_read(tmp_path):
    np.save(tmp_path / "a.npy", FILMS)
    recordings = Recordings(tmp_path / "a.npy")
    before = len(pickle.dumps(recordings))
    recordings.sample(range(4))
    assert len(pickle.dumps(recordings)) == before


def test_the_array_may_change_afterwards():
    for films in (FILMS.copy(), torch.from_numpy(FILMS.copy())):
        recordings = Recordings(films)
        films[:] = 0
        torch.testing.assert_close(recordings.sample([0]).frames[0], TRUTH[0], rtol=0, atol=1e-6)


def test_natural_order(tmp_path):
    # frame7 ... frame12: sorted as text, frame10 would come first.
    recordings = Recordings(save_pictures(tmp_path / "f", FILMS[:, :, :1]))
    torch.testing.assert_close(recordings.sample([0]).frames[0], TRUTH[0, :, :1], rtol=0, atol=1e-6)
    assert sorted(["b2", "B10", "a", "10", "9"], key=natural) == ["9", "10", "a", "b2", "B10"]
    assert sorted(["1x²", "1x10", "1x9"], key=natural)[0] == "1x9"


def test_folder_of_one_recording_and_of_classes(tmp_path):
    single = Recordings(save_pictures(tmp_path / "a", FILMS[:1]) / "film0", horizon=2, stride=1)
    assert len(single) == 4
    assert single.recording(3) == "film0"
    names = ["turn/10", "grow/a", "turn/9", "grow/b"]
    classes = Recordings(save_pictures(tmp_path / "b", FILMS, names))
    assert classes.names == ("grow", "turn")
    assert [classes.recording(i) for i in range(4)] == ["grow/a", "grow/b", "turn/9", "turn/10"]
    assert classes.labels.tolist() == [0, 0, 1, 1]
    expected = TRUTH[[1, 3, 2, 0]]
    torch.testing.assert_close(classes.sample(range(4)).frames, expected, rtol=0, atol=1e-6)
    ordered = Recordings(tmp_path / "b", names=["turn", "shear", "grow"])
    assert ordered.labels.tolist() == [2, 2, 0, 0]


def test_grey_and_size():
    grey = Recordings(FILMS, grey=True).sample([1]).frames
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    luminance = (TRUTH[1] * weights).sum(1, keepdim=True)
    torch.testing.assert_close(grey[0], luminance, rtol=0, atol=0.51 / 255)
    same = Recordings(GREY, grey=True).sample([1]).frames[0]
    torch.testing.assert_close(same, TRUTH[1, :, :1], rtol=0, atol=1e-6)
    # 8 x 10 pixels cover 4 x 4 at half the size, of which half a pixel at either side is cut off.
    flat = np.zeros((1, 2, 1, 8, 16), np.uint8)
    flat[..., 4:12] = 200
    cut = Recordings(flat, size=(4, 4)).sample([0]).frames
    torch.testing.assert_close(cut[..., 1:3], torch.full((1, 2, 1, 4, 2), 200 / 255))
    stretched = Recordings(flat, size=(4, 8)).sample([0]).frames
    assert stretched[0, 0, 0, 2, [0, 7]].tolist() == [0, 0]
    assert Recordings(FILMS, size=(16, 20)).image_shape == (3, 16, 20)


VIDEOS = {"mp4": "libx264", "mkv": "ffv1", "avi": "libx264", "mpg": "mpeg2video"}


@pytest.mark.parametrize("kind", VIDEOS)
def test_video_in_windows(tmp_path, kind):
    path = save_video(tmp_path / f"rise.{kind}", rising(), VIDEOS[kind])
    recordings = Recordings(path, horizon=4, stride=3, every=2)
    # 9 frames are needed; the last window begins at 141.
    assert len(recordings) == 48
    assert recordings.image_shape == (3, 32, 48)
    assert recordings.recording(47) == f"rise.{kind}"
    for index in (47, 0, 21, 20, 22):  # beginning late makes a jump to a key frame necessary
        found = levels(recordings.sample([index]).frames)[0]
        expected = 3 * index + 2 * torch.arange(5)
        assert (found - expected).abs().max() <= 2


def test_a_jump_into_a_video_finds_the_same_frames(tmp_path):
    film = np.random.default_rng(1).integers(0, 256, (140, 16, 16, 3), dtype=np.uint8)
    path = save_video(tmp_path / "a.mp4", film, options={"bf": "3", "crf": "1"}, gop=30)
    straight = Recordings(path, horizon=139).sample([0]).frames[0]
    late = Recordings(path, horizon=2, stride=1)
    read = reads(late)
    jumped = late.sample([130]).frames[0]
    assert read == [(0, 128, 12)]
    assert torch.equal(jumped, straight[130:133])
    films = late._films
    films._stamps[0] = None  # as in a file that has none
    films._kept.clear()
    assert torch.equal(late.sample([130]).frames[0], jumped)


def test_folders_of_videos(tmp_path):
    for i, name in enumerate(["up/v10", "up/v9", "down/a"]):
        save_video(tmp_path / f"{name}.mp4", rising(10, base=40 * i))
    classes = Recordings(tmp_path, size=16, grey=True)
    assert classes.names == ("down", "up")
    assert [classes.recording(i) for i in range(3)] == ["down/a.mp4", "up/v9.mp4", "up/v10.mp4"]
    assert classes.image_shape == (1, 16, 16)
    assert (
        levels(classes.sample([0, 1, 2]).frames)[:, 0] - torch.tensor([80, 40, 0])
    ).abs().max() <= 2
    flat = Recordings(tmp_path / "up", labels={"v10": "b", "v9.mp4": "a"})
    assert flat.labels.tolist() == [0, 1]
    copied = pickle.loads(pickle.dumps(flat))
    assert torch.equal(copied.sample([1]).frames, flat.sample([1]).frames)


def test_damaged_video_is_named(tmp_path):
    path = save_video(tmp_path / "good.mp4", rising(20))
    whole = path.read_bytes()
    (tmp_path / "bad.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"bad\.mp4 cannot be read"):
        Recordings(tmp_path)
    (tmp_path / "bad.mp4").write_bytes(b"no film at all")
    with pytest.raises(DataError, match=r"bad\.mp4 cannot be read"):
        Recordings(tmp_path / "bad.mp4")
    recordings = Recordings(path)
    path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"good\.mp4 cannot be decoded"):
        recordings.sample([0])


def test_a_video_that_ends_early_is_named(tmp_path):
    path = save_video(tmp_path / "a.mp4", rising(20))
    recordings = Recordings(path)
    save_video(path, rising(10))
    with pytest.raises(DataError, match=r"a\.mp4 ends before frame 19"):
        recordings.sample([0])


def test_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    path = save_video(tmp_path / "a.mp4", rising(5))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"package av\. .*flowfactor\[video\]"):
        Recordings(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").touch()
    with pytest.raises(DataError, match=r"package h5py\. .*flowfactor\[data\]"):
        Recordings(tmp_path / "a.h5")


def ragged(tmp_path):
    """Folders of 6, 4, 5 and 6 pictures."""
    return save_pictures(tmp_path / "r", [FILMS[0], FILMS[1][:4], FILMS[2][:5], FILMS[3]])


def test_recordings_of_different_lengths(tmp_path):
    folder = ragged(tmp_path)
    assert Recordings(folder).horizon == 3
    with pytest.raises(DataError, match=r"'film1' has 4 frames, .* 0\.\.4, .* needs 5.*drop"):
        Recordings(folder, horizon=4)
    dropped = Recordings(folder, [0, 1, 0, 1], horizon=4, short="drop")
    assert [dropped.recording(i) for i in range(len(dropped))] == ["film0", "film2", "film3"]
    assert dropped.labels.tolist() == [0, 0, 1]
    windows = Recordings(folder, horizon=3, stride=1)
    assert windows.recordings.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3]
    torch.testing.assert_close(windows.sample([5]).frames[0], TRUTH[2, 1:5], rtol=0, atol=1e-6)
    with pytest.raises(
        DataError, match=r"None of the 4 recordings has the 10 frames.*longest has 6"
    ):
        Recordings(folder, horizon=9, short="drop")


def test_with_last_cuts_and_goes_on_where_it_can(tmp_path):
    recordings = Recordings(FILMS, horizon=3)
    torch.testing.assert_close(
        recordings.with_last(5).sample([2]).frames[0], TRUTH[2], rtol=0, atol=1e-6
    )
    assert recordings.with_last(1).sample([0]).frames.shape[1] == 2
    with pytest.raises(DataError, match=r"Sequence 0 has no frame 6: .*'0' ends after 6 frames"):
        recordings.with_last(6)
    with pytest.raises(DataError, match="at least 1"):
        recordings.with_last(0)


def test_split_is_by_recording(tmp_path):
    films = np.random.default_rng(0).integers(0, 256, (20, 8, 4, 4), dtype=np.uint8)
    windows = Recordings(films, [0, 1] * 10, horizon=3, stride=2)
    parts = windows.split(validation=0.1, test=0.25, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 39,
        "validation": 6,
        "test": 15,
    }
    recordings = [set(part.recordings.tolist()) for part in parts.values()]
    assert sum(map(len, recordings)) == len(set.union(*recordings)) == 20
    again = windows.split(validation=0.1, test=0.25, seed=3)
    assert torch.equal(again["test"].recordings, parts["test"].recordings)
    other = windows.split(validation=0.1, test=0.25, seed=4)
    assert not torch.equal(other["test"].recordings, parts["test"].recordings)
    test = parts["test"]
    recording = int(test.recordings[4])
    assert test.labels[4] == recording % 2
    assert list(windows.split(validation=0)) == ["train", "test"]
    with pytest.raises(DataError, match=r"less than 1 together, but they are 0.5 and 0.5"):
        windows.split(0.5, 0.5)
    with pytest.raises(DataError, match=r"2 recordings are too few"):
        Recordings(films[:2]).split()


def label_files(tmp_path):
    (tmp_path / "lines.csv").write_text("b\na\n\nb\na\n")
    (tmp_path / "header.csv").write_text("name,label\n3,a\n0, b\n2,b\n1,a\n")
    (tmp_path / "list.json").write_text(json.dumps(["b", "a", "b", "a"]))
    (tmp_path / "object.json").write_text(json.dumps({"0": "b", "3": "a", "1": "a", "2": "b"}))
    np.save(tmp_path / "text.npy", np.array(["b", "a", "b", "a"]))
    return sorted(tmp_path.iterdir())


def test_labels(tmp_path):
    names = ["b", "a", "b", "a"]
    for labels in (
        names,
        np.array(names),
        {str(i): name for i, name in enumerate(names)},
        *label_files(tmp_path),
    ):
        recordings = Recordings(FILMS, labels)
        assert recordings.names == ("a", "b")
        assert recordings.labels.tolist() == [1, 0, 1, 0]
        assert recordings.sample([0, 1]).labels.tolist() == [1, 0]
    for indices in ([1, 0, 1, 0], np.array([1, 0, 1, 0], np.int8), torch.tensor([1, 0, 1, 0])):
        recordings = Recordings(FILMS, indices)
        assert recordings.names == ("transformation_0", "transformation_1")
        assert recordings.labels.tolist() == [1, 0, 1, 0]
    (tmp_path / "numbers.csv").write_text("label\n2\n-1\n\n0\n1\n")
    numbers = Recordings(FILMS, tmp_path / "numbers.csv", names=["x", "y", "z"])
    assert numbers.labels.tolist() == [2, -1, 0, 1]
    np.save(tmp_path / "n.npy", np.array([0, 1, 1, 2]))
    assert Recordings(FILMS, tmp_path / "n.npy").labels.tolist() == [0, 1, 1, 2]


def test_labels_within_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", frames=FILMS, more=np.zeros(2), labels=np.array([0, 1, 1, 0]))
    assert Recordings(tmp_path / "a.npz", names=["a", "b"]).labels.tolist() == [0, 1, 1, 0]
    texts = np.array([b"turn", b"grow", b"turn", b"turn"])
    path = save_hdf5(tmp_path / "a.h5", x=FILMS, labels=texts)
    assert Recordings(path).names == ("grow", "turn")
    assert Recordings(path, labels=[0] * 4, names=["one"]).labels.tolist() == [0] * 4


def test_labels_that_are_not_known():
    weak = Recordings(FILMS, names=["a", "b", "c"])
    assert weak.labels.tolist() == [-1] * 4
    assert weak.sample([0]).labels.tolist() == [-1]
    some = Recordings(FILMS, ["a", None, -1, "b"])
    assert some.labels.tolist() == [0, -1, -1, 1]
    with pytest.raises(DataError, match=r"No label is known.*give names"):
        Recordings(FILMS, [None] * 4)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1], None, r"each of the 4 recordings, but there are 2"),
        ([0, 1, 2, 3], ["a", "b"], r"recording '2' is 2, .*\['a', 'b'\], nor an index in 0\.\.1"),
        (["a", "c", "a", "a"], ["a", "b"], r"recording '1' is 'c'"),
        ([0, 1, -2, 0], ["a", "b"], r"recording '2' is -2"),
        ([0.5, 1, 0, 0], None, r"whole numbers, but one of them is 0\.5, of type float"),
        ([True, False] * 2, None, r"True, of type bool"),
        ({"0": 1, "1": 0, "3": 0}, None, r"no label for recording '2' \(1 in all\)"),
        (dict.fromkeys("01234", 0), None, r"a label, but no recording, '4'"),
        ([0, 0, 0, 0], ["a", "a"], r"each different.*\['a', 'a'\]"),
        ([0, 0, 0, 0], [], r"one or more"),
        ("labels.txt", None, r"\.npy, \.json or \.csv files, but the file is labels\.txt"),
        ("nowhere.csv", None, r"no file nowhere\.csv with labels"),
    ],
)
def test_bad_labels(labels, names, message):
    with pytest.raises(DataError, match=message):
        Recordings(FILMS, labels, names)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", r"a\.json cannot be read"),
        ("a.json", "3", r"a\.json must hold a list"),
        ("a.csv", "a,b,c\n", r"columns, but its lines|has \[3\]|have \[3\] columns"),
        ("a.csv", "0,a\n0,b\n", r"different labels for recording '0'"),
        ("a.npy", "text", r"a\.npy cannot be read"),
    ],
)
def test_bad_label_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        Recordings(FILMS, tmp_path / name)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FILMS[0, 0], r"\(N, T\+1, C, H, W\).*\(3, 8, 10\)"),
        (np.zeros((2, 3, 2, 8, 8), np.uint8), r"C = 1 or 3.*\(2, 3, 2, 8, 8\)"),
        (FILMS[:0], r"nothing empty.*\(0, 6, 3, 8, 10\)"),
        (FILMS.astype(np.int32), r"uint8.*the array is of type int32.*astype\('uint8'\)"),
        (FILMS > 3, r"type bool"),
        (FILMS[:, :1], r"'0' has 1 frames, .* needs 2"),
        ("nowhere", r"no file or folder nowhere"),
    ],
)
def test_bad_frames(frames, message):
    with pytest.raises(DataError, match=message):
        Recordings(frames)


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (1.5, "1.5"), (-np.inf, "-inf")])
def test_bad_pixel_is_named(tmp_path, value, shown):
    films = FILMS / 255
    films[2, 4, 0, 1, 1] = value
    with pytest.raises(
        DataError, match=rf"in recording 2 of the array are not.* {shown} in frame 4"
    ):
        Recordings(films)
    np.save(tmp_path / "a.npy", films)
    lazy = Recordings(tmp_path / "a.npy")
    lazy.sample([0, 1, 3])
    with pytest.raises(DataError, match=rf"recording 2 of .*a\.npy .* is {shown} in frame 4"):
        lazy.sample([2])


def test_unreadable_files_are_named(tmp_path):
    for name in ("a.npy", "a.npz", "a.h5"):
        if name == "a.h5":
            pytest.importorskip("h5py")
        (tmp_path / name).write_bytes(b"no array at all")
        with pytest.raises(DataError, match=rf"{name} cannot be read"):
            Recordings(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"objects\.npy cannot be read"):
        Recordings(tmp_path / "objects.npy")
    np.savez(tmp_path / "two.npz", a=FILMS, b=FILMS)
    with pytest.raises(DataError, match=r"named `frames`, or a single .* holds a, b"):
        Recordings(tmp_path / "two.npz")
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt is none of what can be read"):
        Recordings(tmp_path / "a.txt")


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match=r"holds no pictures .* no videos .* no folders"):
        Recordings(tmp_path)
    root = save_pictures(tmp_path / "films", FILMS)
    (root / "film0" / "frame9.png").write_bytes(b"no picture")
    recordings = Recordings(root)  # only the first picture of each is looked at
    recordings.sample([1])
    with pytest.raises(DataError, match=r"film0.frame9\.png cannot be read"):
        recordings.sample([0])
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is no folder with pictures"):
        Recordings(root)
    shutil.rmtree(root / "empty")
    Image.new("RGB", (9, 8)).save(root / "film0" / "frame9.png")
    with pytest.raises(DataError, match=r"frame9\.png has 9x8 pixels, .* 10x8\. Give a size"):
        Recordings(root).sample([0])
    assert Recordings(root, size=8).sample([0]).frames.shape[-1] == 8
    Image.new("I;16", (10, 8)).save(root / "film1" / "frame7.png")
    with pytest.raises(DataError, match=r"frame7\.png is of PIL's mode 'I;16'"):
        Recordings(root)
    (root / "film1" / "frame7.png").unlink()
    shutil.rmtree(root / "film2")
    save_pictures(root, FILMS[:1, :, :, :6], ["film2"])
    with pytest.raises(
        DataError, match=r"'film0' has .* \(3, 8, 10\) and 'film2' has \(3, 6, 10\)"
    ):
        Recordings(root)
    (tmp_path / "classes" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"classes.a holds no pictures, videos or folders"):
        Recordings(tmp_path / "classes")


def test_colour_among_grey_pictures(tmp_path):
    root = save_pictures(tmp_path / "films", GREY)
    Image.new("RGB", (10, 8), (255, 0, 0)).save(root / "film0" / "frame9.png")
    with pytest.raises(DataError, match=r"frame9\.png has colours.*grey=True"):
        Recordings(root).sample([0])
    # A grey one among coloured ones has three equal channels.
    mixed = save_pictures(tmp_path / "mixed", [FILMS[0], GREY[1]])
    frames = Recordings(mixed).sample([0, 1]).frames
    assert torch.equal(frames[1, :, 0], frames[1, :, 2])
    torch.testing.assert_close(frames[0], TRUTH[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, r"last must be at least 1, but it is 0"),
        ({"every": 0}, r"every must be at least 1"),
        ({"stride": -1, "horizon": 2}, r"stride must be at least 1, but it is -1"),
        ({"stride": 1}, r"give last"),
        ({"short": "drop"}, r"give last"),
        ({"short": "pad"}, r"'error' or 'drop', but it is 'pad'"),
        ({"size": 0}, r"size must be a height and a width.*is 0"),
        ({"size": (4, 4, 4)}, r"size must be a height and a width"),
        ({"horizon": 6}, r"'0' has 6 frames, .* needs 7"),
        ({"horizon": 3, "every": 2}, r"taking every 2, needs 7"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        Recordings(FILMS, **options)


def test_what_was_recorded_cannot_be_chosen():
    recordings = Recordings(FILMS, ["a", "b", "a", "b"])
    right = recordings.sample([0, 1], torch.tensor([0, 1]))
    assert right.labels.tolist() == [0, 1]
    assert recordings.sample([0, 2], "a").labels.tolist() == [0, 0]
    with pytest.raises(DataError, match=r"Sequence 1 undergoes 'b', not transformation 'a'"):
        recordings.sample([0, 1], "a")
    with pytest.raises(DataError, match=r"Sequence 0 has no known one, not transformation 'b'"):
        Recordings(FILMS, names=["a", "b"]).sample([0], "b")
    with pytest.raises(DataError, match=r"no transformation 'c'"):
        recordings.sample([0], "c")
    with pytest.raises(DataError, match=r"cannot be composed"):
        recordings.compose([0], ["a", "b"])
    with pytest.raises(DataError, match=r"no random starts"):
        recordings.sample([0], start=torch.zeros(1, 0))
    with pytest.raises(DataError, match=r"no random starts"):
        SequenceLoader(recordings, 2, random_starts=True)
    with pytest.raises(DataError, match=r"0\.\.3"):
        recordings.sample([4])
    with pytest.raises(DataError, match=r"0\.\.5"):
        recordings.sample([0], times=torch.tensor([[0, 6]]))
    with pytest.raises(DataError, match=r"at least one"):
        recordings.subset([])


def test_other_labels():
    recordings = Recordings(FILMS, ["a", "b", "a", "b"])
    assert recordings.labelled
    assert not Recordings(FILMS).labelled
    other = recordings.relabelled(["x", "y", "z"], torch.tensor([2, -1, 0, 2]))
    assert other.names == ("x", "y", "z")
    assert other.sample([0, 1, 2, 3]).labels.tolist() == [2, -1, 0, 2]
    assert torch.equal(other.sample([1]).frames, recordings.sample([1]).frames)
    assert recordings.labels.tolist() == [0, 1, 0, 1]
    for names, labels, message in (
        (["x"], [0, 0, 0, 1], r"in 0\.\.0, or -1"),
        (["x"], [0, 0, 0, -2], r"in 0\.\.0, or -1"),
        (["x", "x"], [0, 0, 0, 1], r"each different"),
        (["x"], [0, 0, 0], r"each of the 4 sequences"),
    ):
        with pytest.raises(DataError, match=message):
            recordings.relabelled(names, torch.tensor(labels))


def test_helpers_for_sources_of_both_kinds(dataset):
    recordings = Recordings(FILMS, ["a", "b", "a", "b"])
    assert samples_undergoing(recordings, 1).tolist() == [1, 3]
    assert samples_undergoing(dataset, 1).tolist() == list(range(30))
    indices = torch.tensor([3, 2])
    assert round_robin(recordings, indices).tolist() == [1, 0]
    assert round_robin(dataset, indices).tolist() == [0, 2]
