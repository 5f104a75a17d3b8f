"""Windows of photographs: where they lie, what they show, which colours they have."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data import (
    PHOTO_TRANSFORMATIONS,
    ActivityLaw,
    Photos,
    PhotosOptions,
    Transformation,
)
from flowfactor.data.photos import read_photographs
from flowfactor.data.pyramids import Pyramids
from flowfactor.errors import ConfigError, DataError

SIZE = 24
# Red is the column of a pixel, green its row, both of 255.
ROWS, COLUMNS = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
RAMP = torch.stack([COLUMNS, ROWS, torch.full_like(ROWS, 128)]).to(torch.uint8)
MOVES = {
    "x": Transformation("x", step=0.05),
    "y": Transformation("y", step=-0.04),
    "zoom": Transformation("zoom", step=-0.1, start_range=(-0.2, 0.3)),
    "rotation": Transformation("angle", step=9.0, start_range=(0.0, 360.0)),
}


def photos(pictures, **options):
    given = {"count": 12, "size": SIZE, "horizon": 4, "validation": 1, "test": 1} | options
    return Photos(pictures, **given)


def places(frames):
    """Return the column and row that a window of the ramp shows at each pixel."""
    return frames[:, :, :2] * 255


@pytest.fixture(scope="module")
def ramps():
    # So large that windows are enlarged, where bilinear values between pixels are exact.
    return photos([RAMP] * 3, transformations=MOVES, size=96, window=(0.5, 1.0))


def similarity(data, index, f, elapsed):
    """Return the map of homogeneous window coordinates as a product of matrix exponentials."""
    whole = torch.eye(3, dtype=torch.float64)
    steps = [MOVES[name].step for name in data.names]
    for before, after in zip(elapsed[:, :f].T, elapsed[:, 1 : f + 1].T, strict=True):
        x, y, zoom, angle = (after - before).double() * torch.tensor(steps)
        growth, turn = zoom * math.log(2), math.radians(angle)
        generator = torch.tensor([[growth, -turn, x], [turn, growth, y], [0, 0, 0]])
        whole = torch.linalg.matrix_exp(generator.double()) @ whole
    return whole


@pytest.mark.parametrize("together", [True, False])
def test_compositions_are_exponentials_of_generators(ramps, together):
    """An independent oracle: 3 by 3 matrices, and the ramp that says which place is seen."""
    clock = torch.arange(5)
    elapsed = torch.stack([clock] * 4)
    if not together:
        elapsed[0], elapsed[3] = clock.clamp(max=2), (clock - 2).clamp(min=0)
        elapsed[1], elapsed[2] = 0 * clock, (clock - 1).clamp(min=0, max=2)
    clocks = [each[None] for each in elapsed]
    frames = ramps.compose([5], ramps.names, elapsed=clocks).frames
    start = places(frames)[0, 0]
    middle = start.mean((1, 2)).double()
    pixel = (torch.arange(96) + 0.5) / 96 - 0.5
    side = 96 * float(start[0, 0, 1] - start[0, 0, 0])
    for f in range(1, 5):
        seen = places(frames)[0, f]
        inverse = torch.linalg.inv(similarity(ramps, 5, f, elapsed))
        for row, column in ((0, 0), (10, 80), (95, 40)):
            p = torch.stack([pixel[column], -pixel[row], torch.tensor(1.0)]).double()
            q = inverse @ p
            expected = middle + side * torch.stack([q[0], -q[1]])
            torch.testing.assert_close(seen[:, row, column].double(), expected, atol=0.02, rtol=0)


def test_windows_never_leave_their_photograph():
    """Outside of a ramp its last value is repeated, where places would no longer be affine."""
    data = photos([RAMP] * 3, transformations=MOVES, size=96, room=8, count=12)
    indices = torch.arange(12)
    generator = torch.Generator().manual_seed(0)
    whole = data.with_horizon(8)
    for trial in range(4):
        elapsed = [torch.randint(2, (12, 9), generator=generator).cumsum(1) for _ in data.names]
        elapsed = [each - each[:, :1] for each in elapsed]
        starts = whole.random_starts(12, generator) if trial % 2 else None
        clocks = None if trial < 2 else elapsed
        seen = places(whole.compose(indices, data.names, starts=starts, elapsed=clocks).frames)
        for second in (seen.diff(n=2, dim=-1), seen.diff(n=2, dim=-2)):
            assert second.abs().max() < 0.01
    with pytest.raises(DataError, match="horizon"):
        data.with_horizon(9)
    # The same windows, however long the sequences are.
    assert torch.equal(whole.sample(indices).frames[:, :5], data.sample(indices).frames)


@pytest.mark.parametrize("still", [(), ("angle",), ("angle", "zoom")])
def test_nor_do_windows_that_move_either_way_at_any_speed(still):
    moves = {name: each for name, each in MOVES.items() if each.parameter not in still}
    data = photos([RAMP] * 3, transformations=moves, size=96, horizon=4, room=8, count=12)
    for kind in ("pairs", "switch"):
        seen = places(data.draw_sequences(range(12), ActivityLaw(kind)).frames)
        for second in (seen.diff(n=2, dim=-1), seen.diff(n=2, dim=-2)):
            assert second.abs().max() < 0.5  # a pixel beyond would repeat one


def test_windows_fill_what_a_sequence_leaves_free():
    """Where nothing turns or moves the largest window is the whole photograph."""
    still = {"brightness": Transformation("brightness")}
    data = photos([RAMP] * 3, transformations=still, window=(1.0, 1.0), size=64)
    seen = places(data.sample([0]).frames[:, :1])
    assert seen.amin() < 3
    assert seen.amax() > 252
    moves = {"x": Transformation("x", step=0.25)}
    data = photos([RAMP] * 3, transformations=moves, window=(1.0, 1.0), room=4, size=64)
    seen = places(data.sample([0]).frames)
    assert seen[0, 4, 0].amin() < 3  # it looks to the left where things move to the right
    assert seen[0, 0, 0].amax() > 252
    moves = {"y": Transformation("y", step=0.25)}
    data = photos([RAMP] * 3, transformations=moves, window=(1.0, 1.0), room=4, size=64)
    seen = places(data.sample([0]).frames)
    assert seen[0, 4, 1].amax() > 252  # and down where they move upwards
    assert seen[0, 0, 1].amin() < 3


def test_signs():
    """Things move to the right and upwards, grow, and turn counter-clockwise."""
    picture = torch.zeros(3, 120, 120)
    moves = dict(PHOTO_TRANSFORMATIONS)
    del moves["hue"], moves["brightness"]
    data = photos([picture] * 3, transformations=moves, size=60, room=4, window=(1.0, 1.0))
    side = float(data.sample([0]).frames.shape[-1])
    grid = torch.linspace(-1, 1, 120)
    picture[0] = torch.exp(-((grid - 0.1) ** 2 + (grid[:, None]) ** 2) / 0.01)
    data = photos([picture] * 3, transformations=moves, size=60, room=4, window=(1.0, 1.0))
    pixel = torch.arange(60.0)

    def middle(name, f):
        red = data.sample([0], name).frames[0, f, 0]
        return float((red.sum(0) * pixel).sum() / red.sum()), float(
            (red.sum(1) * pixel).sum() / red.sum()
        )

    column, row = middle("x", 0)
    assert middle("x", 4) == pytest.approx((column + 0.1 * side, row), abs=0.1)
    assert middle("y", 4) == pytest.approx((column, row - 0.1 * side), abs=0.1)
    offset = complex(column - 29.5, -(row - 29.5))
    for name, factor in (("zoom", 2**0.4), ("rotation", np.exp(1j * math.radians(40)))):
        moved = offset * factor
        assert middle(name, 4) == pytest.approx((29.5 + moved.real, 29.5 - moved.imag), abs=0.2)


def test_zooming_out_does_not_alias():
    """Details that a window cannot show become their mean, at any size and between pixels."""
    board = ((ROWS + COLUMNS) % 2 * 255).to(torch.uint8)[None].expand(3, -1, -1)
    moves = {"zoom": Transformation("zoom", step=-0.15), "angle": Transformation(step=7.0)}
    data = photos([board] * 3, transformations=moves, size=16, window=(1.0, 1.0), room=8)
    frames = data.with_horizon(8).compose([0, 1, 2], ("zoom", "angle")).frames
    # Pixels are at least two pixels of the photograph apart.
    assert (frames - 0.5).abs().max() < 0.03
    stripes = (COLUMNS // 2 % 2 * 255).to(torch.uint8)[None].expand(3, -1, -1)
    data = photos([stripes] * 3, transformations=moves, size=16, window=(1.0, 1.0), room=8)
    frames = data.with_horizon(8).sample([0, 1], "zoom").frames
    assert (frames[:, -1] - 0.5).abs().max() < 0.06


def test_hue_is_a_turn_of_colours_that_nothing_cuts_off():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)
    moves = {"hue": Transformation("hue", step=45.0), "double": Transformation("hue", step=90.0)}
    data = photos([picture] * 3, transformations=moves, horizon=8)
    frames = data.sample([0, 1], "hue").frames
    torch.testing.assert_close(frames[:, 8], frames[:, 0], atol=1e-5, rtol=0)
    mean, size = frames.mean(2, keepdim=True), frames.sub(frames.mean(2, keepdim=True)).norm(dim=2)
    torch.testing.assert_close(mean, mean[:, :1].expand_as(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(size, size[:, :1].expand_as(size), atol=1e-4, rtol=0)
    twice = data.compose([0, 1], ("hue", "double")).frames
    torch.testing.assert_close(twice[:, 2], frames[:, 6], atol=1e-5, rtol=0)
    third = photos([picture] * 3, transformations={"hue": Transformation(step=120.0)}).sample([0])
    torch.testing.assert_close(third.frames[0, 1], third.frames[0, 0].roll(1, 0), atol=1e-5, rtol=0)


def test_brightness_multiplies_and_commutes_with_all_else():
    picture = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    data = photos([picture] * 3)
    dark = data.sample([0], "brightness").frames
    octaves = -0.1 * torch.arange(5.0)
    torch.testing.assert_close(dark, dark[:, :1] * (2**octaves)[None, :, None, None, None])
    others = ("x", "zoom", "rotation", "hue")
    both = data.compose([0], (*others, "brightness")).frames
    alone = data.compose([0], others).frames
    torch.testing.assert_close(both, alone * (2**octaves)[None, :, None, None, None])


def test_photographs_are_held_out_as_a_whole():
    pictures = [torch.full((3, 40, 44), number / 40) for number in range(40)]
    pictures = [p + 0.01 * torch.rand(3, 40, 44) for p in pictures]
    options = {"size": 8, "validation": 0.1, "test": 4, "count": 300}
    parts = {split: photos(pictures, split=split, **options) for split in PARTS}
    names = [set(part.names_of_photographs) for part in parts.values()]
    assert [len(each) for each in names] == [32, 4, 4]
    assert len(set.union(*names)) == 40
    for part in parts.values():
        shown = part.sample(torch.arange(100), "x").frames[:, 0].mean((1, 2, 3)) * 40
        expected = [float(part.names_of_photographs[k]) for k in part.classes[:100]]
        assert (shown - torch.tensor(expected)).abs().max() < 0.7
    with pytest.raises(DataError, match="leave none"):
        photos(pictures, validation=20, test=20)
    with pytest.raises(DataError, match="validation"):
        photos(pictures, validation=2.5)


PARTS = ("train", "validation", "test")


def test_more_samples_leave_the_first_as_they_are():
    few, many = (photos([RAMP] * 3, count=count, seed=3) for count in (4, 9))
    assert torch.equal(few.sample([3], "x").frames, many.sample([3], "x").frames)
    other = photos([RAMP] * 3, count=4, seed=4)
    assert not torch.equal(few.sample([3], "x").frames, other.sample([3], "x").frames)
    chosen = many.subset([8, 3])
    assert torch.equal(chosen.sample([1], "x").frames, few.sample([3], "x").frames)


def test_flat_windows_are_drawn_anew():
    half = torch.zeros(3, 200, 200)
    half[:, :, 100:] = torch.rand(3, 200, 100, generator=torch.Generator().manual_seed(0))

    still = {"hue": Transformation()}

    def part_with_contrast(contrast):
        data = photos([half] * 3, transformations=still, window=(0.2, 0.3), contrast=contrast)
        return float((data.sample(range(12)).frames[:, 0].std((1, 2, 3)) > 0.05).float().mean())

    assert part_with_contrast(0.0) < 0.8
    assert part_with_contrast(0.1) == 1


def test_grey_pictures_have_no_hue(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 60, 70), dtype=np.uint8)
    data = photos(grey)
    assert data.image_shape == (1, SIZE, SIZE)
    assert "hue" not in data.names
    assert data.compose([0], data.names).frames.shape == (1, 5, 1, SIZE, SIZE)
    with pytest.raises(DataError, match="hue"):
        photos(grey, transformations={"hue": Transformation()})
    assert photos([RAMP] * 3, grey=True).image_shape[0] == 1
    assert photos([RAMP, RAMP, *grey[:1]]).image_shape[0] == 3


def test_a_folder_of_pictures_of_any_sizes(tmp_path):
    (tmp_path / "inside").mkdir()
    for number, (name, shape) in enumerate(
        {
            "a.png": (80, 120),
            "b.jpg": (300, 200),
            "inside/c.png": (90, 90),
            "d.bmp": (70, 70),
        }.items()
    ):
        Image.fromarray(np.full((*shape, 3), 60 * number, np.uint8)).save(tmp_path / name)
    options = {"path": str(tmp_path), "size": 8, "train": 6, "resolution": 100, "horizon": 4}
    data = PhotosOptions(**options).load("train", 0)
    assert len(data) == 6
    assert len(data.names_of_photographs) == 2
    assert data.sample(range(6)).frames.shape == (6, 5, 3, 8, 8)
    (tmp_path / "e.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"e\.png"):
        PhotosOptions(**options).load("train", 0)


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="window"):
        photos([RAMP[:, :20, :20]] * 3, window=(0.1, 0.2))
    with pytest.raises(DataError, match="window"):
        photos([RAMP] * 3, window=(0.8, 0.2))
    with pytest.raises(ConfigError, match="window"):
        PhotosOptions(window=(0.8, 2.0))
    with pytest.raises(DataError, match="no pictures"):
        photos(tmp_path)
    (tmp_path / "film.mp4").write_bytes(b"moving")
    with pytest.raises(DataError, match=r"film\.mp4 holds no arrays"):
        photos(tmp_path / "film.mp4")
    with pytest.raises(DataError, match="parameter"):
        photos([RAMP] * 3, transformations={"scale": Transformation()})


def test_the_free_photographs_are_there():
    options = PhotosOptions(size=16, train=8, validation=4, test=4, resolution=128)
    parts = [options.load(split, 0) for split in PARTS]
    assert sum(len(part.names_of_photographs) for part in parts) == 10
    assert all(part.image_shape == (3, 16, 16) for part in parts)
    assert 0.1 < float(parts[0].sample(range(8)).frames.std()) < 0.5


def test_windows_show_what_others_pan_to():
    data = photos([RAMP] * 3, initial_state="random")
    seen = {name: data.coverage(k).seen(20) for k, name in enumerate(data.names)}
    assert seen["x"] == seen["y"] == seen["rotation"] == "covered"
    assert seen["zoom"] == "extrapolation"


def test_one_photograph_and_too_many(tmp_path, monkeypatch):
    Image.fromarray(RAMP.permute(1, 2, 0).numpy()).save(tmp_path / "ramp.png")
    assert len(read_photographs(tmp_path / "ramp.png")) == 1
    with pytest.raises(DataError, match="resolution"):
        Pyramids([torch.zeros(1, 1, 1).expand(1, 60_000, 60_000)], 2.0)
