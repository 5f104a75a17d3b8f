import math

import pytest
import torch
from PIL import Image

from flowfactor.data import FactorGrid, Move, falcor3d, isaac3d
from flowfactor.data.nvidia import FALCOR3D_FACTORS, FALCOR3D_MOVES, ISAAC3D_FACTORS, ISAAC3D_MOVES
from flowfactor.errors import DataError

SMALL = {**dict.fromkeys(FALCOR3D_FACTORS, 1), "lighting_intensity": 2, "camera_x_pos": 3}
SMALL["camera_z_pos"] = 4
MOVES = [Move("camera_x_pos"), Move("camera_z_pos")]


@pytest.fixture
def folder(tmp_path):
    """Twenty-four pictures of 8 by 8 pixels, the red of each ten times its number."""
    for number in range(24):
        Image.new("RGB", (8, 8), (10 * number, 50, 0)).save(tmp_path / f"{number:06}.png")
    return tmp_path


def test_the_grids_are_those_of_the_description_of_the_data():
    assert math.prod(FALCOR3D_FACTORS.values()) == 233_280
    assert math.prod(ISAAC3D_FACTORS.values()) == 737_280
    assert [move.labels for move in FALCOR3D_MOVES] == list(FALCOR3D_FACTORS)
    assert len(ISAAC3D_MOVES) == 6


@pytest.mark.parametrize(
    ("factors", "strides"),
    [
        (FALCOR3D_FACTORS, [46656, 7776, 1296, 216, 36, 6, 1]),
        (ISAAC3D_FACTORS, [245760, 30720, 6144, 1536, 384, 96, 16, 4, 1]),
    ],
)
def test_strides_are_those_of_the_description_of_the_data(factors, strides):
    grid = FactorGrid(
        torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(math.prod(factors.values()), 1, 1, 1),
        factors,
        split="test",
        layout="nchw",
    )
    assert list(grid.strides.values()) == strides


def test_a_move_changes_one_factor(folder):
    grid = falcor3d(folder, MOVES, SMALL, split="all")
    assert (grid.names, grid.horizon, len(grid)) == (("camera_x_pos", "camera_z_pos"), 2, 24)
    frames = grid.sample([14, 14], torch.tensor([0, 1])).frames
    seen = (frames[:, :, 0, 0, 0] * 25.5).round().long()
    # Number 14 is position (1, 0, 0, 0, 0, 0, 2): the camera's x has stride 4, its z stride 1.
    assert seen.tolist() == [[14, 18, 22], [12, 13, 14]]
    assert grid.positions([14]).tolist() == [[1, 0, 0, 0, 0, 0, 2]]


def test_pictures_are_reduced_on_the_way(folder):
    grid = falcor3d(folder, MOVES, SMALL, split="all", size=4, horizon=1)
    frames = grid.sample([3], 0).frames
    assert tuple(frames.shape) == (1, 2, 3, 4, 4)
    torch.testing.assert_close(frames[0, 0, 1], torch.full((4, 4), 50 / 255))


def test_pictures_are_unpacked_once_for_all(folder, tmp_path):
    h5py = pytest.importorskip("h5py")
    grid = falcor3d(folder, MOVES, SMALL, size=4)
    grid.write_h5(tmp_path / "small.h5")
    again = falcor3d(tmp_path / "small.h5", MOVES, SMALL)
    assert again.image_shape == (3, 4, 4)
    assert torch.equal(again.images(range(24)), grid.images(range(24)))
    with h5py.File(tmp_path / "small.h5") as file:
        assert file["labels"][14].tolist() == [1, 0, 0, 0, 0, 0, 2]
    with pytest.raises(DataError, match=r"size is for folders"):
        falcor3d(tmp_path / "small.h5", MOVES, SMALL, size=2)


def test_isaac3d(folder):
    sizes = {**dict.fromkeys(ISAAC3D_FACTORS, 1), "object_shape": 3, "robot_x_move": 8}
    moves = [Move("robot_x_move")]
    grid = isaac3d(folder, moves, sizes, held_out={"object_shape": [1]}, split="held_out")
    assert (grid.horizon, len(grid)) == (7, 8)
    seen = (grid.sample([0], 0).frames[0, :, 0, 0, 0] * 25.5).round().long()
    assert seen.tolist() == list(range(8, 16))


def test_default_moves_have_room(folder):
    # Only the numbers of positions matter for that, and no folder has all pictures here.
    for factors, moves, horizon in (
        (FALCOR3D_FACTORS, FALCOR3D_MOVES, 4),
        (ISAAC3D_FACTORS, ISAAC3D_MOVES, 3),
    ):
        assert min(factors[move.labels] - 1 for move in moves) == horizon


@pytest.mark.parametrize(
    ("make", "count"), [(falcor3d, 233_280), (isaac3d, 737_280)], ids=["falcor3d", "isaac3d"]
)
def test_bad_folders(make, count, folder, tmp_path):
    with pytest.raises(DataError, match=rf"24 images \(.*\), .* {count} combinations"):
        make(folder)
    with pytest.raises(DataError, match=r"There is no file or folder"):
        make(tmp_path / "missing")
    with pytest.raises(DataError, match=r"sizes names 'tone'; the factors are"):
        make(folder, sizes={"tone": 2})


def test_missing_and_odd_pictures(folder):
    Image.new("RGB", (4, 4)).save(folder / "000005.png")
    grid = falcor3d(folder, MOVES, SMALL, split="all")
    with pytest.raises(DataError, match=r"000005\.png has 4x4 pixels and 000000\.png has 8x8"):
        grid.sample([4], "camera_z_pos")
    (folder / "000007.png").unlink()
    with pytest.raises(DataError, match=r"after 000006\.png comes 000008\.png"):
        falcor3d(folder, MOVES, SMALL)
