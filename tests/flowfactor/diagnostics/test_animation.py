import io

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.diagnostics import animate


@pytest.fixture(scope="module")
def animation(model, images):
    return animate(model, images, names=["hue", "rotation"], substeps=2, scale=3)


def test_pictures_go_there_and_back(animation):
    pictures = animation.pictures
    assert len(pictures) == 16
    assert all(np.array_equal(pictures[i], pictures[-i]) for i in range(1, 8))
    assert not np.array_equal(pictures[0], pictures[8])


def test_pictures_hold_the_decoded_flow(model, z0, animation):
    with torch.no_grad():
        frame = model.decode(model.flow(z0, "rotation", 2.5))[1]
    expected = (255 * frame + 0.5).to(torch.uint8).movedim(0, -1).int().numpy()
    # The second row, and the last column, of the picture at t = 2.5.
    side = 8 * 3 + 4
    tile = animation.pictures[5][4 + side : side * 2, -side:-4][::3, ::3]
    assert np.abs(tile.astype(int) - expected).max() <= 1


def test_rows_have_labels_and_the_bar_grows(animation):
    side = 8 * 3 + 4
    margin = animation.pictures.shape[2] - 2 * side
    for row in range(2):
        assert (animation.pictures[0][4 + side * row : side * (row + 1), :margin] < 128).any()
    bar = (animation.pictures[:, -26:] == (0x00, 0x72, 0xB2)).all(-1).sum((1, 2))
    assert (np.diff(bar[:9].astype(int)) > 0).all()


def test_a_gif_shows_every_picture_and_loops(animation):
    gif = Image.open(io.BytesIO(animation.gif(256)))
    assert gif.n_frames == 16
    assert gif.info["loop"] == 0
    durations = []
    for i in range(gif.n_frames):
        gif.seek(i)
        durations.append(gif.info["duration"])
        error = np.abs(np.asarray(gif.convert("RGB"), float) - animation.pictures[i])
        assert error.mean() < 3
    # GIF counts time in hundredths of a second.
    assert durations == [10 * (ms // 10) for ms in animation.milliseconds]
    assert durations[0] > durations[1] < durations[8]


def test_saving_writes_a_gif(animation, tmp_path):
    path = animation.save(tmp_path / "new" / "sprites.gif")
    assert path.read_bytes().startswith(b"GIF89a")
    with pytest.raises(ValueError, match=r"\.gif"):
        animation.save(tmp_path / "sprites.mp4")
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["sprites.gif"]


@pytest.mark.parametrize(("count", "side"), [(1, 80), (6, 56)])
def test_many_images_are_shown_smaller_than_few(model, images, count, side):
    many = images[:1].expand(count, -1, -1, -1)
    pictures = animate(model, many, names=["hue"], substeps=1, horizon=1).pictures
    assert pictures.shape[1] == side + 4 + 4 + 26


@pytest.mark.parametrize(
    "options",
    [
        {"names": ("shear",)},
        {"names": ()},
        {"substeps": 0},
        {"horizon": 0.0},
        {"scale": 0},
        {"seconds": 0.0},
    ],
)
def test_bad_options_are_refused(model, images, options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        animate(model, images, **options)


@pytest.mark.parametrize("colours", [3, 257])
def test_a_palette_has_between_4_and_256_colours(animation, colours):
    with pytest.raises(ValueError, match="colours"):
        animation.gif(colours)
