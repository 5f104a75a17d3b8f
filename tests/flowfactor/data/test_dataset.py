import pytest
import torch

from flowfactor.data import Hue, Rotation, Scaling, TransformedImages, render
from flowfactor.errors import DataError

IMAGES = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)


def test_description(dataset: TransformedImages):
    assert dataset.names == ("scaling", "rotation", "hue")
    assert dataset.image_shape == (3, 12, 12)
    assert (len(dataset), dataset.horizon, dataset.device.type) == (30, 8, "cpu")
    assert TransformedImages(IMAGES).classes.tolist() == [-1] * 4


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
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.horizon == 8


def test_frame_zero_is_the_red_digit_whatever_the_transformation(dataset: TransformedImages):
    batch = dataset.sample([3, 3, 3], torch.tensor([0, 1, 2]))
    red = torch.zeros(3, 3, 12, 12)
    red[:, 0] = dataset.images[3, 0].float() / 255
    assert torch.equal(batch.frames[:, 0], red)


def test_only_the_frames_asked_for(dataset: TransformedImages):
    times = torch.tensor([[0, 5, 8], [0, 1, 2], [0, 3, 7]])
    labels = torch.tensor([2, 0, 1])
    some = dataset.sample([1, 2, 3], labels, times)
    everything = dataset.sample([1, 2, 3], labels)
    assert torch.equal(some.times, times)
    expected = everything.frames[torch.arange(3)[:, None], times]
    # Vectorised and remaining elements of a loop may be rounded differently.
    torch.testing.assert_close(some.frames, expected, rtol=0, atol=1e-6)


def test_factor_by_name_by_index_and_for_each(dataset: TransformedImages):
    by_name = dataset.sample(range(4), "rotation")
    by_index = dataset.sample(torch.arange(4), 1)
    for_each = dataset.sample(torch.arange(4), torch.ones(4, dtype=torch.int32))
    for other in (by_index, for_each):
        assert torch.equal(by_name.frames, other.frames)
        assert by_name.labels.tolist() == other.labels.tolist() == [1] * 4


def test_compose_applies_all_at_once(dataset: TransformedImages):
    both = dataset.compose([4, 9], ("rotation", 2))
    t = torch.arange(9.0).expand(2, 9)
    images = dataset.images[[4, 9]].float() / 255
    assert torch.equal(both.frames, render(images, torch.ones_like(t), 10 * t, 20 * t))
    assert both.labels.tolist() == [-1, -1]
    alone = dataset.sample([4, 9], "hue")
    assert torch.equal(dataset.compose([4, 9], ["hue"]).frames, alone.frames)


def test_compose_of_one_parameter_multiplies_scales_and_adds_angles():
    images = torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8)
    transformations = (
        Scaling(),
        Scaling(start=2, step=0, name="double"),
        Rotation(),
        Rotation(start=-7, step=1, name="slow"),
    )
    dataset = TransformedImages(images, transformations=transformations)
    everything = dataset.compose([0], dataset.names)
    t = torch.arange(9.0)[None]
    expected = render(images / 255, 2 * (1 + 0.1 * t), 11 * t - 7, 0 * t)
    torch.testing.assert_close(everything.frames, expected, rtol=0, atol=1e-5)


def test_longer_sequences_extrapolate(dataset: TransformedImages):
    longer = dataset.with_last(16)
    assert (longer.horizon, dataset.horizon) == (16, 8)
    assert longer.classes is dataset.classes
    batch = longer.sample([0], "hue")
    torch.testing.assert_close(batch.frames[:, :9], dataset.sample([0], "hue").frames)
    blue = batch.frames[0, 12, 2]
    assert torch.equal(blue, dataset.images[0, 0].float() / 255)


def test_centre_and_device_are_kept():
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    authors = TransformedImages(images, centre="authors")
    kept = authors.with_last(4).to("cpu").sample([0], 1).frames
    torch.testing.assert_close(kept, authors.sample([0], 1).frames[:, :5], rtol=0, atol=1e-6)
    assert not torch.allclose(kept, TransformedImages(images, horizon=4).sample([0], 1).frames)
    assert authors.to("meta").device.type == "meta"
    assert TransformedImages(images, device="meta").classes.device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES.float()}, r"must be uint8 .* torch\.float32.*from_images"),
        ({"images": IMAGES[:, 0]}, r"\(N, 1, H, H\), but their shape is \(4, 8, 8\)"),
        ({"images": IMAGES[..., :5]}, r"square.*\(4, 1, 8, 5\)"),
        ({"images": IMAGES.expand(4, 3, 8, 8)}, r"grey.*\(4, 3, 8, 8\)"),
        ({"images": IMAGES[:0]}, r"no images.*\(0, 1, 8, 8\)"),
        ({"labels": torch.arange(3)}, r"each of the 4 images, .* torch\.int64 of shape \(3,\)"),
        ({"labels": torch.zeros(4)}, r"whole number .* torch\.float32"),
        ({"horizon": 0}, r"at least 1, but last is 0"),
        ({"centre": "left"}, r"centre must be 'true' or 'authors', but it is 'left'"),
        ({"transformations": ()}, r"at least one transformation"),
        ({"transformations": (Hue(), Hue(step=5))}, r"its own name, .* \['hue', 'hue'\]"),
        (
            {"transformations": (Rotation(), Scaling(step=-0.25))},
            r"'scaling' has scale 0 at frame 4.*positive",
        ),
    ],
)
def test_bad_dataset(arguments, message):
    with pytest.raises(DataError, match=message):
        TransformedImages(**{"images": IMAGES, **arguments})


class Shear:
    name, parameter = "shear", "shear"

    def value(self, t, start=None):
        return 0.1 * t


def test_transformation_of_an_unknown_parameter():
    with pytest.raises(DataError, match=r"'shear' changes 'shear', .* one of scale, angle, hue"):
        TransformedImages(IMAGES, transformations=(Shear(),))


FIRST = torch.zeros(2, 1, dtype=torch.long)


@pytest.mark.parametrize(
    ("indices", "factor", "times", "message"),
    [
        ([0, 4], 0, None, r"0\.\.3, for there are 4 images, but they run from 0 to 4"),
        ([-1, 0], 0, None, r"run from -1 to 0"),
        ([], 0, None, r"at least one"),
        (torch.tensor([0.0]), 0, None, r"whole numbers.*torch\.float32"),
        ([0, 1], 3, None, r"no transformation 3.*0 \(scaling\), 1 \(rotation\), 2 \(hue\)"),
        ([0, 1], -1, None, r"no transformation -1"),
        ([0, 1], "shear", None, r"no transformation 'shear'"),
        ([0, 1], torch.tensor([0, 3]), None, r"no transformation 3"),
        ([0, 1], torch.tensor([0]), None, r"each of the 2 images.*\(1,\)"),
        ([0, 1], torch.tensor([0.0, 1.0]), None, r"whole number .* torch\.float32"),
        ([0, 1], 0, FIRST + 9, r"0\.\.8, .* run from 9 to 9 and begin with \[9\].*with_last"),
        ([0, 1], 0, FIRST - 1, r"run from -1 to -1"),
        ([0, 1], 0, FIRST + 1, r"beginning with 0, .* begin with \[1\]"),
        ([0, 1], 0, FIRST[:1], r"shape \(2, frames\), but they are .*\(1, 1\)"),
        ([0, 1], 0, FIRST.float(), r"whole numbers .* torch\.float32"),
    ],
)
def test_bad_requests(indices, labels, times, message):
    with pytest.raises(DataError, match=message):
        TransformedImages(IMAGES).sample(indices, labels, times)


@pytest.mark.parametrize(
    ("factors", "message"), [((), r"at least one .*scaling"), (("hue", "zoom"), r"'zoom'")]
)
def test_bad_composition(factors, message):
    with pytest.raises(DataError, match=message):
        TransformedImages(IMAGES).compose([0], factors)


def test_random_starts_have_undergone_every_transformation(dataset: TransformedImages):
    start = torch.tensor([[0.5, 0.25, 1.0, 0.0], [0.5, 0.25, 1.0, 0.9]])
    batch = dataset.sample([7, 7], "rotation", start=start)
    t, one = torch.arange(9.0), torch.ones(9)
    grey = dataset.images[[7, 7]].float() / 255
    expected = render(
        grey,
        torch.stack([1.4 * one, one]),
        torch.stack([20 + 10 * t, 10 * t]),
        torch.stack([160 * one, 0 * one]),
    )
    torch.testing.assert_close(batch.frames, expected, rtol=0, atol=1e-5)
    # The second number is above the random fraction: this sequence starts at the image itself.
    assert torch.equal(batch.frames[1], dataset.sample([7], "rotation").frames[0])


def test_random_starts_of_compositions(dataset: TransformedImages):
    start = torch.tensor([[0.5, 0.25, 1.0, 0.0]])
    batch = dataset.compose([7], ("rotation", "scaling"), start=start)
    t, one = torch.arange(9.0)[None], torch.ones(1, 9)
    grey = dataset.images[[7]].float() / 255
    expected = render(grey, 1.4 + 0.1 * t, 20 + 10 * t, 160 * one)
    torch.testing.assert_close(batch.frames, expected, rtol=0, atol=1e-5)


def test_ranges_of_random_starts_are_kept():
    ranges = {"scaling": (0.5, 1.0)}
    dataset = TransformedImages(IMAGES, start_ranges=ranges, random_start_prob=0.5)
    assert dataset.start_ranges == ((0.5, 1.0), (0.0, 80.0), (0.0, 160.0))
    for other in (dataset.with_last(4), dataset.to("cpu")):
        assert other.start_ranges == dataset.start_ranges
        assert other.random_start_prob == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_ranges": {"zoom": (0, 1)}}, "start_ranges names 'zoom'"),
        ({"start_ranges": {"hue": (0, float("inf"))}}, "two finite numbers"),
        ({"start_ranges": {"scaling": (-0.5, 1)}}, "From -0.5, transformation 'scaling'"),
        ({"random_start_prob": 1.5}, r"random_start_prob must be in \[0, 1\]"),
    ],
)
def test_bad_random_starts(options, message: str):
    with pytest.raises(DataError, match=message):
        TransformedImages(IMAGES, **options)


def test_bad_start_numbers(dataset: TransformedImages):
    with pytest.raises(DataError, match=r"shape \(2, 4\), but they are torch.float32 .* \(2, 3\)"):
        dataset.sample([0, 1], 0, start=torch.zeros(2, 3))
    with pytest.raises(DataError, match=r"start must hold numbers in \[0, 1\]"):
        dataset.sample([0], 0, start=torch.full((1, 4), 2.0))


def test_what_moves_can_start_canonically_while_the_rest_is_random():
    """Everything stays in the box that canonical sequences and their compositions span."""
    images = torch.randint(256, (3, 1, 12, 12), dtype=torch.uint8)
    data = TransformedImages(images, active_start="canonical", random_start_prob=1.0)
    start = torch.tensor([[1.0, 0.5, 0.25, 0.0]] * 3)
    moving = data.sample([0, 1, 2], "rotation", start=start).frames
    # Scale 1.8, hue 40 degrees: at frame 4 as after eight frames of scaling and two of hue.
    clock = torch.tensor([[0, 1, 2, 3, 4]]).expand(3, -1)
    both = data.compose(
        [0, 1, 2],
        ("scaling", "rotation", "hue"),
        clock,
        elapsed=[clock * 2, clock, clock // 2],
    ).frames
    torch.testing.assert_close(moving[:, 4], both[:, 4], atol=1e-5, rtol=0)
    usual = TransformedImages(images, random_start_prob=1.0)
    assert not torch.equal(usual.sample([0, 1, 2], "rotation", start=start).frames, moving)
    with pytest.raises(DataError, match="'random' or 'canonical'"):
        TransformedImages(images, active_start="anywhere")
