"""Measure the memory that reading 3D Shapes at random from its file takes.

    python -m experiments.benchmarks.h5_memory [--path FILE] [--images N] [--out FILE]

The file has the 480,000 images of 64 by 64 pixels in the original format: the one at ``--path``, or
a re-creation that is written into a temporary folder (some three minutes, 1.2 GB). A process of its
own opens it and reads as many images as it has, in batches of 64 drawn at random with replacement.
The result is that process's largest resident memory, its largest above what it held before
it opened the file, and images per second. More than 500 MB above that is an error.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from experiments import environment
from experiments.benchmarks.timing import positive, use_threads
from experiments.runs import write_json
from flowfactor.data import Shapes3D
from flowfactor.errors import DataError

MODULE = "experiments.benchmarks.h5_memory"
BATCH = 64
LIMIT_MB = 500.0


def read_here(path: str, images: int | None) -> dict[str, float]:
    """Read images at random, in a process that has done nothing else; return MB and images/s."""
    before = _peak()
    shapes = Shapes3D(path, split="all")
    count = len(shapes) if images is None else images
    numbers = torch.randint(len(shapes), (count,), generator=torch.Generator().manual_seed(0))
    begin = time.perf_counter()
    total = 0.0
    for some in numbers.split(BATCH):
        total += float(shapes.images(some).mean()) * len(some)
    seconds = time.perf_counter() - begin
    return {
        "images": count,
        "mean_pixel": total / count,
        "seconds": seconds,
        "images_per_second": count / seconds,
        "MB_before": before / 1e6,
        "MB_peak": _peak() / 1e6,
        "MB_above": (_peak() - before) / 1e6,
    }


def measure(path: Path, images: int | None, threads: int) -> dict[str, Any]:
    """Read images at random in a fresh process.

    Raises:
        SystemExit: the process failed; what it said is shown.
    """
    order = json.dumps({"path": str(path), "images": images, "threads": threads})
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "--one", order], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"Reading {path} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(
        MODULE, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = Path(__file__).parent / "results"
    parser.add_argument("--path", type=Path, help="an existing file (default: write one)")
    parser.add_argument("--images", type=positive, metavar="N", help="to read (default: all)")
    parser.add_argument("--out", type=Path, default=results / "h5_memory.json")
    parser.add_argument("--threads", type=positive, default=1, help="to compute on (default 1)")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one is not None:
        use_threads(arguments.one["threads"])
        print(json.dumps(read_here(arguments.one["path"], arguments.one["images"])))
        return

    use_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path, written = arguments.path, None
        if path is None:
            path = Path(folder) / "3dshapes.h5"
            begin = time.perf_counter()
            Shapes3D(split="all").write_h5(path)
            written = time.perf_counter() - begin
        try:
            file = Shapes3D(path, split="all")
        except DataError as error:
            raise SystemExit(f"Error: {error.args[0]}") from error
        result = {
            "file": {
                "images": len(file.store),
                "MB": path.stat().st_size / 1e6,
                "recreated": file.recreated,
                "seconds_to_write": written,
            },
            "batch": BATCH,
            "threads": arguments.threads,
            **measure(path, arguments.images, arguments.threads),
        }
    result["command"] = " ".join([f"python -m {MODULE}", *_without_paths(argv or sys.argv[1:])])
    result["environment"] = environment.describe()
    write_json(arguments.out, result)
    print(
        f"{result['images']} images at random, {result['images_per_second']:.0f} a second: "
        f"{result['MB_above']:.0f} MB above the {result['MB_before']:.0f} MB before, "
        f"{result['MB_peak']:.0f} MB in all\nwritten: {arguments.out}"
    )
    if result["MB_above"] > LIMIT_MB:
        raise SystemExit(f"Error: that is more than the {LIMIT_MB:.0f} MB that reading may take.")


def _without_paths(words: list[str]) -> list[str]:
    """Return the arguments without the folders of one machine."""
    return [Path(word).name if "/" in word else word for word in words]


def _peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


if __name__ == "__main__":
    main()
