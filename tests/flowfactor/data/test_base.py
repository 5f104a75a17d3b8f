"""Batches, and what follows for every data set from the frames that it renders."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch

from flowfactor.data import (
    UNLABELLED,
    FactorGrid,
    Recordings,
    SequenceBatch,
    SequenceDataset,
    SequenceLoader,
    Sprites,
    Transformation,
    TransformedImages,
)
from flowfactor.errors import DataError

LABELS = torch.tensor([0, 2])
FRAMES = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def recorded(labels=("up", "down", "up", "up") * 3, names=None) -> Recordings:
    frames = np.random.default_rng(0).integers(0, 256, (12, 4, 1, 4, 4), dtype=np.uint8)
    return Recordings(frames, None if labels is None else list(labels), names)


# ---- batches


def test_full_sequences_hold_every_frame():
    batch = SequenceBatch.full(FRAMES, LABELS.int())
    assert batch.times.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert (batch.horizon, len(batch), batch.labels.dtype) == (4, 2, torch.int64)
    assert batch.weights.tolist() == [[1.0] * 5] * 2
    assert SequenceBatch.full(FRAMES).labels is None
    assert SequenceBatch.full(FRAMES, torch.tensor([0, UNLABELLED])).labels.tolist() == [0, -1]
    moved = batch.to("meta")
    assert {x.device.type for x in (moved.frames, moved.times, moved.labels)} == {"meta"}


@pytest.mark.parametrize("drawn", [1, 2, 5])
def test_weighted_sum_is_unbiased(drawn: int):
    """Its mean over all equally likely subsets of frames is the sum over all frames, exactly."""
    data = TransformedImages(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), horizon=5).in_dtype(
        torch.float64
    )
    cost = torch.rand(6).double()
    times = torch.tensor([(0, *later) for later in itertools.combinations(range(1, 6), drawn)])
    batch = data.sample([0] * len(times), "hue", times)
    estimates = (batch.weights * cost[times]).sum(dim=1)
    torch.testing.assert_close(estimates.mean(), cost.sum(), rtol=1e-12, atol=0)
    assert batch.is_complete == (drawn == 5)


def test_frames_may_come_in_any_order_and_a_first_one_need_not_count(dataset):
    times = torch.tensor([[3, 0, 3, 8], [8, 7, 1, 8]])
    batch = dataset.sample([4, 5], "rotation", times)
    whole = dataset.sample([4, 5], "rotation")
    for row in range(2):
        assert torch.equal(batch.frames[row], whole.frames[row, times[row]])
    assert whole.is_complete
    assert not batch.is_complete
    assert not dataset.sample([4, 5], times=whole.times.flip(1)).is_complete
    assert batch.counted is batch
    later = dataclasses.replace(batch, first_weight=0.0, later_weight=2.5).counted
    assert torch.equal(later.times, times[:, 1:])
    assert torch.equal(later.frames, batch.frames[:, 1:])
    assert later.weights.tolist() == [[2.5] * 3] * 2


@pytest.mark.parametrize(
    ("frames", "labels", "name"),
    [
        (FRAMES[0], LABELS, "frames"),
        (FRAMES[:0], LABELS[:0], "frames"),
        (FRAMES.byte(), LABELS, "frames"),
        (FRAMES / 0, LABELS, "frames"),
        (FRAMES - 1, LABELS, r"frames .*\(0, 0, 0, 0, 0\)"),
        (FRAMES, LABELS.float(), "labels"),
        (FRAMES, LABELS.bool(), "labels"),
        (FRAMES, LABELS[:1], "labels"),
        (FRAMES, LABELS - 2, "labels"),
    ],
)
def test_bad_batches(frames, labels, name):
    with pytest.raises(DataError, match=name):
        SequenceBatch.full(frames, labels)


# ---- samples


def test_only_the_frames_asked_for(dataset: TransformedImages):
    times = torch.tensor([[0, 5, 8], [0, 1, 2], [0, 3, 7]])
    labels = torch.tensor([2, 0, 1])
    some = dataset.sample([1, 2, 3], labels, times)
    everything = dataset.sample([1, 2, 3], labels)
    assert torch.equal(some.times, times)
    expected = everything.frames[torch.arange(3)[:, None], times]
    # Vectorised and remaining elements of a loop may be rounded differently.
    torch.testing.assert_close(some.frames, expected, rtol=0, atol=1e-6)


def test_labels_by_name_by_index_and_for_each(dataset: TransformedImages):
    by_name = dataset.sample(range(4), "rotation")
    for other in (1, torch.ones(4, dtype=torch.int32)):
        batch = dataset.sample(torch.arange(4), other)
        assert torch.equal(by_name.frames, batch.frames)
        assert by_name.labels.tolist() == batch.labels.tolist() == [1] * 4
    assert dataset.sample([3, 2]).labels.tolist() == [0, 2]


TIMES = torch.zeros(2, 1, dtype=torch.long)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("indices", {"indices": [0, 30]}),
        ("indices", {"indices": [-1, 0]}),
        ("indices", {"indices": []}),
        ("indices", {"indices": torch.tensor([0.0])}),
        ("labels", {"labels": 3}),
        ("labels", {"labels": -1}),
        ("'shear'", {"labels": "shear"}),
        ("labels", {"labels": torch.tensor([0, 3])}),
        ("labels", {"labels": torch.tensor([0, -1])}),
        ("labels", {"labels": torch.tensor([0])}),
        ("labels", {"labels": torch.tensor([0.0, 1.0])}),
        ("times", {"times": TIMES + 9}),
        ("times", {"times": TIMES - 1}),
        ("times", {"times": TIMES[:1]}),
        ("times", {"times": TIMES + 0.5}),
        ("starts", {"starts": torch.zeros(2, 3)}),
        ("starts", {"starts": torch.full((2, 4), 2.0)}),
    ],
)
def test_bad_requests(dataset: TransformedImages, name, arguments):
    with pytest.raises(DataError, match=name):
        dataset.sample(**{"indices": [0, 1], "labels": 0, **arguments})


def test_compositions(dataset: TransformedImages):
    clock = torch.arange(9).expand(2, -1)
    first, then = clock.clamp(max=5), (clock - 5).clamp(min=0)
    switched = dataset.compose([0, 1], ("rotation", "hue"), elapsed=[first, then])
    assert switched.labels is None
    alone = dataset.sample([0, 1], "rotation").frames
    assert torch.equal(switched.frames[:, :6], alone[:, :6])
    assert torch.equal(dataset.compose([0, 1], [1]).frames, alone)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("transformations", {"transformations": ()}),
        ("transformations", {"transformations": ("hue", 2)}),
        ("'zoom'", {"transformations": ("hue", "zoom")}),
        ("elapsed", {"elapsed": [TIMES]}),
        ("elapsed", {"elapsed": [TIMES, TIMES[:1]]}),
    ],
)
def test_bad_compositions(dataset: TransformedImages, name, arguments):
    with pytest.raises(DataError, match=name):
        dataset.compose(
            **{"indices": [0, 1], "transformations": (0, 1), "times": TIMES, **arguments}
        )


def test_starts_are_the_numbers_of_the_generator(dataset: TransformedImages):
    drawn = dataset.random_starts(5, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, torch.rand(5, 4, generator=torch.Generator().manual_seed(1)))
    assert recorded().random_starts(5, torch.Generator()) is None
    at_rest = dataset.render_at_rest(torch.arange(5), drawn)
    assert tuple(at_rest.shape) == (5, 3, 12, 12)
    still = dataset.sample(range(5), "hue").frames[:, 0]
    assert torch.equal(dataset.render_at_rest(torch.arange(5)), still)


def test_horizons(dataset: TransformedImages):
    longer = dataset.with_horizon(16)
    assert (longer.horizon, dataset.horizon, dataset.extend_to(20).horizon) == (16, 8, 20)
    assert dataset.extend_to(3) is dataset
    torch.testing.assert_close(
        longer.sample([0], "hue").frames[:, :9], dataset.sample([0], "hue").frames
    )
    films = recorded().with_horizon(1)
    assert (films.max_horizon, films.extend_to(99).horizon) == (3, 3)
    for horizon in (0, 4):
        with pytest.raises(DataError, match="horizon"):
            films.with_horizon(horizon)


@pytest.mark.parametrize("kind", ["images", "sprites", "grid", "recordings"])
def test_subsets_copies_and_devices(kind, dataset: TransformedImages):
    images = torch.randint(256, (12, 4, 4, 3), dtype=torch.uint8)
    data: SequenceDataset = {
        "images": lambda: dataset,
        "sprites": lambda: Sprites(20, 8),
        "grid": lambda: FactorGrid(images, {"a": 3, "b": 4}, split="all"),
        "recordings": recorded,
    }[kind]()
    chosen = [7, 2, 5]
    part = data.subset(chosen)
    assert len(part) == 3
    whole = data.sample(chosen)
    labels = None if data.labels is not None else whole.labels
    torch.testing.assert_close(part.sample(range(3), labels).frames, whole.frames)
    if data.classes is not None:
        assert part.classes.tolist() == data.classes[chosen].tolist()
    copied = pickle.loads(pickle.dumps(part))
    assert torch.equal(copied.sample([1]).frames, part.sample([1]).frames)
    assert data.to("meta").device.type == "meta"
    with pytest.raises(DataError, match="indices"):
        data.subset([99])


# ---- labels


def test_hidden_labels(dataset: TransformedImages):
    hidden = dataset.without_labels()
    assert hidden.sample([3, 5], "hue").labels is None
    assert SequenceLoader(hidden, 6).batch(0).labels is None
    assert dataset.sample([3], "hue").labels.tolist() == [2]
    half = dataset.without_labels(0.5, seed=1)
    shown = half.sample(range(30), "hue").labels
    drawn = torch.rand(30, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(shown, torch.where(drawn, 2, UNLABELLED))
    assert torch.equal(half.subset([4, 9]).sample([0, 1], 2).labels, shown[[4, 9]])
    with pytest.raises(DataError, match="fraction"):
        dataset.without_labels(1.5)


def test_recorded_transformations_cannot_be_chosen():
    films = recorded()
    assert films.sample([0, 1]).labels.tolist() == [1, 0]
    assert films.sample([0, 1], torch.tensor([1, 0])).labels.tolist() == [1, 0]
    assert films.samples_undergoing(0).tolist() == [1, 5, 9]
    assert films.round_robin(torch.tensor([3, 1])).tolist() == [1, 0]
    with pytest.raises(DataError, match="labels"):
        films.sample([0, 1], "up")
    with pytest.raises(DataError, match="composed"):
        films.compose([0], ["up"])
    with pytest.raises(DataError, match="starts"):
        films.sample([0], starts=torch.zeros(1, 0))
    with pytest.raises(DataError, match="factors"):
        films.known_factors()
    # Hidden or not, what can be drawn is what was recorded.
    batch = SequenceLoader(films.without_labels(), 6).batch(0)
    assert batch.labels is None
    assert torch.equal(batch.frames, SequenceLoader(films, 6).batch(0).frames)


def test_unknown_labels():
    some = recorded(["up", None, "down"] * 4)
    assert some.sample([0, 1, 2]).labels.tolist() == [1, UNLABELLED, 0]
    assert some.subset([1, 4]).sample([0, 1]).labels is None
    nothing = recorded(None, names=["up", "down"])
    assert nothing.labels.tolist() == [UNLABELLED] * 12
    assert nothing.sample([0]).labels is None
    inferred = nothing.relabel(["x", "y", "z"], torch.arange(12) % 4 - 1)
    assert inferred.names == ("x", "y", "z")
    assert inferred.sample([0, 1, 3]).labels.tolist() == [UNLABELLED, 0, 2]
    for names, labels in ((["x"], 1), (["x"], -2), (["x", "x"], 0)):
        with pytest.raises(DataError, match=r"labels|names"):
            nothing.relabel(names, torch.full((12,), labels))


def test_full_supervision_requires_labels(dataset: TransformedImages):
    dataset.require_labels()
    recorded().require_labels()
    for data in (dataset.without_labels(0.5), recorded(["up", None] * 6)):
        with pytest.raises(DataError, match="labels"):
            data.require_labels()
    with pytest.raises(DataError, match="recorded"):
        dataset.relabel(["x"], torch.zeros(30, dtype=torch.long))


# ---- known factors

MOVE = {"a": Transformation(start="own")}


@pytest.mark.parametrize("kind", ["images", "sprites", "grid"])
def test_a_fixed_factor_is_the_same_in_all_images(kind, dataset: TransformedImages):
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1)
    data: SequenceDataset = {
        "images": lambda: dataset,
        "sprites": lambda: Sprites(20, 8),
        "grid": lambda: FactorGrid(images, {"a": 3, "one": 1, "b": 4}, split="all"),
    }[kind]()
    known = data.known_factors(bins=4)
    expected = {
        "images": (("class", "scaling", "rotation", "hue"), (10, 4, 4, 4)),
        "sprites": (("shape", "scaling", "rotation", "x", "y", "hue"), (3, 4, 4, 4, 4, 4)),
        "grid": (("a", "b"), (3, 4)),
    }[kind]
    assert (known.names, known.sizes) == expected
    for fixed in range(len(known.names)):
        drawn, factors = known.sample_factors(20, torch.Generator().manual_seed(fixed), fixed)
        assert tuple(drawn.shape) == (20, *known.image_shape)
        varied = [len(column.unique()) > 1 for column in factors.T]
        assert varied == [j != fixed for j in range(len(known.names))]
        assert bool((factors < torch.tensor(known.sizes)).all())
    if kind == "grid":
        assert torch.equal((drawn * 255).round().long().flatten(), factors @ torch.tensor([4, 1]))


def test_nothing_varies(dataset: TransformedImages):
    still = TransformedImages(dataset.images, random_start_prob=0.0)
    with pytest.raises(DataError, match="varies"):
        still.known_factors()
    with pytest.raises(DataError, match="bins"):
        dataset.known_factors(bins=1)
    one = FactorGrid(dataset.images[:1], {"a": 1}, cyclic=["a"], transformations=MOVE, split="all")
    with pytest.raises(DataError, match="positions"):
        one.known_factors()


# ---- a data set of one's own


class Blinking(SequenceDataset):
    """Images that go dark at every other frame."""

    def __init__(self, count=6, **options):
        super().__init__(("blink",), 4, (1, 2, 2), **options)
        self.count = count

    def __len__(self):
        return self.count

    def render_frames(self, indices, elapsed, active, starts):
        bright = 1 - (elapsed[0] % 2) * active[0][:, None]
        return bright[..., None, None, None].expand(-1, -1, *self.image_shape).float()


def test_what_a_new_data_set_must_write():
    data = Blinking()
    assert data.sample([0, 1]).frames[:, :, 0, 0, 0].tolist() == [[1, 0, 1, 0, 1]] * 2
    assert SequenceLoader(data, 3, frames_per_sequence=2).batch(0).frames.shape[1] == 3
    with pytest.raises(DataError, match="initial_state"):
        Blinking(initial_state="random")
    with pytest.raises(DataError, match="factors"):
        data.known_factors()
    with pytest.raises(DataError, match="per_sample"):
        data.subset([1])
    with pytest.raises(DataError, match="initial_state"):
        Blinking(initial_state="anywhere")
