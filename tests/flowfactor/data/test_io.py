"""Readers of arrays, files and folders of pictures."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data.fingerprints import fingerprint
from flowfactor.data.io import (
    PICTURES,
    ArrayFile,
    ArrayStore,
    ImageStore,
    list_files,
    natural_key,
    open_store,
    read_images,
    read_text,
    reading,
    repack_h5,
    to_list,
    writing_h5,
)
from flowfactor.errors import DataError, MissingExtraError

h5py = pytest.importorskip("h5py")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
EXPECTED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
ASKED = torch.tensor([7, 2, 3, 7, 11, 0])


def write_h5(path, images=PIXELS, key="images", **options):
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=images, **options)
    return path


def write_folder(path, images=PIXELS):
    path.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(path / f"{number:06}.png")
    return path


@pytest.fixture(
    params=["tensor", "array", "float", "nchw", "npy", "npz", "h5", "h5-float", "h5-nchw", "folder"]
)
def source(request, tmp_path):
    channels_first = np.moveaxis(PIXELS, -1, 1)
    np.save(tmp_path / "images.npy", channels_first)
    np.savez_compressed(tmp_path / "images.npz", pictures=PIXELS)
    return {
        "tensor": lambda: torch.from_numpy(PIXELS),
        "array": lambda: PIXELS,
        "float": lambda: PIXELS / 255,
        "nchw": lambda: torch.from_numpy(channels_first),
        "npy": lambda: tmp_path / "images.npy",
        "npz": lambda: str(tmp_path / "images.npz"),
        "h5": lambda: write_h5(tmp_path / "images.h5"),
        "h5-float": lambda: write_h5(tmp_path / "images.h5", PIXELS / 255),
        "h5-nchw": lambda: write_h5(tmp_path / "a.hdf5", channels_first, "x", compression="lzf"),
        "folder": lambda: write_folder(tmp_path / "images"),
    }[request.param]()


def test_every_source_gives_the_images_asked_for(source):
    store: ImageStore = open_store(source)
    assert (len(store), store.image_shape) == (12, (3, 6, 8))
    images = store.read(ASKED)
    assert torch.equal(images, EXPECTED[ASKED])
    assert images.is_contiguous()
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.read(ASKED), images)
    assert torch.equal(read_images(source) / 255, EXPECTED)


def test_only_the_rows_asked_for_are_read_each_once_and_forwards(tmp_path):
    reads = []

    class Recorder(ArrayFile):
        def __getitem__(self, rows):
            reads.append((rows.start, rows.stop))
            return super().__getitem__(rows)

    file = Recorder(write_h5(tmp_path / "images.h5"))
    assert torch.equal(ArrayStore(file).read(ASKED), EXPECTED[ASKED])
    assert reads == [(0, 1), (2, 4), (7, 8), (11, 12)]


def test_the_file_opens_again_in_a_forked_process(tmp_path, monkeypatch):
    file = ArrayFile(write_h5(tmp_path / "images.h5"))
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert np.array_equal(file[2:4], PIXELS[2:4])
    file.close()
    assert np.array_equal(file[2:4], PIXELS[2:4])


def test_the_array_may_change_afterwards():
    array = PIXELS.copy()
    store = open_store(array)
    array[:] = 0
    assert torch.equal(store.read(ASKED), EXPECTED[ASKED])


def test_pictures_that_cannot_be_read_are_not_passed_over(tmp_path):
    for name in ("IMG_1.png", "IMG_2.HEIC", ".IMG_3.heic"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"IMG_2\.HEIC"):
        list_files(tmp_path, PICTURES)
    (tmp_path / "IMG_2.jpg").touch()  # a camera's copy of it
    assert [path.name for path in list_files(tmp_path, PICTURES)] == ["IMG_1.png", "IMG_2.jpg"]


def test_natural_order(tmp_path):
    for number in (10, 9, 0, 2, 1, 3, 4, 5, 6, 7, 8, 11):
        Image.fromarray(PIXELS[number]).save(tmp_path / f"view{number}.PNG")
    (tmp_path / ".hidden.png").touch()
    assert [path.stem for path in list_files(tmp_path, [".png"])][:3] == ["view0", "view1", "view2"]
    assert torch.equal(open_store(tmp_path).read(ASKED), EXPECTED[ASKED])
    names = ["b2", "B10", "a", "10", "9", "1x²", "1x10", "1x9"]
    ordered = ["1x9", "1x10", "1x²", "9", "10", "a", "b2", "B10"]
    assert sorted(names, key=natural_key) == ordered


def test_pictures_are_reduced_by_the_mean_of_their_pixels(tmp_path):
    store = open_store(write_folder(tmp_path / "images"), size=(3, 4))
    assert store.image_shape == (3, 3, 4)
    mean = torch.nn.functional.avg_pool2d(EXPECTED[ASKED], 2)
    torch.testing.assert_close(store.read(ASKED), mean, rtol=0, atol=1 / 255 + 1e-6)


def test_grey_pictures_have_one_channel(tmp_path):
    store = open_store(write_folder(tmp_path / "grey", PIXELS[:1, :, :, 0]))
    assert store.image_shape == (1, 6, 8)
    assert torch.equal(store.read(torch.tensor([0])), EXPECTED[:1, :1])


@pytest.mark.parametrize(
    ("shape", "layout", "found"),
    [
        ((4, 3, 5, 1), "nhwc", (1, 3, 5)),
        ((4, 3, 5, 1), "nchw", (3, 5, 1)),
        ((4, 4, 4, 3), "auto", (3, 4, 4)),
        ((4, 1, 4, 4), "auto", (1, 4, 4)),
        ((4, 4, 5, 6), "auto", (4, 5, 6)),
        ((4, 5, 6), "auto", (1, 5, 6)),
        ((4, 3, 3, 3), "auto", None),
        ((4, 5, 5, 5), "auto", None),
        ((4, 3, 5, 5), "nhwc", None),
        ((0, 5, 5, 3), "auto", None),
        ((4, 5, 5, 3), "hwc", None),
    ],
)
def test_layouts(shape, layout, found):
    images = torch.zeros(shape, dtype=torch.uint8)
    if found is not None:
        assert open_store(images, layout=layout).image_shape == found
        return
    with pytest.raises(DataError, match="layout"):
        open_store(images, layout=layout)


def test_repacking_keeps_everything_and_makes_short_chunks(tmp_path):
    many = np.tile(PIXELS, (10, 1, 1, 1))
    path = write_h5(tmp_path / "old.h5", many, chunks=(100, 2, 2, 1), compression="gzip")
    with h5py.File(path, "a") as file:
        file["labels"] = np.arange(120)
        file.attrs["description"] = "what it is"
    assert ArrayStore(ArrayFile(path)).chunks_are_long
    repack_h5(path, tmp_path / "new.h5")
    file = ArrayFile(tmp_path / "new.h5")
    assert (file.chunks, ArrayStore(file).chunks_are_long) == ((1, 6, 8, 3), False)
    assert np.array_equal(file[:], many)
    assert file.read_beside("labels", 120) == list(range(120))
    with h5py.File(tmp_path / "new.h5") as new:
        assert new.attrs["description"] == "what it is"
    for target in (tmp_path / "new.h5", tmp_path / "nowhere" / "new.h5"):
        with pytest.raises(DataError, match=r"new\.h5|nowhere"):
            repack_h5(path, target)


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path):
    with pytest.raises(ZeroDivisionError), writing_h5(tmp_path / "new.h5"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_which_array_of_a_file(tmp_path):
    np.savez(tmp_path / "two.npz", a=PIXELS, b=PIXELS, labels=np.arange(12))
    assert len(ArrayFile(tmp_path / "two.npz", "b")) == 12
    one = write_h5(tmp_path / "one.h5", key="pictures")
    assert len(ArrayFile(one)) == 12
    for path, key in ((tmp_path / "two.npz", None), (one, "images")):
        with pytest.raises(DataError, match="key"):
            ArrayFile(path, key)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5"])
def test_unreadable_files_are_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(DataError, match=rf"no file .*{name}"):
        open_store(path)
    path.write_bytes(b"nothing that can be read")
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        open_store(path)
    {
        "a.npy": lambda: np.save(path, np.array([{}, 1], dtype=object), allow_pickle=True),
        "a.npz": lambda: np.savez(path, PIXELS),
        "a.h5": lambda: write_h5(path),
    }[name]()
    if name != "a.npy":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        open_store(path)


def test_damage_inside_an_h5_file(tmp_path):
    path = write_h5(tmp_path / "images.h5", chunks=(1, 6, 8, 3), compression="gzip")
    with h5py.File(path) as file:
        info = file["images"].id.get_chunk_info(5)
    content = bytearray(path.read_bytes())
    content[info.byte_offset : info.byte_offset + info.size] = bytes(info.size)
    path.write_bytes(content)
    store = open_store(path)
    assert torch.equal(store.read(torch.tensor([4])), EXPECTED[4:5])
    with pytest.raises(DataError, match=r"images\.h5 cannot be read"):
        store.read(torch.tensor([4, 5]))


def test_bad_pixels_are_named(tmp_path):
    bad = PIXELS / 255
    bad[3, 2, 1, 0] = np.nan
    with pytest.raises(DataError, match="image 3"):
        open_store(bad)
    store = open_store(write_h5(tmp_path / "bad.h5", bad))
    assert torch.equal(store.read(torch.tensor([2])), EXPECTED[2:3])
    with pytest.raises(DataError, match=r"bad\.h5"):
        store.read(torch.tensor([3]))


@pytest.mark.parametrize(("module", "extra"), [("h5py", "data")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, module, extra):
    path = write_h5(tmp_path / "images.h5")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"flowfactor\[{extra}\]"):
        open_store(path)


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    gap = write_folder(tmp_path / "gap")
    (gap / "000005.png").unlink()
    for folder in (tmp_path / "empty", gap):
        with pytest.raises(DataError, match=folder.name):
            open_store(folder)
    folder = write_folder(tmp_path / "pictures")
    with pytest.raises(DataError, match="size"):
        open_store(folder, size=7)
    content = (folder / "000007.png").read_bytes()
    store = open_store(folder)
    Image.new("RGB", (4, 4)).save(folder / "000003.png")
    (folder / "000004.png").write_bytes(b"no picture")
    (folder / "000005.png").unlink()
    Image.fromarray(np.zeros((6, 8), np.float32)).save(folder / "float.tif")
    (folder / "float.tif").rename(folder / "000006.png")
    (folder / "000007.png").write_bytes(content[: len(content) // 2])
    for number in range(3, 8):
        with pytest.raises(DataError, match=f"00000{number}"):
            store.read(torch.tensor([number]))


def test_what_goes_wrong_names_the_file(tmp_path):
    for error, word in (
        (MemoryError(), "memory"),
        (OSError(13, "Permission denied"), "Permission denied"),
        (ValueError("odd"), "odd"),
    ):
        with pytest.raises(DataError, match=rf"images\.npy.*{word}"), reading(Path("images.npy")):
            raise error
    long = tmp_path / "long.txt"
    long.write_text("12345")
    assert read_text(long, 5) == "12345"
    with pytest.raises(DataError, match=r"long\.txt is too large"):
        read_text(long, 4)
    with pytest.raises(ValueError, match="character"):
        to_list(np.frombuffer(b"\xff\xff\xff\x7f", "<U1"))


def test_a_fingerprint_of_a_folder_leaves_hidden_files_out(tmp_path):
    empty = fingerprint(tmp_path)
    (tmp_path / ".hidden").write_text("a")
    assert fingerprint(tmp_path) == empty
    (tmp_path / "seen").write_text("a")
    assert fingerprint(tmp_path) != empty
