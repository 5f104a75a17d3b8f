import numpy as np
import pytest
import torch

from flowfactor.data import FactorGrid, FactorGridOptions, SequenceLoader, Transformation
from flowfactor.data.factor_grid import grid_numbers, grid_positions
from flowfactor.data.io import TensorStore
from flowfactor.errors import DataError

FACTORS = {"hue": 5, "shape": 3, "size": 4, "angle": 6}
SIZES = tuple(FACTORS.values())
TOTAL = 360
# The image of position (h, s, z, a) has four pixels with these values.
POSITIONS = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
IMAGES = POSITIONS.to(torch.uint8).view(TOTAL, 1, 2, 2)
MOVES = {
    "hue": Transformation(),
    "size": Transformation(),
    "backward": Transformation("angle", step=-1, start=-1),
}


def grid(**options) -> FactorGrid:
    options = {"cyclic": ["hue"], "transformations": MOVES, "split": "all", **options}
    return FactorGrid(options.pop("images", IMAGES), options.pop("factors", FACTORS), **options)


def read_positions(frames):
    """Where on the grid frames are, read from their pixels."""
    return (frames * 255).round().long().flatten(-3)


def test_numbers_and_positions_are_each_other_s_inverse():
    numbers = torch.arange(TOTAL)
    assert torch.equal(grid_positions(numbers, SIZES), POSITIONS)
    assert torch.equal(grid_numbers(POSITIONS, SIZES), numbers)


def test_description():
    whole = grid()
    assert (whole.names, whole.horizon, len(whole)) == (("hue", "size", "backward"), 3, TOTAL)
    assert (whole.image_shape, whole.device.type, whole.start_size) == ((1, 2, 2), "cpu", 3)
    assert torch.equal(whole.positions(range(TOTAL)), POSITIONS)
    assert torch.equal(read_positions(whole.images([7, 300])), POSITIONS[[7, 300]])
    assert whole.to("meta").device.type == "meta"
    assert grid(device="meta").store.images.device.type == "meta"


def test_a_move_changes_its_own_factor_step_by_step():
    whole = grid()
    for k, (column, begin, step) in enumerate([(0, 0, 1), (2, 0, 1), (3, 5, -1)]):
        indices = torch.randperm(TOTAL)[:20]
        seen = read_positions(whole.sample(indices, k).frames)
        expected = POSITIONS[indices][:, None].repeat(1, 4, 1)
        expected[..., column] = begin + step * torch.arange(4)
        assert torch.equal(seen, expected)


def test_each_sample_its_own_transformation_and_frames():
    factor, times = torch.tensor([1, 0, 2]), torch.tensor([[0, 3], [0, 1], [0, 2]])
    batch = grid().sample([10, 200, 359], factor, times)
    seen = read_positions(batch.frames)
    assert seen[0, :, 2].tolist() == [0, 3]
    assert seen[1, :, 0].tolist() == [0, 1]
    assert seen[2, :, 3].tolist() == [5, 3]
    assert torch.equal(batch.times, times)
    assert torch.equal(batch.labels, factor)


def test_composition_moves_all_at_once():
    seen = read_positions(grid().compose([123], ["backward", "hue"]).frames)[0]
    _, shape, size, _ = POSITIONS[123].tolist()
    assert seen.tolist() == [[t, shape, size, 5 - t] for t in range(4)]


def test_cyclic_factors_wrap_around_and_run_on():
    own = grid(transformations={"hue": Transformation(step=2, start="own")})
    assert own.horizon == 8
    seen = read_positions(own.with_horizon(11).sample([3 * 72 + 5], 0).frames)[0]
    assert seen[:, 0].tolist() == [(3 + 2 * t) % 5 for t in range(12)]
    back = grid(transformations={"hue": Transformation(step=-1)}, horizon=5).sample([0], 0)
    assert read_positions(back.frames)[0, :, 0].tolist() == [0, 4, 3, 2, 1, 0]


def test_own_starts_are_moved_no_further_than_needed():
    own = grid(
        transformations={
            "angle": Transformation(start="own"),
            "size": Transformation(step=-1, start="own"),
        },
        horizon=2,
    )
    seen = read_positions(own.sample(range(TOTAL), "angle").frames)
    assert torch.equal(seen[:, 0, 3], POSITIONS[:, 3].clamp(max=3))
    assert torch.equal(seen[:, 2, 3], seen[:, 0, 3] + 2)
    seen = read_positions(own.sample(range(TOTAL), "size").frames)
    assert torch.equal(seen[:, 0, 2], POSITIONS[:, 2].clamp(min=2))


def test_random_starts_cover_the_room_of_the_moved_factor_only():
    shorter = grid(horizon=2)
    starts = torch.rand(TOTAL, 3)
    starts[0], starts[1] = 0, 1
    for k, (column, possible) in enumerate([(0, range(5)), (2, range(2)), (3, range(2, 6))]):
        seen = read_positions(shorter.sample(range(TOTAL), k, starts=starts).frames)
        assert set(seen[:, 0, column].tolist()) == set(possible)
        still = [j for j in range(4) if j != column]
        assert torch.equal(seen[:, 0, still], POSITIONS[:, still])
        assert int(seen.min()) >= 0
        assert bool((seen.amax(dim=(0, 1)) < torch.tensor(SIZES)).all())


def test_training_batches():
    loader = SequenceLoader(grid(split="train", initial_state="random"), 6, frames_per_sequence=2)
    batch = loader.batch(3)
    assert tuple(batch.frames.shape) == (6, 3, 1, 2, 2)
    again = SequenceLoader(grid(split="train", initial_state="random"), 6, frames_per_sequence=2)
    assert torch.equal(batch.frames, again.batch(3).frames)


def numbers(**options):
    return grid_numbers(grid(**options).positions(range(len(grid(**options)))), SIZES)


@pytest.mark.parametrize("start", [0, "own"])
def test_held_out_sequences_share_the_still_factors_with_no_other_split(start):
    moves = {"hue": Transformation(start=start), "size": Transformation(start=start)}
    parts = {
        split: grid(transformations=moves, split=split, test=3, validation=4)
        for split in ("train", "validation", "test")
    }
    assert (len(parts["test"]), len(parts["validation"])) == (3, 4)
    for column in (0, 2):
        still = [j for j in range(4) if j != column]
        seen = [
            {tuple(p) for p in part.positions(range(len(part)))[:, still].tolist()}
            for part in parts.values()
        ]
        assert seen[0].isdisjoint(seen[1])
        assert seen[0].isdisjoint(seen[2])
        assert seen[1].isdisjoint(seen[2])


def test_no_position_is_lost_but_the_neighbours():
    moves = {"hue": Transformation(), "size": Transformation()}
    held = [
        numbers(transformations=moves, split=split, test=2, validation=2)
        for split in ("test", "validation")
    ]
    held = POSITIONS[torch.cat(held)]
    train = set(numbers(transformations=moves, split="train", test=2, validation=2).tolist())
    for number, position in enumerate(POSITIONS):
        differ = position != held
        near = (differ.sum(1) == 0) | ((differ.sum(1) == 1) & (differ[:, 0] | differ[:, 2]))
        assert (number in train) is (not bool(near.any()))


def test_splits_are_seeded():
    options = {"split": "test", "test": 5}
    assert torch.equal(numbers(**options), numbers(**options))
    assert not torch.equal(numbers(**options), numbers(**options, seed=1))
    assert len(numbers(split="validation")) == 1
    everything = numbers(split="train", test=0, validation=0)
    assert torch.equal(everything, torch.arange(TOTAL))


def test_values_are_held_out_of_all_but_their_own_split():
    held = {"shape": [2]}
    for split in ("train", "validation", "test"):
        part = grid(split=split, held_out=held)
        assert set(part.positions(range(len(part)))[:, 1].tolist()) <= {0, 1}
    part = grid(split="held_out", held_out=held)
    assert len(part) == TOTAL // 3
    assert set(part.positions(range(len(part)))[:, 1].tolist()) == {2}


def test_other_moves_of_the_same_factors():
    train = grid(split="train")
    faster = train.with_transformations({"angle": Transformation(step=2)})
    assert (faster.names, faster.horizon, len(faster)) == (("angle",), 2, len(train))
    assert (train.horizon, train.max_horizon, train.with_horizon(1).horizon) == (3, 3, 1)
    shape = {"shape": Transformation()}
    assert grid(transformations={"hue": Transformation()}).with_transformations(shape).horizon == 2
    with pytest.raises(DataError, match="shape"):
        train.with_transformations(shape)


def test_default_moves_are_of_all_factors_that_can():
    assert FactorGrid(IMAGES, {**FACTORS, "one": 1}, split="all").names == tuple(FACTORS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("factors", {"factors": {}}),
        ("factors.hue", {"factors": {"hue": 0}}),
        ("factors.*288", {"factors": {**FACTORS, "hue": 4}}),
        ("cyclic", {"cyclic": ["tone"]}),
        ("transformations", {"transformations": {}}),
        ("transformations", {"transformations": dict.fromkeys("ab", Transformation("hue"))}),
        ("parameter", {"transformations": {"tone": Transformation()}}),
        ("step", {"transformations": {"size": Transformation(step=0)}}),
        ("step", {"transformations": {"size": Transformation(step=0.5)}}),
        ("start_range", {"transformations": {"size": Transformation(start_range=(0, 1))}}),
        ("start", {"transformations": {"size": Transformation(start=4)}}),
        ("start", {"transformations": {"size": Transformation(start=0.5)}}),
        ("horizon", {"transformations": {"size": Transformation(start=-1)}}),
        ("horizon", {"horizon": 4}),
        ("horizon", {"horizon": 0}),
        ("split", {"split": "dev"}),
        ("held_out", {"split": "held_out"}),
        ("held_out", {"held_out": {"size": [1]}}),
        ("held_out", {"held_out": {"tone": [1]}}),
        ("held_out.shape", {"held_out": {"shape": [3]}}),
        ("held_out.shape", {"held_out": {"shape": [0, 1, 2]}}),
        ("test", {"split": "train", "test": 360}),
        ("validation", {"split": "train", "validation": -1}),
        ("test", {"split": "test", "test": 0}),
        ("training", {"split": "train", "test": 200, "validation": 0}),
        ("initial_state", {"initial_state": "own"}),
        ("size", {"size": 1}),
    ],
)
def test_bad_grids(name, options):
    with pytest.raises(DataError, match=name):
        grid(**options)


@pytest.mark.parametrize("numbers", [[-1], [360], torch.tensor([0.5])])
def test_bad_numbers_of_images(numbers):
    with pytest.raises(DataError, match="numbers"):
        grid().images(numbers)


def test_a_store_of_one_s_own():
    assert len(FactorGrid(TensorStore(IMAGES), FACTORS, split="all")) == TOTAL


def test_held_out_options(tmp_path):
    np.save(tmp_path / "grid.npy", IMAGES.numpy())
    given = {"path": str(tmp_path / "grid.npy"), "factors": FACTORS, "layout": "nchw"}
    given |= {"transformations": MOVES, "test": 2, "validation": 2}
    options = FactorGridOptions(held_out={"shape": (2,)}, **given)
    assert options.describe_held_out() == "shape 2"
    assert len(options.load_held_out("test", 0)) == TOTAL // 3
    assert len(options.load("test", 0)) == 2
    nothing = FactorGridOptions(**given)
    assert nothing.describe_held_out() is None
    with pytest.raises(DataError, match="held out"):
        nothing.load_held_out("test", 0)
