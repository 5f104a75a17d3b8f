"""Files of strangers: what they announce is bounded, and they are shown as a viewer shows them."""

import io
import logging
import struct
import zipfile
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data import ImagesOptions, Recordings, RecordingsOptions, TransformedImages
from flowfactor.data import io as readers
from flowfactor.data.fingerprints import fingerprint
from flowfactor.data.io import ArrayFile, open_store, read_images
from flowfactor.data.video import Video
from flowfactor.errors import ConfigError, DataError

h5py = pytest.importorskip("h5py")
av = pytest.importorskip("av")

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


# ---- sizes that are announced


def npy_header(shape, descr="|u1"):
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy_header((10**12, 8, 8)),
        npy_header((10**30, 8, 8)),
        npy_header((2**62, 2**62, 2)),
        npy_header((-5, 8, 8)),
        npy_header((4, 8, 8), "|O"),
        npy_header((4, 8, 8), "<m8[ns]"),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x09\x09\x10\x00{}",
        b"\x93NUMPY",
    ],
)
def test_headers_of_npy_files(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content + bytes(100))
    for read in (read_images, Recordings, open_store):
        with pytest.raises(DataError):
            read(path)
    with pytest.raises(DataError):
        Recordings(np.zeros((4, 3, 8, 8), np.uint8), labels=path)


@pytest.mark.parametrize("shape", [(10**12, 8, 8), (2, 8, 8), (3, 8, 8)])
def test_an_archive_must_hold_what_it_announces(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", npy_header(shape) + bytes(1 << 20))
    with pytest.raises(DataError, match="announces"):
        read_images(tmp_path / "a.npz")


def test_archives_that_fill_the_memory(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", npy_header((1 << 14, 8, 8)) + bytes(1 << 20))
        archive.writestr("labels.npy", npy_header((1 << 20,)) + bytes(1 << 20))
    monkeypatch.setattr(readers, "_HARMLESS", 1 << 19)
    with pytest.raises(DataError, match="made to fill the memory"):
        read_images(tmp_path / "a.npz")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", (10**6, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))
    with pytest.raises(DataError, match="made to fill the memory"):
        open_store(tmp_path / "a.h5")
    np.savez_compressed(
        tmp_path / "b.npz", np.frombuffer(np.random.default_rng(0).bytes(1 << 20), np.uint8)
    )
    monkeypatch.setattr(readers, "_free_memory", lambda: 1000.0)
    with pytest.raises(DataError, match="are free"):
        read_images(tmp_path / "b.npz")


def test_hdf5_files_read_no_other_file_and_no_huge_chunk(tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(bytes(range(192)))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros((3, 8, 8), np.uint8)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        outside = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("images", (3, 8, 8), np.uint8, external=outside)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((3, 8, 8), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", (3, 8, 8))
        file.create_virtual_dataset("images", layout)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["images"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "images")
    for name in ("raw", "virtual", "link"):
        with pytest.raises(DataError, match=name):
            open_store(tmp_path / f"{name}.h5")
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("images", data=np.ones((3, 8, 8), np.uint8), chunks=(3, 8, 8))
    monkeypatch.setattr(readers, "_MAX_CHUNK", 100)
    with pytest.raises(DataError, match="chunks"):
        open_store(tmp_path / "chunk.h5")


def test_an_hdf5_file_that_is_locked_says_so(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.zeros((3, 8, 8), np.uint8)
    with (tmp_path / "a.h5").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 itself does while another program writes
        with pytest.raises(DataError, match="is locked"):
            open_store(tmp_path / "a.h5")


def test_labels_in_a_file_fit_its_recordings(tmp_path):
    films = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", frames=films, labels=np.zeros(5, int))
    with pytest.raises(DataError, match="labels"):
        Recordings(tmp_path / "a.npz")


# ---- pictures as they are shown


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path.parent


def read(folder):
    return read_images(folder)[0].permute(1, 2, 0).numpy()


TURNED = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.swapaxes(0, 1),
    6: PIXELS[::-1].swapaxes(0, 1),
    7: PIXELS[::-1, ::-1].swapaxes(0, 1),
    8: PIXELS[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder = save(tmp_path / f"a.{suffix}", PIXELS, exif=exif)
    assert np.array_equal(read(folder), TURNED[orientation])
    films = tmp_path / "films" / "film"
    films.mkdir(parents=True)
    for number in range(2):
        save(films / f"{number}.{suffix}", PIXELS, exif=exif)
    frames = Recordings(tmp_path / "films").sample([0]).frames[0, 0].mul(255).round()
    assert np.array_equal(frames.permute(1, 2, 0).numpy(), TURNED[orientation])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animated_pictures_are_no_stills(tmp_path, suffix):
    images = [Image.fromarray(np.roll(PIXELS, shift, 0)) for shift in range(3)]
    images[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=images[1:])
    # Where films are read they are films, but for pages of a document.
    for reader in (read_images, open_store, *((Recordings,) if suffix == "tif" else ())):
        with pytest.raises(DataError, match="several pictures"):
            reader(tmp_path)


def test_depths_palettes_and_transparency(tmp_path):
    deep = np.array([[0, 128, 129, 257], [65535, 65407, 65406, 32768]], np.uint16)
    (tmp_path / "deep").mkdir()
    folder = save(tmp_path / "deep" / "a.png", deep)
    assert read(folder)[..., 0].tolist() == [[0, 0, 1, 1], [255, 255, 254, 128]]
    (tmp_path / "palette").mkdir()
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    picture.save(tmp_path / "palette" / "a.png", transparency=2)
    expected = [[[10, 20, 30], [200, 100, 50]], [[0, 0, 0], [200, 100, 50]]]
    assert read(tmp_path / "palette").tolist() == expected
    (tmp_path / "alpha").mkdir()
    alpha = np.dstack([PIXELS, np.full((6, 8), 255, np.uint8)])
    alpha[0, 0, 3], alpha[0, 1, 3] = 0, 51
    shown = read(save(tmp_path / "alpha" / "a.png", alpha)).astype(int)
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert np.abs(shown[0, 1] - PIXELS[0, 1] * 0.2).max() <= 1
    assert np.array_equal(shown[1:], PIXELS[1:])


def test_pictures_that_are_too_large_or_programs(tmp_path, monkeypatch):
    (tmp_path / "eps").mkdir()
    (tmp_path / "eps" / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(DataError, match="cannot identify"):
        read_images(tmp_path / "eps")
    # A picture whose header announces 60,000 x 60,000 pixels, which PIL refuses, too.
    (tmp_path / "bomb").mkdir()
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    png += struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 0) + b"IDAT"
    (tmp_path / "bomb" / "a.png").write_bytes(png)
    with pytest.raises(DataError, match="pixels"):
        read_images(tmp_path / "bomb")
    monkeypatch.setattr(readers, "MAX_PIXELS", 47)
    (tmp_path / "large").mkdir()
    with pytest.raises(DataError, match="8 x 6 pixels"):
        read_images(save(tmp_path / "large" / "a.png", PIXELS))


# ---- video as it is shown


def save_video(path, times, codec="libx264", options=None, size=(32, 48)):
    """Write grey frames, one brighter by 10 than the other, with a white corner."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            pixels = np.full((*size, 3), 20 + 8 * (number % 25), np.uint8)
            pixels[:8, :8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(video, count):
    return [round((float(frame[12:20, 12:20].mean()) - 20) / 8) for frame in video.read(0, count)]


MATRICES = {
    "upright": ((1, 0, 0, 1), (0, 0), (32, 48)),
    "clockwise": ((0, 1, -1, 0), (0, -1), (48, 32)),
    "counter-clockwise": ((0, -1, 1, 0), (-1, 0), (48, 32)),
    "upside down": ((-1, 0, 0, -1), (-1, -1), (32, 48)),
    "mirrored": ((-1, 0, 0, 1), (0, -1), (32, 48)),
}


@pytest.mark.parametrize(("matrix", "corner", "size"), MATRICES.values(), ids=MATRICES)
def test_rotation_of_phones(tmp_path, matrix, corner, size):
    path = save_video(tmp_path / "a.mp4", range(0, 600, 100))
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (65536 * each for each in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    video = Video(path)
    assert video.size == size
    assert video.read(0, 1)[0][corner].min() > 200
    assert video.read(4, 2)[1][corner].min() > 200
    recordings = Recordings(path)
    assert recordings.image_shape == (3, *size)
    assert (recordings.sample([0]).frames[0, 0, :, corner[0], corner[1]] > 0.8).all()


def test_a_turn_by_another_angle_is_refused(tmp_path):
    path = save_video(tmp_path / "a.mp4", range(0, 600, 100))
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 4 + 4 + 20 + 16
    content[place : place + 20] = struct.pack(">5i", 46341, 46341, 0, -46341, 46341)
    path.write_bytes(content)
    with pytest.raises(DataError, match="multiple of 90"):
        Video(path)


def test_packets_that_are_never_shown(tmp_path):
    if "libvpx" not in av.codecs_available:
        pytest.skip("needs libvpx")
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "b": "100k"}
    path = save_video(tmp_path / "a.webm", range(0, 4000, 100), "libvpx", options)
    video = Video(path)
    assert len(video) == 40
    assert np.abs(np.array(levels(video, 40)) - np.arange(40) % 25).max() <= 1


def test_variable_frame_rates(tmp_path, caplog):
    constant = Video(save_video(tmp_path / "a.mkv", [0, 33, 67, 100, 133, 167, 200], "ffv1"))
    assert constant.shown.tolist() == list(range(7))
    times = [0, 100, 200, 300, 600, 700, 940, 1000, 1100]
    with caplog.at_level(logging.WARNING, "flowfactor"):
        video = Video(save_video(tmp_path / "b.mkv", times, "ffv1"))
    assert "variable frame rate" in caplog.text
    assert video.shown.tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 8]
    assert levels(video, len(video)) == video.shown.tolist()
    assert [levels(video, 12)[i] for i in range(5, 9)] == [
        round((float(frame[12:20, 12:20].mean()) - 20) / 8) for frame in video.read(5, 4)
    ]
    with pytest.raises(DataError, match="variable frame rate"):
        Video(save_video(tmp_path / "c.mkv", [0, 100, 200, 300, 90_000], "ffv1"))


def test_a_frame_of_another_size_than_announced(tmp_path):
    """Such as one that is far larger, of a film whose header says that it is small."""
    if "libvpx" not in av.codecs_available:
        pytest.skip("needs libvpx")
    path = save_video(tmp_path / "a.webm", range(0, 500, 100), "libvpx")
    assert len(Video(path)) == 5
    size = (48).to_bytes(2, "little") + (32).to_bytes(2, "little")
    content = path.read_bytes()
    assert content.count(b"\x9d\x01\x2a" + size) == 1  # of the only key frame
    larger = (96).to_bytes(2, "little") + (32).to_bytes(2, "little")
    path.write_bytes(content.replace(b"\x9d\x01\x2a" + size, b"\x9d\x01\x2a" + larger))
    with pytest.raises(DataError, match=r"a\.webm"):
        Video(path).read(0, 5)


# ---- labels


FILMS = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)


def films(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(FILMS[0, number]).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("separator", [",", ";", "\t", "; "])
@pytest.mark.parametrize("header", ["", "name{}label\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_line_ends(tmp_path, separator, header, end):
    rows = "".join(f"{number}{separator}{'ab'[number % 2]}\n" for number in range(4))
    text = (header.format(separator) + rows).replace("\n", end)
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    recordings = Recordings(FILMS, tmp_path / "labels.csv")
    assert (recordings.names, recordings.labels.tolist()) == (("a", "b"), [0, 1, 0, 1])


def test_numbers_without_phantoms(caplog):
    from_one = Recordings(FILMS, [1, 2, 3, 1])
    assert from_one.names == ("transformation_1", "transformation_2", "transformation_3")
    assert from_one.labels.tolist() == [0, 1, 2, 0]
    with caplog.at_level(logging.WARNING, "flowfactor"):
        ignored = Recordings(FILMS, np.array([0, 1, 255, 1], np.uint8))
    assert (len(ignored.names), ignored.labels.tolist()) == (2, [0, 1, -1, 1])
    assert "255" in caplog.text
    named = Recordings(FILMS, ["0", "255", "1", "0"], names=["a", "b"])
    assert named.labels.tolist() == [0, -1, 1, 0]
    for labels, names in (([1, 2, 2, 1], ["a", "b"]), ([0, -2, 0, 0], None), ([10**30] * 4, None)):
        with pytest.raises(DataError, match="labels"):
            Recordings(FILMS, labels, names)


def test_a_label_that_lacks_is_named(tmp_path):
    root = films(tmp_path / "films", ["walk", "run"])
    (tmp_path / "labels.csv").write_text("name,label\nrun,\nwalk,up\n")
    recordings = Recordings(root, tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"labels: .*'run'"):
        recordings.require_labels()
    (tmp_path / "labels.json").write_text('{"run": "a", "walk": "b", "run": "c"}')
    with pytest.raises(DataError, match="two labels"):
        Recordings(root, tmp_path / "labels.json")


def test_accents_however_they_are_composed(tmp_path):
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"
    root = films(tmp_path / "films", [decomposed, "b"])
    (tmp_path / "labels.csv").write_text(f"b,na\u00efve\n{composed},nai\u0308ve\n", "utf-8")
    recordings = Recordings(root, tmp_path / "labels.csv")
    assert (recordings.names, recordings.labels.tolist()) == (("na\u00efve",), [0, 0])
    named = Recordings(FILMS, [composed, decomposed, "x", "x"], names=["x", decomposed])
    assert named.labels.tolist() == [1, 1, 0, 0]


def test_a_stray_picture_does_not_hide_the_films(tmp_path, caplog):
    root = films(tmp_path / "films", ["a", "b"])
    Image.fromarray(PIXELS).save(root / "overview.png")
    with caplog.at_level(logging.WARNING, "flowfactor"):
        assert len(Recordings(root)) == 2
    assert "overview.png" in caplog.text
    for number in range(5):
        Image.fromarray(PIXELS).save(root / f"{number}.png")
    with pytest.raises(DataError, match="6 pictures and 2 films"):
        Recordings(root)


@pytest.mark.parametrize("names", [[f"n{i}" for i in range(1001)], ["x" * 501], ["a" * 10_000]])
def test_names_and_their_number_are_bounded(names):
    with pytest.raises(DataError, match=r"names|labels") as caught:
        Recordings(FILMS, [names[0]] * 4, names)
    assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError, match="names"):
        RecordingsOptions(path="p", names=tuple(names))


# ---- where data are, and whether they are the same


def test_the_home_folder_and_paths_that_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    films(tmp_path / "films", ["a", "b"])
    (tmp_path / "labels.csv").write_text("a,x\nb,y\n")
    assert len(Recordings("~/films", "~/labels.csv")) == 2
    options = RecordingsOptions(path="~/films", labels="labels.csv").resolve()
    assert options.path == str(tmp_path / "films")
    assert options.labels == str(tmp_path / "labels.csv")
    assert options.resolve() == options
    found = options.fingerprint()
    assert set(found) == {"path", "labels"}
    options.check_fingerprint(found)
    (tmp_path / "labels.csv").write_text("a,y\nb,x\n")
    with pytest.raises(DataError, match=r"data\.labels"):
        options.check_fingerprint(found)


def test_fingerprints_do_not_depend_on_the_place(tmp_path):
    one, two = (films(tmp_path / name, ["a", "b"]) for name in ("one", "two"))
    assert fingerprint(one) == fingerprint(two)
    (two / "b" / "3.png").write_bytes(b"")
    assert fingerprint(one) != fingerprint(two)
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    before = fingerprint(tmp_path / "large")
    with (tmp_path / "large").open("r+b") as file:
        file.seek((3 << 20) - 1)
        file.write(b"x")
    assert fingerprint(tmp_path / "large") != before
    with pytest.raises(DataError, match="nothing"):
        fingerprint(tmp_path / "nothing")


# ---- values that can hardly be meant


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), "are 0"),
        (np.full((4, 8, 8), 7, np.uint8), "are 7"),
        (np.indices((4, 8, 8)).sum(0).astype(np.uint8) % 2, "0 and 1"),
        (np.indices((4, 8, 8)).sum(0).astype(np.float32) % 2 / 255, "0 and 1"),
    ],
)
def test_a_warning_of_strange_values(tmp_path, caplog, images, message):
    np.save(tmp_path / "a.npy", images)
    for read in (
        lambda: TransformedImages(images),
        lambda: ImagesOptions(path=str(tmp_path / "a.npy"), validation=1, test=1).load("train", 0),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "flowfactor"):
            read()
        assert message in caplog.text
    films = np.repeat(images[:, None], 2, 1).repeat(3, 0)
    np.save(tmp_path / "films.npy", films)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "flowfactor"):
        RecordingsOptions(path=str(tmp_path / "films.npy")).load("train", 0)
    assert message in caplog.text


def test_floats_that_are_bytes(tmp_path):
    with pytest.raises(DataError, match="between 3 and 250"):
        read_images(np.array([3.0, 250.0]).repeat(64).reshape(2, 8, 8))


# ---- still images that do not fit into memory


def test_large_stills_stay_in_their_file(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "f.npy", images / 255)
    options = ImagesOptions(path=str(tmp_path / "a.npy"), horizon=2)
    held = options.load("test", 3)
    monkeypatch.setattr(readers, "_BLOCK", 1000)
    assert torch.equal(read_images(tmp_path / "f.npy"), read_images(images))
    monkeypatch.setattr(readers, "_HELD", 1000)
    read = []
    rows = ArrayFile.__getitem__
    monkeypatch.setattr(
        ArrayFile, "__getitem__", lambda self, key: (read.append(key), rows(self, key))[1]
    )
    mapped = options.load("test", 3)
    assert len(read) <= 3  # of which the range is looked at
    for name in held.names:
        batches = [data.sample(range(4), name).frames for data in (held, mapped)]
        assert torch.equal(*batches)
    assert torch.equal(held.images, mapped.images)
