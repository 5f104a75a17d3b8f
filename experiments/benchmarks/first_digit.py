"""Time a newcomer's way from ``pip install`` to a digit that turns under the mouse.

    python -m experiments.benchmarks.first_digit [--pip FLAGS] [--out FILE]

In an empty folder: an environment, ``pip install '.[app]'`` without a cache, ``flowfactor explore
mnist``, a browser (Chromium, without a window) in which rotation is chosen and the time slider is
dragged until the image has changed. Needs Playwright and Chromium where it runs; what it installs
is what pip finds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import torch

from experiments import environment
from experiments.explorer.browser import open_page
from experiments.runs import write_json

RESULT = Path(__file__).parent / "results" / "first_digit.json"
SOURCE = Path(__file__).parents[2]
_PORT = 7999


def wait_for_page(server: subprocess.Popen[bytes], url: str) -> None:
    """Return as soon as the page answers."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if server.poll() is not None:
                raise SystemExit("flowfactor explore has ended.") from None
            time.sleep(0.05)


def turn_digit(url: str) -> None:
    """Choose rotation, drag the slider of time with the mouse, wait until the image changes."""
    with open_page(url) as tab:
        for slider, fraction in (("ff-weight-0", 0.5), ("ff-weight-1", 0.75), ("ff-time", 0.7)):
            before = tab.get_attribute("#ff-image-0", "src")
            box = tab.locator(f"#{slider} input[type=range]").bounding_box()
            y = box["y"] + box["height"] / 2
            tab.mouse.move(box["x"] + 0.45 * box["width"], y)
            tab.mouse.down()
            tab.mouse.move(box["x"] + fraction * box["width"], y)
            tab.mouse.up()
        tab.wait_for_function(
            "before => document.querySelector('#ff-image-0').src !== before", arg=before
        )


def main() -> None:
    """Time each stage, print and write the result."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--pip", default="", help="flags for pip, for instance an index")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def note(stage: str) -> None:
        seconds[stage] = round(time.perf_counter() - began - sum(seconds.values()), 1)

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/env"], check=True)
        note("python -m venv")
        command = [f"{folder}/env/bin/pip", "install", "--quiet", "--no-cache-dir"]
        command += [*shlex.split(arguments.pip), f"{SOURCE}[app]"]
        subprocess.run(command, check=True)
        note("pip install '.[app]'")
        server = subprocess.Popen(
            [f"{folder}/env/bin/flowfactor", "explore", "mnist", "--port", str(_PORT)], cwd=folder
        )
        try:
            wait_for_page(server, f"http://127.0.0.1:{_PORT}")
            note("flowfactor explore mnist, until the page answers")
            turn_digit(f"http://127.0.0.1:{_PORT}")
            note("Chromium starts, rotation is chosen, the digit turns")
        finally:
            server.terminate()
            server.wait(30)
    content = {
        "seconds": seconds,
        "total": round(sum(seconds.values()), 1),
        "load before": load,
        **environment.origin(),
        **environment.describe(torch.device("cpu")),
    }
    print(json.dumps({"seconds": seconds, "total": content["total"]}, indent=2))
    write_json(arguments.out, content)


if __name__ == "__main__":
    main()
