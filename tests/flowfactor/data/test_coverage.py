"""Which states training shows: what data sets say, against what their batches hold."""

import itertools

import pytest
import torch

from flowfactor.data import (
    Coverage,
    FactorGrid,
    SequenceLoader,
    Transformation,
    TransformedImages,
)

FACTORS = {"hue": 6, "shape": 2, "size": 7}
# Each image says where on the grid it is.
IMAGES = (torch.arange(84, dtype=torch.uint8) * 3)[:, None, None, None].expand(-1, 1, 2, 2)


def shown(data, steps=60):
    """Return the positions that batches show of each factor, moving and at rest."""
    found = {}
    for step in range(steps):
        batch = SequenceLoader(data, 12, frames_per_sequence=None).batch(step)
        numbers = (batch.frames[:, :, 0, 0, 0] * 255 / 3).round().long()
        for k, label in itertools.product(range(2), range(2)):
            positions = numbers // (14, 1)[k] % (6, 7)[k]
            found.setdefault((k, k == label), set()).update(
                positions[batch.labels == label].flatten().tolist()
            )
    return found


@pytest.mark.parametrize("initial_state", ["canonical", "random"])
@pytest.mark.parametrize(("start", "step"), [(0, 1), (4, -2), ("own", 1)])
def test_a_grid_says_what_its_batches_show(initial_state, start, step):
    moves = {"hue": Transformation(start=start, step=step), "size": Transformation(start=start)}
    data = FactorGrid(
        IMAGES,
        FACTORS,
        cyclic=["hue"],
        transformations=moves,
        horizon=2,
        split="all",
        initial_state=initial_state,
    )
    found = shown(data)
    for k, (size, by) in enumerate(((6, step), (7, 1))):
        coverage = data.coverage(k)
        assert coverage.period == (None if k else 6 / abs(step))
        first = 0 if start == "own" else start
        for position in range(0, size, abs(by)):
            seen = coverage.seen((position - first) / by)
            assert (seen == "covered") == (position in found[k, True])
            assert (seen != "extrapolation") == (position in found[k, True] | found[k, False])


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, {8: "covered", 9: "extrapolation", 20: "extrapolation", -34: "covered"}),
        ({"initial_state": "random"}, {12: "covered", 16: "covered", 17: "extrapolation"}),
        (
            {"initial_state": "random", "active_start": "canonical"},
            {8: "covered", 12: "extrapolation"},
        ),
        ({"initial_state": "random", "random_start_prob": 0.0}, {9: "extrapolation"}),
    ],
)
def test_random_starts_cover_what_follows_them(options, seen):
    images = torch.full((3, 1, 28, 28), 200, dtype=torch.uint8)
    data = TransformedImages(images, **options)
    coverage = data.coverage(data.names.index("rotation"))
    assert coverage.period == 36
    assert {time: coverage.seen(time) for time in seen} == seen


def test_ranges_of_starts_count():
    turn = {"angle": Transformation(start_range=(-90.0, 90.0)), "hue": Transformation()}
    options = {"initial_state": "random", "horizon": 4}
    images = torch.full((3, 1, 28, 28), 200, dtype=torch.uint8)
    moving = TransformedImages(images, transformations=turn, **options).coverage(0)
    assert (moving.moving, moving.resting) == ((-9, 13), (-9, 9))
    resting = TransformedImages(
        images, transformations=turn, active_start="canonical", **options
    ).coverage(0)
    assert [resting.seen(time) for time in (4, 9, 10)] == ["covered", "at rest", "extrapolation"]


def test_states_repeat():
    coverage = Coverage((2, 5), (-1, 0), period=10)
    covered = {2, 3, 4, 5, 12, -8, 32}
    assert {time for time in covered if coverage.seen(time) == "covered"} == covered
    assert coverage.seen(9) == coverage.seen(10) == coverage.seen(-11) == "at rest"
    assert coverage.seen(7) == "extrapolation"
