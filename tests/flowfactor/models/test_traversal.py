"""Traversals, learned from sequences whose true ones are known."""

import pytest
import torch
from small_models import films as small_films
from small_models import small
from torch import nn

from flowfactor.data import SequenceBatch
from flowfactor.models import VAE, fit_traversals

TRUE = {"left": (2, 2.3), "right": (0, -4.0)}
LAST = 4


class Logits(nn.Module):
    def forward(self, x):
        mean = torch.logit(x.flatten(1))
        return torch.cat([mean, torch.full_like(mean, -8.0)], dim=1)


class Pixels(nn.Module):
    def forward(self, z):
        return z.view(-1, 1, 2, 2)


@pytest.fixture
def reader():
    """Return a model whose latent is the logits of four pixels."""
    networks = {"encoder": Logits(), "decoder": Pixels()}
    model = VAE.build(tuple(TRUE), (1, 2, 2), horizon=LAST, latent_dim=4, **networks)
    model.anchor = nn.Parameter(torch.zeros(()))
    return model


def films(count=8):
    start = 0.5 * torch.randn(count, 1, 4)
    labels = torch.arange(count) % 2
    ways = torch.zeros(count, LAST + 1, 4)
    for i, k in enumerate(labels):
        j, r = list(TRUE.values())[k]
        ways[i, :, j] = r * torch.arange(LAST + 1) / LAST
    return SequenceBatch.full((start + ways).sigmoid().view(count, LAST + 1, 1, 2, 2), labels)


def test_the_best_dimension_and_range_are_found(reader):
    fit_traversals(reader, [films(), films()])
    for k, (j, r) in enumerate(TRUE.values()):
        assert int(reader.single_dimension[k]) == j
        assert float(reader.single_range[k]) == pytest.approx(r, abs=0.07)
    assert reader.training
    facts = reader.finish([films(), films()], [])["traversals"]
    assert facts["training_errors"]["mean"] < 1e-3
    assert facts["training_errors"]["single"] < 0.1
    assert facts["chosen"] == reader.traversal == "mean"
    assert reader.measure(films(), [films()])["error"] < 1e-3


@pytest.mark.parametrize("traversal", ["single", "mean"])
def test_latents_move_by_the_traversal(reader, traversal):
    reader.traversal = traversal
    fit_traversals(reader, [films()])
    z = torch.randn(3, 4)
    for name, (j, r) in TRUE.items():
        moved = reader.flow(z, name, 2.0)
        expected = z.clone()
        expected[:, j] += r / 2
        torch.testing.assert_close(moved, expected, atol=0.04, rtol=0)
    path = reader.flow(z, torch.tensor([0, 1, 0]), [1.0, 1.5, 9.0, -1.0])
    assert torch.equal(path[0], z)
    for i, k in enumerate((0, 1, 0)):
        single = reader.flow(z[i : i + 1], k, [1.0, 1.5, 9.0, -1.0])
        torch.testing.assert_close(path[:, i : i + 1], single)
        # Straight on between frames, beyond the last and before the first.
        j, r = list(TRUE.values())[k]
        away = (path[:, i, j] - z[i, j]) / r * LAST
        torch.testing.assert_close(away, torch.tensor([0.0, 0.5, 8.0, -2.0]), atol=0.3, rtol=0)
    assert torch.equal(reader.flow(z, -1, 1.0), reader.flow(z, 1, 1.0))


def test_the_mean_displacement_is_the_mean_over_all_batches(reader):
    batches = [films(4), films(6)]
    fit_traversals(reader, batches, sequences=1, ranges=[1.0])
    frames = torch.cat([batch.frames[batch.labels == 1] for batch in batches])
    logits = torch.logit(frames).flatten(2)
    expected = (logits - logits[:, :1]).mean(0)
    torch.testing.assert_close(reader.mean_displacement[1], expected)


def test_traversals_travel_with_the_model():
    model = small("vae")
    fit_traversals(model, [small_films()], ranges=[1.0, -1.0])
    model.traversal = "single"
    again = VAE.from_spec(model.spec())
    again.load_state_dict(model.state_dict())
    z = torch.randn(2, 4)
    assert again.traversal == "single"
    assert torch.equal(again.flow(z, 1, [0.0, 2.5]), model.flow(z, 1, [0.0, 2.5]))


@pytest.mark.parametrize(
    ("z", "k", "t", "error", "word"),
    [
        (torch.zeros(2, 4), "up", 1.0, KeyError, "left"),
        (torch.zeros(2, 4), 2, 1.0, IndexError, "k"),
        (torch.zeros(2, 4), -3, 1.0, IndexError, "k"),
        (torch.zeros(2, 4), torch.tensor([0, 5]), 1.0, IndexError, "k"),
        (torch.zeros(2, 4), torch.ones(2, 2), 1.0, ValueError, "k"),
        (torch.zeros(2, 4), torch.tensor([0, 1, 0]), 1.0, ValueError, "k"),
        (torch.zeros(2, 3), 0, 1.0, ValueError, "z"),
        (torch.zeros(2, 4), 0, [], ValueError, "t"),
    ],
)
@pytest.mark.wrong_types
def test_bad_arguments_of_a_flow(reader, z, k, t, error, word):
    fit_traversals(reader, [films()])
    with pytest.raises(error, match=word):
        reader.flow(z, k, t)


def test_what_is_refused(reader):
    with pytest.raises(ValueError, match="fit_traversals"):
        reader.flow(torch.zeros(2, 4), "left", 1.0)
    with pytest.raises(ValueError, match="traversal"):
        reader.traversal = "best"
    batch = films()
    one = SequenceBatch.full(batch.frames[::2], batch.labels[::2])
    with pytest.raises(ValueError, match="right"):
        fit_traversals(reader, [one])
    short = SequenceBatch.full(batch.frames[:, :3], batch.labels)
    with pytest.raises(ValueError, match="complete"):
        fit_traversals(reader, [short])
