"""End trainings at random moments, damage their files, and compare with undisturbed ones.

    python -m experiments.benchmarks.stress [--minutes M] [--seed N] [--out FILE]

Tiny trainings run in processes of their own. Each is ended up to three times, by a signal at a
random time or by an exception at a random call, and resumed (or started again, before its first
checkpoint) until it is complete. Weights, average, optimiser, random states, best model and every
line of the log, except for the time, must then equal those of a training that nothing has
disturbed; and the process must have ended as the signal or exception demands. Between trainings,
random bits of ``model.safetensors`` and ``checkpoint.pt`` are flipped, which reading must notice.
What does not survive is listed with the number of its round, and is an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from experiments import cli, environment
from experiments.config import CONFIG_FILE, read_config
from experiments.runs import write_json
from flowfactor import checkpoints
from flowfactor.checkpoints import MODEL_FILE, STATE_FILE
from flowfactor.data import SequenceLoader, Sprites
from flowfactor.errors import RunError
from flowfactor.interrupts import Interrupted
from flowfactor.options import dump
from flowfactor.registries import LOGGERS, MODELS
from flowfactor.training import TrainingOptions, fit, read_metrics

SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP")
FAULTS = (MemoryError, OSError, RuntimeError, KeyboardInterrupt)
FLIPS = 20
FAULT_EXIT = 3
EULER = {"name": "euler", "steps": 1}
SMALL: dict[str, Any] = {
    "latent_dim": 4,
    "encoder": {"channels": [4], "hidden": 16},
    "decoder": {"kind": "mlp", "hidden": [16]},
}
KINDS: dict[str, dict[str, Any]] = {
    "flow_vae": {**SMALL, "width": 8, "solver": EULER},
    "weak_flow_vae": {
        **SMALL,
        "width": 8,
        "solver": EULER,
        "inference": {"warmup": 2, "anneal": 3, "restart": True},
    },
    "sparse_flow_vae": {
        **SMALL,
        "width": 8,
        "stages": {"autoencoder": 2, "fields": 3, "anneal": 1},
    },
    "factor_vae": {**SMALL, "discriminator_width": 8, "discriminator_layers": 2},
}
COMMAND_LINE = "flowfactor train"
FORWARD = {True: "forward", False: "validation"}
MOMENTS = (
    "start",
    "between",
    "batch",
    "forward",
    "backward",
    "update",
    "validation",
    "log",
    "model.safetensors",
    "checkpoint.pt",
)
LOGGERS.register("watched")(lambda _: WatchedLogger())
OPTIONS = TrainingOptions(
    steps=10,
    warmup=2,
    batch_size=6,
    frames_per_sequence=None,
    log_every=1,
    validate_every=3,
    checkpoint_every=4,
    validation_sequences=6,
    average=0.9,
    loggers=("watched",),
    accelerator="cpu",
    precision="32-true",
)


@dataclasses.dataclass
class Tally:
    """How many disturbances of each sort were tried, and how many were survived."""

    tried: Counter[tuple[str, ...]] = dataclasses.field(default_factory=Counter)
    survived: Counter[tuple[str, ...]] = dataclasses.field(default_factory=Counter)

    def add(self, keys: Sequence[tuple[str, ...]], survived: bool) -> None:
        """Count disturbances."""
        self.tried.update(keys)
        if survived:
            self.survived.update(keys)

    def table(self, *columns: int) -> dict[str, dict[str, int]]:
        """Return the counts by some of the parts of the keys, joined by commas."""
        table: dict[str, dict[str, int]] = {}
        for key in sorted(self.tried):
            row = table.setdefault(
                ", ".join(key[column] for column in columns), {"tried": 0, "survived": 0}
            )
            row["tried"] += self.tried[key]
            row["survived"] += self.survived[key]
        return table


# ---- in the process of a training


def watch(moment: mmap.mmap, fault: tuple[int, type[BaseException]] | None) -> None:
    """Let the functions of this process note where a training is.

    Args:
        moment: its first byte becomes the index into :data:`MOMENTS`, the next four the number of
            calls so far.
        fault: which of the calls raises, and what.
    """
    count = 0

    def wrap(owner: Any, name: str, place: Callable[..., str]) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            before = moment[0] or 1
            moment[0] = MOMENTS.index(place(*args))
            count += 1
            moment[1:5] = count.to_bytes(4, "little")
            if fault is not None and count == fault[0]:
                raise fault[1]
            result = inner(*args, **kwargs)
            moment[0] = before
            return result

        setattr(owner, name, outer)

    wrap(SequenceLoader, "batch", lambda *_: "batch")
    wrap(Fabric, "backward", lambda *_: "backward")
    wrap(torch.optim.AdamW, "step", lambda *_: "update")
    wrap(checkpoints, "save_model", lambda *_: MODEL_FILE)
    wrap(checkpoints, "write", lambda _, path: path.name)
    wrap(WatchedLogger, "log_metrics", lambda *_: "log")
    for kind in KINDS:
        if "loss" in vars(MODELS[kind]):
            wrap(MODELS[kind], "loss", lambda model, *_: FORWARD[model.training])


class WatchedLogger:
    """A logger that does nothing but mark a moment."""

    def log_metrics(self, *_: Any) -> None:
        """Do nothing."""

    def finalize(self, *_: Any) -> None:
        """Do nothing."""


def train(kind: str, folder: Path, arguments: list[str]) -> int:
    """Train, or go on; return the exit code."""
    if kind == COMMAND_LINE:
        again = ["--resume"] if (folder / CONFIG_FILE).is_file() else []
        try:
            cli.app(["train", *arguments, "--out", str(folder), *again])
        except SystemExit as end:
            return int(end.code or 0)
    data = Sprites(12, 16, horizon=3)
    torch.manual_seed(0)
    model = MODELS[kind].build(data.names, data.image_shape, horizon=3, **KINDS[kind])
    seen = data if model.supervised else data.without_labels(0.3)
    try:
        fit(model, seen, seen, OPTIONS, folder, resume=(folder / STATE_FILE).is_file())
    except Interrupted as end:
        return end.exit_code
    except BaseException:
        return FAULT_EXIT
    return 0


# ---- in the process that ends the others


def start(
    kind: str,
    folder: Path,
    moment: mmap.mmap,
    arguments: list[str],
    fault: tuple[int, type[BaseException]] | None = None,
) -> int:
    """Return the number of a new process that trains."""
    moment[:5] = bytes(5)
    process = os.fork()
    if process:
        return process
    code = FAULT_EXIT
    try:
        with open(os.devnull, "w") as silence:
            for stream in (1, 2):
                os.dup2(silence.fileno(), stream)
        watch(moment, fault)
        code = train(kind, folder, arguments)
    finally:
        os._exit(code)


def wait(process: int) -> int:
    """Return the exit code of a process, minus the number of the signal that has killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def digest(folder: Path) -> str:
    """Return what a complete training has left, but for the time it took, as a checksum."""
    state = checkpoints.read(folder / STATE_FILE)
    del state["seconds"]
    lines = [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in read_metrics(folder)
    ]
    total = hashlib.sha256(json.dumps(lines).encode())
    _update(total, state)
    _update(total, checkpoints.read(folder / MODEL_FILE))
    return total.hexdigest()


def _update(total: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        total.update(str((value.dtype, value.shape)).encode())
        total.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict | list | tuple):
        for part in value.items() if isinstance(value, dict) else value:
            _update(total, part)
    else:
        total.update(repr(value).encode())


def flip(path: Path, generator: random.Random) -> bool:
    """Flip a random bit of a file, and flip it back; return whether reading notices."""
    content = path.read_bytes()
    place = generator.randrange(8 * len(content))
    damaged = bytearray(content)
    damaged[place // 8] ^= 1 << place % 8
    path.write_bytes(damaged)
    try:
        checkpoints.read(path)
    except RunError:
        return True
    finally:
        path.write_bytes(content)
    return False


def stress(minutes: float, seed: int) -> dict[str, Any]:
    """Return the counts, and what was not survived."""
    generator = random.Random(seed)
    arguments = _arguments()
    moment = mmap.mmap(-1, 5)
    kills, faults, flips = Tally(), Tally(), Tally()
    failures: list[str] = []
    trainings = 0
    kinds = [*KINDS, COMMAND_LINE]
    with tempfile.TemporaryDirectory() as top:
        undisturbed = {}
        for kind in kinds:
            folder = Path(top) / "undisturbed" / kind
            begin = time.monotonic()
            code = wait(start(kind, folder, moment, arguments))
            if code:
                raise RuntimeError(f"an undisturbed training of {kind} ends with {code}")
            calls = int.from_bytes(moment[1:5], "little")
            undisturbed[kind] = digest(folder), time.monotonic() - begin, calls
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            trainings += 1
            kind = kinds[trainings % len(kinds)]
            folder = Path(top) / str(trainings)
            expected, seconds, calls = undisturbed[kind]
            kill_keys, fault_keys, wrong = [], [], ""
            for _ in range(generator.randint(1, 3)):
                if generator.random() < 0.7:
                    name = generator.choice(SIGNALS)
                    process = start(kind, folder, moment, arguments)
                    time.sleep(generator.random() * seconds)
                    where = MOMENTS[moment[0]]
                    if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                        kill_keys.append((name, kind, where))
                    os.kill(process, getattr(signal, name))
                    code = wait(process)
                    number = int(getattr(signal, name))
                    # Before the training handles signals, they end a process as any other.
                    allowed = {0, -number} | ({128 + number} if name != "SIGKILL" else set())
                    allowed |= {FAULT_EXIT} if where == "start" else set()
                else:
                    error = generator.choice(FAULTS)
                    fault = generator.randint(1, calls), error
                    code = wait(start(kind, folder, moment, arguments, fault))
                    fault_keys.append((error.__name__, kind, MOMENTS[moment[0]]))
                    allowed = {0, 1, 2, FAULT_EXIT, 130}
                if code not in allowed:
                    wrong = f"exit code {code}"
            if code := wait(start(kind, folder, moment, arguments)):
                wrong = wrong or f"resumed, it ends with {code}"
            elif digest(folder) != expected:
                wrong = wrong or "another training"
            if list(folder.glob("*.part")) or list(folder.glob(".*.part")):
                wrong = wrong or "temporary files are left"
            kills.add(kill_keys, not wrong)
            faults.add(fault_keys, not wrong)
            if wrong:
                failures.append(f"{trainings}, {kind}, {kill_keys}, {fault_keys}: {wrong}")
                continue
            for file in (MODEL_FILE, STATE_FILE):
                for _ in range(FLIPS):
                    noticed = flip(folder / file, generator)
                    flips.add([(file,)], noticed)
                    if not noticed:
                        failures.append(f"{trainings}, {file}: a flipped bit was not noticed")
            shutil.rmtree(folder)
    return {
        "seed": seed,
        "minutes": minutes,
        "trainings": trainings,
        "kills": sum(kills.tried.values()),
        "faults": sum(faults.tried.values()),
        "flips": sum(flips.tried.values()),
        "kills by signal and kind": kills.table(0, 1),
        "kills by signal and moment": kills.table(0, 2),
        "faults by kind and moment": faults.table(1, 2),
        "faults by exception": faults.table(0),
        "flipped bits by file": flips.table(0),
        "failures": failures,
    }


def tables(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return how many disturbances were survived of those tried, as tables of the documentation."""
    faults = result["faults by kind and moment"]

    def cell(counts: list[dict[str, int]]) -> str:
        tried, survived = (sum(each[key] for each in counts) for key in ("tried", "survived"))
        return f"{survived} of {tried}" if tried else "-"

    def killed(table: str, signal: str, other: str) -> str:
        return cell([found] if (found := result[table].get(f"{signal}, {other}")) else [])

    def failed(name: str, part: int) -> str:
        return cell([row for key, row in faults.items() if key.split(", ")[part] == name])

    kinds = [*KINDS, COMMAND_LINE]
    by_kind, by_moment = "kills by signal and kind", "kills by signal and moment"
    return {
        "kinds": [
            ["ended by", *kinds],
            *([signal, *(killed(by_kind, signal, kind) for kind in kinds)] for signal in SIGNALS),
            ["exception", *(failed(kind, 0) for kind in kinds)],
        ],
        "moments": [
            ["moment", *SIGNALS, "exception"],
            *(
                [moment, *(killed(by_moment, each, moment) for each in SIGNALS), failed(moment, 1)]
                for moment in MOMENTS
            ),
        ],
    }


def _arguments() -> list[str]:
    """Return the command line of a tiny training."""
    config = read_config("demo")[1]
    settings: dict[str, Any] = {
        **{f"training.{key}": value for key, value in dump(OPTIONS).items() if key != "devices"},
        **{f"data.{key}": value for key, value in config.data.tiny(Path()).items()},
        **{f"model.{key}": value for key, value in KINDS["flow_vae"].items()},
    }
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return ["demo", *(word for pair in pairs for word in ("--set", pair))]


def main() -> None:
    """Run the trainings and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = stress(options.minutes, options.seed)
    if options.out:
        write_json(options.out, {**environment.origin(), **result, "tables": tables(result)})
    print(json.dumps(result, indent=2))
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
