import logging
import pickle

import numpy as np
import pytest
import torch

from flowfactor.data import Shapes3D, Transformation, hue_to_rgb
from flowfactor.data.factor_grid import grid_numbers
from flowfactor.data.shapes3d import SHAPES3D_FACTORS
from flowfactor.data.shapes3d_renderer import SHAPES, SURFACES, colour, render_maps
from flowfactor.errors import DataError

h5py = pytest.importorskip("h5py")

SIZES = {"floor_hue": 2, "wall_hue": 3, "object_hue": 2, "scale": 3, "orientation": 5}
FACTORS = {**SHAPES3D_FACTORS, **SIZES}
FLOOR, WALL, OBJECT, SKY, HIGHLIGHT = range(5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def small(cache) -> Shapes3D:
    """720 images of 16 by 16 pixels."""
    return Shapes3D(cache=cache, side=16, sizes=SIZES, split="all")


@pytest.fixture(scope="module")
def written(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "3dshapes.h5"
    small.write_h5(path)
    return path


# ---- the ray tracer


@pytest.mark.parametrize("shape", SHAPES)
def test_opposite_orientations_are_mirror_images(shape):
    angles = torch.tensor([0.0, 12.0, 30.0])
    right = render_maps(torch.ones(3), shape, angles, side=12)
    left = render_maps(torch.ones(3), shape, -angles, side=12)
    torch.testing.assert_close(right, left.flip(-1), rtol=0, atol=2e-3)
    if shape != "cube":
        # What is round looks the same from everywhere, except for the light on it.
        areas = right[:, OBJECT].gt(0).float()
        torch.testing.assert_close(areas[0], areas[2], rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_light_is_neither_negative_nor_more_than_one(shape):
    maps = render_maps(
        torch.linspace(0.75, 1.25, 3), shape, torch.tensor([-30.0, 0.0, 17.0]), side=24
    )
    assert float(maps.min()) >= 0
    assert float(maps.sum(1).max()) <= 1
    # Some light falls on everything that is seen, and nothing but the object gleams.
    assert float(maps.sum(1).min()) > 0.25
    assert bool((maps[:, HIGHLIGHT] > 0).logical_and(maps[:, OBJECT] == 0).logical_not().all())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_object_is_in_the_middle_and_grows(shape):
    maps = render_maps(torch.linspace(0.75, 1.25, 5), shape, torch.zeros(5), side=32)
    assert bool((maps[:, OBJECT, 20, 15:17] > 0.3).all())
    area = maps[:, OBJECT].gt(0).sum(dim=(1, 2))
    assert bool((area.diff() > 0).all())
    rows, columns = maps[-1, OBJECT].nonzero().T
    assert int(rows.min()) > 0
    assert int(rows.max()) < 31
    assert int(columns.min()) > 3
    assert int(columns.max()) < 28


def test_floor_below_walls_in_the_middle_sky_above():
    maps = render_maps(torch.ones(3), "sphere", torch.tensor([-30.0, 0.0, 30.0]), side=32)
    seen = [SURFACES[k] for k in maps[1, :, :, 2].argmax(0).tolist()]
    assert seen == sorted(seen, key=["sky", "wall", "floor"].index)
    assert set(seen) == {"sky", "wall", "floor"}
    assert bool((maps[:, FLOOR, -1] > 0).all())
    assert bool((maps[:, SKY, 0] == 1).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_object_casts_a_shadow_on_the_floor(shape):
    # Seen askew, the shadow behind the object shows beside it.
    maps = render_maps(torch.full((1,), 1.25), shape, torch.full((1,), 30.0), samples=1)
    floor = maps[0, FLOOR][maps[0, FLOOR] > 0]
    assert 0.003 < float((floor < 0.51).float().mean()) < 0.3


def test_images_are_linear_in_colours():
    maps = render_maps(torch.ones(1), "cube", torch.tensor([15.0]), side=16)
    hues = torch.tensor([0.1, 0.45, 0.8])
    image = colour(maps, *hues.split(1))[0]
    # What the three surfaces add to the light of the sky and the highlight.
    rest = colour(maps * torch.tensor([0, 0, 0, 1.0, 1.0])[:, None, None], *hues.split(1))[0]
    palette = hue_to_rgb(360 * hues)
    direct = rest + sum(maps[0, s] * palette[s, :, None, None] for s in range(3))
    torch.testing.assert_close(image, direct)


def test_each_hue_changes_its_own_surface_only():
    maps = render_maps(torch.ones(1), "capsule", torch.tensor([-25.0]), side=24)
    base = [torch.tensor([0.2])] * 3
    for surface in (FLOOR, WALL, OBJECT):
        other = list(base)
        other[surface] = torch.tensor([0.7])
        changed = (colour(maps, *other) != colour(maps, *base)).any(1)
        assert torch.equal(changed, maps[:, surface] > 0)


def test_geometries_do_not_depend_on_their_neighbours():
    angles = torch.linspace(-30, 30, 5)
    together = render_maps(torch.ones(5), "cylinder", angles, side=48)
    alone = render_maps(torch.ones(1), "cylinder", angles[3:4], side=48)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("shape", "cone"), ("scale", torch.tensor([0.0])), ("side", 0)]
)
def test_bad_geometries(name, value):
    good = {"scale": torch.ones(1), "shape": "cube", "orientation": torch.zeros(1)}
    with pytest.raises(DataError, match=name):
        render_maps(**{**good, name: value})


# ---- the data set


def test_description(small):
    assert small.names == ("floor_hue", "wall_hue", "object_hue", "scale", "orientation")
    assert (small.image_shape, len(small), small.horizon) == ((3, 16, 16), 720, 2)
    assert small.recreated
    assert "not the original file" in small.description


def test_the_full_grid_has_the_published_factors(cache, monkeypatch):
    monkeypatch.setattr(
        "flowfactor.data.shapes3d._render", lambda *_: torch.zeros(480, 5, 4, 4).half()
    )
    full = Shapes3D(cache=cache, side=4)
    assert full.factors == {
        "floor_hue": 10,
        "wall_hue": 10,
        "object_hue": 10,
        "scale": 8,
        "shape": 4,
        "orientation": 15,
    }
    assert (len(full.store), full.horizon) == (480000, 7)
    assert 380_000 < len(full) < 480_000
    test = Shapes3D(cache=cache, side=4, split="test")
    assert len(test) == 480
    labels = Shapes3D(cache=cache, side=4, split="all").factor_values(torch.tensor([0, 479_999]))
    assert labels[0].tolist() == [0, 0, 0, 0.75, 0, -30]
    assert labels[1].tolist() == pytest.approx([0.9, 0.9, 0.9, 1.25, 3, 30])
    seen = full.sample([5], "orientation").frames
    assert tuple(seen.shape) == (1, 8, 3, 4, 4)


def test_an_image_is_its_geometry_in_its_colours(small):
    position = torch.tensor([[1, 2, 1, 2, 3, 0]])
    number = grid_numbers(position, tuple(FACTORS.values()))
    maps = render_maps(torch.tensor([1.25]), "capsule", torch.tensor([-30.0]), side=16)
    hues = [torch.tensor([1 / 2]), torch.tensor([2 / 3]), torch.tensor([1 / 2])]
    image = small.images(number)
    torch.testing.assert_close(image, colour(maps, *hues), rtol=0, atol=0.5 / 255 + 1e-3)
    assert torch.equal((image * 255).round() / 255, image)
    expected = [1 / 2, 2 / 3, 1 / 2, 1.25, 3, -30]
    assert small.factor_values(number)[0].tolist() == pytest.approx(expected)


def test_hues_are_cyclic(small):
    around = small.with_transformations(
        {"wall_hue": Transformation(start="own")}, horizon=3
    ).sample([100, 500], 0)
    assert torch.equal(around.frames[:, 3], around.frames[:, 0])
    assert not torch.equal(around.frames[:, 1], around.frames[:, 0])


def test_one_step_changes_one_factor(small):
    for name, column in zip(small.names, (0, 1, 2, 3, 5), strict=True):
        # Two hues have two positions only, and would be back at the first at frame 2.
        last = 2 if FACTORS[name] > 2 else 1
        seen = small.sample([333], name).frames[0, : last + 1]
        images = small.images(range(720))
        rows = [int((images == frame).flatten(1).all(1).nonzero()[0]) for frame in seen]
        changed = small.positions(rows).diff(dim=0).ne(0).any(0)
        assert changed.nonzero().flatten().tolist() == [column]


def test_the_written_file_is_the_re_creation(small, written):
    again = Shapes3D(written, sizes=SIZES, split="all")
    everything = torch.arange(720)
    assert torch.equal(again.images(everything), small.images(everything))
    assert again.recreated
    indices, factor = torch.randperm(720)[:40], torch.arange(40) % 5
    assert torch.equal(again.sample(indices, factor).frames, small.sample(indices, factor).frames)
    assert torch.equal(again.factor_values(indices), small.factor_values(indices))
    with h5py.File(written) as file:
        assert (file["images"].dtype, file["labels"].dtype) == (np.uint8, np.float64)
        assert file["images"].chunks == (1, 16, 16, 3)
        np.testing.assert_array_equal(file["labels"][:], small.factor_values(everything).numpy())


def test_blocks_of_the_file_fit_together(small, written, tmp_path, monkeypatch):
    monkeypatch.setattr("flowfactor.data.factor_grid._BLOCK", 101)
    small.write_h5(tmp_path / "again.h5")
    with h5py.File(written) as one, h5py.File(tmp_path / "again.h5") as other:
        assert np.array_equal(one["images"][:], other["images"][:])
        assert np.array_equal(one["labels"][:], other["labels"][:])
    with pytest.raises(DataError, match="exists"):
        small.write_h5(tmp_path / "again.h5")


def test_pickling(small, written):
    for shapes in (small, Shapes3D(written, sizes=SIZES, split="all")):
        shapes.sample([0], 0)
        again = pickle.loads(pickle.dumps(shapes))
        assert torch.equal(again.sample([7], 3).frames, shapes.sample([7], 3).frames)
        assert again.description == shapes.description


def test_shapes_can_be_held_out(small, cache):
    train = Shapes3D(cache=cache, side=16, sizes=SIZES, held_out={"shape": [3]})
    assert set(train.factor_values(range(len(train)))[:, 4].tolist()) == {0, 1, 2}
    other = Shapes3D(cache=cache, side=16, sizes=SIZES, held_out={"shape": [3]}, split="held_out")
    assert set(other.factor_values(range(len(other)))[:, 4].tolist()) == {3}
    assert other.with_horizon(1).to("cpu").description == small.description


# ---- the cache


def test_geometries_are_drawn_once(cache, small, monkeypatch):
    monkeypatch.setattr("flowfactor.data.shapes3d._render", lambda *_: 1 / 0)
    again = Shapes3D(cache=cache, side=16, sizes=SIZES, split="all")
    assert torch.equal(again.images([5, 77]), small.images([5, 77]))
    with pytest.raises(ZeroDivisionError):
        Shapes3D(cache=cache, side=15, sizes=SIZES)


TINY = {
    "side": 4,
    "sizes": {"scale": 1, "orientation": 1},
    "transformations": {"floor_hue": Transformation()},
}


@pytest.mark.parametrize("damage", [b"", b"not an array", b"truncated"])
def test_a_damaged_cache_is_written_anew(tmp_path, damage, caplog):
    before = Shapes3D(cache=tmp_path, **TINY)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-9] if damage == b"truncated" else damage)
    after = Shapes3D(cache=tmp_path, **TINY)
    assert torch.equal(after.store.maps, before.store.maps)
    assert "written anew" in caplog.text
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [content]


def test_a_cache_of_another_shape_is_written_anew(tmp_path, caplog):
    Shapes3D(cache=tmp_path, **TINY)
    (path,) = tmp_path.iterdir()
    np.save(path, np.zeros(3))
    assert len(Shapes3D(cache=tmp_path, **TINY).store) == 4000
    assert "something else" in caplog.text


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert len(Shapes3D(cache=tmp_path / "file" / "below", **TINY).store) == 4000
    assert "could not be kept" in caplog.text


def test_the_user_s_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Shapes3D(**TINY)
    assert len(list((tmp_path / "flowfactor").iterdir())) == 1


# ---- bad files


def write(path, images=720, **arrays):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (images, 16, 16, 3), np.uint8, chunks=(360, 4, 4, 1))
        for name, array in arrays.items():
            file[name] = array
    return path


def test_files_of_another_kind(small, written, tmp_path):
    swapped = small.factor_values(range(720)).numpy()[::-1].copy()
    swapped[:, [3, 5]] = swapped[:, [5, 3]]
    for name, path in (
        ("3dshapes.h5", tmp_path / "3dshapes.h5"),
        ("labels", write(tmp_path / "none.h5")),
        ("labels", write(tmp_path / "few.h5", labels=np.zeros((720, 5)))),
        ("another order", write(tmp_path / "order.h5", labels=swapped)),
    ):
        with pytest.raises(DataError, match=name):
            Shapes3D(path, sizes=SIZES)
    with pytest.raises(DataError, match="720 images"):
        Shapes3D(written)


def test_long_chunks_are_warned_of(small, tmp_path, caplog):
    path = write(tmp_path / "long.h5", labels=small.factor_values(range(720)).numpy())
    with caplog.at_level(logging.WARNING):
        original = Shapes3D(path, sizes=SIZES)
    assert "repack_h5" in caplog.text
    assert not original.recreated
    assert original.description.endswith("long.h5")


@pytest.mark.parametrize(
    ("name", "options"),
    [("sizes", {"sizes": {"hue": 3}}), ("shape", {"sizes": {"shape": 5}}), ("side", {"side": 0})],
)
def test_bad_options(name, options, tmp_path):
    with pytest.raises(DataError, match=name):
        Shapes3D(cache=tmp_path, **options)
