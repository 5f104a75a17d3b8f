"""Fair timing of cases that are compared with each other on a machine that is not alone."""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds of one case: the median over the rounds, the two quartiles, the fastest."""

    median: float
    low: float
    high: float
    fastest: float


def timings(
    cases: dict[str, Callable[[], Any]], rounds: int, *, pause: float = 0.0
) -> dict[str, Timing]:
    """Return the times of cases that take turns, round after round, after one run of each.

    A machine that changes speed changes all of them, so that what counts are the ratios.

    Args:
        cases: what to run, by name.
        rounds: how often.
        pause: seconds before each run. The threads of one package go on waiting for work for some
            milliseconds; with a pause they do not take the processor from the next package's.
    """
    for run in cases.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in cases}
    gc.collect()
    for _ in range(rounds):
        for name, run in cases.items():
            time.sleep(pause)
            begin = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: _summary(each) for name, each in times.items()}


def medians(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return milliseconds, the median over rounds in which the cases take turns."""
    return {name: timing.median for name, timing in timings(cases, rounds).items()}


def use_threads(count: int) -> None:
    """Let this process compute on some number of threads.

    Call it before jax is imported: it makes as many threads as the process has processors.
    """
    torch.set_num_threads(count)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def positive(text: str) -> int:
    """Read a number of at least 1 from the command line."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _summary(times: list[float]) -> Timing:
    if len(times) < 2:
        return Timing(times[0], times[0], times[0], times[0])
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, min(times))
