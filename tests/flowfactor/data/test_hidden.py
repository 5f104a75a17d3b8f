"""Data sets that hide what their sequences undergo."""

import pytest
import torch

from flowfactor.data import Recordings, SequenceLoader, Sprites, Unlabelled, round_robin
from flowfactor.data.sequences import GivenFactor
from flowfactor.errors import DataError


@pytest.fixture
def films():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (12, 5, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Recordings(frames.numpy(), ["up", "down", "up", "up"] * 3)


def test_recordings_keep_their_own_transformation(films):
    hidden = Unlabelled(films)
    assert isinstance(hidden, GivenFactor)
    assert torch.equal(hidden.labels, films.labels)
    assert not isinstance(Unlabelled(Sprites(4, 8)), GivenFactor)


def test_a_loader_draws_what_was_recorded_and_sees_no_label(films):
    loader = SequenceLoader(Unlabelled(films), 4, seed=0)
    seen = [loader.batch(step) for step in range(6)]
    assert all((batch.labels == -1).all() for batch in seen)
    known = films.sample(range(12)).frames.flatten(1)
    for batch in seen:
        for film in batch.frames[:, : films.horizon + 1].flatten(1):
            assert (known == film).all(1).any()


def test_what_is_not_known_can_be_asked_for_in_turn(films):
    some = films.relabelled(films.names, torch.tensor([0, -1] * 6))
    hidden = Unlabelled(some)
    indices = torch.arange(12)
    assert hidden.sample(indices, round_robin(hidden, indices)).labels.tolist() == [-1] * 12
    with pytest.raises(DataError, match="Sequence 0 undergoes"):
        hidden.sample([0, 1], torch.tensor([1, 1]))


def test_a_part_keeps_its_label(films):
    half = Unlabelled(films, labelled_fraction=0.5, seed=1)
    labels = half.sample(range(12), None).labels
    assert torch.equal(labels, torch.where(half.labelled, films.labels, -1))
    assert 0 < int(half.labelled.sum()) < 12
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        Unlabelled(films, labelled_fraction=1.5)
