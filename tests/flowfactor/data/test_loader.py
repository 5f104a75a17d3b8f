import itertools
import threading

import pytest
import torch

from flowfactor.data import (
    BackgroundLoader,
    Recordings,
    SequenceBatch,
    SequenceLoader,
    TransformedImages,
)
from flowfactor.errors import DataError


def same(a: SequenceBatch, b: SequenceBatch) -> bool:
    return (
        torch.equal(a.frames, b.frames)
        and torch.equal(a.times, b.times)
        and torch.equal(a.labels, b.labels)
    )


def test_batches_are_those_of_the_dataset(dataset: TransformedImages):
    loader = SequenceLoader(dataset, 6, frames_per_sequence=3)
    batch = loader.batch(5)
    expected = dataset.sample(loader.indices(5), batch.labels, batch.times)
    assert same(batch, expected)
    assert tuple(batch.frames.shape) == (6, 4, 3, 12, 12)
    assert batch.horizon == 8


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_each_image_once_an_epoch(dataset: TransformedImages, batch_size: int, world_size: int):
    """Taken together, in the order of steps and ranks, every 30 indices are all 30 images."""
    loaders = [
        SequenceLoader(dataset, batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    epochs = 3
    steps = -(-epochs * 30 // (batch_size * world_size))
    visited = torch.cat([loader.indices(step) for step in range(steps) for loader in loaders])
    for epoch in visited[: epochs * 30].view(epochs, 30):
        assert sorted(epoch.tolist()) == list(range(30))


def test_ranks_are_disjoint_within_an_epoch(dataset: TransformedImages):
    loaders = [SequenceLoader(dataset, 5, rank=rank, world_size=3) for rank in range(3)]
    seen = [{int(i) for step in range(2) for i in loader.indices(step)} for loader in loaders]
    assert [len(each) for each in seen] == [10, 10, 10]
    assert not any(a & b for a, b in itertools.combinations(seen, 2))


def test_epochs_differ_in_order(dataset: TransformedImages):
    loader = SequenceLoader(dataset, 30)
    assert loader.indices(0).tolist() != loader.indices(1).tolist() != list(range(30))


def test_batch_is_pure_in_its_number(dataset: TransformedImages):
    straight = SequenceLoader(dataset, 8, frames_per_sequence=2, seed=3)
    batches = [straight.batch(step) for step in range(10)]
    resumed = SequenceLoader(dataset, 8, frames_per_sequence=2, seed=3)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    for step in (9, 0, 4, 4):
        assert same(resumed.batch(step), batches[step])
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not ours to use"


def test_seed_step_and_rank_change_the_batch(dataset: TransformedImages):
    base = {"frames_per_sequence": 4, "seed": 3, "world_size": 2}
    first = SequenceLoader(dataset, 8, **base).batch(0)
    others = [
        SequenceLoader(dataset, 8, **(base | {"seed": 4})).batch(0),
        SequenceLoader(dataset, 8, **base).batch(1),
        SequenceLoader(dataset, 8, rank=1, **base).batch(0),
    ]
    for other in others:
        assert not torch.equal(other.times, first.times)
        assert not torch.equal(other.frames, first.frames)


@pytest.mark.parametrize("batch_size", [1, 6, 8])
def test_factors_are_balanced_and_sorted(dataset: TransformedImages, batch_size: int):
    loader = SequenceLoader(dataset, batch_size, frames_per_sequence=1)
    totals = torch.zeros(3, dtype=torch.long)
    for step in range(30):
        labels = loader.batch(step).labels
        assert torch.equal(labels, labels.sort().values)
        counts = labels.bincount(minlength=3)
        assert counts.max() - counts.min() <= 1
        totals += counts
    # The remainder falls to every transformation: a third of 30 times, at random.
    assert (totals - 30 * (batch_size // 3)).min() >= 3 * (batch_size % 3)


def test_all_frames(dataset: TransformedImages):
    for loader in (
        SequenceLoader(dataset, 3),
        SequenceLoader(dataset, 3, frames_per_sequence=8),
    ):
        batch = loader.batch(0)
        assert batch.times.tolist() == [list(range(9))] * 3
        assert batch.weights.unique().tolist() == [1.0]


def test_frames_are_distinct_and_ascending(dataset: TransformedImages):
    loader = SequenceLoader(dataset, 30, frames_per_sequence=5)
    for step in range(10):
        times = loader.batch(step).times
        assert (times[:, 0] == 0).all()
        assert (times.diff(dim=1) > 0).all()
        assert times.max() <= 8


def test_every_subset_of_frames_is_equally_likely():
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    loader = SequenceLoader(TransformedImages(images, horizon=4), 1200, frames_per_sequence=2)
    times = loader.batch(0).times[:, 1:]
    subsets, counts = times.unique(dim=0, return_counts=True)
    assert subsets.tolist() == [list(pair) for pair in itertools.combinations(range(1, 5), 2)]
    # 200 expected each; chi-squared of 5 degrees of freedom exceeds 20.5 once in a thousand seeds.
    assert ((counts - 200) ** 2 / 200).sum() < 20.5


def test_any_frame_first_and_any_others():
    """Every pair of the encoded frame and the other one is equally likely."""
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    data = TransformedImages(images, horizon=3)
    batch = SequenceLoader(data, 1600, frames_per_sequence=1, encoded_frame="random").batch(0)
    pairs, counts = batch.times.unique(dim=0, return_counts=True)
    assert pairs.tolist() == [list(pair) for pair in itertools.product(range(4), repeat=2)]
    # 100 expected each; chi-squared of 15 degrees of freedom exceeds 37.7 once in 1,000 seeds.
    assert ((counts - 100) ** 2 / 100).sum() < 37.7
    assert batch.weights.unique(dim=0).tolist() == [[0.0, 4.0]]


@pytest.mark.parametrize(("given", "drawn"), [(1, 1), (3, 3), (9, 9), (None, 9)])
def test_frames_beside_a_random_one(dataset: TransformedImages, given, drawn):
    """Their costs estimate the sum over all frames, whichever frame is encoded."""
    loaders = [
        SequenceLoader(dataset, 30, frames_per_sequence=given, encoded_frame="random", seed=3)
        for _ in range(2)
    ]
    batch = loaders[0].batch(4)
    assert same(batch, loaders[1].batch(4))
    assert not same(batch, loaders[0].batch(3))
    assert same(batch, dataset.sample(loaders[0].indices(4), batch.labels, batch.times))
    assert torch.equal(batch.labels, batch.labels.sort().values)
    later = batch.times[:, 1:]
    assert later.shape[1] == drawn
    assert (later.diff(dim=1) > 0).all()
    assert 0 <= batch.times.min() <= batch.times.max() <= 8
    assert (batch.times[:, 0] > later[:, -1]).any() or drawn == 9
    assert (batch.first_weight, batch.later_weight) == (0.0, 9 / drawn)


def test_steps_per_epoch(dataset: TransformedImages):
    assert SequenceLoader(dataset, 10).steps_per_epoch == 3
    assert SequenceLoader(dataset, 8).steps_per_epoch == 4
    assert SequenceLoader(dataset, 8, rank=1, world_size=2).steps_per_epoch == 2


def recorded(*labels: int | None) -> Recordings:
    """Sequences of two frames, the second of the brightness of their number."""
    frames = torch.zeros(len(labels), 2, 1, 2, 2, dtype=torch.uint8)
    frames[:, 1] = torch.arange(len(labels))[:, None, None, None]
    return Recordings(frames, list(labels), names=["a", "b", "c"])


# Nine sequences of the first transformation, three of the second, none of the third.
UNEVEN = (0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_given_transformations_are_balanced(batch_size: int, world_size: int):
    """All of one transformation are visited before any again, whatever the batches and ranks."""
    source = recorded(*UNEVEN)
    loaders = [
        SequenceLoader(source, batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    visited: dict[int, list[int]] = {0: [], 1: []}
    for step in range(-(-72 // (batch_size * world_size))):
        for loader in loaders:
            batch = loader.batch(step)
            numbers = (batch.frames[:, 1, 0, 0, 0] * 255).round().long()
            assert torch.equal(numbers, loader.indices(step))
            assert torch.equal(batch.labels, source.labels[numbers])
            assert torch.equal(batch.labels, batch.labels.sort().values)
            counts = batch.labels.bincount(minlength=2)
            assert abs(counts[0] - counts[1]) <= 1
            for number, labels in zip(numbers.tolist(), batch.labels.tolist(), strict=True):
                visited[labels].append(number)
    for labels, members in visited.items():
        own = [i for i, label in enumerate(UNEVEN) if label == labels]
        for begin in range(0, 36 - len(own), len(own)):
            epoch = members[begin : begin + len(own)]
            # Within a batch of several epochs the order is that of the queue all the same.
            assert sorted(epoch) == own
    assert loaders[0].steps_per_epoch == -(-18 // (batch_size * world_size))


def test_given_transformations_are_drawn_anew_each_epoch_and_purely():
    source = recorded(*UNEVEN)
    loader = SequenceLoader(source, 18, seed=3)
    batches = [loader.batch(step) for step in range(4)]
    assert len({tuple(loader.indices(step).tolist()) for step in range(4)}) == 4
    again = SequenceLoader(source, 18, seed=3)
    for step in (3, 0, 2):
        assert same(again.batch(step), batches[step])
    other = SequenceLoader(source, 18, seed=4)
    assert not torch.equal(other.indices(0), loader.indices(0))


def test_transformations_that_are_not_known():
    loader = SequenceLoader(recorded(*[None] * 6), 4)
    assert loader.batch(0).labels is None
    visited = torch.cat([loader.indices(step) for step in range(3)])
    assert visited[:6].sort().values.tolist() == visited[6:].sort().values.tolist()
    some = SequenceLoader(recorded(1, None, None, 0, 1), 6)
    assert some.batch(0).labels.tolist() == [-1, -1, 0, 0, 1, 1]


def test_batches_that_a_thread_draws_ahead(dataset: TransformedImages):
    loader, drawn = SequenceLoader(dataset, 5, frames_per_sequence=2, seed=7), []

    class Watched:
        def batch(self, step):
            drawn.append((step, threading.current_thread()))
            if step == 6:
                raise DataError("sample 17 is bad")
            return loader.batch(step)

    with BackgroundLoader(Watched(), "cpu") as ahead:
        for step in (3, 4, 2, 3):  # in whatever order
            assert same(ahead.batch(step), loader.batch(step))
        ahead.wait()
        assert [step for step, _ in drawn] == [3, 4, 5, 2, 3, 4]
        assert len({thread for _, thread in drawn}) == 1
        ahead.batch(5)
        ahead.wait()  # the next one is bad, which is said where it is asked for
        with pytest.raises(DataError, match="17"):
            ahead.batch(6)
        assert same(ahead.batch(7), loader.batch(7))
    assert not drawn[0][1].is_alive()


def test_batches_of_transformations_that_are_chosen_have_not_changed(dataset: TransformedImages):
    """What a seed draws is part of every result ever reported."""
    loader = SequenceLoader(dataset, 5, frames_per_sequence=2, seed=7)
    batch = loader.batch(13)
    assert loader.indices(13).tolist() == [8, 12, 21, 25, 23]
    assert batch.labels.tolist() == [0, 0, 1, 2, 2]
    assert batch.times.tolist() == [[0, 2, 5], [0, 2, 6], [0, 6, 7], [0, 5, 8], [0, 3, 7]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("batch_size", {"batch_size": 0}),
        ("frames_per_sequence", {"frames_per_sequence": 0}),
        ("frames_per_sequence", {"frames_per_sequence": 9}),
        ("frames_per_sequence", {"frames_per_sequence": 10, "encoded_frame": "random"}),
        ("encoded_frame", {"encoded_frame": "last"}),
        ("seed", {"seed": -1}),
        ("rank", {"rank": 2, "world_size": 2}),
        ("rank", {"rank": -1}),
    ],
)
@pytest.mark.wrong_types
def test_bad_loader(dataset: TransformedImages, name, arguments):
    with pytest.raises(DataError, match=name):
        SequenceLoader(dataset, **{"batch_size": 4, **arguments})
    with pytest.raises(DataError, match="step"):
        SequenceLoader(dataset, 4).batch(-1)


def test_random_starts_if_the_data_set_says_so(dataset: TransformedImages):
    random = TransformedImages(dataset.images, initial_state="random", random_start_prob=1.0)
    batch, other = (SequenceLoader(data, 6).batch(2) for data in (random, dataset))
    assert torch.equal(batch.labels, other.labels)
    assert torch.equal(batch.times, other.times)
    assert not torch.equal(batch.frames, other.frames)
