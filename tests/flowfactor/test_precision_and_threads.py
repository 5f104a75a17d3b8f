"""What a training takes of the machine: simulated loads, limits and speeds."""

import contextlib
import os

import pytest
import torch

from flowfactor import machine
from flowfactor.machine import (
    choose_compilation,
    choose_precision,
    choose_threads,
    count_idle_cores,
)

TICKS = 40  # between two readings


class Machine:
    """Files of /proc and /sys; each reading of the load comes after some ticks of it."""

    def __init__(self, root, busy, siblings=None):
        self.root, self.busy = root, busy
        self.write("proc/self/cgroup", "0::/job/training\n")
        for cpu, text in (siblings or {}).items():
            path = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            self.write(path, text)
        self.ticks = 0
        self.wait(0)

    def write(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def limit(self, path, quota):
        """Let a control group have a quota of cores."""
        text = "max 100000" if quota is None else f"{round(quota * 100_000)} 100000"
        self.write(f"sys/fs/cgroup/{path}/cpu.max", text)

    def wait(self, seconds):
        self.ticks += TICKS if seconds else 0
        lines = ["cpu 0 0 0 0 0 0 0 0 0 0"]
        for cpu, part in enumerate(self.busy):
            busy = round(self.ticks * part)
            # Half of it nice, the rest of it waiting for a disk.
            lines.append(f"cpu{cpu} {busy - busy // 2} {busy // 2} 0 {self.ticks - busy} 0 0 0 0 0")
        self.write("proc/stat", "\n".join(lines) + "\nintr 1 2 3\n")


@pytest.fixture
def affinity(monkeypatch):
    def allow(*cpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cpus), raising=False)

    allow(*range(4))
    return allow


@pytest.fixture
def threads(monkeypatch):
    """Let torch have some threads; the tests' own number is 1."""

    def give(count):
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    give(8)
    return give


@pytest.mark.parametrize(
    ("busy", "idle"), [((0, 0, 0, 0), 4.0), ((1, 0.5, 0, 0), 2.5), ((1, 1, 1, 1), 0.0)]
)
def test_idle_cores_are_those_that_others_leave(busy, idle, affinity, tmp_path):
    simulated = Machine(tmp_path, busy)
    assert count_idle_cores(tmp_path, simulated.wait) == pytest.approx(idle)


def test_only_processors_that_may_be_used_count(affinity, tmp_path):
    affinity(1, 3)
    simulated = Machine(tmp_path, (0, 0, 0, 0.5))
    assert count_idle_cores(tmp_path, simulated.wait) == pytest.approx(1.5)


def test_two_hardware_threads_are_one_core(affinity, tmp_path):
    pairs = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    simulated = Machine(tmp_path, (0, 0.5, 0, 0.25), pairs)
    # The second core is busy through either of its threads.
    assert count_idle_cores(tmp_path, simulated.wait) == pytest.approx(1.25)


def test_limits_of_control_groups_hold_at_every_level(affinity, tmp_path):
    simulated = Machine(tmp_path, (0, 0, 0, 0))
    simulated.limit("job/training", None)
    assert count_idle_cores(tmp_path, simulated.wait) == pytest.approx(4)
    simulated.limit("job", 1.5)
    assert count_idle_cores(tmp_path, simulated.wait) == pytest.approx(1.5)


def test_limits_of_version_1(affinity, tmp_path):
    simulated = Machine(tmp_path, (0, 0, 0, 0))
    simulated.write("proc/self/cgroup", "4:memory:/job\n3:cpu,cpuacct:/job\n")
    simulated.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "250000")
    simulated.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000")
    simulated.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    simulated.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert count_idle_cores(tmp_path, simulated.wait) == pytest.approx(2.5)


def test_what_a_group_uses_already_is_not_idle(affinity, tmp_path, monkeypatch):
    clock = iter([10.0, 10.4])
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(clock))
    simulated = Machine(tmp_path, (0, 0, 0, 0))
    simulated.limit("job", 2)
    used = iter([3.0, 3.0 + 0.4 * 0.75])

    def wait(seconds):
        simulated.wait(seconds)
        simulated.write("sys/fs/cgroup/job/cpu.stat", f"usage_usec {round(next(used) * 1e6)}\n")

    wait(0)
    assert count_idle_cores(tmp_path, wait) == pytest.approx(1.25)


@pytest.mark.parametrize("missing", ["proc/stat", "proc/self/cgroup"])
def test_a_load_that_cannot_be_read_is_unknown(missing, affinity, tmp_path, threads):
    Machine(tmp_path, (0, 0, 0, 0))
    (tmp_path / missing).unlink()
    assert count_idle_cores(tmp_path, lambda _: None) is None
    assert choose_threads(root=tmp_path)[0] == 8


@pytest.mark.parametrize(
    ("idle", "processes", "has", "count"),
    [
        (4.0, 1, 8, 4),
        (4.0, 1, 2, 2),
        (1.9, 1, 8, 2),
        (1.5, 1, 8, 1),
        (0.1, 1, 8, 1),
        (4.0, 2, 8, 2),
        (None, 1, 6, 6),
    ],
)
def test_threads_are_the_idle_cores(idle, processes, has, count, threads, monkeypatch):
    threads(has)
    monkeypatch.setattr(machine, "count_idle_cores", lambda root: idle)
    assert choose_threads(processes)[0] == count


def test_what_the_user_said_wins(threads, monkeypatch):
    monkeypatch.setattr(machine, "count_idle_cores", lambda root: 1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads(3)
    assert choose_threads()[0] == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "count_idle_cores", lambda root: 64.0)
    threads(1)
    assert choose_threads()[0] == 1


def test_the_number_of_threads_is_given_back():
    with contextlib.suppress(KeyError), machine.threads(2):
        assert torch.get_num_threads() == 2
        raise KeyError
    assert torch.get_num_threads() == 1
    with machine.threads("auto"):
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("half", "chosen"), [(13.0, "32-true"), (0.95, "32-true"), (0.5, "bf16-mixed")]
)
def test_half_precision_where_it_is_clearly_faster(half, chosen):
    calls = []

    def seconds(device, rows, in_half):
        calls.append(rows)
        busy = 1.0 if len(calls) % 3 else 5.0  # by others, now and then
        return busy * (half if in_half else 1.0)

    precision, reason = choose_precision(torch.device("cpu"), 198, seconds)
    assert precision == chosen
    assert f"{half:.2f}" in reason
    assert set(calls) == {198}


def test_the_measurement_changes_no_random_numbers():
    before = torch.get_rng_state()
    assert choose_precision(torch.device("cpu"), 8)[0] in ("32-true", "bf16-mixed")
    assert torch.equal(torch.get_rng_state(), before)


def test_other_devices_keep_float32():
    assert choose_precision(torch.device("meta"), 8)[0] == "32-true"


def test_flows_are_compiled_where_it_works():
    assert not choose_compilation(torch.device("cpu"))[0]
    worth, reason = choose_compilation(torch.device("cuda"))  # which this machine may lack
    assert worth == torch.cuda.is_available()
    assert worth or "not work" in reason


@pytest.mark.parametrize("works", [True, False])
def test_what_a_compiler_can_do_is_tried(monkeypatch, works):
    """On a device that plays CUDA."""

    def make(function):
        if not works:
            raise RuntimeError("no C compiler")
        return function

    monkeypatch.setattr(torch, "compile", make)
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(size))
    chosen, reason = machine.choose_compilation(torch.device("cuda"))
    assert chosen == works
    assert ("RuntimeError" in reason) != works
