"""Fuzz configurations, labels and readers: damaged and hostile inputs, for as long as one likes.

Each input is made from a good one, by changes that its number and the seed decide, and is read by
another process. It must be accepted or refused by one clear message: nothing else may be raised,
the process may not die, and neither take 10 s nor 2 GB::

    python -m experiments.benchmarks.fuzz --minutes 60 --out fuzz.json
    python -m experiments.benchmarks.fuzz --only pictures --case 1234  # one input again, in full
"""

from __future__ import annotations

import collections
import json
import logging
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments import environment
from experiments.runs import write_json

SECONDS, BYTES = 10.0, 2 << 30
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MESSAGE = 4000
_OUTCOMES = ("accepted", "clear", "unclear", "traceback", "hang", "memory", "death")

_WEIRD = (
    *("", "~", "-1", "0", "1e999", ".nan", "-.inf", "9" * 400, "0x" + "f" * 60, "1:30:00"),
    *("yes", "off", "2001-99-99", "[]", "{}", "[[[[[[1]]]]]]", "*a", "&a [*a]", "!!int x"),
    *("!!python/name:os.system", '"\\0"', '"\\ud800"', "x" * 3000, "../../../etc/passwd", "~root"),
    *("e\u0301", "\u202e", "[red]", "$x_$", "{{}}", "? a", "|", ">-", "<<", "- -", "1_000", "''"),
    *("1.5", "[1, 2]", "{a: 1, a: 2}", "null", "true"),
)


# ---- inputs


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some damage: bits, runs, cuts, repeats and numbers at their limits."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(data) + 1) if draw.random() < 0.6 else draw.randrange(80)
        place = min(place, len(data))
        kind = draw.randrange(8)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[place : place + draw.randrange(1, 9)] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 2:
            del data[place : place + draw.choice((1, 4, 100, len(data)))]
        elif kind == 3:
            data[place:place] = data[place : place + draw.choice((1, 16, 1000))]
        elif kind == 4:
            number = draw.choice(
                (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1)
            )
            order = draw.choice(("big", "little"))
            size = draw.choice((1, 2, 4, 8))
            data[place : place + size] = (number % 256**size).to_bytes(size, order)
        elif kind == 5:
            data[place:place] = draw.choice(_WEIRD).encode("utf-8", "replace")
        elif kind == 6:
            data[place : place + 16] = bytes(16) if draw.random() < 0.5 else b"\xff" * 16
        elif kind == 7:
            word = str(draw.choice((0, -1, 10**6, 10**12, 10**30, 2**31, 2**63))).encode()
            data[place : place + len(word)] = word
    return bytes(data)


def _configuration(folder: Path, draw: random.Random) -> None:
    import experiments
    from experiments.config import read_config

    shipped = sorted((Path(experiments.__file__).parent / "configs").rglob("*.yaml"))
    text = draw.choice(shipped).read_text(encoding="utf-8")
    lines = text.splitlines()
    for _ in range(draw.randrange(5)):
        place = draw.randrange(len(lines))
        key, colon, _ = lines[place].partition(":")
        choice = draw.randrange(5)
        if choice == 0 and colon:
            lines[place] = f"{key}: {draw.choice(_WEIRD)}"
        elif choice == 1:
            lines.insert(place, draw.choice(_WEIRD))
        elif choice == 2:
            lines.insert(place, draw.choice(lines))
        elif choice == 3:
            lines[place] = draw.choice(("  ", "\t", "")) + lines[place].lstrip()
        else:
            lines[place] = f"{draw.choice(_WEIRD)}: {lines[place].strip()}"
    content = "\n".join(lines).encode("utf-8", "replace")
    (folder / "a.yaml").write_bytes(mutate(content, draw) if draw.random() < 0.3 else content)
    keys = (
        "training.steps",
        "data.transformations",
        "model.latent_dim",
        "data.path",
        "seed",
        "a.b",
    )
    settings = [f"{draw.choice(keys)}={draw.choice(_WEIRD)}" for _ in range(draw.randrange(3))]
    read_config(str(folder / "a.yaml"), settings)


def _labels(folder: Path, draw: random.Random) -> None:
    from flowfactor.data import Recordings

    films = np.arange(6 * 3 * 16, dtype=np.uint8).reshape(6, 3, 4, 4)
    suffix = draw.choice((".csv", ".tsv", ".json", ".npy"))
    path = folder / f"labels{suffix}"
    values = [draw.choice(("a", "b", "1", "2", "255", "", "-1", *_WEIRD)) for _ in range(6)]
    if suffix == ".json":
        content = json.dumps(
            draw.choice((values, dict(enumerate(values)), [[1]], [None, 1.5]))
        ).encode()
    elif suffix == ".npy":
        kinds: tuple[Any, ...] = (values, [0, 1, 2, 1, 255, 255], [1.0, 2, 3, 1, 2, 3], [True] * 6)
        np.save(path, np.array(draw.choice(kinds)))
        content = path.read_bytes()
    else:
        separator = draw.choice((",", ";", "\t", " ", "|"))
        rows = [f"{number}{separator}{value}" for number, value in enumerate(values)]
        content = (
            draw.choice(("\n", "\r\n", "\r"))
            .join(draw.choice((rows, values)))
            .encode("utf-8", "replace")
        )
        content = draw.choice((b"", b"\xef\xbb\xbf", b"name,label\n")) + content
    path.write_bytes(mutate(content, draw) if draw.random() < 0.7 else content)
    names = draw.choice((None, None, ["a", "b"], [draw.choice(_WEIRD), "b"]))
    Recordings(films, path, names).require_labels()


def _arrays(folder: Path, draw: random.Random) -> None:
    import h5py  # type: ignore[import-untyped]

    from flowfactor.data import Recordings
    from flowfactor.data.images import ImagesOptions
    from flowfactor.data.io import open_store, read_images

    suffix = draw.choice((".npy", ".npz", ".h5"))
    path = folder / f"a{suffix}"
    shape = draw.choice(((6, 4, 8, 8), (6, 4, 8, 8, 3), (12, 8, 8, 3), (12, 8, 8)))
    kind = draw.choice((np.uint8, np.uint8, np.float32, np.float16, np.int64, np.bool_))
    pixels = np.random.default_rng(draw.randrange(100)).integers(0, 2, shape).astype(kind)
    if suffix == ".npy":
        np.save(path, pixels)
    elif suffix == ".npz":
        save = draw.choice((np.savez, np.savez_compressed))
        save(path, frames=pixels, labels=np.arange(len(pixels)) % 2)
    else:
        with h5py.File(path, "w") as file:
            packed = {"compression": draw.choice(("gzip", "lzf")), "chunks": (1, *shape[1:])}
            file.create_dataset("frames", data=pixels, **draw.choice(({}, packed)))
            file["labels"] = np.arange(len(pixels)) % 2
    if draw.random() < 0.9:
        path.write_bytes(mutate(path.read_bytes(), draw))
    reader = draw.randrange(4)
    if reader == 0:
        Recordings(path).sample([0])
    elif reader == 1:
        read_images(path)
    elif reader == 2:
        import torch

        open_store(path).read(torch.tensor([0, 3]))
    else:
        ImagesOptions(path=str(path), horizon=2).load("train", 0).sample([0], "hue")


def _pictures(folder: Path, draw: random.Random) -> None:
    from PIL import Image

    from flowfactor.data import Recordings
    from flowfactor.data.io import read_images

    suffix = draw.choice(("png", "jpg", "bmp", "gif", "tif", "ppm", "pgm", "webp"))
    modes = {"pgm": ("L", "I;16"), "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")}
    mode = draw.choice(modes.get(suffix, ("L", "RGB")))
    pixels = np.random.default_rng(draw.randrange(100)).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture = (
        Image.fromarray(pixels[..., 0].astype(np.uint16))
        if mode == "I;16"
        else picture.convert(mode)
    )
    options: dict[str, Any] = {}
    if suffix in ("png", "jpg", "tif", "webp") and draw.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = draw.randrange(12)
        options["exif"] = exif
    if suffix in ("png", "gif", "tif", "webp") and draw.random() < 0.2:
        options |= {"save_all": True, "append_images": [picture] * draw.randrange(1, 3)}
    for number in range(2):
        picture.save(folder / f"{number}.{suffix}", **options)
    path = folder / f"{draw.randrange(2)}.{suffix}"
    path.write_bytes(mutate(path.read_bytes(), draw))
    if draw.random() < 0.5:
        read_images(folder)
    else:
        Recordings(folder).sample([0])


def _videos(folder: Path, draw: random.Random) -> None:
    import av

    from flowfactor.data import Recordings

    kinds = {"mp4": "libx264", "mkv": "ffv1", "avi": "mpeg4", "webm": "libvpx", "mpg": "mpeg2video"}
    suffix = draw.choice([kind for kind, codec in kinds.items() if codec in av.codecs_available])
    path, rate = folder / f"a.{suffix}", 25
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(kinds[suffix], rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(12):
            pixels = np.full((16, 32, 3), 20 * number, np.uint8)
            frame: Any = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(mutate(path.read_bytes(), draw))
    recordings = Recordings(path, horizon=draw.choice((None, 2)), stride=None)
    recordings.sample([len(recordings) - 1])


def _folders(folder: Path, draw: random.Random) -> None:
    from PIL import Image

    from flowfactor.data import Recordings

    names = (
        "a",
        "b",
        "e\u0301",
        "\u00e9",
        "1",
        "10",
        "x" * 200,
        ".hidden",
        "[red]",
        "$x_$",
        "line\nbreak",
    )
    places = [folder]
    for _ in range(draw.randrange(1, 12)):
        place = draw.choice(places) / draw.choice(names)
        if draw.random() < 0.5 and not place.exists() and len(str(place)) < 2000:
            place.mkdir()
            places.append(place)
            continue
        picture = Image.new(draw.choice(("L", "RGB")), draw.choice(((8, 8), (8, 8), (9, 8))))
        for number in range(draw.randrange(4)):
            picture.save(draw.choice(places) / f"{number}{draw.choice(('.png', '.PNG', '.jpg'))}")
        if draw.random() < 0.2:
            (draw.choice(places) / draw.choice(("a.mp4", "notes.txt", "c.png"))).write_bytes(
                b"none"
            )
    size, named = draw.choice((None, 8)), draw.choice((None, ["one"]))
    Recordings(folder, names=named, size=size, horizon=1, short="drop").sample([0])


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "configurations": _configuration,
    "labels": _labels,
    "arrays": _arrays,
    "pictures": _pictures,
    "videos": _videos,
    "folders": _folders,
}


# ---- running them


def run_case(kind: str, seed: int, number: int) -> tuple[str, str]:
    """Return the outcome of an input and what was raised."""
    from flowfactor.errors import FlowFactorError
    from flowfactor.names import show_invisible

    draw = random.Random(f"{seed}/{kind}/{number}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            KINDS[kind](Path(folder), draw)
        except FlowFactorError as error:
            message = str(error)
            # A configuration's wrong keys are listed, 20 at most.
            clear = 10 < len(message) < _MESSAGE and message.count("\n") < 25
            clear = clear and message == show_invisible(message)
            return "clear" if clear else "unclear", message
        except Exception as error:
            return "traceback", f"{type(error).__name__}: {error}"
    return "accepted", ""


def work(connection: Any, seed: int) -> None:
    """Run the inputs that come through a connection, and answer with their outcomes."""
    logging.disable(logging.CRITICAL)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    while True:
        kind, number = connection.recv()
        outcome, message = run_case(kind, seed, number)
        connection.send(
            (outcome, message[:300], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        )


class Worker:
    """A process that runs inputs, and is replaced when one of them kills or fills it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, self.seed), daemon=True)
        self.process.start()
        other.close()
        self.fresh = True

    def run(self, kind: str, number: int) -> tuple[str, str, float, int]:
        """Return the outcome, what was raised, the seconds and the most bytes of memory."""
        self.connection.send((kind, number))
        begin = time.monotonic()
        outcome, message, most = "hang", "", 0
        # The first input of a process also imports what all others need.
        limit = SECONDS + (60 if self.fresh else 0)
        try:
            while time.monotonic() - begin < limit:
                if self.connection.poll(0.05):
                    outcome, message, kilobytes = self.connection.recv()
                    most = max(most, 1024 * kilobytes)
                    break
                pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
                most = max(most, int(pages) * _PAGE)
                if most > BYTES:
                    break
        except (EOFError, OSError):
            outcome = "death"
        if most > BYTES:
            outcome = "memory"
        seconds = time.monotonic() - begin
        slow_start = self.fresh
        self.fresh = False
        if outcome in ("hang", "memory", "death"):
            self.stop()
            self._start()
        return outcome, message, 0.0 if slow_start else seconds, most

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def fuzz(minutes: float, seed: int, kinds: list[str], first: int = 0) -> dict[str, Any]:
    """Return how many inputs had which outcome, in so many minutes, and the worst of them."""
    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in kinds}
    failures: list[dict[str, Any]] = []
    slowest, most, number = 0.0, 0, first
    worker = Worker(seed)
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        for kind in kinds:
            outcome, message, seconds, used = worker.run(kind, number)
            counts[kind][outcome] += 1
            slowest, most = max(slowest, seconds), max(most, used)
            if outcome not in ("accepted", "clear"):
                failures.append(
                    {"kind": kind, "case": number, "outcome": outcome, "error": message}
                )
        number += 1
    worker.stop()
    total = sum(counts.values(), collections.Counter())
    return {
        "command": f"python -m experiments.benchmarks.fuzz --minutes {minutes:g} --seed {seed}",
        "minutes": minutes,
        "seed": seed,
        "inputs": {kind: {key: found[key] for key in _OUTCOMES} for kind, found in counts.items()},
        "total": {"tried": total.total(), **{key: total[key] for key in _OUTCOMES}},
        "slowest_seconds": round(slowest, 2),
        "most_memory_mb": round(most / 2**20),
        "failures": failures[:50],
    }


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return how many inputs of each kind ended how, as a table of the documentation."""
    names = ("accepted", "clear message", *_OUTCOMES[2:4], "10 s", "2 GB", "death of the process")
    rows = {**result["inputs"], "all": result["total"]}
    return [
        ["inputs", "tried", *names],
        *(
            [
                kind,
                *(
                    f"{count:,}"
                    for count in (
                        sum(row[each] for each in _OUTCOMES),
                        *(row[each] for each in _OUTCOMES),
                    )
                ),
            ]
            for kind, row in rows.items()
        ),
    ]


def main(
    minutes: Annotated[float, typer.Option(help="For how long.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all inputs.")] = 0,
    only: Annotated[str, typer.Option(help="One kind of input; all by default.")] = "",
    case: Annotated[int, typer.Option(help="Run one input again, of the kind.")] = -1,
    first: Annotated[int, typer.Option(help="Number of the first input.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where the JSON is written.")] = None,
) -> None:
    """Fuzz configurations, labels and readers."""
    if case >= 0:
        with tempfile.TemporaryDirectory() as folder:
            KINDS[only](Path(folder), random.Random(f"{seed}/{only}/{case}"))
        return
    result = fuzz(minutes, seed, [only] if only else list(KINDS), first)
    if out is not None:
        tables = {"tables": {"outcomes": table(result)}}
        write_json(out, {**environment.origin(), **result, **tables})
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)
