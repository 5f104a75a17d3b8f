"""Where a number comes from: command, versions, hardware."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

import torch

_PACKAGES = ("flowfactor", "torch", "torchvision", "torchdiffeq", "lightning-fabric", "numpy")


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """Return the versions and the hardware of this process, as plain data."""
    hardware = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "accelerator": "none",
    }
    if device is not None and device.type == "cuda":
        hardware["accelerator"] = torch.cuda.get_device_name(device)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {package: _version(package) for package in _PACKAGES},
        "hardware": hardware,
    }


def command() -> str:
    """Return the command line of this process, the program by its bare name."""
    program = sys.argv[0].rsplit("/", maxsplit=1)[-1]
    return " ".join([program, *sys.argv[1:]])


def origin() -> dict[str, Any]:
    """Return both, for a file of results."""
    return {"command": command(), "environment": describe()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


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
