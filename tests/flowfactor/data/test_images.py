import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data import Rotation, from_images
from flowfactor.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 10, 10), dtype=np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS[:, None],
        torch.from_numpy(PIXELS),
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32)[:, None],
        torch.from_numpy(PIXELS).float() / 255,
        np.asfortranarray(PIXELS),
    ],
    ids=["bytes", "bytes4d", "tensor", "float64", "float32", "float-tensor", "fortran"],
)
def test_arrays_and_tensors(images):
    dataset = from_images(images, labels=[3, 1, 4, 1, 5], transformations=[Rotation()], horizon=4)
    assert torch.equal(dataset.images[:, 0], torch.from_numpy(PIXELS))
    assert dataset.classes.tolist() == [3, 1, 4, 1, 5]
    assert dataset.names == ("rotation",)
    assert tuple(dataset.sample([0], 0).frames.shape) == (1, 5, 3, 10, 10)


def test_floating_point_is_rounded_to_the_nearest_byte():
    values = np.array([[[0, 1 / 255 - 1e-6], [0.5, 1 - 1e-3]]])
    assert from_images(values).images.flatten().tolist() == [0, 1, 128, 255]


def test_the_array_may_change_afterwards():
    array = PIXELS.copy()
    dataset = from_images(array)
    array[:] = 0
    assert torch.equal(dataset.images[:, 0], torch.from_numpy(PIXELS))


def test_folder_in_the_order_of_names(tmp_path):
    for i, name in enumerate(["c.png", "a.PNG", "b.bmp"]):
        Image.fromarray(PIXELS[i]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    for folder in (tmp_path, str(tmp_path)):
        dataset = from_images(folder, labels=np.arange(3))
        assert torch.equal(dataset.images[:, 0], torch.from_numpy(PIXELS[[1, 2, 0]]))


def test_colour_pictures_become_their_luminance(tmp_path):
    Image.new("RGB", (6, 6), (255, 0, 0)).save(tmp_path / "red.png")
    pixels = from_images(tmp_path).images.unique().tolist()
    assert pixels == [76]  # 0.299 of 255


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS[0], r"\(N, H, H\).*shape is \(10, 10\)"),
        (PIXELS[:, :4], r"square.*\(5, 1, 4, 10\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"grey.*\(2, 3, 8, 8\)"),
        (PIXELS.astype(np.int64), r"torch\.int64.*astype\('uint8'\)"),
        (PIXELS > 100, r"torch\.bool"),
        (PIXELS[:0], r"no images"),
        (PIXELS.astype(object), r"ndarray cannot be turned into a tensor"),
        (PIXELS.astype(float), r"Divide values of 0\.\.255 by 255"),
    ],
)
def test_bad_arrays(images, message):
    with pytest.raises(DataError, match=message):
        from_images(images)


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (1.25, "1.25"), (-np.inf, "-inf")])
def test_bad_pixel_is_named(value, shown):
    images = PIXELS / 255
    images[3, 7, 2] = value
    with pytest.raises(DataError, match=rf"1 of 500 .* is {shown} in image 3, row 7, column 2"):
        from_images(images)


def test_labels_that_do_not_match():
    with pytest.raises(DataError, match=r"each of the 5 images"):
        from_images(PIXELS, labels=[1, 2])


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        from_images(tmp_path / "nowhere")


def test_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds no pictures \(\.png"):
        from_images(tmp_path)


def test_pictures_of_different_size(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.new("L", (9, 7)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png has 9x7 pixels and a\.png has 10x10"):
        from_images(tmp_path)


def test_picture_that_is_damaged(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        from_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        from_images(tmp_path)


def test_picture_of_sixteen_bits(tmp_path):
    Image.fromarray(PIXELS[0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png .*'I;16', not 8 bits"):
        from_images(tmp_path)
