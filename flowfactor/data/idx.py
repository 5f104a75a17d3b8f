"""The IDX format of the MNIST files, plain or gzipped, read with every claim of its header checked.

A file is a magic number `0x00000800 + number of dimensions`, the dimensions as big-endian 32-bit
integers, and the bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowfactor.errors import DataError

_UNSIGNED_BYTES = 0x0800


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The array of unsigned bytes in an IDX file.

    Args:
        path: the file; read through gzip if its name ends in `.gz`.
        dimensions: how many the array must have, 3 for images and 1 for labels.

    Raises:
        DataError: a file that cannot be read, is damaged, or holds something else.
    """
    content = read_bytes(path)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise _damaged(path, f"it ends after {len(content)} bytes, within its header")
    (magic,) = struct.unpack(">I", content[:4])
    if magic != _UNSIGNED_BYTES + dimensions:
        raise _damaged(
            path,
            f"its magic number is {magic:#010x} and not {_UNSIGNED_BYTES + dimensions:#010x}, so "
            f"it is not an IDX file of {dimensions}-dimensional unsigned bytes",
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected, found = math.prod(shape), len(content) - header
    if expected != found:
        what = "truncated" if found < expected else "longer than it should be"
        raise _damaged(
            path, f"it is {what}: its header announces {expected} bytes, {found} are there"
        )
    array = np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    return torch.from_numpy(array.copy())


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in `.gz`.

    Raises:
        DataError: a file that cannot be read or unpacked.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, f"it cannot be unpacked ({error})") from error
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read: {error.strerror or error}. Check its permissions."
        ) from error


def _damaged(path: Path, how: str) -> DataError:
    return DataError(
        f"The file {path} is damaged: {how}. Delete it and copy it again from its origin, or let "
        "it be fetched anew with source 'download'."
    )
