"""Time a move on the explorer's page: in the server, and in a browser.

    python -m experiments.benchmarks.explorer_latency RUN [--moves N] [--no-browser] [--out FILE]

A move is one new value of a slider, or one new start in the landscape. In the server it is the
answer to one request: latents, decoded image and film strip, landscape, all as the text that is
sent. In the browser (Chromium, without a window) it is the time from the slider's event until the
new image has been decoded and the next frame is drawn, with everything between: the request, the
answer, the page. Needs the extra ``app``; the browser also Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments import environment
from experiments.benchmarks.timing import positive
from experiments.explorer.browser import open_page, serve
from experiments.explorer.runs import open_runs
from experiments.explorer.session import Session
from experiments.runs import write_json

RESULT = Path(__file__).parent / "results" / "explorer_latency.json"

# Dispatches one event and waits until its answer has been drawn.
_MOVE = """async ([id, value]) => {
  const slider = document.querySelector(`#${id} input[type=range]`);
  const image = document.querySelector('#ff-image-0');
  const began = performance.now();
  const arrived = new Promise((resolve) => {
    const observer = new MutationObserver(() => { observer.disconnect(); resolve(); });
    observer.observe(image, { attributes: true, attributeFilter: ['src'] });
  });
  slider.value = value;
  slider.dispatchEvent(new Event('input', { bubbles: true }));
  await arrived;
  await image.decode();
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


def moves(session: Session, seed: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return requests by what is moved, each new."""
    dice, names = random.Random(seed), session.names
    horizon = next(iter(session.explorers.values())).model.horizon
    mixed = {name: round(dice.uniform(-1, 1), 2) for name in names}

    def weight() -> float:
        return round(dice.uniform(-2, 2), 3)

    return {
        "time, one flow": lambda: {"weights": {names[0]: 1.0}, "t": dice.uniform(0, horizon)},
        "weight, one flow": lambda: {"weights": {names[0]: weight()}, "t": 0.7 * horizon},
        "time, all flows": lambda: {"weights": mixed, "t": dice.uniform(0, horizon)},
        "weight, all flows": lambda: {"weights": {**mixed, names[0]: weight()}, "t": 0.7 * horizon},
        "start, all flows": lambda: {
            "weights": mixed,
            "t": 0.7 * horizon,
            "start": {"model": 0, "x": dice.random(), "y": dice.random()},
        },
    }


def time_server(session: Session, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of an answer, of the clock and of the processor, by what is moved."""
    results = {}
    for name, case in moves(session, seed).items():
        wall, processor = [], []
        for _ in range(count + 5):
            request = case()
            began, used = time.perf_counter(), time.process_time()
            json.dumps(session.answer(request))
            wall.append(time.perf_counter() - began)
            processor.append(time.process_time() - used)
        results[name] = {**summary(wall[5:]), "processor": round(1e3 * median(processor[5:]), 2)}
    return results


def time_browser(new_session: Callable[[], Session], count: int) -> dict[str, dict[str, float]]:
    """Return milliseconds from the event of a slider until the new image is drawn."""
    session = new_session()
    horizon = next(iter(session.explorers.values())).model.horizon
    results = {}
    with serve(new_session) as url, open_page(url) as tab:
        tab.wait_for_timeout(2000)

        def drag(slider: str, low: float, high: float) -> dict[str, float]:
            steps = [round(low + (high - low) * (i + 1) / (count + 1), 3) for i in range(count)]
            times = [1e-3 * tab.evaluate(_MOVE, [slider, value]) for value in steps]
            return summary(times[5:])

        results["time, one flow"] = drag("ff-time", 0, horizon)
        results["weight, one flow"] = drag("ff-weight-0", -2, 2)
        for k in range(1, len(session.names)):
            tab.evaluate(_MOVE, [f"ff-weight-{k}", 0.5])
        results["time, all flows"] = drag("ff-time", 0, horizon)
        results["weight, all flows"] = drag("ff-weight-0", -2, 2)
    return results


def summary(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 95 % quantile in milliseconds."""
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": round(1e3 * median(ordered), 2), "95 %": round(1e3 * late, 2)}


def median(values: list[float]) -> float:
    """Return the middle of some values."""
    return sorted(values)[len(values) // 2]


def main() -> None:
    """Time both, print and write the result."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--moves", type=positive, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    new_session = open_runs([arguments.run])
    session = new_session()
    load = os.getloadavg()[0]
    content = {
        "run": arguments.run.name,
        "image_shape": list(next(iter(session.explorers.values())).model.image_shape),
        "flows": list(session.names),
        "moves": arguments.moves,
        "seed": arguments.seed,
        "server": time_server(session, arguments.moves, arguments.seed),
        "load before": load,
    }
    if not arguments.no_browser:
        content["browser"] = time_browser(new_session, arguments.moves)
    content = {
        **content,
        **environment.origin(),
        **environment.describe(torch.device("cpu")),
    }
    print(json.dumps({key: content.get(key) for key in ("server", "browser")}, indent=2))
    write_json(arguments.out, content)


if __name__ == "__main__":
    main()
