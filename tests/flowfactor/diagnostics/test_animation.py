import io

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.diagnostics import animate


@pytest.fixture
def images(digits):
    return digits.sample([0, 1], "hue").frames[:, 0]


def test_film_goes_there_and_back(model, images):
    pictures = animate(model, images, names=["hue"], substeps=2).pictures
    assert len(pictures) == 32
    for i in range(1, 16):
        assert np.array_equal(pictures[i], pictures[-i])
    assert not np.array_equal(pictures[0], pictures[16])


def test_gif_has_every_picture_and_loops_for_ever(model, images):
    animation = animate(model, images, names=["hue"], substeps=2)
    gif = Image.open(io.BytesIO(animation.gif()))
    assert gif.n_frames == 32
    assert gif.info["loop"] == 0
    durations = []
    for i in range(gif.n_frames):
        gif.seek(i)
        durations.append(gif.info["duration"])
    # GIF counts time in hundredths of a second.
    assert durations == [10 * (ms // 10) for ms in animation.milliseconds]
    assert durations[0] > durations[1] < durations[16]


def test_gif_shows_the_pictures_but_for_few_colours(model, images):
    animation = animate(model, images, names=["hue"], substeps=1)
    gif = Image.open(io.BytesIO(animation.gif(256)))
    for i in (0, 5, 8):
        gif.seek(i)
        error = np.abs(np.asarray(gif.convert("RGB"), float) - animation.pictures[i])
        assert error.mean() < 3


def test_pictures_hold_the_decoded_flow(model, images):
    scale = 2
    animation = animate(model, images, names=("rotation", "hue"), substeps=2, scale=scale)
    with torch.no_grad():
        z = model.flow(model.encode(images).mean, "hue", 2.5)
        expected = (255 * model.decode(z)[1] + 0.5).to(torch.uint8).movedim(0, -1).numpy()
    side = 28 * scale + 4
    # The second row, and the last column, of the picture at t = 2.5.
    tile = animation.pictures[5][4 + side : side * 2, -side : -4 or None]
    shown = tile[::scale, ::scale].astype(int)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= 1


def test_every_row_has_a_label_and_the_time_moves(model, images):
    pictures = animate(model, images, substeps=1, scale=1).pictures
    margin = pictures.shape[2] - 2 * 32
    assert margin > 40
    for row in range(3):
        label = pictures[0][4 + 32 * row : 32 * (row + 1), :margin]
        assert (label < 128).any()
    below = pictures[:, -26:]
    blue = (below == (0x00, 0x72, 0xB2)).all(-1).sum((1, 2))
    assert (np.diff(blue[:9].astype(int)) > 0).all()


def test_saving_writes_a_gif_and_refuses_other_files(model, images, tmp_path):
    animation = animate(model, images, names=["hue"], substeps=1, scale=1)
    path = animation.save(tmp_path / "new" / "digits.gif")
    assert path.read_bytes().startswith(b"GIF89a")
    with pytest.raises(ValueError, match=r"\.gif"):
        animation.save(tmp_path / "digits.mp4")
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["digits.gif"]


def test_many_images_are_shown_smaller_than_few(model, digits):
    many = digits.sample(list(range(6)), "hue").frames[:, 0]
    label = None
    for count, side in ((1, 84), (4, 84), (6, 56)):
        pictures = animate(model, many[:count], substeps=1, horizon=1).pictures
        assert pictures.shape[1] == 3 * (side + 4) + 4 + 26
        # What remains is the room for the labels, which is the same.
        rest = pictures.shape[2] - count * (side + 4)
        assert label in (None, rest)
        label = rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("shear",)}, "'shear'"),
        ({"names": ()}, "to show"),
        ({"substeps": 0}, "substeps"),
        ({"last": 0.0}, "after the first"),
        ({"scale": 0}, "scale"),
        ({"seconds": 0.0}, "seconds"),
    ],
)
def test_bad_options_are_refused(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        animate(model, images, **options)


def test_a_palette_has_between_2_and_256_colours(model, images):
    animation = animate(model, images, names=["hue"], substeps=1, scale=1)
    for colours in (1, 257):
        with pytest.raises(ValueError, match="2 to 256"):
            animation.gif(colours)
