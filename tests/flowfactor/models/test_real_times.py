"""Flows to frames at real-valued times: what the grid says of the same times, and closed forms."""

import dataclasses
import itertools

import pytest
import torch
from small_models import HORIZON, NAMES, OPTIONS, SHAPE, choose_frames, films, sharpen, small
from toy_models import Toy

from flowfactor.data import Recordings, SequenceBatch
from flowfactor.diagnostics import draw_film_strips, film_strip_data
from flowfactor.errors import ConfigError
from flowfactor.metrics import equivariance_error, infer_labels, log_likelihood
from flowfactor.observation import Gaussian
from flowfactor.training import TrainingOptions, fit
from solvers import Adjoint, Dopri5

RATE = 0.1
OWN = torch.tensor([[0.0, 0.3, 1.0, 3.0], [0.0, 1.5, 2.0, 2.25]])


class Plain(Gaussian):
    """Pixels are what the logits say."""

    def mean(self, logits):
        return logits


def brightening():
    """A model whose latent, the brightness of its images, grows by RATE each unit of time."""
    model = Toy(
        {"brighten": lambda z, t: RATE * z.sum(-1)},
        SHAPE,
        1,
        lambda x: x.flatten(1).mean(1, keepdim=True),
        lambda z: z.view(-1, 1, 1, 1).expand(-1, *SHAPE),
        horizon=HORIZON,
    )
    model.real_times, model.observation = True, Plain()
    return model.eval()


def brighter(times):
    """Return the frames that the model foretells, at times of each sequence."""
    start = torch.linspace(0.1, 0.4, len(times))[:, None]
    levels = start + RATE * times
    return levels[..., None, None, None].expand(*times.shape, *SHAPE)


@pytest.mark.parametrize("times", [OWN[:1].expand(2, -1), OWN], ids=["shared", "own"])
def test_the_right_flow_has_no_error_at_any_times(times):
    frames = brighter(times).double().numpy()
    data = Recordings(frames, [0, 0], ["brighten"], times=times.double(), time_unit=1.0)
    model = brightening()
    error = equivariance_error(model, data, frames=HORIZON)["brighten"]
    assert float(error.flow.max()) < 64 * 0.003  # of bytes
    assert float(error.identity.min()) > 64 * RATE * 0.25
    strips = film_strip_data(model, data.sample([0, 1]), before=1, beyond=1)
    later = torch.cat([times, times[:, -1:] + 1], 1)
    torch.testing.assert_close(strips.flows["flow"][:, 1:], brighter(later), atol=3e-3, rtol=0)


def test_the_grid_and_the_same_times_off_it_agree():
    """Frames 0, 1 and 3 of sequences, taken from them or recorded so."""
    model, batch = small("flow_vae").eval(), films()
    chosen = choose_frames(batch, [0, 1, 3])
    frames = (batch.frames * 255).round() / 255
    whole = Recordings(frames, batch.labels, NAMES)
    uneven = Recordings(
        frames[:, [0, 1, 3]], batch.labels, NAMES, times=[0.0, 1.0, 3.0], time_unit=1.0
    )
    assert torch.equal(uneven.sample(range(6)).times, chosen.times.float())
    every, some = (
        equivariance_error(model, data, frames=n) for data, n in ((whole, 3), (uneven, 2))
    )
    for name in NAMES:
        torch.testing.assert_close(some[name].flow, every[name].flow[:, [0, 2]], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["flow_vae", "weak_flow_vae"])
def test_the_loss_knows_the_times_and_nothing_but_them(kind):
    """Each later frame counts at its time, so that the loss is the mean of those of two frames."""
    model, batch = small(kind, objective={"hamilton_jacobi": 0.0}), films(2)
    sharpen(model)
    model.eval()
    uneven = dataclasses.replace(batch, times=OWN)

    def cost(sequences):
        return float(model.loss(sequences)["reconstruction"].detach())

    if kind == "flow_vae":
        pairs = [
            dataclasses.replace(
                uneven,
                frames=uneven.frames[:, [0, n]],
                times=OWN[:, [0, n]],
                first_weight=0.0,
            )
            for n in (1, 2, 3)
        ]
        first = cost(dataclasses.replace(pairs[0], first_weight=1.0)) - cost(pairs[0])
        assert cost(uneven) == pytest.approx(first + sum(map(cost, pairs)), rel=1e-3)
    swapped = dataclasses.replace(batch, times=OWN.flip(0))
    assert abs(cost(swapped) - cost(uneven)) > 1e-4 * abs(cost(uneven))
    on_grid = dataclasses.replace(batch, times=batch.times + 1e-5 * (batch.times > 0))
    assert cost(on_grid) == pytest.approx(cost(batch), rel=1e-3)


@pytest.mark.parametrize("solver", [{}, {"gradient": Adjoint()}, {"solver": Dopri5()}])
def test_times_of_each_are_those_of_each_alone(solver):
    model = small("weak_flow_vae", **solver).eval()
    batch = dataclasses.replace(films(2), times=OWN)
    both = model.flow(torch.ones(2, 4), "flow 1", batch.shared_times)
    for row in range(2):
        alone = model.flow(torch.ones(1, 4), "flow 1", OWN[row])
        torch.testing.assert_close(both[:, row], alone[:, 0], rtol=1e-3, atol=1e-4)


def test_likelihoods_and_inferred_flows_of_each_are_those_of_each_alone():
    model = small("weak_flow_vae")
    sharpen(model)
    model.eval()
    batch = dataclasses.replace(films(2), times=OWN)
    alone = [SequenceBatch.full(batch.frames[[i]], batch.labels[[i]], OWN[[i]]) for i in (0, 1)]
    bounds = [log_likelihood(model, each, 2) for each in (batch, *alone)]
    torch.testing.assert_close(bounds[0], torch.cat(bounds[1:]), rtol=5e-3, atol=0)
    inferred = [model.infer(each) for each in (batch, *alone)]
    torch.testing.assert_close(inferred[0], torch.cat(inferred[1:]))
    swapped = dataclasses.replace(batch, times=OWN.flip(0))
    assert not torch.allclose(model.infer(swapped), inferred[0], atol=1e-6)
    data = Recordings(batch.frames, times=OWN, names=["a", "b"])
    assert int(infer_labels(model, data).labels.min()) >= 0


UNEVEN = Recordings(films().frames, films().labels, NAMES, times=[0, 1, 1.5, 3])
TRAINING = TrainingOptions(
    steps=4,
    warmup=1,
    batch_size=2,
    frames_per_sequence=None,
    validate_every=2,
    checkpoint_every=2,
    validation_sequences=2,
    loggers=(),
    accelerator="cpu",
    precision="32-true",
)


class StopError(Exception):
    """Something unforeseen."""


@pytest.mark.parametrize("kind", ["vae", *OPTIONS])
def test_models_of_the_grid_refuse_other_times(tmp_path, kind):
    model = small(kind)
    if model.real_times:
        model.check_data(UNEVEN, names=False)
        return
    with pytest.raises(ConfigError, match="constant rate"):
        fit(model, UNEVEN, UNEVEN, TRAINING, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    def train(folder, fails=None, **more):
        model, calls = small("weak_flow_vae"), itertools.count(1)
        loss = model.loss

        def counted(sequences):
            if next(calls) == fails:
                raise StopError
            return loss(sequences)

        model.loss = counted
        return fit(model, UNEVEN, UNEVEN, TRAINING, tmp_path / folder, **more), model

    whole = train("whole")[1].state_dict()
    with pytest.raises(StopError):
        train("part", fails=4)
    again = train("part", resume=True)[1].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    start = small("weak_flow_vae").state_dict()
    assert not all(torch.equal(value, start[name]) for name, value in whole.items())


def test_a_discrete_density_needs_the_grid():
    model = small("flow_vae", density="discrete", solver={"name": "euler", "steps": 1})
    with pytest.raises(ConfigError, match="constant rate"):
        model.check_data(UNEVEN)


def test_strips_with_times_of_their_own_say_them():
    model = small("flow_vae")
    batch = SequenceBatch.full(films(2).frames, films(2).labels, OWN)
    figure = draw_film_strips(film_strip_data(model, batch))
    shown = [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
    assert shown == [["0", "0.3", "1", "3"], ["0", "1.5", "2", "2.25"]]
