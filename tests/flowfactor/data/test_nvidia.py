import math

import pytest
import torch
from PIL import Image

from flowfactor.data import Transformation, falcor3d, isaac3d
from flowfactor.data.factor_grid import grid_numbers
from flowfactor.data.nvidia import (
    FALCOR3D_FACTORS,
    FALCOR3D_TRANSFORMATIONS,
    ISAAC3D_FACTORS,
    ISAAC3D_TRANSFORMATIONS,
    Falcor3DOptions,
)
from flowfactor.errors import DataError

SIZES = {**dict.fromkeys(FALCOR3D_FACTORS, 1), "lighting_intensity": 2, "camera_x_pos": 3}
SIZES["camera_z_pos"] = 4
SMALL = {
    "sizes": SIZES,
    "transformations": {"camera_x_pos": Transformation(), "camera_z_pos": Transformation()},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty-four pictures of 8 by 8 pixels, the red of each ten times its number."""
    path = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        Image.new("RGB", (8, 8), (10 * number, 50, 0)).save(path / f"{number:06}.png")
    return path


@pytest.mark.parametrize(
    ("factors", "strides"),
    [
        (FALCOR3D_FACTORS, [46656, 7776, 1296, 216, 36, 6, 1]),
        (ISAAC3D_FACTORS, [245760, 30720, 6144, 1536, 384, 96, 16, 4, 1]),
    ],
)
def test_strides_are_those_of_the_description_of_the_data(factors, strides):
    sizes = tuple(factors.values())
    assert grid_numbers(torch.eye(len(sizes), dtype=torch.long), sizes).tolist() == strides
    assert math.prod(sizes) == strides[0] * sizes[0]


def test_default_transformations_have_room():
    for factors, moved, horizon in (
        (FALCOR3D_FACTORS, FALCOR3D_TRANSFORMATIONS, 4),
        (ISAAC3D_FACTORS, ISAAC3D_TRANSFORMATIONS, 3),
    ):
        assert min(factors[name] - 1 for name in moved) == horizon
    assert (len(FALCOR3D_TRANSFORMATIONS), len(ISAAC3D_TRANSFORMATIONS)) == (7, 6)


def test_a_transformation_changes_one_factor(folder):
    grid = falcor3d(folder, split="all", **SMALL)
    assert (grid.names, grid.horizon, len(grid)) == (("camera_x_pos", "camera_z_pos"), 2, 24)
    frames = grid.sample([14, 14], torch.tensor([0, 1])).frames
    seen = (frames[:, :, 0, 0, 0] * 25.5).round().long()
    # Number 14 is position (1, 0, 0, 0, 0, 0, 2): the camera's x has stride 4, its z stride 1.
    assert seen.tolist() == [[14, 18, 22], [12, 13, 14]]
    assert grid.positions([14]).tolist() == [[1, 0, 0, 0, 0, 0, 2]]


def test_pictures_are_reduced_and_unpacked_once_for_all(folder, tmp_path):
    h5py = pytest.importorskip("h5py")
    grid = falcor3d(folder, size=4, **SMALL)
    grid.write_h5(tmp_path / "small.h5")
    again = falcor3d(tmp_path / "small.h5", **SMALL)
    assert again.image_shape == (3, 4, 4)
    assert torch.equal(again.images(range(24)), grid.images(range(24)))
    with h5py.File(tmp_path / "small.h5") as file:
        assert file["labels"][14].tolist() == [1, 0, 0, 0, 0, 0, 2]
    with pytest.raises(DataError, match="size"):
        falcor3d(tmp_path / "small.h5", size=2, **SMALL)


def test_isaac3d(folder):
    sizes = {**dict.fromkeys(ISAAC3D_FACTORS, 1), "object_shape": 3, "robot_x_move": 8}
    given = {"sizes": sizes, "transformations": {"robot_x_move": Transformation()}}
    grid = isaac3d(folder, held_out={"object_shape": [1]}, split="held_out", **given)
    assert (grid.horizon, len(grid)) == (7, 8)
    seen = (grid.sample([0], 0).frames[0, :, 0, 0, 0] * 25.5).round().long()
    assert seen.tolist() == list(range(8, 16))


@pytest.mark.parametrize("read", [falcor3d, isaac3d], ids=["falcor3d", "isaac3d"])
def test_bad_folders(read, folder, tmp_path):
    with pytest.raises(DataError, match="24 images"):
        read(folder)
    with pytest.raises(DataError, match="missing"):
        read(tmp_path / "missing")
    with pytest.raises(DataError, match="sizes"):
        read(folder, sizes={"tone": 2})


def test_options_without_transformations_take_the_usual_ones(folder):
    sizes = dict.fromkeys(FALCOR3D_FACTORS, 1) | SMALL["sizes"]
    options = Falcor3DOptions(path=str(folder), sizes=sizes, transformations=None)
    assert "transformations" not in options.sized("train", 0)
