"""What the machine can give now: a device, idle cores, and bfloat16 where that is faster."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, WithJsonSchema

from flowfactor.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
"""What a device may be called in configurations and commands; N is a number from 0."""

# How long the load is watched, in seconds: the kernel counts in hundredths.
_WATCH = 0.4
# A core that is busy for less of the time than this counts as idle.
_NOISE = 0.25
# bfloat16 must take less than this part of float32's time.
_FASTER = 0.8
# Width of the layer that is timed, and how often it is.
_WIDTH, _ROUNDS = 1024, 5


def _check_device_name(name: str) -> str:
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name) is None:
        raise ValueError(f"expected {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    return name


DeviceName = Annotated[
    str, AfterValidator(_check_device_name), WithJsonSchema({"enum": list(DEVICES)})
]
"""An option that holds the name of a device, whether or not this machine has it."""


def devices() -> tuple[str, ...]:
    """Return the names of the devices of this machine, those first that ``auto`` prefers.

    Example:
        >>> "cpu" in devices()
        True
    """
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return (*found, "cpu")


def find_device(name: str | torch.device = "auto") -> torch.device:
    """Return a device of this machine.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or another one that torch knows. ``auto``: an
            accelerator if there is one, else the processor.

    Raises:
        ConfigError: there is no such device; the message says which there are.

    Example:
        >>> find_device("cpu"), find_device("auto").type == devices()[0].partition(":")[0]
        (device(type='cpu'), True)
    """
    there = devices()
    try:
        device = torch.device(there[0].partition(":")[0] if name == "auto" else name)
    except RuntimeError:
        raise ConfigError(f"there is no device called {name!r}, but {', '.join(DEVICES)}") from None
    kinds = {each.partition(":")[0] for each in there}
    missing = device.type in ("cuda", "mps") and device.type not in kinds
    if missing or (device.type == "cuda" and device.index and str(device) not in there):
        listed = ", ".join(there)
        raise ConfigError(f"there is no device {device} on this machine, which has {listed}")
    return device


def choose_threads(processes: int = 1, root: Path = Path("/")) -> tuple[int, str]:
    """Return how many threads a process should compute with, and why.

    As many as there are idle cores, and no more than torch has now: on a busy core a thread is
    what all others wait for. ``OMP_NUM_THREADS`` and ``torch.set_num_threads(1)`` are obeyed.

    Args:
        processes: of this machine that share the idle cores.
        root: below which ``proc`` and ``sys`` are.

    Example:
        >>> import torch
        >>> 1 <= choose_threads()[0] <= torch.get_num_threads()
        True
    """
    most = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS"):
        return most, "OMP_NUM_THREADS"
    if most == 1:
        return 1, "torch has one"
    idle = count_idle_cores(root)
    if idle is None:
        return most, "torch's default, since the load of this machine cannot be read"
    share = f", shared by {processes} processes" if processes > 1 else ""
    count = math.floor(idle / processes + _NOISE)
    return max(1, min(count, most)), f"{idle:.1f} cores are idle{share}"


def count_idle_cores(
    root: Path = Path("/"), wait: Callable[[float], None] = time.sleep
) -> float | None:
    """Return how many cores are idle of those that this process may use; None if unknown.

    A core with two hardware threads is one core. What the process may use is its affinity and the
    limits of the control groups above it, less what these use already.

    Args:
        root: below which ``proc`` and ``sys`` are.
        wait: what lets time pass between two readings.
    """
    try:
        cores = _cores(root, os.sched_getaffinity(0))
        groups = list(_control_groups(root))
        used = [_used_seconds(group) for group in groups]
        before, began = _busy_and_all(root), time.monotonic()
        wait(_WATCH)
        after, seconds = _busy_and_all(root), time.monotonic() - began
        idle = 0.0
        for core in cores:
            busy, all_ = (sum(after[cpu][i] - before[cpu][i] for cpu in core) for i in range(2))
            idle += max(0.0, 1 - len(core) * busy / all_)
        for group, earlier in zip(groups, used, strict=True):
            # The clock of the groups is that of the wall.
            rate = (_used_seconds(group) - earlier) / max(seconds, 1e-3)
            idle = min(idle, max(0.0, _limit(group) - rate))
    except (AttributeError, OSError, LookupError, ValueError, ZeroDivisionError):
        return None  # another system than Linux, or one that hides its load
    return idle


def _cores(root: Path, cpus: Iterable[int]) -> list[list[int]]:
    """Return processors by the core that they are of."""
    cores: dict[str, list[int]] = {}
    for cpu in sorted(cpus):
        file = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.setdefault(file.read_text().strip() if file.is_file() else str(cpu), []).append(cpu)
    return list(cores.values())


def _busy_and_all(root: Path) -> dict[int, tuple[int, int]]:
    """Return the busy and all ticks of each processor since the start of the machine."""
    ticks = {}
    for line in (root / "proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            # user, nice, system, idle, waiting, interrupts (2), stolen by other machines
            numbers = [int(value) for value in values[:8]]
            ticks[int(name[3:])] = sum(numbers) - sum(numbers[3:5]), sum(numbers)
    return ticks


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, of either version."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers
        folder = base / path.strip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(base))


def _limit(group: Path) -> float:
    """Return how many cores a control group may use."""
    with contextlib.suppress(OSError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError):
        microseconds = int((group / "cpu.cfs_quota_us").read_text())
        period = (group / "cpu.cfs_period_us").read_text()
        return math.inf if microseconds < 0 else microseconds / int(period)
    return math.inf


def _used_seconds(group: Path) -> float:
    """Return the time of processors that a control group has used, 0 if it does not say."""
    with contextlib.suppress(OSError):
        numbers = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        if "usage_usec" in numbers:
            return int(numbers["usage_usec"]) / 1e6
    with contextlib.suppress(OSError):
        return int((group / "cpuacct.usage").read_text()) / 1e9
    return 0.0


def choose_compilation(device: torch.device) -> tuple[bool, str]:
    """Return whether a training should let ``torch.compile`` make graphs, and why.

    On CUDA, if it works there. On a processor a step of the configuration ``mnist`` took 0.92 of
    its time, after 18 seconds of compiling on a quiet core.

    Args:
        device: of the training.

    Example:
        >>> import torch
        >>> choose_compilation(torch.device("cpu"))
        (False, 'on CUDA only')
    """
    if device.type != "cuda":
        return False, "on CUDA only"
    try:
        x = torch.ones(2, device=device)
        torch.compile(torch.sin)(x)
    except Exception as error:  # whatever the compiler lacks
        return False, f"it does not work here: {type(error).__name__}"
    return True, "it works here"


@contextlib.contextmanager
def threads(count: int | Literal["auto"]) -> Iterator[None]:
    """Compute with a number of threads for a while; ``auto`` leaves it as it is."""
    before = torch.get_num_threads()
    if count != "auto":
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_precision(
    device: torch.device,
    rows: int,
    time_layer: Callable[[torch.device, int, bool], float] | None = None,
) -> tuple[Literal["32-true", "bf16-mixed"], str]:
    """Return the precision in which a training step is faster, and why.

    What is timed is a linear layer, forwards and backwards, on one thread. In a processor without
    instructions for it, bfloat16 takes many times as long as float32, with them half as long.

    Args:
        device: of the training.
        rows: of the layer's input: images that a step encodes or decodes at once.
        time_layer: returns the seconds of a layer on a device with some rows, in bfloat16 or not;
            None measures them.

    Example:
        >>> import torch
        >>> seconds = lambda device, rows, half: 0.2 if half else 0.1
        >>> choose_precision(torch.device("cpu"), 64, seconds)[0]
        '32-true'
    """
    if device.type not in ("cpu", "cuda"):
        return "32-true", f"not measured on {device.type}"
    time_layer = time_layer or _time_layer
    # In turn, so that a machine that changes its speed changes both; others can only slow down.
    # More threads would wait for each other, and do so busily.
    with threads(1):
        times = [
            [time_layer(device, rows, half) for half in (False, True)] for _ in range(1 + _ROUNDS)
        ]
    single, half = (min(column) for column in zip(*times, strict=True))
    chosen: Literal["32-true", "bf16-mixed"] = (
        "bf16-mixed" if half < _FASTER * single else "32-true"
    )
    return chosen, f"a layer on {rows} rows takes {half / single:.2f} of float32's time in bfloat16"


def _time_layer(device: torch.device, rows: int, half: bool) -> float:
    """Return the seconds of a linear layer, forwards and backwards."""
    x, weight = (
        torch.full((count, _WIDTH), 0.5, device=device, requires_grad=True)
        for count in (rows, _WIDTH)
    )
    # The processor's own time, which others on a busy machine do not change.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _wait_for(device)
    began = clock()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        y = F.linear(x, weight)
    torch.autograd.grad(y.float().sum(), (x, weight))
    _wait_for(device)
    return clock() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
