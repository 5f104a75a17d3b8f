"""Checksums that tell whether a file or folder is the one that a model was trained on."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from flowfactor.data.io import reading

# Blocks of a file, or files of a folder, of which the content counts, and the bytes of each.
_BLOCKS, _BYTES = 16, 1 << 16


def fingerprint(path: Path) -> str:
    """Return a checksum of a file or folder that takes no longer for large files.

    It depends on the size of a file and 16 blocks of it, evenly spaced; of a folder on the names
    and sizes of all visible files below it, and on the beginnings of 16 of these. Where it is and
    when it was written do not matter.

    Raises:
        DataError: it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "a.bin"
        ...     _ = file.write_bytes(b"one")
        ...     before = fingerprint(file), fingerprint(Path(folder))
        ...     _ = file.write_bytes(b"two")
        ...     [fingerprint(file) == before[0], fingerprint(Path(folder)) == before[1]]
        [False, False]
    """
    digest = hashlib.sha256()
    with reading(path):
        if path.is_dir():
            files = sorted(_files(str(path), ""))
            for name, size, _ in files:
                digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
            chosen = [(files[number][2], 0) for number in _spread(len(files))]
        else:
            size = path.stat().st_size
            digest.update(f"{size}\n".encode())
            chosen = [(str(path), begin) for begin in _spread(max(1, size - _BYTES + 1))]
        for name, begin in chosen:
            with open(name, "rb") as file:
                file.seek(begin)
                digest.update(file.read(_BYTES))
    return digest.hexdigest()[:32]


def _files(folder: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """Yield name, size and path of all files below a folder, accents composed in one way."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + unicodedata.normalize("NFC", entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, f"{name}/")
            elif entry.is_file():
                yield name, entry.stat().st_size, entry.path


def _spread(count: int) -> list[int]:
    """Return some of ``0..count - 1``, with the first and the last."""
    if count == 0:
        return []
    return sorted({number * (count - 1) // (_BLOCKS - 1) for number in range(_BLOCKS)})
