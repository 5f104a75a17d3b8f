import math

import pytest
import torch

from flowfactor.data import SHAPES, SequenceLoader, Sprites, Transformation
from flowfactor.data.sprites import Attributes, draw
from flowfactor.errors import DataError

ONE, ZERO = torch.ones(1), torch.zeros(1, 1)


def one(shape: str, stretch: float = 1.0) -> Attributes:
    return Attributes(torch.tensor([SHAPES.index(shape)]), ONE, ONE * stretch, ONE)


def cover(shape: str, scale: float, *, angle=0.0, x=0.0, y=0.0, stretch=1.0, size=32):
    """The part of each pixel that the sprite covers."""
    at = [ZERO + value for value in (scale, angle, x, y, 0.0)]
    return draw(one(shape, stretch), *at, size=size)[0, 0, 0]


def test_description():
    sprites = Sprites(100, 64, horizon=4)
    assert sprites.names == ("scaling", "rotation", "x", "y", "hue")
    assert (len(sprites), sprites.horizon, sprites.start_size) == (100, 4, 6)
    assert sprites.image_shape == (3, 64, 64)
    assert tuple(sprites.sample([99], "x").frames.shape) == (1, 5, 3, 64, 64)
    assert len(Sprites()) == 60_000
    assert sprites.to("meta").device.type == "meta"


@pytest.mark.parametrize("stretch", [1.0, 1.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plain_shapes_have_one_area(shape: str, stretch: float):
    """That of a disc whose radius is the scale, whatever the stretch and the orientation."""
    for angle in (0, 33):
        area = cover(shape, 0.2, angle=angle, stretch=stretch, size=64).mean().item()
        assert area == pytest.approx(math.pi * 0.2**2, rel=0.01)


@pytest.mark.parametrize("angle", [0.0, 27.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pixel_is_the_part_of_it_that_is_covered(shape: str, angle: float):
    """Against the same picture drawn with 8 by 8 times the pixels, averaged."""
    where = {"angle": angle, "x": 0.031, "y": -0.047, "stretch": 1.2}
    fine = cover(shape, 0.17, **where, size=256)
    truth = torch.nn.functional.avg_pool2d(fine[None], 8)[0]
    error = (cover(shape, 0.17, **where) - truth).abs()
    assert error.max() < 0.2
    assert error.mean() < 0.004
    assert error[truth == 1].max() < 1e-4


def test_an_upright_square_is_exact():
    side = math.sqrt(math.pi) * 0.2 * 32
    edge = (side - 10) / 2  # what it covers of the eleventh pixel on either side
    found = cover("square", 0.2)
    expected = torch.zeros(32)
    expected[11:21] = 1
    expected[10] = expected[21] = edge
    torch.testing.assert_close(found, torch.outer(expected, expected), rtol=0, atol=1e-5)


def middle(frames: torch.Tensor) -> torch.Tensor:
    """Horizontal and vertical place (upwards) of the mean of brightness, in sides of the image."""
    grey = frames.sum(-3)
    places = (torch.arange(grey.shape[-1]) + 0.5) / grey.shape[-1] - 0.5
    total = grey.sum((-1, -2))
    return torch.stack(
        [(grey * places).sum((-1, -2)) / total, -(grey * places[:, None]).sum((-1, -2)) / total], -1
    )


def test_each_transformation_moves_its_own_factor():
    sprites = Sprites(50, 64, shapes=["ellipse"])
    batch = sprites.sample([7] * 5, torch.arange(5))
    t = torch.arange(9.0)
    where = middle(batch.frames)
    torch.testing.assert_close(where[2, :, 0], 0.024 * t, rtol=0, atol=1e-3)
    torch.testing.assert_close(where[3, :, 1], 0.024 * t, rtol=0, atol=1e-3)
    for still in (where[[0, 1, 4]], where[2, :, 1], where[3, :, 0]):
        assert still.abs().max() < 1e-3
    area = batch.frames[:, :, 0].mean((-1, -2))
    torch.testing.assert_close(area[0] / area[0, 0], (1 + 0.08 * t) ** 2, rtol=0.01, atol=0)
    torch.testing.assert_close(area[1:4], area[1:4, :1].expand(3, 9), rtol=0.01, atol=0)
    assert batch.frames[4, 6, 1].max() > 0.6
    assert batch.frames[4, 6, [0, 2]].max() == 0
    # Counter-clockwise: an ellipse lying flat rises to the right.
    turned = batch.frames[1, 4, 0]
    assert turned[:32, 32:].sum() > 1.2 * turned[:32, :32].sum()


def test_rotation_comes_back_after_a_whole_turn_and_squares_after_a_quarter():
    for shape, turn in (("square", 90), ("ellipse", 180), ("heart", 360)):
        torch.testing.assert_close(
            cover(shape, 0.2, angle=turn + 13, stretch=1.0 if turn == 90 else 1.3),
            cover(shape, 0.2, angle=13, stretch=1.0 if turn == 90 else 1.3),
            rtol=0,
            atol=1e-4,
        )


def test_all_frames_of_a_rotation_differ():
    frames = Sprites(60).sample(range(60), "rotation").frames.flatten(2)
    apart = torch.cdist(frames, frames)
    apart = apart + 1e3 * torch.eye(9)
    assert apart.min() > 0.1


def test_frame_zero_is_the_same_whatever_the_transformation():
    batch = Sprites(10).sample([3] * 5, torch.arange(5))
    assert (batch.frames[:, 0] == batch.frames[0, 0]).all()
    assert batch.frames[0, 0, 1:].max() == 0


def test_sprites_are_a_pure_function_of_their_number():
    sprites = Sprites(1000)
    few = sprites.sample([999, 5], "y").frames
    again = Sprites(2000).sample([5, 17, 999], "y").frames
    torch.testing.assert_close(few, again[[2, 0]], rtol=0, atol=1e-6)
    assert torch.equal(sprites.classes, Sprites(2000).classes[:1000])


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "validation"}, {"split": "test"}])
def test_seeds_and_splits_share_no_sample(other):
    first, second = (
        s.attributes(torch.arange(500)).size for s in (Sprites(500), Sprites(500, **other))
    )
    assert not torch.isin(first, second).float().mean() > 0.02
    assert not torch.equal(Sprites(500).classes, Sprites(500, **other).classes)


def test_attributes_are_uniform_and_unrelated():
    found = Sprites().attributes(torch.arange(60_000))
    counts = found.shape.bincount()
    assert (counts - 20_000).abs().max() < 500
    numbers = torch.stack([found.size, found.brightness, found.shape.float()])
    spread = numbers.max(1).values - numbers.min(1).values
    torch.testing.assert_close(spread, torch.tensor([0.1, 0.3, 2.0]), rtol=0.001, atol=0)
    correlation = torch.corrcoef(torch.cat([numbers, numbers.roll(1, 1)]))
    assert (correlation - torch.eye(6)).abs().max() < 0.02


def test_sprites_stay_within_the_image():
    """From the outermost random starts, through all transformations at once."""
    sprites = Sprites(16, random_start_prob=1.0)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    starts = torch.cat([corners, torch.zeros(16, 2)], dim=1)
    frames = sprites.compose(range(16), sprites.names, starts=starts).frames.sum(2)
    rim = [frames[..., 0, :], frames[..., -1, :], frames[..., :, 0], frames[..., :, -1]]
    # On the outermost pixels there is no more than the smoothing of an outline close to them.
    assert max(side.max().item() for side in rim) < 0.35
    assert frames.sum((-1, -2)).min() > 0
    # No part was cut off: where it ends, a sprite has the size that it has in the middle.
    centred = sprites.compose(range(16), ["scaling", "rotation", "hue"], starts=starts).frames
    frames = sprites.compose(range(16), ["scaling", "rotation", "hue", "x", "y"], starts=starts)
    torch.testing.assert_close(
        frames.frames.mean((2, 3, 4)), centred.mean((2, 3, 4)), rtol=0.02, atol=0
    )


def test_compose_is_the_picture_with_both_factors_moved():
    sprites = Sprites(20)
    both = sprites.compose([4, 9], ("rotation", "x"))
    t = torch.arange(9.0).expand(2, 9)
    attributes = sprites.attributes(torch.tensor([4, 9]))
    expected = draw(attributes, 0 * t + 0.125, 10 * t, 0.024 * t, 0 * t, 0 * t)
    torch.testing.assert_close(both.frames, expected, rtol=0, atol=1e-6)
    assert both.labels is None
    alone = sprites.compose([4, 9], ["hue"])
    assert torch.equal(alone.frames, sprites.sample([4, 9], "hue").frames)


def test_random_starts():
    sprites = Sprites(20, random_start_prob=0.8)
    starts = torch.tensor([[0.5, 0.25, 0.0, 1.0, 0.75, 0.79], [0.5, 0.25, 0.0, 1.0, 0.75, 0.8]])
    batch = sprites.sample([3, 3], "x", starts=starts)
    t = torch.arange(9.0)[None]
    attributes = sprites.attributes(torch.tensor([3]))
    expected = draw(attributes, 0 * t + 0.125, 0 * t + 20, 0.024 * t - 0.192, 0 * t, 0 * t + 120)
    torch.testing.assert_close(batch.frames[:1], expected, rtol=0, atol=1e-5)
    canonical = sprites.sample([3], "x").frames
    torch.testing.assert_close(batch.frames[1:], canonical, rtol=0, atol=1e-6)
    longer = sprites.with_horizon(12).sample([3], "x", starts=starts[:1])
    torch.testing.assert_close(longer.frames[:, :9], batch.frames[:1], rtol=0, atol=1e-5)


def test_frames_do_not_depend_on_the_batch():
    """A large batch is drawn in parts."""
    sprites = Sprites(60)
    large = sprites.sample(range(60), "hue").frames
    torch.testing.assert_close(large[50:52], sprites.sample([50, 51], "hue").frames)


def test_own_transformations_and_the_loader():
    own = {"left": Transformation("x", step=-0.0013), "hue": Transformation()}
    given = {"horizon": 3, "shapes": ["heart", "square"], "initial_state": "random"}
    sprites = Sprites(40, 16, own, **given)
    left = Transformation("x", 0.0, -0.0013, (-0.192, 0.0), (-0.192, 0.192))
    assert sprites.transformations["left"] == left
    batch = SequenceLoader(sprites, 6, frames_per_sequence=2).batch(1)
    assert tuple(batch.frames.shape) == (6, 3, 3, 16, 16)
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert set(sprites.classes.tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("count", {"count": 0}),
        ("size", {"size": 4}),
        ("horizon", {"horizon": 0}),
        ("split", {"split": "dev"}),
        ("shapes", {"shapes": ["disc"]}),
        ("shapes", {"shapes": ["heart", "heart"]}),
        ("shapes", {"shapes": ()}),
        ("random_start_prob", {"random_start_prob": 1.5}),
        ("seed", {"seed": -1}),
        ("names", {"transformations": {}}),
        ("parameter", {"transformations": {"m": Transformation("shear")}}),
        ("parameter", {"transformations": dict.fromkeys("ab", Transformation("scale"))}),
        ("horizon", {"transformations": {"scale": Transformation(step=-0.02)}}),
    ],
)
def test_bad_sprites(name, arguments):
    with pytest.raises(DataError, match=name):
        Sprites(**{"count": 4, **arguments})


def test_active_transformations_can_start_canonically_while_the_rest_is_random():
    data = Sprites(3, 16, active_start="canonical", random_start_prob=1.0)
    starts = torch.tensor([[0.5, 0.9, 0.25, 0.0, 1.0, 0.0]] * 3)
    moving = data.sample([0, 1, 2], "rotation", starts=starts).frames
    clock = torch.tensor([[0, 2, 4]]).expand(3, -1)
    both = data.compose(
        [0, 1, 2],
        ("scaling", "rotation", "x", "hue"),
        clock,
        elapsed=[clock, clock, clock // 2, 2 * clock],
    ).frames
    torch.testing.assert_close(moving[:, 4], both[:, 2], atol=1e-4, rtol=0)
