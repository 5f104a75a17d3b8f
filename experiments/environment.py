"""Where a number comes from: command, code, versions, hardware."""

from __future__ import annotations

import functools
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import flowfactor

MAIN = ("flowfactor", "torch", "torchvision", "torchdiffeq", "lightning-fabric", "numpy")
"""The distributions that a reader looks for first."""
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """Return the code, the versions and the hardware of this process, as plain data.

    Args:
        device: that was computed on; None is the processor.
    """
    hardware = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "accelerator": "none",
    }
    if device is not None and device.type != "cpu":
        cuda = device.type == "cuda"
        hardware["accelerator"] = torch.cuda.get_device_name(device) if cuda else device.type
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "source": source(),
        "hardware": hardware,
    }


def command() -> str:
    """Return the command line of this process: ``python -m`` of a module, or a program's name."""
    main = sys.modules["__main__"]
    if main.__spec__ is not None and sys.argv[0] == getattr(main, "__file__", None):
        return shlex.join(["python", "-m", main.__spec__.name, *sys.argv[1:]])
    return shlex.join([sys.argv[0].rsplit("/", maxsplit=1)[-1], *sys.argv[1:]])


def origin(device: torch.device | None = None) -> dict[str, Any]:
    """Return both, for a file of results; see :func:`describe`."""
    return {"command": command(), "environment": describe(device)}


def versions() -> dict[str, str]:
    """Return the versions of all distributions that the numbers rest on.

    They are the package, what it requires, what that requires and so on, as far as it is installed;
    what an extra adds, only if it was imported. Those that a reader looks for come first.
    """
    found = dict.fromkeys(MAIN, "unknown")
    for name in (*MAIN, *_required("flowfactor"), *_extras_in_use()):
        if (version := _version(name)) is not None:
            found[name] = version
    return found


@functools.cache
def source() -> dict[str, Any]:
    """Return the commit of the code and whether it was changed since; nothing outside of git."""
    root = Path(flowfactor.__file__).parents[1]
    if not (root / ".git").exists():
        return {}
    commit, changes = (
        _git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
    )
    return {} if commit is None or changes is None else {"commit": commit, "clean": not changes}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _required(name: str) -> tuple[str, ...]:
    """Return the installed distributions that one needs, and those that these need, sorted."""
    found: set[str] = set()
    new = {name}
    while new:
        found |= new
        new = {
            requirement
            for each in new
            for requirement, extra in _requirements(each)
            if not extra and _version(requirement) is not None
        } - found
    return tuple(sorted(found - {name}))


def _extras_in_use() -> Iterator[str]:
    """Yield what the extras of the package name, if it was imported, with what it needs."""
    for name in sorted({each for each, extra in _requirements("flowfactor") if extra}):
        if _version(name) is None:
            continue
        if _modules(name) & sys.modules.keys():
            yield from (name, *_required(name))


@functools.cache
def _modules(name: str) -> frozenset[str]:
    """Return the modules that a distribution has on top, of which it may list thousands below."""
    return frozenset(file.parts[0].removesuffix(".py") for file in metadata.files(name) or ())


@functools.cache
def _requirements(name: str) -> tuple[tuple[str, bool], ...]:
    """Return the requirements of a distribution, and whether each is of an extra."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return ()
    matches = [(_REQUIREMENT.match(line), "extra ==" in line) for line in lines]
    return tuple(
        (re.sub(r"[-_.]+", "-", match.group()).lower(), extra) for match, extra in matches if match
    )


@functools.cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> int | None:
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            kilobytes = int(file.readline().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(kilobytes / 2**20)
