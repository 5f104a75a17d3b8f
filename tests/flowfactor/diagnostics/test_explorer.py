import io

import numpy as np
import pytest
import torch
from PIL import Image

import flowfactor
from flowfactor.diagnostics import Plane
from flowfactor.diagnostics.explorer import Explorer, Window, paint_landscape, read_picture
from flowfactor.errors import DataError
from flowfactor.models import VAE, fit_traversals

MIX = {"rotation": 1.5, "hue": -0.5}


@pytest.fixture
def explorer(model):
    return Explorer(model)


@pytest.fixture
def z(explorer, images):
    return explorer.encode(images[0])


def traversals(digits):
    model = VAE.build(
        digits.names, latent_dim=4, encoder={"channels": [4]}, decoder={"hidden": [8]}
    )
    batch = digits.sample([0, 1, 2], torch.tensor([0, 1, 2]))
    fit_traversals(model, [batch], sequences=1, ranges=(2.0,))
    return model


def test_flows_mix_as_the_sum_of_their_potentials(model, explorer, z):
    u = 1.5 * model.potentials["rotation"] - 0.5 * model.potentials["hue"]
    with torch.no_grad():
        expected = model.flow(z, u, [0.0, 1.0, 2.0, 2.5])
    torch.testing.assert_close(explorer.at(z, MIX, 2.5), expected[-1])
    assert torch.equal(explorer.flow(z, {}, [0.0, 3.0]), z.expand(2, *z.shape))
    assert torch.equal(explorer.at(z, MIX, 0.0), z)


@pytest.mark.parametrize("t", [2.5, -1.5, 10.0])
def test_a_view_shows_what_the_library_decodes(model, explorer, z, t):
    window = explorer.window(z, "rotation", "hue")
    view = explorer.view(z, MIX, t, window)
    with torch.no_grad():
        expected = model.decode(explorer.at(z, MIX, t))[0]
        strip = model.decode(explorer.flow(z, MIX, [0.0, 1.0, 2.0])[:, 0])
    torch.testing.assert_close(view.image, expected)
    torch.testing.assert_close(view.strip[:3], strip)
    assert len(view.strip) == len(view.path) == len(explorer.strip_times)
    assert 0 <= view.inside <= 1


def test_a_landscape_is_the_potential_of_the_mixture_in_the_plane(model, explorer, z):
    window = explorer.window(z, "rotation", "hue")
    landscape = explorer.view(z, MIX, 2.0, window).landscape
    size = len(landscape) - 2  # those within the window
    # The middle of the cell in the second row and first column of the window, from above.
    at = window.lift(0.5 / size, 1.5 / size)
    u = 1.5 * model.potentials["rotation"] - 0.5 * model.potentials["hue"]
    with torch.no_grad():
        (value,) = u.evaluate(at, 2.0, ("value",))
    assert landscape[2, 1] == pytest.approx(float(value), rel=1e-4, abs=1e-5)
    assert explorer.view(z, {}, 2.0, window).landscape is None


def test_a_window_holds_the_paths_that_span_it(explorer, z):
    window = explorer.window(z, "rotation", "hue")
    for name in ("rotation", "hue"):
        for sign in (1.0, -1.0):
            places = window.locate(explorer.flow(z, {name: sign}, [0.0, 2.0, 4.0]))
            assert (places > 0).all()
            assert (places < 1).all()
    ways = explorer.flow(z, {"rotation": 1.0}, [0.0, 4.0])
    (x0, y0), (x1, y1) = window.locate(ways[:, 0])
    assert x1 > x0
    assert y1 == pytest.approx(y0, abs=1e-5)  # along the first axis
    alone = explorer.window(z, "hue", "hue")
    assert bool(torch.isfinite(alone.plane.axes).all())


def test_a_place_is_lifted_to_where_it_is():
    window = Window(Plane(torch.ones(3), torch.eye(3)[1:]), (0.0, -1.0), 2.0)
    z = window.lift(0.25, 0.75)
    assert z.tolist() == [[1.0, 1.5, 0.5]]
    np.testing.assert_allclose(window.locate(z), [[0.25, 0.75]])
    cells = window.locate(window.grid(4)).reshape(4, 4, 2)
    np.testing.assert_allclose(cells[1, 1:3], [[0.25, 0.25], [0.75, 0.25]])


def test_there_and_back_measures_both_ends(explorer, z):
    found = explorer.there_and_back(z, MIX, 3.0)
    there = explorer.flow(z, MIX, [0.0, 3.0])[-1]
    back = explorer.flow(there, MIX, [3.0, 0.0])[-1]
    assert found.latent == pytest.approx(float((back - z).norm() / (there - z).norm()), rel=1e-4)
    assert found.latent < 0.01
    images = explorer.decode(torch.cat([z, there, back])).double()
    assert found.pixels == pytest.approx(float((images[0] - images[2]).abs().sum()), rel=1e-4)
    assert found.moved == pytest.approx(float((images[1] - images[0]).abs().sum()), rel=1e-4)
    still = explorer.there_and_back(z, MIX, 0.0)
    assert (still.latent, still.pixels) == (0.0, pytest.approx(0, abs=1e-5))


def test_either_order_compares_the_two_ends(explorer, z):
    found = explorer.either_order(z, MIX, 2.0)
    ends = []
    for names in (("rotation", "hue"), ("hue", "rotation")):
        at = z
        for name in names:
            at = explorer.flow(at, {name: MIX[name]}, [0.0, 2.0])[-1]
        ends.append(at)
    way = sum(float((end - z).norm()) for end in ends) / 2
    assert found.latent == pytest.approx(float((ends[0] - ends[1]).norm()) / way, rel=1e-4)
    assert len(found.frames) == len(found.labels) == 4
    with pytest.raises(ValueError, match="two"):
        explorer.either_order(z, {"hue": 1.0}, 2.0)


@pytest.mark.parametrize("t", [2.5, 3.0, -1.0])
@pytest.mark.parametrize("weights", [MIX, {}])
def test_the_snippet_decodes_the_same_frames(explorer, z, monkeypatch, weights, t):
    monkeypatch.setattr(flowfactor, "load", lambda run: {"runs/a": explorer.model}[run])
    space = {}
    exec(explorer.snippet("runs/a", z, weights, t), space)
    view = explorer.view(z, weights, t, explorer.window(z, "rotation", "hue"))
    torch.testing.assert_close(space["image"], view.image, atol=0, rtol=0)
    torch.testing.assert_close(space["film"], view.strip, atol=0, rtol=0)


def test_models_without_potentials_add_up_displacements(digits, monkeypatch):
    model = traversals(digits)
    explorer = Explorer(model)
    z = explorer.encode(digits.sample([0]).frames[0, 0])
    with torch.no_grad():
        moves = {name: model.flow(z, name, 2.5) - z for name in MIX}
    expected = z + sum(w * moves[name] for name, w in MIX.items())
    torch.testing.assert_close(explorer.at(z, MIX, 2.5), expected)
    window = explorer.window(z, "rotation", "hue")
    view = explorer.view(z, MIX, 2.5, window)
    assert view.landscape is None
    monkeypatch.setattr(flowfactor, "load", lambda _: model)
    space = {}
    exec(explorer.snippet("a", z, MIX, 2.5), space)
    torch.testing.assert_close(space["image"], view.image, atol=1e-6, rtol=0)
    assert explorer.there_and_back(z, MIX, 2.5).latent < 1e-5


def test_a_path_is_animated_there_and_back(explorer, z):
    animation = explorer.animate(z, MIX, 2.0)
    assert len(animation.pictures) == 48
    with pytest.raises(ValueError, match="time"):
        explorer.animate(z, MIX, 0.0)


def test_unknown_flows_are_refused(explorer, z):
    with pytest.raises(KeyError, match="shear"):
        explorer.at(z, {"shear": 1.0}, 1.0)


def test_a_model_of_one_flow_and_one_frame_can_be_explored():
    model = flowfactor.FlowVAE.build(("x",), (1, 8, 8), horizon=1, latent_dim=3, width=4)
    explorer = Explorer(model)
    z = explorer.encode(torch.rand(1, 8, 8))
    view = explorer.view(z, {"x": 1.0}, 0.5, explorer.window(z, "x", "x"))
    assert view.strip.shape == (2, 1, 8, 8)
    assert explorer.draw(3).shape == (3, 1, 8, 8)


# ---- painting and reading


def test_paint_goes_from_dark_to_light_with_the_value():
    pixels = paint_landscape(np.add.outer(np.zeros(8), np.arange(8.0)), 32, levels=1).astype(int)
    assert pixels.shape == (32, 32, 3)
    green = pixels[5, :, 1]
    assert (np.diff(green) >= 0).all()
    assert green[-1] > green[0] + 100
    flat = paint_landscape(np.zeros((4, 4)), 8)
    assert (flat == flat[0, 0]).all()


def encoded(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def test_a_picture_of_the_right_size_is_taken_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image, done = read_picture(encoded(Image.fromarray(pixels)), (3, 6, 8))
    np.testing.assert_allclose(image.permute(1, 2, 0), pixels / 255, atol=1e-6)
    assert done == ""


def test_the_middle_of_a_picture_is_cut_out_and_scaled():
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    image, done = read_picture(encoded(wide), (3, 10, 10))
    assert image[2].min() == 1  # blue everywhere
    assert image[0].max() == 0
    for size in ("60 x 20", "20 x 20", "10 x 10"):
        assert size in done


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK", "1"])
def test_pictures_of_every_kind_become_images(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    grey = {"I;16": 257 * 51, "P": 51, "L": 51}.get(mode, 0)
    image, _ = read_picture(encoded(Image.new(mode, (8, 8), grey), kind), (1, 8, 8))
    assert image.shape == (1, 8, 8)
    if mode in ("L", "I;16"):
        assert image.max() == pytest.approx(0.2)


@pytest.mark.parametrize("content", [b"", b"no picture", b"%PDF-1.4", b"<svg/>"])
def test_what_is_no_picture_gets_a_sentence(content):
    with pytest.raises(DataError, match="picture"):
        read_picture(content, (1, 8, 8))


def test_a_damaged_or_huge_picture_gets_a_sentence():
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)))
    with pytest.raises(DataError, match="damaged"):
        read_picture(whole[: len(whole) // 2], (1, 8, 8))
    with pytest.raises(DataError, match=r"pixels|large"):
        read_picture(encoded(Image.new("1", (7100, 7100))), (1, 8, 8))
