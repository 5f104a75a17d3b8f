"""Still images of one's own, and what they look like while they are transformed."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data import ImagesOptions, Transformation, TransformedImages, render
from flowfactor.errors import ConfigError, DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 10, 10), dtype=np.uint8)
IMAGES = torch.from_numpy(PIXELS).unsqueeze(1)


def test_each_transformation_drives_its_own_parameter(dataset: TransformedImages):
    batch = dataset.sample([7, 7, 7], torch.tensor([0, 1, 2]))
    t = torch.arange(9.0)
    still, one = torch.zeros(9), torch.ones(9)
    expected = render(
        dataset.images[[7, 7, 7]].float() / 255,
        torch.stack([1 + 0.1 * t, one, one]),
        torch.stack([still, 10 * t, still]),
        torch.stack([still, still, 20 * t]),
    )
    assert torch.equal(batch.frames, expected)
    red = torch.zeros(3, 3, 12, 12)
    red[:, 0] = dataset.images[7, 0].float() / 255
    assert torch.equal(batch.frames[:, 0], red)


def test_two_transformations_of_one_parameter_multiply_scales_and_add_angles():
    transformations = {
        "scaling": Transformation("scale"),
        "double": Transformation("scale", 2, 0),
        "rotation": Transformation("angle"),
        "slow": Transformation("angle", -7, 1),
    }
    dataset = TransformedImages(IMAGES[:1], transformations=transformations)
    everything = dataset.compose([0], dataset.names)
    t = torch.arange(9.0)[None]
    expected = render(IMAGES[:1] / 255, 2 * (1 + 0.1 * t), 11 * t - 7, 0 * t)
    torch.testing.assert_close(everything.frames, expected, rtol=0, atol=1e-5)


def test_random_starts_have_undergone_every_transformation(dataset: TransformedImages):
    starts = torch.tensor([[0.5, 0.25, 1.0, 0.0], [0.5, 0.25, 1.0, 0.9]])
    batch = dataset.sample([7, 7], "rotation", starts=starts)
    t, one = torch.arange(9.0), torch.ones(9)
    expected = render(
        dataset.images[[7, 7]].float() / 255,
        torch.stack([1.4 * one, one]),
        torch.stack([20 + 10 * t, 10 * t]),
        torch.stack([160 * one, 0 * one]),
    )
    torch.testing.assert_close(batch.frames, expected, rtol=0, atol=1e-5)
    # The second number is above the probability: this sequence starts at the image itself.
    assert torch.equal(batch.frames[1], dataset.sample([7], "rotation").frames[0])


def test_active_transformations_can_start_canonically_while_the_rest_is_random():
    """Everything stays in the box that canonical sequences and their compositions span."""
    data = TransformedImages(IMAGES[:3], active_start="canonical", random_start_prob=1.0)
    starts = torch.tensor([[1.0, 0.5, 0.25, 0.0]] * 3)
    moving = data.sample([0, 1, 2], "rotation", starts=starts).frames
    # Scale 1.8, hue 40 degrees: at frame 4 as after eight frames of scaling and two of hue.
    clock = torch.tensor([[0, 1, 2, 3, 4]]).expand(3, -1)
    elapsed = [clock * 2, clock, clock // 2]
    both = data.compose([0, 1, 2], data.names, clock, elapsed=elapsed).frames
    torch.testing.assert_close(moving[:, 4], both[:, 4], atol=1e-5, rtol=0)


def test_ranges_of_random_starts_and_the_centre_are_kept():
    transformations = {
        "scaling": Transformation("scale", start_range=(0.5, 1.0)),
        "hue": Transformation(),
    }
    dataset = TransformedImages(IMAGES, None, transformations, centre="authors")
    for other in (dataset, dataset.with_horizon(4), dataset.to("cpu")):
        assert other.start_ranges == ((0.5, 1.0), (0.0, 160.0))
        assert other.centre == "authors"
    assert dataset.transformations["hue"] == Transformation("hue", 0.0, 20.0, None, (0.0, 240.0))


def test_scales_stay_positive():
    shrinking = {"shrinking": Transformation("scale", 1.0, -0.25)}
    assert TransformedImages(IMAGES, None, shrinking, horizon=1).max_horizon == 2
    for horizon, start_range in ((4, None), (2, (0.5, 1.0)), (2, (-1.0, 1.0))):
        given = {"shrinking": Transformation("scale", 1.0, -0.25, start_range)}
        with pytest.raises(DataError, match="horizon"):
            TransformedImages(IMAGES, None, given, horizon=horizon)


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        IMAGES,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32)[:, None],
        torch.from_numpy(PIXELS).float() / 255,
        np.asfortranarray(PIXELS)[..., None],
    ],
    ids=["bytes", "tensor", "float64", "float32", "float-tensor", "fortran-last"],
)
def test_arrays_and_tensors(images):
    dataset = TransformedImages(images, torch.tensor([3, 1, 4, 1, 5]), horizon=4)
    assert torch.equal(dataset.images, IMAGES)
    assert tuple(dataset.sample([0], 0).frames.shape) == (1, 5, 3, 10, 10)


def test_files_and_folders(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    np.savez(tmp_path / "images.npz", pictures=PIXELS, labels=np.arange(5))
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, name in enumerate(["c10.png", "a.PNG", "c9.bmp"]):
        Image.fromarray(PIXELS[i]).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    assert torch.equal(TransformedImages(tmp_path / "images.npy").images, IMAGES)
    assert torch.equal(TransformedImages(str(tmp_path / "images.npz")).images, IMAGES)
    assert torch.equal(TransformedImages(folder).images, IMAGES[[1, 2, 0]])


def test_colour_and_rectangles_are_ordinary(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (3, 6, 9, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    for source in (images, images.transpose(0, 3, 1, 2), tmp_path):
        data = TransformedImages(source)
        assert data.image_shape == (3, 6, 9)
        first = data.sample([0, 1, 2], torch.arange(3)).frames[:, 0]
        assert torch.equal(first, torch.from_numpy(images).permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shape", {"images": PIXELS[0, 0]}),
        ("layout", {"images": np.zeros((2, 5, 8, 8), np.uint8)}),
        ("channels", {"images": np.zeros((2, 4, 8, 8), np.uint8)}),
        ("int64", {"images": PIXELS.astype(np.int64)}),
        ("bool", {"images": PIXELS > 100}),
        ("shape", {"images": PIXELS[:0]}),
        ("object", {"images": PIXELS.astype(object)}),
        ("image 0", {"images": PIXELS.astype(float)}),
        ("image 3", {"images": np.where(np.arange(5)[:, None, None] == 3, np.nan, PIXELS / 255)}),
        ("classes", {"classes": torch.arange(3)}),
        ("classes", {"classes": torch.zeros(5)}),
        ("horizon", {"horizon": 0}),
        ("centre", {"centre": "left"}),
        ("active_start", {"active_start": "anywhere"}),
        ("random_start_prob", {"random_start_prob": 1.5}),
        ("names", {"transformations": {}}),
        ("parameter", {"transformations": {"shear": Transformation()}}),
        ("start", {"transformations": {"hue": Transformation(start="own")}}),
        ("nowhere", {"images": "nowhere"}),
    ],
)
def test_bad_images(name, arguments):
    with pytest.raises(DataError, match=name):
        TransformedImages(**{"images": IMAGES, **arguments})


@pytest.mark.parametrize("field", ["start", "step"])
def test_numbers_must_be_finite(field):
    with pytest.raises(ConfigError, match=field):
        Transformation("hue", **{field: float("nan")})


def test_splits_of_one_s_own_images(tmp_path):
    np.save(
        tmp_path / "images.npy",
        np.arange(40, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8),
    )
    options = ImagesOptions(path=str(tmp_path / "images.npy"), test=6)
    parts = {s: options.load(s, 3).images[:, 0, 0, 0] for s in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 30,
        "validation": 4,
        "test": 6,
    }
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(40))
    assert not torch.equal(options.load("test", 4).images[:, 0, 0, 0], parts["test"])
    for key, value in (("validation", 40), ("test", 36)):
        with pytest.raises(DataError, match=key):
            ImagesOptions(path=options.path, **{key: value}).load("test", 0)


def test_a_transformation_that_moves_nothing_has_no_coverage():
    still = {"still": Transformation("angle", step=0.0), "turn": Transformation("angle", step=9.0)}
    dataset = TransformedImages(IMAGES, transformations=still, horizon=2)
    assert dataset.coverage(0) is None
    assert dataset.coverage(1) is not None
