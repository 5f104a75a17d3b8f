"""Formats that people have: archives, animations, zarr, 16 bits, lists of files, public grids."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from flowfactor.data import (
    DSpritesOptions,
    FactorGrid,
    ImagesOptions,
    MPI3DOptions,
    Recordings,
    Transformation,
    TransformedImages,
    draw_letters,
    grid_of,
    load_digits,
)
from flowfactor.data.glyphs import ALPHABETS, LettersOptions
from flowfactor.data.io import ArrayFile, read_images
from flowfactor.errors import DataError
from flowfactor.options import parse

RNG = np.random.default_rng(0)
FILM = RNG.integers(0, 256, (5, 8, 10, 3), dtype=np.uint8)


# ---- arrays


def test_archives_that_are_not_compressed_stay_in_their_file(tmp_path):
    np.savez(tmp_path / "a.npz", frames=FILM[None], other=np.zeros(3), labels=[2])
    np.savez_compressed(tmp_path / "b.npz", frames=FILM[None])
    lazy, held = (ArrayFile(tmp_path / f"{name}.npz", "frames") for name in "ab")
    assert (lazy.is_held, held.is_held) == (False, True)
    assert np.array_equal(pickle.loads(pickle.dumps(lazy))[0], FILM)
    frames = Recordings(tmp_path / "a.npz").sample([0]).frames[0].permute(0, 2, 3, 1)
    assert np.array_equal(frames.mul(255).round().numpy(), FILM)
    np.savez(tmp_path / "c.npz", frames=np.asfortranarray(FILM[None]))
    assert np.array_equal(ArrayFile(tmp_path / "c.npz")[0], FILM)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.npz"):
        ArrayFile(tmp_path / "a.npz", "frames")


def test_sixteen_bits():
    deep = np.array([[0, 128, 129, 257], [65535, 65407, 65406, 32768]], np.uint16)
    expected = [[0, 0, 1, 1], [255, 255, 254, 128]]
    assert read_images(deep[None])[0, 0].tolist() == expected
    film = Recordings(np.tile(deep, (2, 3, 1, 1))).sample([1]).frames
    assert film[0, 2, 0].mul(255).round().tolist() == expected
    with pytest.raises(DataError, match="int32"):
        read_images(deep[None].astype(np.int32))


def test_zarr_beside_hdf5(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    for name, array in {"frames": FILM[None].repeat(3, 0), "labels": np.array([0, 1, 0])}.items():
        group.create_array(name, shape=array.shape, dtype=array.dtype)[:] = array
    data = Recordings(tmp_path / "a.zarr", horizon=2)
    assert data.labels.tolist() == [0, 1, 0]
    frames = pickle.loads(pickle.dumps(data)).sample([2]).frames[0].permute(0, 2, 3, 1)
    assert np.array_equal(frames.mul(255).round().numpy(), FILM[:3])
    lone = zarr.open_array(str(tmp_path / "b.zarr"), mode="w", shape=FILM.shape, dtype="u1")
    lone[:] = FILM
    assert np.array_equal(read_images(tmp_path / "b.zarr").permute(0, 2, 3, 1), FILM)
    assert len(ImagesOptions(path=str(tmp_path / "b.zarr")).load("train", 0)) == 3
    for name in ("missing", "empty"):
        with pytest.raises(DataError, match=name):
            Recordings(tmp_path / f"{name}.zarr")
        (tmp_path / "empty.zarr").mkdir(exist_ok=True)


# ---- animations


def save_animation(path, durations=100, film=FILM):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.fromarray(frame) for frame in film]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, **options)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif"])
def test_animations_are_films(tmp_path, suffix):
    film = FILM
    if suffix == ".gif":  # which has 256 colours
        film = np.broadcast_to(40 * np.arange(5)[:, None, None, None], FILM.shape).astype(np.uint8)
    for name in ("turn/a", "turn/b", "grow/c"):
        save_animation(tmp_path / f"{name}{suffix}", film=film)
    data = Recordings(tmp_path)
    assert (data.names, data.horizon, len(data)) == (("grow", "turn"), 4, 3)
    expected = torch.from_numpy(film).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(data.sample([1]).frames[0], expected, atol=1 / 255, rtol=0)
    single = Recordings(tmp_path / "turn" / f"a{suffix}", horizon=1, stride=2)
    assert len(single) == 2
    torch.testing.assert_close(single.sample([1]).frames[0], expected[2:4], atol=1 / 255, rtol=0)
    assert len(Recordings(tmp_path / "turn")) == 2


def test_frames_of_an_animation_that_are_shown_for_longer_are_repeated(tmp_path):
    save_animation(tmp_path / "a.webp", [100, 100, 300, 100, 100])
    frames = Recordings(tmp_path / "a.webp").sample([0]).frames[0]
    shown = [0, 1, 2, 2, 2, 3, 4]
    expected = torch.from_numpy(FILM[shown]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(frames, expected)


def test_a_damaged_animation_is_named(tmp_path):
    save_animation(tmp_path / "a.webp")
    content = (tmp_path / "a.webp").read_bytes()
    (tmp_path / "a.webp").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.webp"):
        Recordings(tmp_path / "a.webp").sample([0])


# ---- lists of files


def test_folders_with_metadata(tmp_path):
    """As Hugging Face's VideoFolder and ImageFolder have them."""
    for name in "abc":
        save_animation(tmp_path / "films" / f"{name}.webp")
    (tmp_path / "films" / "metadata.csv").write_text(
        "file_name,label,group\nc.webp,turn,1\na.webp,grow,0\nb.webp,,1\n"
    )
    data = Recordings(tmp_path / "films")
    assert [data.name_of(i) for i in range(3)] == ["c.webp", "a.webp", "b.webp"]
    assert (data.names, data.labels.tolist()) == (("grow", "turn"), [1, 0, -1])
    assert sorted(len(part) for part in data.split(0, 1).values()) == [1, 2]
    (tmp_path / "films" / "metadata.csv").write_text("name,label\na.webp,turn\n")
    with pytest.raises(DataError, match="file_name"):
        Recordings(tmp_path / "films")

    images = tmp_path / "images"
    for number, name in enumerate(("cat/1", "cat/2", "dog/10", "dog/9")):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 9 * number, np.uint8)).save(images / f"{name}.png")
    options = ImagesOptions(path=str(images), validation=1, test=1)
    parts = [options.load(split, 0) for split in ("train", "validation", "test")]
    shown = {
        (int(value), int(kind))
        for part in parts
        for value, kind in zip(part.images[:, 0, 0, 0], part.classes, strict=True)
    }
    assert shown == {(0, 0), (9, 0), (18, 1), (27, 1)}
    (images / "metadata.csv").write_text("file_name,label\ndog/9.png,d\ncat/1.png,c\n")
    assert read_images(images)[:, 0, 0, 0].tolist() == [27, 0]


def test_forty_pictures_are_split_by_fractions():
    options = ImagesOptions(path="unused", validation=0.2, test=5)
    images = torch.from_numpy(RNG.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
    sizes = [
        len(options.split(images, None, split, 0)) for split in ("train", "validation", "test")
    ]
    assert sizes == [27, 8, 5]


# ---- public grids


def test_dsprites_in_bits(tmp_path):
    options = parse(DSpritesOptions, DSpritesOptions.tiny(tmp_path))
    images = np.load(options.path)["imgs"]
    grid = options.load("train", 0)
    assert torch.equal(grid.images(range(162))[:, 0], torch.from_numpy(images).float())
    frames = grid.sample([0], "pos_x").frames[0, :, 0]
    first = int(grid._numbers[0]) // 9 * 9 + int(grid._numbers[0]) % 3
    assert torch.equal(frames, torch.from_numpy(images[first : first + 9 : 3]).float())
    for array in ({"imgs": images + 1}, {"imgs": images[:, 0]}, {"other": images}):
        np.savez_compressed(options.path, **array)
        with pytest.raises(DataError, match="imgs"):
            options.load("train", 0)
    with zipfile.ZipFile(options.path, "w"):
        pass
    with pytest.raises(DataError, match="imgs"):
        options.load("train", 0)


def test_mpi3d_in_its_archive(tmp_path):
    options = parse(MPI3DOptions, MPI3DOptions.tiny(tmp_path))
    images = np.load(options.path)["images"]
    grid = options.load("test", 0)
    assert grid.names == ("horizontal_axis", "vertical_axis")
    read = grid.images([5, 200]).permute(0, 2, 3, 1).mul(255).round()
    assert np.array_equal(read.numpy(), images[[5, 200]])
    with pytest.raises(DataError, match="factors"):
        parse(MPI3DOptions, {"path": options.path}).load("train", 0)


@pytest.mark.parametrize("kind", ["bytes", "floats", "tensor"])
def test_an_object_with_factors(kind):
    class Faces:
        factor_names = ("shape", "turn")
        factor_sizes = (3, 4)

        def __getitem__(self, number):
            image = np.full((6, 6, 3), 20 * number, np.uint8)
            if kind == "bytes":
                return image
            if kind == "floats":
                return (image / 255).astype(np.float32)
            return torch.from_numpy(image).permute(2, 0, 1) / 255

    grid = grid_of(Faces(), transformations={"turn": Transformation()}, split="all")
    assert isinstance(grid, FactorGrid)
    assert grid.image_shape == (3, 6, 6)
    frames = grid.sample([8], "turn").frames[0, :, 0, 0, 0].mul(255).round().tolist()
    assert frames == [160, 180, 200, 220]


# ---- letters and digits


def test_letters_are_like_digits_of_mnist():
    images, classes = draw_letters(["latin"], ["DejaVuSans", "DejaVuSerif-Italic"])
    assert images.shape == (104, 1, 28, 28)
    assert torch.equal(classes, torch.arange(52).repeat(2))
    ink = images[:, 0].float()
    places = torch.arange(28) + 0.5
    for axis in (1, 2):
        middle = (ink.sum(axis) * places).sum(1) / ink.sum((1, 2))
        assert (middle - 14).abs().max() < 2.5
        assert (ink.amax(axis) > 0).sum(1).max() <= 21
    assert (ink.amax((1, 2)) > 200).all()
    assert len(set(map(bytes, images.flatten(1).numpy()))) > 95  # fonts and letters differ
    total = sum(map(len, ALPHABETS.values()))
    assert len(draw_letters(fonts=["DejaVuSans"], size=16)[0]) == total
    for bad in ({"alphabets": ["elvish"]}, {"fonts": ["Comic"]}, {"fonts": []}):
        with pytest.raises(DataError, match=next(iter(bad))):
            draw_letters(**bad)


def test_no_two_splits_share_a_letter():
    options = LettersOptions(fonts=("DejaVuSans", "DejaVuSerif"), size=12, test=30)
    parts = [
        options.load(split, seed) for seed, split in enumerate(("train", "validation", "test"))
    ]
    letters = [set(part.classes.tolist()) for part in parts]
    assert sum(map(len, letters)) == len(set.union(*letters)) == sum(map(len, ALPHABETS.values()))
    assert len(letters[2]) == 30
    assert [len(part) for part in parts] == [2 * len(each) for each in letters]


def test_digits_are_sequences_like_others():
    images, classes = load_digits(20)
    data = TransformedImages(images, classes)
    assert data.sample([0], "rotation").frames.shape == (1, 9, 3, 20, 20)
    assert images[:, 0, 3:17, 3:17].float().mean() > 50
    assert images[:, 0, 0].max() == 0
    zeros, ones = (images[classes == k].float().mean((0, 1)) for k in (0, 1))
    assert zeros[10, 10] < 60 < ones[10, 10]
