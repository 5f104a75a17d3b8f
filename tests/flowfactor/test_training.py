"""The loop: it learns, resumes exactly, saves atomically and stops with a reason."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import time

import pytest
import torch
from small_models import small
from toy_data import Tiny

import flowfactor
from flowfactor import checkpoints, training
from flowfactor.data import BackgroundLoader, SequenceLoader
from flowfactor.errors import ConfigError, DataError, RunError
from flowfactor.training import (
    TrainingError,
    TrainingOptions,
    fit,
    read_metrics,
    validation_batches,
)

OPTIONS = TrainingOptions(
    steps=12,
    warmup=2,
    batch_size=6,
    log_every=2,
    validate_every=4,
    checkpoint_every=4,
    average=0.9,
    loggers=(),
    accelerator="cpu",
    precision="32-true",
)


@pytest.fixture(scope="module")
def data():
    return Tiny(horizon=3)


def make(kind="flow_vae", **options):
    return small(kind, ("move", "brighten"), **options)


def run_fit(data, folder, options=OPTIONS, model=None, **more):
    model = model or make()
    return model, fit(model, data, data, options, folder, **more)


def test_it_learns(data, tmp_path):
    options = dataclasses.replace(
        OPTIONS, steps=80, warmup=5, log_every=1, validate_every=40, learning_rate=1e-2
    )
    _, result = run_fit(data, tmp_path, options)
    losses = [line["loss"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert len(losses) == 80
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert result.steps == 80
    best = min(line["loss"] for line in read_metrics(tmp_path) if line["split"] == "validation")
    assert result.best_validation == best


def test_a_group_may_learn_in_a_span_of_its_own(data, tmp_path):
    model, seen = make(), []
    encoder = list(model.encoder.parameters())
    others = [p for p in model.parameters() if all(p is not each for each in encoder)]
    model.parameter_groups = lambda: [{"params": encoder, "span": (0, 3)}, {"params": others}]

    class Watched(SequenceLoader):
        def batch(self, step):
            seen.append([part[0].detach().clone() for part in (encoder, others)])
            return super().batch(step)

    options = dataclasses.replace(OPTIONS, average=None)
    fit(model, Watched(data, 6, frames_per_sequence=2), data, options, tmp_path)
    moved = [
        [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        for before, after in itertools.pairwise(seen)
    ]
    assert moved == [[True, True]] * 3 + [[False, True]] * 8


def test_a_resumed_training_is_the_same_training(data, tmp_path):
    whole, _ = run_fit(data, tmp_path / "whole")

    class Interrupted(SequenceLoader):
        def batch(self, step):
            if step == 7:
                raise KeyboardInterrupt
            return super().batch(step)

    for wrap in (contextlib.nullcontext, BackgroundLoader):
        folder = tmp_path / wrap.__name__
        with (
            wrap(Interrupted(data, 6, frames_per_sequence=2)) as batches,
            pytest.raises(KeyboardInterrupt),
        ):
            fit(make(), batches, data, OPTIONS, folder)
        resumed, result = run_fit(data, folder, resume=True)
        assert result.steps == 12
        for name, parameter in whole.state_dict().items():
            assert torch.equal(parameter, resumed.state_dict()[name]), name

    def without_times(folder):
        return [
            {key: value for key, value in line.items() if key != "seconds"}
            for line in read_metrics(folder)
        ]

    assert without_times(folder) == without_times(tmp_path / "whole")
    for a, b in zip(
        flowfactor.load(folder).parameters(),
        flowfactor.load(tmp_path / "whole").parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_metrics_are_one_json_object_a_line(data, tmp_path):
    run_fit(data, tmp_path, dataclasses.replace(OPTIONS, loggers=("tensorboard",)))
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [4, 8, 12]
    for line in lines:
        terms = [line[name] for name in ("reconstruction", "kl", "hamilton_jacobi")]
        assert line["loss"] == pytest.approx(sum(terms))
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_schedule_warms_up_and_ends_at_zero(data, tmp_path):
    options = dataclasses.replace(
        OPTIONS, steps=20, warmup=5, log_every=1, validate_every=20, learning_rate=1e-3
    )
    run_fit(data, tmp_path, options)
    rates = [line["learning_rate"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert rates[0] == pytest.approx(2e-4)
    assert max(rates) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 4 / 20)), rel=1e-6)
    assert rates[-1] < 1e-5
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_time_ends_a_training_with_its_schedule_complete(data, tmp_path):
    options = dataclasses.replace(OPTIONS, steps=10**9, max_minutes=1 / 120, warmup=1, log_every=1)
    _, result = run_fit(data, tmp_path, options)
    assert 0.5 <= result.seconds < 30
    rates = [line["learning_rate"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert rates[-1] < rates[0] / 2


def test_non_finite_loss_stops_before_it_spoils_the_weights(data, tmp_path):
    options = dataclasses.replace(OPTIONS, steps=5, learning_rate=1e30, clip=None, warmup=0)
    with pytest.raises(TrainingError, match=r"not finite|could not be solved"):
        run_fit(data, tmp_path, options)
    kept = checkpoints.read(tmp_path / "checkpoint.pt")
    assert kept["step"] >= 1


def test_nan_images_stop_the_training_with_weights_intact(data, tmp_path):
    class Broken(SequenceLoader):
        def batch(self, step):
            batch = super().batch(step)
            if step == 3:
                batch.frames[0, 0, 0, 0, 0] = float("nan")
            return batch

    with pytest.raises(TrainingError, match="step 3"):
        fit(make(), Broken(data, 6), [], OPTIONS, tmp_path)
    for value in checkpoints.read(tmp_path / "checkpoint.pt")["weights"].values():
        assert torch.isfinite(value).all()


def test_progress_is_reported(data, tmp_path):
    seen = []
    run_fit(data, tmp_path, on_progress=seen.append)
    fractions = [each.fraction for each in seen if each.split == "train"]
    assert fractions == pytest.approx([2 / 12, 4 / 12, 6 / 12, 8 / 12, 10 / 12, 1])
    assert all(each.seconds_left >= 0 for each in seen)
    assert "reconstruction" in seen[-1].terms


def test_resume_needs_something_to_resume(data, tmp_path):
    with pytest.raises(RunError, match="resume"):
        run_fit(data, tmp_path, resume=True)


def test_resume_with_another_model_changes_nothing(data, tmp_path):
    run_fit(data, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    other = make(latent_dim=5)
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        run_fit(data, tmp_path, model=other, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("learning_rate", -1.0),
        ("max_minutes", 0.0),
        ("clip", 0.0),
        ("average", 1.0),
        ("betas", (0.9, 1.0)),
        ("loggers", ("paper",)),
    ],
)
@pytest.mark.wrong_types
def test_bad_options(option, value):
    with pytest.raises(ConfigError, match=option):
        TrainingOptions(**{option: value})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("poflow", {}),
        ("slow_vae", {}),
        ("topographic_vae", {}),
        ("flow_vae", {"solver": {"name": "euler"}, "density": "discrete"}),
    ],
)
def test_models_that_encode_frame_0_are_not_given_another(kind, options, data, tmp_path):
    model = make(kind, **options)
    random = dataclasses.replace(OPTIONS, encoded_frame="random")
    with pytest.raises(ConfigError, match=r"training\.encoded_frame"):
        fit(model, data, data, random, tmp_path)
    with pytest.raises(ConfigError, match=r"training\.encoded_frame"):
        fit(model, SequenceLoader(data, 6, encoded_frame="random"), data, OPTIONS, tmp_path)


@pytest.mark.parametrize("kind", ["sparse_flow_vae", "topographic_vae"])
def test_a_model_that_needs_whole_sequences(kind, data, tmp_path):
    for batches in (data, SequenceLoader(data, 6, frames_per_sequence=2)):
        with pytest.raises(ConfigError, match=r"training\.frames_per_sequence"):
            fit(make(kind), batches, data, OPTIONS, tmp_path)
    assert not any(tmp_path.iterdir())
    steps = dataclasses.replace(OPTIONS, steps=2)
    assert fit(make(kind), SequenceLoader(data, 6), data, steps, tmp_path).steps == 2


@pytest.mark.parametrize("compiles", [True, False])
def test_flows_are_compiled_in_training_steps_only(compiles, data, tmp_path, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def watch(enabled):
        asked.append(enabled)
        yield

    monkeypatch.setattr(training, "compiled_flows", watch)
    run_fit(data, tmp_path, dataclasses.replace(OPTIONS, steps=3, compile=compiles))
    assert asked == [compiles] * 3


@pytest.mark.parametrize("kind", ["flow_vae", "weak_flow_vae", "vae", "factor_vae"])
def test_training_from_any_frame(kind, data, tmp_path):
    random = dataclasses.replace(
        OPTIONS, steps=2, encoded_frame="random", frames_per_sequence=1, average=None
    )
    _, result = run_fit(data, tmp_path, random, make(kind))
    assert result.steps == 2
    with pytest.raises(RunError, match="encoded_frame"):
        run_fit(data, tmp_path, dataclasses.replace(random, encoded_frame="first"), make(kind),
                resume=True)  # fmt: skip


def test_a_schedule_longer_than_half_of_the_training(data, tmp_path, caplog):
    def train(warmup, **changes):
        model = make("weak_flow_vae", inference={"warmup": warmup, "anneal": 1})
        run_fit(data, tmp_path, dataclasses.replace(OPTIONS, **changes), model)

    with pytest.raises(ConfigError, match=r"training\.steps: must be at least 14"):
        train(6)
    assert not any(tmp_path.iterdir())
    for warmup, warned in ((5, False), (10**6, True)):
        caplog.clear()
        train(warmup, steps=10**7 if warned else 12, max_minutes=0.001 if warned else 1.0)
        assert warned == ("training.max_minutes" in caplog.text)


def test_a_line_at_least_every_ten_seconds(data, tmp_path, caplog, monkeypatch):
    now = 0.0

    def slow():
        nonlocal now
        now += 2
        return now

    monkeypatch.setattr(time, "monotonic", slow)
    rare = dict.fromkeys(("log_every", "validate_every", "checkpoint_every"), 1000)
    with caplog.at_level(logging.INFO, "flowfactor"):
        _, result = run_fit(data, tmp_path, dataclasses.replace(OPTIONS, **rare))
    lines = [text for text in caplog.messages if text.startswith("step ")]
    assert len(lines) >= result.seconds // (10 + result.seconds / result.steps)
    assert "left" in lines[0]
    assert "reconstruction" in lines[0]


def test_a_supervised_model_needs_labels(data, tmp_path):
    with pytest.raises(DataError, match="label"):
        run_fit(data.without_labels(), tmp_path)


def test_loggers_are_fed(data, tmp_path):
    options = dataclasses.replace(OPTIONS, loggers=("csv",))
    run_fit(data, tmp_path, options)
    (table,) = (tmp_path / "csv").glob("*/metrics.csv")
    assert "validation/loss" in table.read_text().splitlines()[0]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("kind", ["flow_vae", "weak_flow_vae", "vae"])
def test_errors_are_measured_at_each_validation(kind, data, tmp_path):
    options = dataclasses.replace(OPTIONS, validation_errors=4)
    sequences = data if kind != "weak_flow_vae" else data.without_labels()
    run_fit(sequences, tmp_path, options, make(kind))
    errors = [line["error"] for line in read_metrics(tmp_path) if line["split"] == "validation"]
    assert len(errors) == 3
    assert all(0 < error < 64 * 3 for error in errors)


def test_validation_batches_cover_the_images_once(data):
    batches = list(validation_batches(data, 100, batch_size=5))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.bincount().tolist() == [6, 6]


def test_mixed_precision_reaches_the_networks_but_not_the_potentials(data, tmp_path):
    model, seen = make(), {}

    def watch(name, inner):
        def outer(*arguments):
            result = inner(*arguments)
            seen[name] = result[0].dtype if isinstance(result, tuple) else result.dtype
            return result

        return outer

    model.decoder.forward = watch("decoder", model.decoder.forward)
    model.encoder.forward = watch("encoder", model.encoder.forward)
    parameters = type(model.potentials.parameters_of(slice(None)))
    evaluate = parameters.evaluate
    parameters.evaluate = watch("potentials", evaluate)
    try:
        run_fit(data, tmp_path, dataclasses.replace(OPTIONS, precision="bf16-mixed"), model)
    finally:
        parameters.evaluate = evaluate
    assert seen == {
        "decoder": torch.bfloat16,
        "encoder": torch.bfloat16,
        "potentials": torch.float32,
    }


def test_a_loss_that_is_not_finite_names_its_terms(data, tmp_path):
    model = make("vae")
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="reconstruction nan"):
        run_fit(data, tmp_path, model=model)


def test_errors_at_validations_need_data_sets(data, tmp_path):
    options = dataclasses.replace(OPTIONS, validation_errors=2)
    with pytest.raises(ConfigError, match="validation_errors"):
        fit(make(), SequenceLoader(data, 6), data, options, tmp_path)
