import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data.image_stores import (
    H5Store,
    ImageStore,
    NpyStore,
    TensorStore,
    open_store,
    repack_h5,
)
from flowfactor.errors import DataError

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


@pytest.fixture(params=["tensor", "array", "nchw", "npy", "npz", "h5", "h5-nchw", "folder"])
def store(request, tmp_path) -> ImageStore:
    channels_first = np.moveaxis(PIXELS, -1, 1)
    if request.param == "npy":
        np.save(tmp_path / "images.npy", channels_first)
    if request.param == "npz":
        np.savez_compressed(tmp_path / "images.npz", pictures=PIXELS)
    return {
        "tensor": lambda: open_store(torch.from_numpy(PIXELS)),
        "array": lambda: open_store(PIXELS),
        "nchw": lambda: open_store(torch.from_numpy(channels_first)),
        "npy": lambda: open_store(tmp_path / "images.npy"),
        "npz": lambda: open_store(str(tmp_path / "images.npz")),
        "h5": lambda: open_store(write_h5(tmp_path / "images.h5")),
        "h5-nchw": lambda: open_store(
            write_h5(tmp_path / "images.hdf5", channels_first, "x", compression="lzf"), key="x"
        ),
        "folder": lambda: open_store(write_folder(tmp_path / "images")),
    }[request.param]()


def test_every_kind_of_store_gives_the_images_asked_for(store):
    assert (len(store), store.image_shape) == (12, (3, 6, 8))
    images = store.read(ASKED)
    assert torch.equal(images, EXPECTED[ASKED])
    assert images.is_contiguous()


def test_a_store_can_be_sent_to_another_process(store):
    store.read(ASKED)
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.read(ASKED), EXPECTED[ASKED])
    assert torch.equal(store.read(ASKED), EXPECTED[ASKED])


class RecordingDataset:
    """A data set that says which rows were read of it."""

    def __init__(self, images):
        self.images, self.read = images, []

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.read.append((rows.start, rows.stop))
        return self.images[rows]


def test_only_the_rows_asked_for_are_read_each_once_and_forwards(tmp_path, monkeypatch):
    store = H5Store(write_h5(tmp_path / "images.h5"))
    recorded = RecordingDataset(PIXELS)
    monkeypatch.setattr(store, "_open", lambda: recorded)
    assert torch.equal(store.read(ASKED), EXPECTED[ASKED])
    assert recorded.read == [(0, 1), (2, 4), (7, 8), (11, 12)]


def test_an_array_file_is_mapped_and_not_loaded(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, PIXELS)
    assert isinstance(NpyStore(path)._open(), np.memmap)


def test_the_file_opens_again_in_a_forked_process(tmp_path, monkeypatch):
    store = H5Store(write_h5(tmp_path / "images.h5"))
    handle = store._open()
    assert store._open() is handle
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert store._open() is not handle
    store.close()
    assert torch.equal(store.read(ASKED), EXPECTED[ASKED])


def test_the_array_may_change_afterwards():
    array = PIXELS.copy()
    store = open_store(array)
    array[:] = 0
    assert torch.equal(store.read(ASKED), EXPECTED[ASKED])


def test_pictures_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 0, 2, 1, 3, 4, 5, 6, 7, 8, 11):
        Image.fromarray(PIXELS[number]).save(tmp_path / f"view{number}.png")
    store = open_store(tmp_path)
    assert store.names[:3] == ("view0.png", "view1.png", "view2.png")
    assert torch.equal(store.read(ASKED), EXPECTED[ASKED])


def test_pictures_are_reduced_by_the_mean_of_their_pixels(tmp_path):
    store = open_store(write_folder(tmp_path / "images"), size=(3, 4))
    assert store.image_shape == (3, 3, 4)
    mean = torch.nn.functional.avg_pool2d(EXPECTED[ASKED], 2)
    torch.testing.assert_close(store.read(ASKED), mean, rtol=0, atol=1 / 255 + 1e-6)


def test_grey_pictures_have_one_channel(tmp_path):
    Image.fromarray(PIXELS[0, :, :, 0]).save(tmp_path / "0.png")
    store = open_store(tmp_path)
    assert store.image_shape == (1, 6, 8)
    assert torch.equal(store.read(torch.tensor([0])), EXPECTED[:1, :1])


def test_repacking_keeps_everything_and_makes_short_chunks(tmp_path):
    many = np.tile(PIXELS, (10, 1, 1, 1))
    path = write_h5(tmp_path / "old.h5", many, chunks=(100, 2, 2, 1), compression="gzip")
    with h5py.File(path, "a") as file:
        file["labels"] = np.arange(120)
        file.attrs["description"] = "what it is"
    assert H5Store(path).chunks_are_long
    repack_h5(path, tmp_path / "new.h5")
    store = H5Store(tmp_path / "new.h5")
    assert (store.chunks, store.chunks_are_long) == ((1, 6, 8, 3), False)
    assert torch.equal(store.read(torch.arange(120)), EXPECTED.repeat(10, 1, 1, 1))
    with h5py.File(tmp_path / "new.h5") as file:
        assert file["labels"][:].tolist() == list(range(120))
        assert file.attrs["description"] == "what it is"
    with pytest.raises(DataError, match=r"new\.h5 exists"):
        repack_h5(path, tmp_path / "new.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.h5", "old.h5"]


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path, monkeypatch):
    path = write_h5(tmp_path / "old.h5")
    monkeypatch.setattr("flowfactor.data.image_stores.create_images", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        repack_h5(path, tmp_path / "new.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["old.h5"]
    with pytest.raises(DataError, match=r"folder .*nowhere cannot be written"):
        repack_h5(path, tmp_path / "nowhere" / "new.h5")


def test_bad_h5_files(tmp_path):
    with pytest.raises(DataError, match=r"no file .*missing\.h5"):
        open_store(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    with pytest.raises(DataError, match=r"text\.h5 cannot be opened as HDF5"):
        open_store(tmp_path / "text.h5")
    path = write_h5(tmp_path / "images.h5", key="pictures")
    with pytest.raises(DataError, match=r"no data set 'images'\. It has: pictures.*key"):
        open_store(path)
    with pytest.raises(DataError, match=r"uint8 .* float64"):
        open_store(write_h5(tmp_path / "float.h5", PIXELS / 255))
    with pytest.raises(DataError, match=r"images must be of shape .* is \(12, 6\)"):
        open_store(write_h5(tmp_path / "flat.h5", PIXELS[:, :, 0, 0]))
    whole = write_h5(tmp_path / "cut.h5", np.tile(PIXELS, (20, 1, 1, 1))).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.h5 cannot be opened .*truncated.*incomplete"):
        open_store(tmp_path / "cut.h5")


def test_damage_inside_an_h5_file(tmp_path):
    path = write_h5(tmp_path / "images.h5", chunks=(1, 6, 8, 3), compression="gzip")
    with h5py.File(path) as file:
        info = file["images"].id.get_chunk_info(5)
    content = bytearray(path.read_bytes())
    content[info.byte_offset : info.byte_offset + info.size] = bytes(info.size)
    path.write_bytes(content)
    store = H5Store(path)
    assert torch.equal(store.read(torch.tensor([4])), EXPECTED[4:5])
    with pytest.raises(DataError, match=r"images\.h5 cannot be read as images, at numbers 4 to 5"):
        store.read(torch.tensor([4, 5]))


def test_without_h5py(tmp_path, monkeypatch):
    write_h5(tmp_path / "images.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(DataError, match=r"h5py.*pip install 'flowfactor\[data\]'"):
        open_store(tmp_path / "images.h5")


def test_bad_arrays(tmp_path):
    with pytest.raises(DataError, match=r"no file .*\.npy"):
        open_store(tmp_path / "missing.npy")
    with pytest.raises(DataError, match=r"no file .*\.npz"):
        open_store(tmp_path / "missing.npz")
    for name in ("text.npy", "text.npz"):
        (tmp_path / name).write_text("no array")
        with pytest.raises(DataError, match=r"text\.np"):
            open_store(tmp_path / name)
    np.savez(tmp_path / "two.npz", a=PIXELS, b=PIXELS)
    with pytest.raises(DataError, match=r"no array 'images'\. It has: a, b"):
        open_store(tmp_path / "two.npz")
    assert len(open_store(tmp_path / "two.npz", key="b")) == 12
    np.save(tmp_path / "float.npy", PIXELS / 255)
    with pytest.raises(DataError, match=r"float\.npy: images must be uint8"):
        open_store(tmp_path / "float.npy")


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((4, 3, 3, 3), "auto", r"may be \(N, H, W, C\) or \(N, C, H, W\)"),
        ((4, 5, 5, 5), "auto", r"1, 3 or 4 channels .* \(4, 5, 5, 5\)"),
        ((4, 3, 5, 5), "nhwc", r"layout 'nhwc'"),
        ((4, 5, 5, 3), "nchw", r"layout 'nchw'"),
        ((0, 5, 5, 3), "auto", r"none of them empty"),
        ((4, 5, 3), "auto", r"shape is \(4, 5, 3\)"),
        ((4, 5, 5, 3), "hwc", r"layout must be 'auto', 'nhwc' or 'nchw', but it is 'hwc'"),
    ],
)
def test_bad_shapes(shape, layout, message):
    with pytest.raises(DataError, match=message):
        TensorStore(torch.zeros(shape, dtype=torch.uint8), layout)


def test_layout_decides_what_the_shape_does_not():
    images = torch.zeros(4, 3, 5, 1, dtype=torch.uint8)
    assert TensorStore(images, "nhwc").image_shape == (1, 3, 5)
    assert TensorStore(images, "nchw").image_shape == (3, 5, 1)
    with pytest.raises(DataError, match=r"uint8 .* torch\.float32"):
        TensorStore(images.float())


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match=r"size is for folders"):
        open_store(PIXELS, size=4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no pictures"):
        open_store(tmp_path / "empty")
    folder = write_folder(tmp_path / "gap")
    (folder / "000005.png").unlink()
    with pytest.raises(DataError, match=r"after 000004\.png comes 000006\.png"):
        open_store(folder)
    folder = write_folder(tmp_path / "small")
    with pytest.raises(DataError, match=r"1\.\.6 by 1\.\.8, .* but it is 7x7"):
        open_store(folder, size=7)
    Image.new("RGB", (4, 4)).save(folder / "000003.png")
    store = open_store(folder)
    with pytest.raises(DataError, match=r"000003\.png has 4x4 pixels and 000000\.png has 6x8"):
        store.read(torch.tensor([3]))
    (folder / "000004.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"000004\.png cannot be read"):
        store.read(torch.tensor([4]))
    (folder / "000005.png").unlink()
    with pytest.raises(DataError, match=r"000005\.png has been removed"):
        store.read(torch.tensor([5]))
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(folder / "000006.png")
    with pytest.raises(DataError, match=r"000006\.png is of PIL's mode 'I;16'"):
        store.read(torch.tensor([6]))
    content = (folder / "000007.png").read_bytes()
    (folder / "000007.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"000007\.png cannot be read .*truncated"):
        store.read(torch.tensor([7]))
