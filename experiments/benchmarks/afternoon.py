"""Time the commands of ``docs/own_data.md``, from a clone to reports on one's own data.

    python -m experiments.benchmarks.afternoon [--index-url URL] [--only HEADING] [--out FILE]

Every command of the page is run as it stands there, one after the other, in a clone of the last
commit and a fresh environment, and its seconds by the clock and of the processors are noted;
``--only film`` leaves out what is neither the installation nor below such a heading. The folder of
photographs holds those of scikit-image's wheel; the film is drawn by this script: dark things that
swim before a static background. Needs the extras ``photos`` and ``video`` where it runs; what it
installs is what pip finds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from experiments import environment
from experiments.runs import write_json
from flowfactor.tables import Column, Row, Table

RESULT = Path(__file__).parent / "results" / "afternoon.json"
SOURCE = Path(__file__).parents[2]
PAGE = SOURCE / "docs" / "own_data.md"
_PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "ihc"),
    *("moon", "motorcycle_left", "retina", "rocket"),
)
_INDEX = "--index-url URL-OF-A-CPU-INDEX"


def read_commands(page: str) -> dict[str, list[str]]:
    r"""Return the commands of a page by the heading that they are below.

    Example:
        >>> read_commands("# Page\n```sh\ncd a   # there\n```\n## Run\n```sh\nrun \\\n  b\n```")
        {'Page': ['cd a'], 'Run': ['run b']}
    """
    found: dict[str, list[str]] = {}
    for part in re.split(r"^#+ ", page, flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
            lines = re.sub(r"\\\n\s*", "", block).strip().split("\n")
            commands = [re.sub(r"\s+# .*", "", line) for line in lines]
            found.setdefault(heading, []).extend(commands)
    return found


def count_words(page: str) -> dict[str, int]:
    """Return the words to be read below each heading, code included."""
    parts = (part.partition("\n") for part in re.split(r"^#+ ", page, flags=re.MULTILINE)[1:])
    return {heading: len(text.split()) for heading, _, text in parts}


def copy_photographs(folder: Path) -> None:
    """Copy the photographs of scikit-image's wheel into a folder."""
    import skimage.data

    folder.mkdir()
    for path in sorted(Path(skimage.data.__file__).parent.iterdir()):
        if path.stem in _PHOTOGRAPHS:
            (folder / path.name).write_bytes(path.read_bytes())


def draw_film(path: Path, frames: int = 400, things: int = 8, seed: int = 0) -> None:
    """Write a film of dark ellipses that swim, turn and rest before a static background."""
    import av

    random = np.random.default_rng(seed)
    height, width = 480, 640
    still = 170 + 12 * ndimage.gaussian_filter(random.standard_normal((height, width)), 8) / 0.035
    y, x = np.mgrid[-40:40, -40:40]
    middle = np.array([width / 2, height / 2])
    places = random.uniform(90, 2 * middle - 90, (things, 2))
    headings, speeds = random.uniform(0, 2 * np.pi, things), np.full(things, 5.0)
    turns = np.zeros(things)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for _ in range(frames):
            changes = random.random(things) < 0.06
            turns = np.where(changes, random.normal(0, 0.09, things), turns)
            speeds = np.where(changes, random.choice([0.0, 3.0, 6.0], things), speeds)
            out = (np.abs(places - middle) > middle - 90).any(1)
            home = np.arctan2(*(middle - places).T[::-1])
            inward = np.angle(np.exp(1j * (home - headings)))
            headings = headings + np.where(out, 0.15 * np.sign(inward), turns)
            direction = np.stack([np.cos(headings), np.sin(headings)], 1)
            places = (places + speeds[:, None] * direction).clip(45, 2 * middle - 45)
            picture = still.copy()
            for (px, py), (c, s) in zip(places, direction, strict=True):
                column, row = int(px), int(py)
                dx, dy = x + column - px, y + row - py
                along, across = dx * c + dy * s, dy * c - dx * s
                inside = np.exp(-((along / 26) ** 4) - (across / (9 + along / 8)) ** 4)
                picture[row - 40 : row + 40, column - 40 : column + 40] -= 130 * inside
            pixels = np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def run_commands(commands: list[str], folder: Path, inputs: Path, index: str) -> list[Any]:
    """Run commands in one shell; return the seconds and the processor seconds of each."""
    origin = folder / "origin" / "flowfactor"
    origin.parent.mkdir()
    origin.symlink_to(SOURCE)
    script = ["set -e", "TIMEFORMAT='%R %U %S'"]
    for number, command in enumerate(commands):
        real = command.replace("REPOSITORY", str(origin)).replace(_INDEX, index)
        # What a command says goes to its log, so that its times alone are left.
        script.append(f"{{ time {{ {real} ; }} >{folder}/{number}.log 2>&1 ; }} 2>>{folder}/times")
        if number == 0:  # the clone, where the page has them lie
            script.append(f"cp -r {inputs}/. .")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHON"))}
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=folder, env=environ, check=False)
    lines = (folder / "times").read_text().splitlines()
    if done.returncode:
        log = (folder / f"{len(lines)}.log").read_text()[-3000:]
        raise SystemExit(f"{commands[len(lines)]}\n{log}")
    return [[float(number) for number in line.split()] for line in lines]


def make_table(content: dict[str, Any]) -> Table:
    """Return the seconds of each command, and of each part with the installation."""
    rows = [
        Row(f"`{each['command'][:48]}`", [each["seconds"], each["cpu_seconds"]])
        for each in content["commands"]
    ]
    keys = "seconds", "cpu_seconds"
    sums: dict[str, list[float]] = {}
    for each in content["commands"]:
        before = sums.setdefault(each["heading"], [0.0, 0.0])
        sums[each["heading"]] = [b + each[key] for b, key in zip(before, keys, strict=True)]
    (_, install), *parts = sums.items()
    rows += [
        Row(
            f"**{name}**, with the installation", [a + b for a, b in zip(own, install, strict=True)]
        )
        for name, own in parts
    ]
    columns = [Column("by the clock", format=".0f"), Column("of the processor", format=".0f")]
    return Table(columns, rows, label="seconds")


def main() -> None:
    """Run the page, print and write the seconds of each command."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--index-url", default="", help="where pip finds torch")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", default="", help="a word in the headings of the parts to run")
    parser.add_argument("--minutes", type=float, help="of each training, to try the script")
    parser.add_argument("--keep", type=Path, help="a new folder for logs and reports")
    parser.add_argument("--show", action="store_true", help="print what was measured before")
    arguments = parser.parse_args()
    if arguments.show:
        print(make_table(json.loads(arguments.out.read_text())).to_markdown())
        return
    index = f"--index-url {shlex.quote(arguments.index_url)}" if arguments.index_url else ""
    page = PAGE.read_text()
    (first, install), *parts = read_commands(page).items()
    chosen = [(first, install), *(part for part in parts if arguments.only in part[0].lower())]
    pairs = [(heading, each) for heading, found in chosen for each in found]
    if arguments.minutes is not None:
        shorter = f"max_minutes={arguments.minutes:g}"
        pairs = [(name, re.sub(r"max_minutes=\S+", shorter, each)) for name, each in pairs]
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).absolute()
        inputs = folder / "inputs"
        inputs.mkdir(parents=True)
        copy_photographs(inputs / "my_photographs")
        draw_film(inputs / "film.mp4")
        times = run_commands([command for _, command in pairs], folder, inputs, index)
    rows = [
        {
            "heading": heading,
            "command": command,
            "seconds": real,
            "cpu_seconds": round(user + own, 1),
        }
        for (heading, command), (real, user, own) in zip(pairs, times, strict=True)
    ]
    content = {
        "commands": rows,
        "words": count_words(page),
        "load before": load,
        "load after": os.getloadavg(),
        **environment.origin(),
        **environment.describe(torch.device("cpu")),
    }
    write_json(arguments.out, content)
    print(make_table(content).to_markdown())


if __name__ == "__main__":
    main()
