"""Sequences whose transformations switch, run at any speed, and either way."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from toy_data import Tiny

from flowfactor.data import (
    ActivityLaw,
    FactorGrid,
    MNISTOptions,
    Photos,
    Recordings,
    SequenceLoader,
    Sprites,
    Transformation,
    TransformedImages,
    render,
)
from flowfactor.errors import ConfigError, DataError
from flowfactor.models import WeakFlowVAE

KINDS = ("single", "switch", "pairs", "mixed")
GENERATOR = torch.Generator().manual_seed(0)
GONE = Transformation("scale", path_range=(0.0, 0.2))
PICTURES = list(torch.rand(8, 3, 60, 80, generator=GENERATOR))


def grid(**options) -> FactorGrid:
    images = np.random.default_rng(0).integers(0, 256, (6 * 9 * 5, 4, 4, 3), dtype=np.uint8)
    factors = {"hue": 6, "size": 9, "shape": 5}
    moved = {"hue": Transformation(start="own"), "size": Transformation(start=2)}
    defaults = {"transformations": moved, "cyclic": ["hue"], "horizon": 4, "split": "all"}
    return FactorGrid(images, factors, **defaults | options)


def recorded() -> Recordings:
    frames = np.random.default_rng(1).integers(0, 256, (12, 9, 1, 4, 4), dtype=np.uint8)
    return Recordings(frames, ["up", "down"] * 6, horizon=4)


def drawn(law: ActivityLaw, count=4000, k=3, horizon=8, **options) -> torch.Tensor:
    random = torch.rand(count, law.size, generator=torch.Generator().manual_seed(1))
    return law.draw(random, k, horizon, **options)


def steady(data, k: int, speed: float, count: int) -> torch.Tensor:
    activity = torch.zeros(count, data.horizon, len(data.names))
    activity[..., k] = speed
    return activity


# ---- what is drawn


def test_of_a_single_transformation_the_speed_is_constant_and_anything_allowed():
    activity = drawn(ActivityLaw("single", speeds=(0.5, 1.5)))
    assert bool(((activity != 0).sum(2) == 1).all())
    assert bool((activity == activity[:, :1]).all())
    speeds, chosen = activity[:, 0].abs().max(1)
    assert 0.5 <= float(speeds.min()) < 0.51
    assert 1.49 < float(speeds.max()) <= 1.5
    assert float(speeds.mean()) == pytest.approx(1, abs=0.02)
    assert (chosen.bincount() / 4000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert float((activity.sum((1, 2)) > 0).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_switch_is_to_another_transformation_at_any_frame_within():
    activity = drawn(ActivityLaw("switch"))
    acts = activity != 0
    assert bool((acts.sum(2) == 1).all())
    assert bool((acts.any(1).sum(1) == 2).all())
    changes = (activity[:, 1:] != activity[:, :-1]).any(2)
    assert bool((changes.sum(1) == 1).all())
    frames = changes.long().argmax(1) + 1
    assert (frames.bincount(minlength=8)[1:] / 4000).tolist() == pytest.approx(
        [1 / 7] * 7, abs=0.03
    )
    pairs = acts[:, 0].long().argmax(1) * 3 + acts[:, -1].long().argmax(1)
    assert sorted(pairs.unique().tolist()) == [1, 2, 3, 5, 6, 7]


def test_pairs_are_two_at_once_with_signs_of_their_own():
    activity = drawn(ActivityLaw("pairs"))
    assert bool(((activity != 0).sum(2) == 2).all())
    assert bool((activity == activity[:, :1]).all())
    signs = (activity[:, 0] > 0).sum(1)
    assert (signs.bincount() / 4000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_half_of_mixed_switch():
    acting = (drawn(ActivityLaw("mixed")) != 0).any(1).sum(1)
    assert (acting.bincount()[1:] / 4000).tolist() == pytest.approx([0.5, 0.5], abs=0.03)


def test_forwards_has_no_other_sign_and_whole_speeds_are_whole():
    activity = drawn(ActivityLaw("mixed", (0.5, 3.2), "forwards"), whole=True)
    assert sorted(activity.unique().tolist()) == [0, 1, 2, 3]


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "change",
    [{"kind": "triples"}, {"speeds": (0, 1)}, {"speeds": (2, 1)}, {"directions": "backwards"}],
)
def test_impossible_laws_are_refused(change):
    with pytest.raises(DataError, match=next(iter(change)).replace("kind", "activity")):
        ActivityLaw(**change)


@pytest.mark.parametrize(
    ("law", "data"),
    [
        (ActivityLaw("pairs"), Sprites(4, transformations={"hue": Transformation()})),
        (ActivityLaw("switch"), Sprites(4, horizon=1)),
        (ActivityLaw("single", (0.2, 0.8)), Tiny(4)),  # no whole speed
        (ActivityLaw("single", (1, 2)), Tiny(4)),  # no room
        (ActivityLaw("single"), Sprites(4, horizon=12)),
        (ActivityLaw("single"), Sprites(4, transformations={"hue": Transformation(step=0.0)})),
        (ActivityLaw("single"), Sprites(4, transformations={"scale": GONE})),
        (ActivityLaw("switch"), recorded()),
        (ActivityLaw("single"), Recordings(np.zeros((4, 3, 1, 4, 4)), names=["a", "b"])),
    ],
)
def test_data_sets_say_what_they_cannot_do(law, data):
    with pytest.raises(DataError, match=r"activity|speeds|step 0|path_range"):
        data.with_activity(law)


# ---- what is shown


@pytest.mark.parametrize(
    "data",
    [
        TransformedImages(torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8)),
        Sprites(6, size=8),
        Photos(PICTURES, count=6, size=8, horizon=4),
        grid(),
        grid(transformations={"size": Transformation(start="own", step=-1)}),
    ],
    ids=["images", "sprites", "photos", "grid", "own"],
)
def test_speed_one_forwards_is_the_ordinary_sequence(data):
    indices = torch.arange(6)
    for k in range(len(data.names)):
        ordinary = data.sample(indices, k).frames
        forwards = data.move(indices, steady(data, k, 1, 6))
        assert torch.equal(forwards.frames, ordinary)
        assert forwards.labels is None


def test_backwards_is_the_reverse_where_there_is_no_more_room():
    ranges = {"scaling": (1.0, 1.8), "rotation": (0.0, 80.0), "hue": (0.0, 160.0)}
    data = TransformedImages(
        torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8, generator=GENERATOR),
        transformations={
            name: Transformation(
                {"rotation": "angle", "scaling": "scale"}.get(name), path_range=ends
            )
            for name, ends in ranges.items()
        },
    )
    indices = torch.arange(3)
    for k in range(3):
        forwards = data.sample(indices, k).frames
        backwards = data.move(indices, steady(data, k, -1, 3)).frames
        torch.testing.assert_close(backwards, forwards.flip(1), rtol=0, atol=1e-5)


def test_two_at_once_and_in_turn_are_what_compose_renders():
    data = Sprites(4, size=8)
    both = steady(data, 0, 1, 4) + steady(data, 4, 1, 4)
    truth = data.compose(range(4), ("scaling", "hue")).frames
    assert torch.equal(data.move(range(4), both).frames, truth)
    clock = torch.arange(9).expand(4, -1)
    elapsed = [clock.clamp(max=3), (clock - 3).clamp(min=0)]
    truth = data.compose(range(4), ("hue", "x"), elapsed=elapsed).frames
    turned = torch.cat([steady(data, 4, 1, 4)[:, :3], steady(data, 2, 1, 4)[:, 3:]], 1)
    assert torch.equal(data.move(range(4), turned).frames, truth)


def test_frames_of_a_path_do_not_depend_on_which_are_asked_for():
    data = Photos(PICTURES, count=4, size=8, horizon=4)
    turned = torch.cat([steady(data, 3, 1, 4)[:, :2], steady(data, 0, -1, 4)[:, 2:]], 1)
    whole = data.move(range(4), turned).frames
    times = torch.tensor([[3, 1], [4, 0], [2, 4], [1, 1]])
    few = data.move(range(4), turned, times).frames
    assert torch.equal(few, whole[torch.arange(4)[:, None], times])


def test_any_speed_is_what_the_renderer_draws_there():
    """Forwards from the canonical start, backwards from the nearest one that has room."""
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8, generator=GENERATOR)
    data = TransformedImages(images)
    activity = steady(data, 0, 0.7, 2) + steady(data, 1, -1.25, 2)
    t = torch.arange(9.0).expand(2, -1)
    truth = render(images / 255, 1 + 0.07 * t, 100 - 12.5 * t, 0 * t)
    torch.testing.assert_close(data.move([0, 1], activity).frames, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("initial_state", ["canonical", "random"])
def test_paths_stay_within_their_range(kind, initial_state):
    """Seen by a data set that shows its parameters as brightness."""

    class Shown(TransformedImages):
        def render_frames(self, indices, elapsed, active, starts):
            values = self._parameters(elapsed, active, starts, {"scale": 1, "angle": 0, "hue": 0})
            return torch.stack(list(values.values()), 2)[..., None, None]

    data = Shown(torch.zeros(300, 1, 4, 4, dtype=torch.uint8), random_start_prob=1)
    law = ActivityLaw(kind)
    batch = data.draw_sequences(range(300), law, random_starts=initial_state == "random")
    values, ends = batch.frames[..., 0, 0], [(0.7, 1.9), (0, 120), (0, 240)]
    for k, (low, high) in enumerate(ends):
        assert low - 1e-4 <= float(values[:, :, k].min())
        assert float(values[:, :, k].max()) <= high + 1e-4
    steps = torch.tensor([0.1, 10, 20])
    torch.testing.assert_close(values.diff(dim=1), batch.activity * steps, rtol=0, atol=1e-3)
    if initial_state == "random":
        assert float(values[:, 0, 0].std()) > 0.25


def test_grids_move_on_their_axes_and_rest_where_the_sample_is():
    data = grid(split="train", initial_state="random")
    data = data.with_transformations(
        {"hue": Transformation(step=2), "size": Transformation(start="own")}
    ).with_activity(ActivityLaw("switch", (1, 2)))
    images = data.images(range(6 * 9 * 5)).flatten(1)
    batch = SequenceLoader(data, 20, seed=3).batch(5)
    numbers = (batch.frames.flatten(2)[:, :, None] == images).all(-1).long().argmax(-1)
    hue, size, shape = numbers // 45, numbers // 5 % 9, numbers % 5
    assert bool((shape == shape[:, :1]).all())
    assert torch.equal((hue.diff(dim=1) - 2 * batch.activity[..., 0]) % 6, torch.zeros(20, 4))
    assert torch.equal(size.diff(dim=1).float(), batch.activity[..., 1])
    held = grid(split="test").positions(range(1))[0]
    assert not bool(((hue == held[0]) & (size == held[1]) & (shape == held[2])).all(1).any())


def test_recordings_are_played_at_whole_speeds_both_ways():
    data = recorded().with_activity(ActivityLaw("single", (1, 2)))
    whole = recorded().with_horizon(8).sample(range(12)).frames
    batch = data.draw_sequences(range(12), data.activity)
    assert sorted(batch.activity.unique().tolist()) == [-2, -1, 0, 1, 2]
    for i, k in enumerate(data.labels.tolist()):
        speed = batch.activity[i, 0, k]
        assert torch.equal(batch.activity[i, :, k], speed.expand(4))
        numbers = [int((whole[i] == x).flatten(1).all(1).nonzero()) for x in batch.frames[i]]
        assert np.diff(numbers).tolist() == [int(speed)] * 4
    with pytest.raises(DataError, match="recording"):
        data.move([0], steady(data, 1 - int(data.labels[0]), 1, 1))


# ---- when it is drawn


def test_batches_depend_on_their_step_alone_and_sequences_on_seed_and_sample():
    data = Sprites(40, size=8, initial_state="random").with_activity(ActivityLaw("mixed"))
    first, again = (SequenceLoader(data, 6, seed=2).batch(7) for _ in range(2))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.activity, again.activity)
    other = SequenceLoader(data, 6, seed=2).batch(8)
    assert not torch.equal(first.activity, other.activity)
    law = ActivityLaw("switch")
    many, one = data.draw_sequences(range(10), law), data.draw_sequences([7], law)
    assert torch.equal(many.frames[7:8], one.frames)
    assert torch.equal(many.activity[7:8], one.activity)
    assert not torch.equal(data.draw_sequences([7], law, seed=1).activity, one.activity)
    for prob in (0.05, 1.0):  # whatever training uses
        same = Sprites(40, size=8, random_start_prob=prob).draw_sequences(range(10), law)
        assert torch.equal(same.frames, many.frames)


def test_with_frames_to_choose_from_activity_is_of_the_whole_sequence():
    data = Sprites(8, size=8).with_activity(ActivityLaw("mixed"))
    loader = SequenceLoader(data, 4, frames_per_sequence=2, encoded_frame="random")
    batch = loader.batch(0)
    assert batch.frames.shape[:2] == (4, 3)
    assert batch.activity.shape == (4, 8, 5)
    assert batch.counted.activity is batch.activity
    assert batch.to("meta").activity.device.type == "meta"


def test_models_that_are_not_supervised_do_not_read_the_truth():
    data = Sprites(8, size=8, horizon=2).with_activity(ActivityLaw("mixed"))
    batch = SequenceLoader(data, 6).batch(0)
    model = WeakFlowVAE.build(data.names, (3, 8, 8), horizon=2, latent_dim=4, width=8)
    losses, choices = [], []
    for given in (batch, dataclasses.replace(batch, activity=None)):
        torch.manual_seed(0)
        losses.append(model.loss(given))
        choices.append(model.choose(given))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert torch.equal(*choices)
    with pytest.raises(DataError, match="activity"):
        data.require_labels()


def test_options_name_the_law():
    options = MNISTOptions(activity="mixed", speeds=(1, 2), directions="forwards")
    assert options.law == ActivityLaw("mixed", (1, 2), "forwards")
    assert MNISTOptions().law is None
    assert not options.differences(MNISTOptions())
    for change in ({"activity": "all"}, {"speeds": (2, 1)}, {"speeds": (0, 1)}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            MNISTOptions(**change)


def test_wrong_activity_is_refused():
    data, moved = Sprites(4, size=8), steady(Sprites(4, size=8), 0, 1, 2)
    bad = [moved[:1], moved[:, :3], moved[..., :2], moved * float("nan"), moved * 3]
    for activity, who in itertools.zip_longest([*bad, 0.5 * steady(Tiny(4), 0, 1, 2)], [data] * 5):
        with pytest.raises(DataError, match="activity"):
            (who or Tiny(4)).move([0, 1], activity)
