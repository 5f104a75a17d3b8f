import itertools

import pytest
import torch

from flowfactor.data import SequenceBatch, SequenceSource, TransformedImages
from flowfactor.errors import DataError, FlowFactorError

FACTOR = torch.tensor([0, 2])


def frames() -> torch.Tensor:
    return torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_full_sequences_hold_every_frame():
    batch = SequenceBatch.full(frames(), FACTOR.int())
    assert batch.times.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch.horizon == 4
    assert len(batch) == 2
    assert batch.labels.dtype == torch.int64
    assert batch.weights.tolist() == [[1.0] * 5] * 2


@pytest.mark.parametrize("drawn", [1, 2, 3, 5])
def test_weighted_sum_is_unbiased(drawn: int):
    """Its mean over all equally likely subsets of frames is the sum over all frames, exactly."""
    horizon = 5
    cost = torch.rand(horizon + 1, generator=torch.Generator().manual_seed(1)).double()
    subsets = [(0, *later) for later in itertools.combinations(range(1, horizon + 1), drawn)]
    times = torch.tensor(subsets)
    batch = SequenceBatch(
        torch.zeros(len(times), drawn + 1, 1, 1, 1, dtype=torch.float64),
        times,
        torch.zeros(len(times), dtype=torch.long),
        horizon,
    )
    estimates = (batch.weights * cost[times]).sum(dim=1)
    torch.testing.assert_close(estimates.mean(), cost.sum(), rtol=1e-12, atol=0)
    if drawn < horizon:
        assert estimates.std() > 0.01


def test_frame_zero_alone_has_weight_one():
    batch = SequenceBatch(
        torch.zeros(2, 1, 1, 1, 1), torch.zeros(2, 1, dtype=torch.long), FACTOR, 8
    )
    assert batch.weights.tolist() == [[1.0], [1.0]]


def test_to_moves_every_tensor():
    moved = SequenceBatch.full(frames(), FACTOR).to("meta")
    assert {moved.frames.device.type, moved.times.device.type, moved.labels.device.type} == {"meta"}
    assert moved.horizon == 4


def test_dataset_is_a_sequence_source(dataset: TransformedImages):
    assert isinstance(dataset, SequenceSource)
    assert not isinstance([dataset], SequenceSource)


@pytest.mark.parametrize(
    ("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (1.5, "1.5"), (-0.1, "-0.1")]
)
def test_bad_pixel_is_named(value: float, shown: str):
    bad = frames()
    bad[1, 3, 2, 0, 1] = value
    with pytest.raises(DataError, match=r"sample 1, frame 3, channel 2, row 0, column 1") as caught:
        SequenceBatch.full(bad, FACTOR)
    assert f"1 of {bad.numel()} values are not: the first is {shown} " in str(caught.value)
    assert isinstance(caught.value, FlowFactorError)


@pytest.mark.parametrize(
    ("bad", "factor", "message"),
    [
        (torch.zeros(2, 5, 4, 4), FACTOR, r"five dimensions .* \(2, 5, 4, 4\).*unsqueeze"),
        (torch.zeros(0, 5, 3, 4, 4), FACTOR, r"none of them empty.*\(0, 5, 3, 4, 4\)"),
        (torch.zeros(2, 5, 3, 4, 4).byte(), FACTOR, r"torch\.uint8.*float\(\) / 255"),
        (frames(), FACTOR.float(), r"whole numbers.*torch\.float32.*long\(\)"),
        (frames(), FACTOR.bool(), r"whole numbers.*torch\.bool"),
        (frames(), torch.tensor([0]), r"one number for each of the 2 sequences.*\(1,\)"),
        (frames(), torch.tensor([0, -1]), r"must not be negative, but that of sample 1 is -1"),
    ],
)
def test_bad_sequences(bad: torch.Tensor, labels: torch.Tensor, message: str):
    with pytest.raises(DataError, match=message):
        SequenceBatch.full(bad, labels)
