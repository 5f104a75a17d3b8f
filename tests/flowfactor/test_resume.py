"""However and whenever a training ends, going on is as if it had not."""

import dataclasses
import errno
import itertools
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_models import small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_data import Tiny

from flowfactor import checkpoints
from flowfactor.data import SequenceLoader
from flowfactor.errors import DataError, RunError
from flowfactor.interrupts import Interrupted, raise_signals
from flowfactor.training import TrainingOptions, check_samples, fit, read_metrics

OPTIONS = TrainingOptions(
    steps=6,
    warmup=2,
    batch_size=4,
    log_every=1,
    validate_every=2,
    checkpoint_every=4,
    validation_sequences=4,
    loggers=(),
    accelerator="cpu",
    precision="32-true",
)
KINDS = {
    "flow_vae": {},
    "weak_flow_vae": {"inference": {"warmup": 1, "anneal": 2, "restart": True}},
    "sparse_flow_vae": {"stages": {"autoencoder": 1, "fields": 2, "anneal": 1}, "starts": 2},
    "factor_vae": {},
}


DATA = Tiny(horizon=2)
VALIDATION = [DATA.sample([0, 1]), DATA.sample([2, 3])]


def make(kind="flow_vae"):
    return small(kind, ("move", "brighten"), horizon=2, **KINDS[kind])


def fitting(model, options):
    if not model.needs_all_frames:
        return options
    return dataclasses.replace(options, frames_per_sequence=None)


def train(kind, folder, options=OPTIONS, **more):
    model = make(kind)
    result = fit(model, DATA, VALIDATION, fitting(model, options), folder, **more)
    return model, result


def state_of(folder):
    """Return all that a training leaves, but for the time that it took."""
    state = checkpoints.read(folder / "checkpoint.pt")
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder)]
    best = checkpoints.read(folder / "model.safetensors")["weights"]
    return state["step"], state["due"], lines, tensors_of([state[k] for k in STATE]), best


STATE = ("weights", "average", "optimizer", "random")


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    nested = [tensors_of(part) for part in parts if isinstance(part, dict | list | torch.Tensor)]
    return [tensor for each in nested for tensor in each]


def assert_same(folder, whole):
    (*facts, tensors, best), (*others, expected, kept) = state_of(folder), whole
    assert facts == others
    assert len(tensors) == len(expected) > 20
    assert all(map(torch.equal, tensors, expected))
    assert all(torch.equal(value, kept[name]) for name, value in best.items())


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Return what is left of uninterrupted trainings."""
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        train(kind, folder)
        made[kind] = state_of(folder)
    return made


class StopError(Exception):
    """Something unforeseen."""


def at(count, function, act, *, after=False):
    """Return a function that acts at its call number ``count``, once."""
    calls = itertools.count(1)

    def outer(*args, **kwargs):
        hit = next(calls) == count
        if hit and not after:
            act()
        result = function(*args, **kwargs)
        if hit and after:
            act()
        return result

    return outer


def arrange_moment(moment, model, monkeypatch, act):
    """Let something happen at a moment of a training."""
    if moment == "batch":
        monkeypatch.setattr(SequenceLoader, "batch", at(4, SequenceLoader.batch, act))
    if moment == "forward":  # 2 steps and 2 batches of validation come first
        model.loss = at(5, model.loss, act, after=True)
    if moment == "validation":  # its second batch
        model.loss = at(4, model.loss, act, after=True)
    if moment == "backward":
        parameter = next(model.parameters())
        parameter.register_hook(at(3, lambda gradient: None, act))
    if moment == "update":
        step = at(3, torch.optim.AdamW.step, act, after=True)
        monkeypatch.setattr(torch.optim.AdamW, "step", step)
    if moment == "save model":
        monkeypatch.setattr(checkpoints, "save_model", at(1, checkpoints.save_model, act))
    if moment == "save":  # the first is a model
        monkeypatch.setattr(torch, "save", at(2, torch.save, act))


MOMENTS = ("batch", "forward", "validation", "backward", "update", "save model", "save")


NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
CASES = [
    (kind, moment, [KeyboardInterrupt, StopError, MemoryError][i % 3], NUMBERS[i // 3 % 3])
    for i, (kind, moment) in enumerate(itertools.product(KINDS, MOMENTS))
    if kind == "flow_vae" or moment in ("forward", "validation", "update")
]


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Also where the tests run in the background, which ignores some of them."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def end(kind, folder, moment, monkeypatch, act, expected):
    model = make(kind)
    with monkeypatch.context() as patch:
        arrange_moment(moment, model, patch, act)
        with pytest.raises(expected) as caught:
            fit(model, DATA, VALIDATION, fitting(model, OPTIONS), folder)
    return caught.value


@pytest.mark.parametrize(("kind", "moment", "error", "number"), CASES)
def test_every_ending_at_every_moment(kind, moment, error, number, wholes, tmp_path, monkeypatch):
    def fail():
        raise error

    def send():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing

    endings = {"flow_vae": (fail, send), "factor_vae": (fail,)}
    for act in endings.get(kind, (send,)):
        expected = error if act is fail else Interrupted
        folder = tmp_path / expected.__name__
        handlers = [signal.getsignal(each) for each in NUMBERS]
        caught = end(kind, folder, moment, monkeypatch, act, expected)
        assert [signal.getsignal(each) for each in NUMBERS] == handlers
        if act is send:
            assert caught.exit_code == 128 + number
        # Within an update nothing can be saved that is whole.
        exists = (folder / "checkpoint.pt").is_file()
        assert exists or (moment, act) == ("update", fail)
        train(kind, folder, resume=exists)
        assert_same(folder, wholes[kind])


def test_signals_that_are_ignored_stay_ignored(tmp_path):
    """As under nohup; and what raises at once does so once."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _, result = train("flow_vae", tmp_path, on_progress=lambda _: os.kill(os.getpid(), 1))
        assert result.steps == 6
    finally:
        signal.signal(signal.SIGHUP, before)
    with raise_signals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("call", [5, 6])
def test_a_full_disk_keeps_the_state_and_every_line(call, wholes, tmp_path, monkeypatch):
    """Be it full for the line of a step or of a validation, half of which is written."""

    class Full:
        def __init__(self, file):
            self.file, self.close = file, file.close
            self.write = at(call, file.write, self.fill)

        def fill(self):
            self.file.write(b'{"step": 4, "spl')
            raise OSError(errno.ENOSPC, "No space left on device")

    plain = Path.open

    def open_full(path, mode="r", *args, **kwargs):
        file = plain(path, mode, *args, **kwargs)
        return Full(file) if path.name == "metrics.jsonl" and mode.startswith("a") else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(RunError, match=r"metrics\.jsonl.*No space"):
            train("flow_vae", tmp_path)
    assert checkpoints.read(tmp_path / "checkpoint.pt")["step"] == 4
    train("flow_vae", tmp_path, resume=True)
    assert_same(tmp_path, wholes["flow_vae"])


def test_a_folder_that_is_deleted_is_missed(tmp_path):
    run = tmp_path / "run"

    class Deleting(Tiny):
        def render_frames(self, *args):
            if (run / "checkpoint.pt").exists():
                shutil.rmtree(run)
            return super().render_frames(*args)

    with pytest.raises(RunError, match="deleted"):
        fit(make(), Deleting(horizon=2), VALIDATION, OPTIONS, run)
    assert checkpoints.read(run / "checkpoint.pt")["step"] > 1


def test_a_bad_sample_is_named(tmp_path):
    class Broken(Tiny):
        def render_frames(self, indices, elapsed, active, starts):
            if 7 in indices:
                raise OSError("the film ends early")
            return super().render_frames(indices, elapsed, active, starts)

    data = Broken(horizon=2)
    with pytest.raises(DataError, match=r"[Ss]ample 7 .*ends early"):
        fit(make(), data, VALIDATION, OPTIONS, tmp_path)
    assert checkpoints.read(tmp_path / "checkpoint.pt")["step"] < 3
    with pytest.raises(DataError, match=r"[Ss]ample 7 .*ends early"):
        check_samples(data, range(12))
    check_samples(DATA, range(12))


def test_too_little_memory_is_no_bad_sample():
    class Large(Tiny):
        def render_frames(self, *_):
            raise MemoryError

    with pytest.raises(MemoryError):
        check_samples(Large(horizon=2), [0])


# ---- the log


def write_lines(folder, *lines):
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    return [b'{"step": 1, "split": "train", "loss": 2.0}', b'{"step": 2, "split": "train"}']


@pytest.mark.parametrize("torn", [b'{"step": 3, "sp', b"\x00\x00", b"\xff", b'{"step": 3}', b"[3]"])
def test_a_torn_line(tmp_path, torn):
    good = write_lines(tmp_path)
    write_lines(tmp_path, *good, torn)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    write_lines(tmp_path, good[0], torn, good[1])
    with pytest.raises(RunError, match="Line 2"):
        read_metrics(tmp_path)


def test_tensorboard_shows_every_step_once(tmp_path, monkeypatch):
    """Also if a killed process had written more than its state, or less."""
    options = dataclasses.replace(OPTIONS, loggers=("tensorboard", "csv"))

    def fail():
        raise StopError

    with monkeypatch.context() as patch:
        arrange_moment("save", None, patch, fail)
        with pytest.raises(StopError):
            train("flow_vae", tmp_path, options)
    train("flow_vae", tmp_path, options, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = [line for line in read_metrics(tmp_path) if line["split"] == "train"]
    shown = events.Scalars("train/loss")
    assert [each.step for each in shown] == [1, 2, 3, 4, 5, 6] == [line["step"] for line in lines]
    assert [each.value for each in shown] == pytest.approx([line["loss"] for line in lines])
    assert [each.step for each in events.Scalars("validation/loss")] == [2, 4, 6]
    tables = sorted((tmp_path / "csv").glob("*/metrics.csv"))
    assert len(tables[-1].read_text().splitlines()) == 1 + 6 + 3


# ---- which training it is


def test_one_training_at_a_time(tmp_path):
    with ThreadPoolExecutor(1) as other, checkpoints.lock_run(tmp_path):
        for resume in (False, True):
            with pytest.raises(RunError, match="Another process"):
                other.submit(train, "flow_vae", tmp_path, resume=resume).result()
    train("flow_vae", tmp_path, dataclasses.replace(OPTIONS, steps=1))


def test_an_older_training_is_not_taken_for_this_one(tmp_path, monkeypatch):
    options = dataclasses.replace(OPTIONS, steps=1)
    train("flow_vae", tmp_path, options)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", None)  # as if killed
        with pytest.raises(KeyboardInterrupt):
            fit(make(), Ending(), VALIDATION, options, tmp_path)
    assert not list(tmp_path.glob("*.pt"))
    with pytest.raises(RunError, match="resume"):
        train("flow_vae", tmp_path, options, resume=True)


class Ending:
    """Batches that end at once."""

    def batch(self, step):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ended")
    train("flow_vae", folder, dataclasses.replace(OPTIONS, steps=4, average=0.9))
    return folder


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("training.batch_size: 4 -> 3", {"batch_size": 3}),
        ("training.weight_decay", {"weight_decay": 0.1}),
        ("training.average", {"average": None}),
        ("seed: 0 -> 1", {"seed": 1}),
        ("model.beta|model.objective", {"model": {"objective": {"beta": 2.0}}}),
        ("model: flow_vae -> vae", {"kind": "vae"}),
        ("data: .*12.*11", {"data": range(11)}),
        ("data.start: None -> 5", {"settings": {"data.start": 5}}),
    ],
)
def test_another_training_is_not_resumed(ended, what, changes):
    changes = dict(changes)
    model = small(
        changes.pop("kind", "flow_vae"),
        DATA.names,
        horizon=2,
        **changes.pop("model", {}),
    )
    rest = {key: changes.pop(key) for key in ("seed", "settings") if key in changes}
    data = DATA
    if changes.pop("data", None):
        data = Tiny(horizon=2)
        type(data).__len__, length = (lambda _: 11), type(data).__len__
    options = dataclasses.replace(OPTIONS, **{"average": 0.9} | changes)
    try:
        with pytest.raises(RunError, match=what):
            fit(model, data, VALIDATION, options, ended, resume=True, **rest)
    finally:
        if data is not DATA:
            type(data).__len__ = length


def test_by_fewer_processes_which_share_the_batches(ended, tmp_path, monkeypatch):
    """What is played is the state of two: how that of real ones goes on is a test of clusters."""
    state = checkpoints.read(ended / "checkpoint.pt")
    state["identity"] = state["identity"].replace('"processes": 1', '"processes": 2')
    state["random"] *= 2
    del state["format"]
    checkpoints.write(state, tmp_path / "checkpoint.pt")
    batch, seen = SequenceLoader.batch, []

    def watch(self, step):
        seen.append((step, torch.get_rng_state()))
        drawn = batch(self, step)
        assert len(drawn) == 2 * OPTIONS.batch_size
        return drawn

    monkeypatch.setattr(SequenceLoader, "batch", watch)
    options = dataclasses.replace(OPTIONS, steps=5, average=0.9)
    train("flow_vae", tmp_path, options, resume=True)
    ((step, random),) = seen
    assert step == 4
    assert not torch.equal(random, state["random"][0]["cpu"])
    train("flow_vae", tmp_path, dataclasses.replace(options, steps=6), resume=True)
    assert [step for step, _ in seen] == [4, 5]


def put(*path):
    """Return a function that puts a value into nested dictionaries and lists."""
    *parents, last, value = path

    def change(state):
        for key in parents:
            state = state[key]
        if value is MISSING:
            del state[last]
        else:
            state[last] = value

    return change


MISSING = object()
WEIGHT = "decoder.network.0.weight"


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("step", put("step", None)),
        ("step", put("step", -1)),
        ("step", put("step", True)),
        ("step", put("step", MISSING)),
        ("seconds", put("seconds", float("nan"))),
        ("best", put("best", "low")),
        ("due", put("due", {"train": {"loss": "low"}})),
        ("identity", put("identity", MISSING)),
        ("average", put("average", None)),
        ("average|module", put("average", "n_averaged", MISSING)),
        (WEIGHT, put("weights", WEIGHT, torch.zeros(2, 2))),
        (WEIGHT, put("weights", WEIGHT, torch.zeros(16, 4, dtype=torch.float64))),
        (WEIGHT, put("weights", WEIGHT, None)),
        (WEIGHT, put("weights", WEIGHT, MISSING)),
        ("weights|tensors", put("weights", [1, 2])),
        ("float64", put("optimizer", "state", 0, "exp_avg", torch.zeros(4, 9).double())),
        ("betas", put("optimizer", "param_groups", 0, "betas", (None, 0.5))),
        ("parameters|groups|argument", put("optimizer", "param_groups", [])),
        ("params", put("optimizer", "param_groups", 0, "params", [5])),
        ("random", put("random", [])),
        ("cpu", put("random", 0, "cpu", torch.zeros(3))),
    ],
)
def test_wrong_contents_of_the_right_form(ended, tmp_path, what, change):
    state = checkpoints.read(ended / "checkpoint.pt")
    change(state)
    del state["format"]
    checkpoints.write(state, tmp_path / "checkpoint.pt")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    options = dataclasses.replace(OPTIONS, average=0.9)
    with pytest.raises(RunError, match=f"damaged: .*({what})"):
        train("flow_vae", tmp_path, options, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_precision_that_was_measured_is_kept(tmp_path, monkeypatch):
    auto = dataclasses.replace(OPTIONS, precision="auto")

    def stop():
        raise StopError

    def measure(precision):
        monkeypatch.setattr("flowfactor.machine.choose_precision", lambda *_: (precision, ""))

    measure("bf16-mixed")
    train("flow_vae", tmp_path / "whole", auto)
    with monkeypatch.context() as patch:
        patch.setattr(SequenceLoader, "batch", at(4, SequenceLoader.batch, stop))
        with pytest.raises(StopError):
            train("flow_vae", tmp_path / "ended", auto)
    measure("32-true")  # the machine is another, or busy
    train("flow_vae", tmp_path / "single", auto)
    with pytest.raises(RunError, match="precision"):
        train("flow_vae", tmp_path / "ended", OPTIONS, resume=True)
    train("flow_vae", tmp_path / "ended", auto, resume=True)
    assert_same(tmp_path / "ended", state_of(tmp_path / "whole"))
    assert state_of(tmp_path / "single")[2] != state_of(tmp_path / "whole")[2]
