"""Executors: what runs the cells of a sweep, with the interface of :mod:`concurrent.futures`.

A sweep takes any ``Executor``. Those that the command line names are registered here, by the class
of their options. A future raises ``BrokenExecutor``, ``CancelledError`` or ``KeyboardInterrupt`` if
the process of its call was lost: such a call may be sent again.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import importlib
import logging
import multiprocessing
import os
import pickle
import shlex
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any, Literal

import torch

from experiments import environment
from flowfactor.errors import ConfigError
from flowfactor.extras import import_extra
from flowfactor.options import NonNegativeInt, PositiveFloat, PositiveInt, Weight, options
from solvers.registry import Registry

EXECUTORS: Registry[Any] = Registry("executor")
"""Options of executors, :class:`ExecutorOptions`, by ``executor.kind``."""

LOST = (BrokenExecutor, CancelledError, KeyboardInterrupt)
"""What a future raises if the process of its call was lost."""


class RefusedError(ConfigError):
    """What a future raises if its executor takes no calls with the options that it has."""


# Windows has no fork server.
_METHOD: Literal["forkserver", "spawn"] = (
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
# How long a process may take to save its state when it is told to end.
_SAVING_SECONDS = 45
_POLL_SECONDS = 0.5
# How long a cluster may take to answer.
_ANSWER_SECONDS = 10
# What a local process finds imported.
_PRELOADED = ("experiments.cells", "lightning_fabric", "lightning_fabric.loggers.tensorboard")


@options
class ExecutorOptions:
    """What runs the cells."""

    threads: PositiveInt = 1
    """Threads of a cell. Times are comparable only if cells do not share processors."""

    @property
    def fitting(self) -> int:
        """How many cells the processors of this machine carry at the same time."""
        return max(1, count_processors() // self.threads)

    def open(self, folder: Path) -> Executor:
        """Return the executor, whose logs go into a folder."""
        raise NotImplementedError


# ---- one machine


@EXECUTORS.register("local")
@options
class LocalOptions(ExecutorOptions):
    """Processes of this machine."""

    processes: PositiveInt | None = None
    """Cells that run at the same time; null: as many as the processors carry."""

    def open(self, folder: Path) -> LocalExecutor:
        """Return the executor; what its processes print goes into ``cells.log``."""
        return LocalExecutor(self.count, threads=self.threads, log=folder / "cells.log")

    @property
    def count(self) -> int:
        """How many cells run at the same time."""
        return self.processes or self.fitting


class LocalExecutor(ThreadPoolExecutor):
    """Runs calls in processes of this machine, a new one for each, some at a time.

    They are forks of a server that has everything imported and is started once. One that is killed,
    for want of memory for instance, takes no other with it. When this process ends, in whatever
    way, the others receive SIGTERM and end too.

    Args:
        processes: how many run at the same time.
        threads: how many threads of torch each has.
        log: the file that receives what they print.
        method: how they are started.
    """

    def __init__(
        self,
        processes: int,
        *,
        threads: int = 1,
        log: Path | None = None,
        method: Literal["fork", "forkserver", "spawn"] = _METHOD,
    ) -> None:
        super().__init__(processes)
        self._settings = _settings(threads), log
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(list(_PRELOADED))
        self._processes: set[Any] = set()
        self._interrupted = False

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call; function and arguments must be picklable."""
        return super().submit(self._call, function, args, kwargs)

    def interrupt(self) -> None:
        """Let every process end after it has saved its state."""
        self._interrupted = True
        for process in tuple(self._processes):
            process.terminate()

    def _call(self, *call: Any) -> Any:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(theirs, *self._settings, *call))
        with ours:
            with theirs:
                process.start()
            self._processes.add(process)
            if self._interrupted:
                process.terminate()
            try:
                value, error = ours.recv()
            except EOFError:
                raise BrokenExecutor(
                    "its process was killed; the memory may not have been enough"
                ) from None
            finally:
                process.join()
                self._processes.discard(process)
        if error is not None:
            raise error
        return value


def _work(answer: Any, settings: Mapping[str, Any], log: Path | None, *call: Any) -> None:
    """Do a call in a process of an executor."""
    # Ctrl-C in a terminal reaches all processes; the first one tells the others what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if log is not None:
        with log.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # nobody is left to read it
        answer.send(perform(settings, *call))


def _end_with_parent() -> None:
    parent: Any = multiprocessing.parent_process()
    parent.join()
    _thread.interrupt_main(signal.SIGTERM)
    time.sleep(_SAVING_SECONDS)
    # Something does not end. Files are written whole or not at all, so nothing is damaged.
    os._exit(143)


# ---- Slurm


@EXECUTORS.register("slurm")
@options
class SlurmOptions(ExecutorOptions):
    """Jobs of Slurm, by submitit: cells that are sent together are one array."""

    partition: str | None = None
    """Partition of the jobs; null: the cluster's default."""
    gpus: NonNegativeInt = 0
    """GPUs of a cell."""
    memory_gb: PositiveFloat | None = None
    """Memory of a cell; null: the cluster's default."""
    minutes: PositiveInt = 120
    """Time limit of a job. A cell that needs longer saves its state and is queued again."""
    requeues: NonNegativeInt = 20
    """How often a cell is queued again after the time limit."""
    processes: PositiveInt = 256
    """Cells of an array that run at the same time."""
    array: PositiveInt = 1000
    """Cells of an array at most; below MaxArraySize of the cluster."""
    sbatch: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Other options of sbatch by name, such as ``{account: vision, constraint: a100}``."""
    cluster: Literal["slurm", "local"] = "slurm"
    """``local`` does without Slurm: each job is a process of this machine, which runs no more of
    them at the same time than its processors carry."""

    def open(self, folder: Path) -> SlurmExecutor:
        """Return the executor, whose files are in ``slurm/``."""
        return SlurmExecutor(self, folder / "slurm")


class SlurmExecutor(Executor):
    """Runs calls as jobs of Slurm.

    Args:
        options: what a job gets.
        folder: for its files, on a file system that all nodes share.

    Raises:
        ConfigError: there is no Slurm, or an option is wrong.
        MissingExtraError: submitit is not installed.
    """

    def __init__(self, options: SlurmOptions, folder: Path) -> None:
        submitit = import_extra("submitit", "slurm")
        self._lost = submitit.core.utils.UncompletedJobError
        self._options = options
        self._settings = _settings(options.threads)
        folder = folder.absolute()
        try:
            self._jobs = submitit.AutoExecutor(
                folder, cluster=options.cluster, slurm_max_num_timeout=options.requeues
            )
            self._jobs.update_parameters(
                name=folder.parent.name,
                timeout_min=options.minutes,
                cpus_per_task=options.threads,
                gpus_per_node=options.gpus,
                stderr_to_stdout=True,
                slurm_array_parallelism=options.processes,
                slurm_additional_parameters=dict(options.sbatch),
                **({"mem_gb": options.memory_gb} if options.memory_gb else {}),
                **({"slurm_partition": options.partition} if options.partition else {}),
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"executor: {error}") from error
        self._new: deque[tuple[Future[Any], tuple[Any, ...]]] = deque()
        self._sent: dict[Future[Any], Any] = {}
        self._lock = threading.Lock()
        self._open = True
        self._full = False
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call; calls that come within half a second become one array."""
        future: Future[Any] = Future()
        self._new.append((future, (self._settings, function, args, kwargs)))
        return future

    def interrupt(self) -> None:
        """Cancel all jobs, and wait for none of them: Slurm lets them save their state."""
        with self._lock:
            self._new.clear()
            jobs, self._sent = tuple(self._sent.values()), {}
        for job in jobs:
            job.cancel(check=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls."""
        if cancel_futures:
            for future, _ in tuple(self._new):
                future.cancel()
        self._open = False
        if wait:
            self._thread.join()

    def _follow(self) -> None:
        while self._open or self._new or self._sent:
            time.sleep(_POLL_SECONDS + len(self._sent) / 200)  # each is a look at a file
            with self._lock:
                self._send()
            for future, job in list(self._sent.items()):
                if job.done():
                    self._settle(future, job)
                    self._sent.pop(future, None)
                    self._full = False

    def _send(self) -> None:
        own = self._options
        room = 0 if self._full else own.array
        if own.cluster == "local":
            room = min(room, own.processes, own.fitting) - len(self._sent)
        taken = [self._new.popleft() for _ in range(min(room, len(self._new)))]
        if new := [each for each in taken if _starts(each[0])]:
            try:
                jobs = self._jobs.map_array(_Job(), [call for _, call in new])
                self._sent.update(zip((future for future, _ in new), jobs, strict=True))
            except Exception as error:  # sbatch has refused it
                if self._sent:  # no more at a time, perhaps
                    self._new.extendleft(reversed(new))
                    self._full = True
                    return
                refusal = RefusedError(
                    f"executor: Slurm takes no job: {' '.join(str(error).split())}"
                )
                for future, _ in new:
                    future.set_exception(refusal)

    def _settle(self, future: Future[Any], job: Any) -> None:
        try:
            _resolve(future, *job.result())
        except self._lost:
            future.set_exception(BrokenExecutor(f"job {job.job_id} has ended: {job.state}"))
        except Exception as error:
            future.set_exception(error)


def _starts(future: Future[Any]) -> bool:
    """Return whether a call is to be sent, perhaps once more."""
    return future.running() or future.set_running_or_notify_cancel()


class _Job:
    """A call that submitit queues again when its job is pre-empted or its time is over."""

    def __call__(self, call: tuple[Any, ...]) -> Any:
        return perform(*call)

    def checkpoint(self, call: tuple[Any, ...]) -> Any:
        return importlib.import_module("submitit").helpers.DelayedSubmission(self, call)


# ---- Ray


@EXECUTORS.register("ray")
@options
class RayOptions(ExecutorOptions):
    """Tasks of Ray."""

    address: str | None = None
    """Of a cluster, ``HOST:PORT`` or ``ray://HOST:PORT``; ``auto``: that of this machine; null
    starts one here."""
    autoscaling: bool = False
    """Whether the cluster starts nodes by itself. If not, what no node has is refused."""
    gpus: Weight = 0.0
    """GPUs of a cell; a fraction shares one."""
    memory_gb: PositiveFloat | None = None
    """Memory that a cell reserves; null reserves none."""

    def __post_init__(self) -> None:
        """Refuse parts of more than one GPU."""
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError("gpus: must be a whole number if it is above 1")

    def open(self, folder: Path) -> RayExecutor:
        """Return the executor."""
        return RayExecutor(self)


class RayExecutor(Executor):
    """Runs calls as tasks of Ray.

    Args:
        options: where, and what a task gets.

    Raises:
        ConfigError: there is no such cluster, or no node has what a task gets.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, options: RayOptions) -> None:
        self._ray = ray = import_extra("ray", "ray")
        names = "LocalRayletDied NodeDied ObjectLost OutOfMemory TaskCancelled WorkerCrashed"
        self._lost = tuple(getattr(ray.exceptions, f"{name}Error") for name in names.split())
        self._sent: dict[Future[Any], Any] = {}
        self._patience: float | None = None  # until it is interrupted
        self._owner = not ray.is_initialized()
        if self._owner:
            address = options.address or "local"
            if address == "auto":
                address = os.environ.get("RAY_ADDRESS") or address
            _check_answer(address)
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ImportError, RuntimeError, ValueError) as error:
                reason = "this machine is part of no cluster" if address == "auto" else error
                raise ConfigError(f"executor.address: {address}: {reason}") from error
        if not options.autoscaling:
            try:
                _check_fits(options, [node["Resources"] for node in ray.nodes() if node["Alive"]])
            except ConfigError:
                self.shutdown()
                raise
        memory = {"memory": int(options.memory_gb * 2**30)} if options.memory_gb else {}
        self._task = ray.remote(
            num_cpus=options.threads, num_gpus=options.gpus, max_retries=0, **memory
        )(perform)
        self._settings = _settings(options.threads)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # only Ray can cancel it
        self._sent[future] = self._task.remote(self._settings, function, args, kwargs)
        self._sent[future].future().add_done_callback(lambda done: self._settle(future, done))
        return future

    def interrupt(self) -> None:
        """Interrupt all tasks, which lets them save their state."""
        self._patience = _SAVING_SECONDS
        for task in tuple(self._sent.values()):
            self._ray.cancel(task)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls, and leave the cluster."""
        if cancel_futures:
            self.interrupt()
        if wait:
            wait_for(tuple(self._sent), self._patience)
            if self._owner:
                self._ray.shutdown()

    def _settle(self, future: Future[Any], done: Future[Any]) -> None:
        self._sent.pop(future, None)
        try:
            _resolve(future, *done.result())
        except self._lost as error:
            future.set_exception(BrokenExecutor(f"its worker was lost ({type(error).__name__})"))
        except Exception as error:
            future.set_exception(error)


def _check_answer(address: str) -> None:
    """Refuse a cluster that does not answer: Ray would try for a minute."""
    if address in ("auto", "local") or ("://" in address and not address.startswith("ray://")):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise ConfigError(
            f"executor.address: {address!r} is neither auto nor HOST:PORT nor ray://HOST:PORT"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"executor.address: nothing answers at {address}: {error}") from error


def _check_fits(options: RayOptions, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse what no node has: Ray would wait for one for ever."""
    wanted = {
        "CPU": options.threads,
        "GPU": options.gpus,
        "memory": (options.memory_gb or 0) * 2**30,
    }
    if any(all(node.get(key, 0) >= value for key, value in wanted.items()) for node in nodes):
        return
    there = sorted({_resources(node) for node in nodes}, reverse=True)
    raise ConfigError(
        f"executor: no node of Ray has what a cell asks for, {_resources(wanted)}. "
        f"There are nodes of {'; '.join(there[:3]) or 'no kind'}."
    )


def _resources(each: Mapping[str, float]) -> str:
    numbers = each.get("CPU", 0), each.get("GPU", 0), each.get("memory", 0) / 2**30
    return "{:g} CPUs, {:g} GPUs and {:.3g} GB of memory".format(*numbers)


# ---- a call, in whatever process


def perform(
    settings: Mapping[str, Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Any, BaseException | None]:
    """Do a call in a process of its own; return its result, and the error that it raised.

    An error is returned and not raised, since it is no fault of the executor.

    Args:
        settings: ``threads``, and the ``command`` that sent it.
        function: to be called.
        args: its arguments.
        kwargs: its named arguments.
    """
    torch.set_num_threads(settings["threads"])
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])  # for libraries imported later
    sys.argv = shlex.split(settings["command"])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("flowfactor", "experiments"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        return function(*args, **kwargs), None
    except (Exception, KeyboardInterrupt) as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def count_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _settings(threads: int) -> dict[str, Any]:
    return {"threads": threads, "command": environment.command()}


def _resolve(future: Future[Any], value: Any, error: BaseException | None) -> None:
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
