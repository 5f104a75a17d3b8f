"""Executors: what runs the cells of a sweep, with the interface of :mod:`concurrent.futures`."""

from __future__ import annotations

import _thread
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

# How long a process may take to save its state when it is told to end.
_SAVING_SECONDS = 45


class LocalExecutor(ThreadPoolExecutor):
    """Runs calls in processes of this machine, a new one for each, some at a time.

    One that is killed, for want of memory for instance, takes no other with it. When this process
    ends, in whatever way, the others receive a KeyboardInterrupt and end too.

    Args:
        processes: how many run at the same time.
        threads: how many threads of torch each has.
        log: the file that receives what they print.
    """

    def __init__(self, processes: int, *, threads: int = 1, log: Path | None = None) -> None:
        super().__init__(processes)
        self._settings = threads, log
        self._ends: set[Connection] = set()
        self._interrupted = False

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call; function and arguments must be picklable."""
        return super().submit(self._call, function, args, kwargs)

    def interrupt(self) -> None:
        """Let every process end as after Ctrl-C."""
        self._interrupted = True
        for end in tuple(self._ends):
            end.close()

    def _call(self, function: Any, args: Any, kwargs: Any) -> Any:
        context = multiprocessing.get_context("spawn")
        theirs, ours = context.Pipe(duplex=False)
        self._ends.add(ours)
        try:
            if self._interrupted:
                raise KeyboardInterrupt
            with ProcessPoolExecutor(
                1, context, initializer=_start_process, initargs=(theirs, *self._settings)
            ) as pool:
                return pool.submit(function, *args, **kwargs).result()
        finally:
            self._ends.discard(ours)
            ours.close()
            theirs.close()


def _start_process(parent: Connection, threads: int, log: Path | None) -> None:
    """Prepare a process of an executor: its threads, its output, its end."""
    # Ctrl-C in a terminal reaches all processes; the first one tells the others what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries that are imported later
    if log is not None:
        with log.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("flowfactor", "experiments"):
        logging.getLogger(name).setLevel(logging.INFO)

    def follow() -> None:
        with contextlib.suppress(EOFError, OSError):
            parent.recv()  # nothing is ever sent: the pipe ends when the other process lets it
        _thread.interrupt_main(signal.SIGTERM)
        time.sleep(_SAVING_SECONDS)
        # Something does not end. Files are written whole or not at all, so nothing is damaged.
        os._exit(130)

    threading.Thread(target=follow, name="end with parent", daemon=True).start()


def count_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
