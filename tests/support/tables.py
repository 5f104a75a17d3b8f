"""Tables of tiny cells, and what must be true of them."""

import time
from collections.abc import Callable
from pathlib import Path

import yaml
from tiny import settings

from flowfactor.training import read_metrics


def write_table(folder: Path, **content: object) -> Path:
    """Write a table of tiny cells; what is given is changed."""
    table = {"config": "demo", "set": settings("demo"), "methods": {"flow model": {}}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(table | content, sort_keys=False, allow_unicode=True))
    return path


def trained_once(run: Path, steps: int) -> None:
    """Nothing was trained twice: steps follow one another from the first, and so does time."""
    lines = [line for line in read_metrics(run) if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait for something, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)
