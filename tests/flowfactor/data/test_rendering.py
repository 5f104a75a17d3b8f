"""The renderer against torchvision, an independent implementation.

Positions are computed in float32 here and there. One rounding moves a point 14 pixels from the
centre by about 1e-6 of a pixel, and a pixel's value changes by at most 1 per pixel, so that a few
roundings may differ by 1e-5 and a wrong centre, sign or unit by far more.
"""

import colorsys

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from flowfactor.data import hue_to_rgb, render, shift_hue
from flowfactor.errors import DataError

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth random images with black rims."""
    coarse = torch.rand(4, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.pad(torch.nn.functional.interpolate(coarse, 20), (4, 4, 4, 4))


def constant(value: float, batch: int, frames: int = 1) -> torch.Tensor:
    return torch.full((batch, frames), float(value))


def grey(images, scale=1.0, angle=0.0, centre="true"):
    """The red channel of one frame of each image, all with the same parameters, in red."""
    many = len(images)
    frames = render(images, constant(scale, many), constant(angle, many), constant(0, many), centre)
    assert not frames[:, :, 1:].any()
    return frames[:, 0, :1]


@pytest.mark.parametrize("angle", [10, 80, -30, 200])
def test_rotation_equals_torchvision(images, angle):
    expected = reference.rotate(images, angle, interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(grey(images, angle=angle), expected, **CLOSE)


@pytest.mark.parametrize("scale", [0.5, 1.8])
@pytest.mark.parametrize("angle", [0, 70])
@pytest.mark.parametrize(
    ("centre", "edge"),
    # torchvision counts from the image's edge, half a pixel before the first pixel's centre.
    [("true", [14.0, 14.0]), ("authors", [14.5, 14.5])],
)
def test_affine_equals_torchvision(images, scale, angle, centre, edge):
    expected = reference.affine(
        images,
        angle=-angle,  # clockwise there
        translate=[0, 0],
        scale=scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
        center=edge,
    )
    torch.testing.assert_close(grey(images, scale, angle, centre), expected, **CLOSE)


def test_the_two_centres_differ(images):
    difference = grey(images, angle=40) - grey(images, angle=40, centre="authors")
    assert difference.abs().max() > 0.1


def test_quarter_turn_is_counter_clockwise(images):
    expected = torch.rot90(images, 1, (2, 3))
    torch.testing.assert_close(grey(images, angle=90), expected, **CLOSE)


@pytest.mark.parametrize("centre", ["true", "authors"])
@pytest.mark.parametrize("side", [5, 28])
def test_identity_is_exact(centre, side):
    images = torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grey(images, centre=centre), images)


@pytest.mark.parametrize("hue", [0, 20, 160, 250])
def test_hue_equals_torchvision(images, hue):
    red = torch.cat([images, torch.zeros_like(images), torch.zeros_like(images)], dim=1)
    turns = hue / 360 if hue <= 180 else hue / 360 - 1
    many = len(images)
    frames = render(images, constant(1, many), constant(0, many), constant(hue, many))
    torch.testing.assert_close(frames[:, 0], reference.adjust_hue(red, turns), **CLOSE)


def test_hue_equals_colorsys():
    hues = torch.linspace(-1000, 1000, 2001, dtype=torch.float64)
    hues = torch.cat([hues, hues + torch.rand_like(hues)])
    expected = [colorsys.hsv_to_rgb(hue / 360 % 1, 1, 1) for hue in hues.tolist()]
    colours = hue_to_rgb(hues)
    torch.testing.assert_close(colours, colours.new_tensor(expected), rtol=0, atol=1e-9)


def test_all_frames_at_once_equal_one_by_one(images):
    generator = torch.Generator().manual_seed(0)
    batch, frames = len(images), 4
    scale = 1 + torch.rand(batch, frames, generator=generator)
    angle = 180 * torch.rand(batch, frames, generator=generator)
    hue = 360 * torch.rand(batch, frames, generator=generator)
    together = render(images, scale, angle, hue)
    for i in range(batch):
        for t in range(frames):
            one = (slice(i, i + 1), slice(t, t + 1))
            alone = render(images[i : i + 1], scale[one], angle[one], hue[one])
            # Vectorised and remaining elements of a loop may be rounded differently.
            torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-6)


def test_three_parameters_at_once(images):
    many = len(images)
    all_at_once = render(images, constant(1.4, many), constant(30, many), constant(60, many))
    shape = reference.affine(
        images, -30, [0, 0], 1.4, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    yellow = torch.cat([shape, shape, torch.zeros_like(shape)], dim=1)
    torch.testing.assert_close(all_at_once[:, 0], yellow, **CLOSE)


def test_frames_stay_in_range():
    white = torch.ones(1, 1, 9, 9)
    angles = torch.linspace(0, 360, 40)[None]
    frames = render(white, torch.ones_like(angles), angles, 2 * angles)
    assert frames.min() == 0
    assert frames.max() == 1


def test_double_precision_is_kept():
    zero = torch.zeros(1, 2, dtype=torch.float64)
    frames = render(torch.rand(1, 1, 6, 6, dtype=torch.float64), zero + 1.5, zero + 20, zero)
    assert frames.dtype == torch.float64


def test_unknown_centre(images):
    with pytest.raises(DataError, match="centre"):
        grey(images, centre="middle")


def parameters(images, scale, angle, hue):
    return [constant(value, len(images)) for value in (scale, angle, hue)]


@pytest.mark.parametrize("shape", [(28, 28), (12, 20), (21, 10)])
def test_colour_and_rectangles_equal_torchvision(shape):
    colours = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    frames = render(colours, *parameters(colours, 1.3, 25, 0))
    expected = reference.affine(
        colours, -25, [0, 0], 1.3, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(frames[:, 0], expected, **CLOSE)
    assert torch.equal(render(colours, *parameters(colours, 1, 0, 360))[:, 0], colours)


@pytest.mark.parametrize("hue", [20, 130, 250])
def test_hues_of_colours_are_shifted_as_torchvision_does(hue):
    colours = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    colours[0, :, 0] = 0.4  # a grey row, which has no hue
    shifted = shift_hue(colours, torch.tensor([1.0, 1.0]) * hue)
    turns = hue / 360 if hue <= 180 else hue / 360 - 1
    torch.testing.assert_close(shifted, reference.adjust_hue(colours, turns), **CLOSE)
    frames = render(colours, *parameters(colours, 1, 0, hue))
    torch.testing.assert_close(frames[:, 0], shifted, **CLOSE)


def test_a_red_image_is_a_grey_one(images):
    red = torch.cat([images, torch.zeros_like(images), torch.zeros_like(images)], dim=1)
    given = parameters(images, 1.2, 30, 100)
    torch.testing.assert_close(render(red, *given), render(images, *given), **CLOSE)
