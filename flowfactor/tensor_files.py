"""Tensors and plain data in one file of safetensors, sealed by a checksum over all of its bytes.

The plain data is JSON in the header's metadata. It begins with the SHA-256 of the file in which the
digits of this checksum are zeros, so that it is always at the same place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import IO, Any

import safetensors.torch
from torch import Tensor

_START = b'{"__metadata__":{"flowfactor":"{\\"sha256\\":\\"'
_BEFORE = 8 + len(_START)
"""Bytes before the checksum: the length of the header, and its beginning."""
_DIGITS = 64


class DamageError(Exception):
    """What shows that a file is not as it was written."""


def pack(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file.

    Args:
        tensors: by name.
        content: what JSON can hold.

    Example:
        >>> import torch
        >>> data = pack({"w": torch.ones(2)}, {"kind": "example"})
        >>> unpack(data)
        ({'w': tensor([1., 1.])}, {'kind': 'example'})
    """
    text = json.dumps({"sha256": "0" * _DIGITS, **content}, separators=(",", ":"))
    # Copies, since the format has no tensors that share memory.
    apart = {name: each.detach().cpu().clone().contiguous() for name, each in tensors.items()}
    data = bytearray(safetensors.torch.save(apart, {"flowfactor": text}))
    assert data[8:_BEFORE] == _START
    data[_BEFORE : _BEFORE + _DIGITS] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the plain data of a file, after comparing it with its checksum.

    Raises:
        DamageError: it is not as it was written.
        ValueError, safetensors.SafetensorError: its checksum is right, but it was written by
            others.
    """
    if data[8:_BEFORE] != _START:
        raise DamageError("its checksum is missing")
    end = _BEFORE + _DIGITS
    digest = hashlib.sha256(data[:_BEFORE])
    digest.update(b"0" * _DIGITS)
    digest.update(memoryview(data)[end:])
    if data[_BEFORE:end] != digest.hexdigest().encode():
        raise DamageError("its checksum is wrong")
    tensors = safetensors.torch.load(data)  # checks that sizes and places fit the file
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header.pop("__metadata__")["flowfactor"])
    del content["sha256"]
    # In the order of the file: that of the library differs from process to process.
    return {name: tensors[name] for name in header}, content


def seal_of(file: IO[bytes]) -> str | None:
    """Return the checksum that a file carries, unchecked; None if it is no file of this kind."""
    file.seek(0)
    beginning = file.read(_BEFORE + _DIGITS)
    if beginning[8:_BEFORE] != _START:
        return None
    return beginning[_BEFORE:].decode("ascii", errors="replace")
