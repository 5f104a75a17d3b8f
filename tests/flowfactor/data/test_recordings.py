import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data import Recordings
from flowfactor.data.clips import ArrayClips
from flowfactor.data.video import Video
from flowfactor.errors import DataError, MissingExtraError

# Four recordings of six frames in colour, and the same in grey.
FILMS = np.random.default_rng(0).integers(0, 256, (4, 6, 3, 8, 10), dtype=np.uint8)
GREY = FILMS[:, :, :1]
TRUTH = torch.from_numpy(FILMS) / 255


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
    batch = recordings.sample([2, 0])
    torch.testing.assert_close(batch.frames, truth[[2, 0]], rtol=0, atol=1e-6)
    assert recordings.image_shape == tuple(truth.shape[2:])
    assert (len(recordings), recordings.horizon, recordings.start_size) == (4, 5, 0)
    assert (recordings.names, batch.labels) == ((), None)
    assert Recordings(frames, names=["turn"]).sample([2, 0]).labels.tolist() == [0, 0]
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


def test_memory_is_limited(tmp_path, monkeypatch):
    reads, read = [], ArrayClips.read

    def spy(clips, *what):
        reads.append(what)
        return read(clips, *what)

    monkeypatch.setattr(ArrayClips, "read", spy)
    np.save(tmp_path / "a.npy", FILMS)
    recordings = Recordings(tmp_path / "a.npy", memory_limit=2 * FILMS[0].nbytes)
    assert reads == []
    for index in (0, 1, 0, 2, 0, 1):
        recordings.sample([index])
    assert reads == [(clip, 0, 6) for clip in (0, 1, 2, 1)]
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


def test_folder_of_one_recording_and_of_classes(tmp_path):
    single = Recordings(save_pictures(tmp_path / "a", FILMS[:1]) / "film0", horizon=2, stride=1)
    assert len(single) == 4
    assert single.name_of(3) == "film0"
    names = ["turn/10", "grow/a", "turn/9", "grow/b"]
    classes = Recordings(save_pictures(tmp_path / "b", FILMS, names))
    assert classes.names == ("grow", "turn")
    assert [classes.name_of(i) for i in range(4)] == ["grow/a", "grow/b", "turn/9", "turn/10"]
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
    path = save_video(tmp_path / f"rise.{kind}", rising(80), VIDEOS[kind])
    recordings = Recordings(path, horizon=4, stride=3, every=2)
    # 9 frames are needed; the last window begins at 69.
    assert len(recordings) == 24
    assert recordings.image_shape == (3, 32, 48)
    assert recordings.name_of(23) == f"rise.{kind}"
    for index in (23, 0, 21, 20, 22):  # beginning late makes a jump to a key frame necessary
        found = levels(recordings.sample([index]).frames)[0]
        expected = 3 * index + 2 * torch.arange(5)
        assert (found - expected).abs().max() <= 2


def test_a_jump_into_a_video_finds_the_same_frames(tmp_path):
    film = np.random.default_rng(1).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    path = save_video(tmp_path / "a.mp4", film, options={"bf": "3", "crf": "1"}, gop=30)
    straight = Recordings(path, horizon=79).sample([0]).frames[0]
    jumped = Recordings(path, horizon=2, stride=1).sample([70]).frames[0]
    assert torch.equal(jumped, straight[70:73])
    video = Video(path)
    late = video.read(70, 3)
    video.stamps = None  # as in a file that has none
    assert np.array_equal(video.read(70, 3), late)


def test_folders_of_videos(tmp_path):
    for i, name in enumerate(["up/v10", "up/v9", "down/a"]):
        save_video(tmp_path / f"{name}.mp4", rising(10, base=40 * i))
    classes = Recordings(tmp_path, size=16, grey=True)
    assert classes.names == ("down", "up")
    assert [classes.name_of(i) for i in range(3)] == ["down/a.mp4", "up/v9.mp4", "up/v10.mp4"]
    assert classes.image_shape == (1, 16, 16)
    assert (
        levels(classes.sample([0, 1, 2]).frames)[:, 0] - torch.tensor([80, 40, 0])
    ).abs().max() <= 2
    flat = Recordings(tmp_path / "up", labels={"v10": "b", "v9.mp4": "a"})
    assert flat.labels.tolist() == [0, 1]
    copied = pickle.loads(pickle.dumps(flat))
    assert torch.equal(copied.sample([1]).frames, flat.sample([1]).frames)


def test_bad_videos_are_named(tmp_path, monkeypatch):
    path = save_video(tmp_path / "good.mp4", rising(20))
    whole = path.read_bytes()
    recordings = Recordings(path)
    for content in (whole[: len(whole) // 2], b"no clip at all"):
        (tmp_path / "bad.mp4").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.mp4"):
            Recordings(tmp_path)
    path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"good\.mp4"):
        recordings.sample([0])
    save_video(path, rising(10))
    with pytest.raises(DataError, match=r"good\.mp4 ends"):
        recordings.sample([0])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"flowfactor\[video\]"):
        Recordings(path)


def ragged(tmp_path):
    """Folders of 6, 4, 5 and 6 pictures."""
    return save_pictures(tmp_path / "r", [FILMS[0], FILMS[1][:4], FILMS[2][:5], FILMS[3]])


def test_recordings_of_different_lengths(tmp_path):
    folder = ragged(tmp_path)
    assert Recordings(folder).horizon == 3
    with pytest.raises(DataError, match=r"horizon.*'film1'"):
        Recordings(folder, horizon=4)
    dropped = Recordings(folder, [0, 1, 0, 1], horizon=4, short="drop")
    assert [dropped.name_of(i) for i in range(len(dropped))] == ["film0", "film2", "film3"]
    assert dropped.labels.tolist() == [0, 0, 1]
    windows = Recordings(folder, horizon=3, stride=1)
    names = [windows.name_of(i) for i in range(len(windows))]
    assert names == [f"film{i}" for i in (0, 0, 0, 1, 2, 2, 3, 3, 3)]
    torch.testing.assert_close(windows.sample([5]).frames[0], TRUTH[2, 1:5], rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="horizon"):
        Recordings(folder, horizon=9, short="drop")


def test_horizons_within_the_recordings():
    recordings = Recordings(FILMS, horizon=3)
    longest = recordings.extend_to(99)
    assert longest.horizon == 5
    torch.testing.assert_close(longest.sample([2]).frames[0], TRUTH[2], rtol=0, atol=1e-6)
    assert recordings.with_horizon(1).sample([0]).frames.shape[1] == 2


def test_split_is_by_recording():
    films = np.random.default_rng(0).integers(0, 256, (20, 8, 4, 4), dtype=np.uint8)
    windows = Recordings(films, [0, 1] * 10, horizon=3, stride=2)
    parts = windows.split(validation=0.1, test=0.25, seed=3)
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes == {"train": 39, "validation": 6, "test": 15}
    origins = [[part.name_of(i) for i in range(len(part))] for part in parts.values()]
    assert sum(len(set(names)) for names in origins) == len(set().union(*origins)) == 20
    again, other = (windows.split(0.1, 0.25, seed)["test"] for seed in (3, 4))
    assert [again.name_of(i) for i in range(15)] == origins[2]
    assert [other.name_of(i) for i in range(15)] != origins[2]
    assert parts["test"].labels.tolist() == [int(name) % 2 for name in origins[2]]
    assert list(windows.split(validation=0)) == ["train", "test"]
    for data, sizes in ((windows, (0.5, 0.5)), (windows, (-0.1, 0.1)), (Recordings(films[:2]), ())):
        with pytest.raises(DataError, match="validation"):
            data.split(*sizes)


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
    with pytest.raises(DataError, match="of their own"):  # those of a configuration that ships
        Recordings(tmp_path / "a.npz", tmp_path / "labels.csv")
    texts = np.array([b"turn", b"grow", b"turn", b"turn"])
    path = save_hdf5(tmp_path / "a.h5", x=FILMS, labels=texts)
    assert Recordings(path).names == ("grow", "turn")
    assert Recordings(path, labels=[0] * 4, names=["one"]).labels.tolist() == [0] * 4


def test_labels_that_are_unknown():
    weak = Recordings(FILMS, names=["a", "b", "c"])
    assert weak.labels.tolist() == [-1] * 4
    some = Recordings(FILMS, ["a", None, -1, "b"])
    assert some.labels.tolist() == [0, -1, -1, 1]
    with pytest.raises(DataError, match="names"):
        Recordings(FILMS, [None] * 4)


@pytest.mark.parametrize(
    ("key", "labels", "names"),
    [
        ("labels", [0, 1], None),
        ("labels.*'2'", [0, 1, 2, 3], ["a", "b"]),
        ("labels.*'1'", ["a", "c", "a", "a"], ["a", "b"]),
        ("labels.*'2'", [0, 1, -2, 0], ["a", "b"]),
        ("labels", [0.5, 1, 0, 0], None),
        ("labels", [True, False] * 2, None),
        ("labels.*'2'", {"0": 1, "1": 0, "3": 0}, None),
        ("labels.*'4'", dict.fromkeys("01234", 0), None),
        ("names", [0, 0, 0, 0], ["a", "a"]),
        ("names", [0, 0, 0, 0], []),
        ("labels", "labels.txt", None),
        ("nowhere", "nowhere.csv", None),
    ],
)
def test_bad_labels(key, labels, names):
    with pytest.raises(DataError, match=key):
        Recordings(FILMS, labels, names)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "3"),
        ("a.csv", "a,b,c\n"),
        ("a.csv", "0,a\n0,b\n"),
        ("a.npy", "text"),
    ],
)
def test_bad_label_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        Recordings(FILMS, tmp_path / name)


@pytest.mark.parametrize(
    ("key", "frames"),
    [
        ("shape", FILMS[0, 0]),
        ("shape", np.zeros((2, 3, 2, 8, 8), np.uint8)),
        ("shape", FILMS[:0]),
        ("int32", FILMS.astype(np.int32)),
        ("bool", FILMS > 3),
        ("horizon", FILMS[:, :1]),
        (r"frames\[None\]", FILMS[0].transpose(0, 2, 3, 1)),
        ("nowhere", "nowhere"),
    ],
)
def test_bad_frames(key, frames):
    with pytest.raises(DataError, match=key):
        Recordings(frames)


def test_bad_pixels_are_named(tmp_path):
    films = FILMS / 255
    films[2, 4, 0, 1, 1] = np.nan
    with pytest.raises(DataError, match="image 4"):
        Recordings(films)
    np.save(tmp_path / "a.npy", films)
    lazy = Recordings(tmp_path / "a.npy")
    lazy.sample([0, 1, 3])
    with pytest.raises(DataError, match=r"a\.npy"):
        lazy.sample([2])
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt"):
        Recordings(tmp_path / "a.txt")


def test_bad_folders(tmp_path):
    def refuse(path, *named, **options):
        with pytest.raises(DataError) as caught:
            Recordings(path, **options).sample([0])
        assert all(name in str(caught.value) for name in named)

    refuse(tmp_path, tmp_path.name)
    root = save_pictures(tmp_path / "films", FILMS)
    (root / "film0" / "frame9.png").write_bytes(b"no picture")
    Recordings(root).sample([1])  # only the first picture of each is looked at
    refuse(root, "frame9.png")
    Image.new("RGB", (9, 8)).save(root / "film0" / "frame9.png")
    refuse(root, "frame9.png", "size")
    assert Recordings(root, size=8).sample([0]).frames.shape[-1] == 8
    (root / "empty").mkdir()
    refuse(root, "empty")
    (root / "empty").rmdir()
    shutil.rmtree(root / "film2")
    save_pictures(root, FILMS[:1, :, :, :6], ["film2"])
    refuse(root, "film0", "film2", "size")
    (tmp_path / "classes" / "a").mkdir(parents=True)
    refuse(tmp_path / "classes", "classes")


def test_colour_among_grey_pictures(tmp_path):
    root = save_pictures(tmp_path / "films", GREY)
    Image.new("RGB", (10, 8), (255, 0, 0)).save(root / "film0" / "frame9.png")
    with pytest.raises(DataError, match="grey"):
        Recordings(root).sample([0])
    # A grey one among coloured ones has three equal channels.
    mixed = save_pictures(tmp_path / "mixed", [FILMS[0], GREY[1]])
    frames = Recordings(mixed).sample([0, 1]).frames
    assert torch.equal(frames[1, :, 0], frames[1, :, 2])
    torch.testing.assert_close(frames[0], TRUTH[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("horizon", {"horizon": 0}),
        ("every", {"every": 0}),
        ("stride", {"stride": -1, "horizon": 2}),
        ("horizon", {"stride": 1}),
        ("horizon", {"short": "drop"}),
        ("short", {"short": "pad"}),
        ("size", {"size": 0}),
        ("horizon", {"horizon": 6}),
        ("horizon", {"horizon": 3, "every": 2}),
    ],
)
def test_bad_options(key, options):
    with pytest.raises(DataError, match=key):
        Recordings(FILMS, **options)
