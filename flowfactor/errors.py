"""Errors a user can cause, so that one `except FlowFactorError` catches them all."""

from __future__ import annotations

import errno
import os
import re

from flowfactor.names import show_invisible


class FlowFactorError(Exception):
    """Base of every error that a user's input, files or settings can cause."""

    def __str__(self) -> str:
        """Return the message, in which control characters of a stranger's names are escaped."""
        return show_invisible(super().__str__())


class ConfigError(FlowFactorError, ValueError):
    """Options that cannot be used: an unknown key, a wrong type, an impossible combination."""


class DataError(FlowFactorError):
    """Data that is missing, damaged, or not of the expected shape, type or range."""


class MissingExtraError(FlowFactorError, ImportError):
    """A package that only an extra of the distribution installs, and that is not there."""


class RunError(FlowFactorError):
    """A run folder or a checkpoint that cannot be written, read or continued."""


class BusyError(RunError):
    """A run folder that another process works in."""


_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad_alloc", re.IGNORECASE
)
_ADVICE = {
    errno.ENOSPC: "Free some space, or choose a folder on another device.",
    errno.EDQUOT: "Free some space, or choose a folder on another device.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.EACCES: "Change its permissions, or choose another one.",
    errno.EPERM: "Change its permissions, or choose another one.",
    errno.ENOTDIR: "Something above it is a file; choose a folder.",
    errno.ENAMETOOLONG: "Choose a shorter one.",
    errno.EMFILE: "Close other programs, or raise the limit (ulimit -n).",
}


def explain(error: BaseException) -> str | None:
    """Return one paragraph on what went wrong and what helps, or None if it is a mistake of ours.

    The user can help it if it is one of our own errors, of the machine (a full disk, a file that
    may not be written, too little memory), or of an encoding.

    Example:
        >>> explain(ConfigError("data.horizon: is 0")), explain(TypeError("no"))
        ('data.horizon: is 0', None)
        >>> explain(OSError(28, "No space left on device", "runs/a"))
        'runs/a: No space left on device. Free some space, or choose a folder on another device.'
    """
    if isinstance(error, FlowFactorError):
        return str(error)
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and _MEMORY.search(str(error)))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    ):
        return (
            "The memory is not enough. Make smaller what fills it: training.batch_size, "
            "training.frames_per_sequence, training.validation_sequences and the model's sizes in "
            "a training; evaluation.images (--images) in an evaluation; or take fewer samples, "
            "smaller images or a smaller horizon."
        )
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object[:200]!a} cannot be written in the encoding {error.encoding}. Set "
            f"PYTHONUTF8=1, or a locale of UTF-8, or choose another name."
        )
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOENT and not _is_somewhere():
        return "The working folder does not exist any more. Change into another one."
    # Names of files may be bytes, numbers, or nothing.
    path = error.filename2 or error.filename
    where = f"{os.fsdecode(path)[:1000]}: " if isinstance(path, str | bytes) else ""
    text = f"{where}{error.strerror or error or type(error).__name__}"
    return " ".join([f"{text.rstrip('.')}.", *filter(None, [_ADVICE.get(error.errno or 0)])])


def _is_somewhere() -> bool:
    """Return whether the working folder exists."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True
