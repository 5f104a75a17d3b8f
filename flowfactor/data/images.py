"""A user's own grey images as a data set: an array, a tensor, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowfactor.data.dataset import DEFAULT_TRANSFORMATIONS, TransformedImages
from flowfactor.data.transforms import Transformation
from flowfactor.errors import DataError

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".webp")
# What PIL calls black and white, grey, palette and colour; all have 8 bits per channel.
_EIGHT_BIT = ("1", "L", "LA", "P", "RGB", "RGBA")


def from_images(
    images: Tensor | npt.NDArray[np.generic] | str | Path,
    classes: Tensor | npt.NDArray[np.generic] | Sequence[int] | None = None,
    transformations: Sequence[Transformation] = DEFAULT_TRANSFORMATIONS,
    *,
    horizon: int = 8,
    centre: str = "true",
    device: torch.device | str | None = None,
) -> TransformedImages:
    """A data set of one's own grey images.

    Bright strokes on black, like the digits of MNIST, suit the transformations best: what turns
    out of the picture is lost, and what turns in is black.

    Args:
        images: `(N, H, H)` or `(N, 1, H, H)`, either `uint8` (0..255) or floating point in
            [0, 1] (kept to 8 bits), a tensor or a numpy array; or the path of a `.npy` file with
            such an array; or a folder of picture files of one size, taken in the order of their
            names, colour pictures by their luminance.
        classes: class of each image, whole numbers `(N,)`.
        transformations: what the sequences undergo.
        horizon: `T`, the number of the last frame.
        centre: fixed point of scaling and rotation, see `render`.
        device: where images are held and frames are rendered.

    Raises:
        DataError: a folder without pictures, pictures that differ in size or cannot be read, a
            type, shape or value other than the above; the message names the first bad image.

    Example:
        >>> import numpy as np
        >>> dataset = from_images(np.random.default_rng(0).random((20, 32, 32)), horizon=4)
        >>> len(dataset), dataset.image_shape
        (20, (3, 32, 32))
    """
    pixels = _read(Path(images)) if isinstance(images, str | Path) else _as_tensor(images)
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    if pixels.ndim != 4 or pixels.shape[1] != 1 or pixels.shape[2] != pixels.shape[3]:
        raise DataError(
            "images must be grey and square, of shape (N, H, H) or (N, 1, H, H), but their shape "
            f"is {tuple(pixels.shape)}. Average the channels of colour images, and pad or crop "
            "images that are not square."
        )
    if pixels.is_floating_point():
        pixels = _to_bytes(pixels)
    if pixels.dtype != torch.uint8:
        raise DataError(
            f"images must be uint8 (0..255) or floating point in [0, 1], but they are "
            f"{pixels.dtype}. Convert values of 0..255 with `images.astype('uint8')` (numpy) or "
            "`images.to(torch.uint8)` (torch)."
        )
    classes = None if classes is None else _as_tensor(classes)
    return TransformedImages(
        pixels, classes, transformations, horizon=horizon, centre=centre, device=device
    )


def _as_tensor(values: Tensor | npt.NDArray[np.generic] | Sequence[int]) -> Tensor:
    try:
        # A copy, because a data set must not change when the array it was made from does.
        return torch.asarray(values, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"This {type(values).__name__} cannot be turned into a tensor ({error}). Give numbers "
            "in one array, all images of the same size."
        ) from error


def _to_bytes(pixels: Tensor) -> Tensor:
    bad = ~((pixels >= 0) & (pixels <= 1))
    if bool(bad.any()):
        image, _, row, column = (int(i) for i in bad.nonzero()[0])
        raise DataError(
            f"Floating point images must be finite and in [0, 1], but {int(bad.sum())} of "
            f"{bad.numel()} values are not: the first is {float(pixels[image, 0, row, column]):g} "
            f"in image {image}, row {row}, column {column}. Divide values of 0..255 by 255, and "
            "repair or remove images with NaN."
        )
    return pixels.mul(255).round().to(torch.uint8)


def _read(path: Path) -> Tensor:
    if path.suffix != ".npy":
        return _read_folder(path)
    try:
        # Arrays of objects would execute code when they are read.
        return _as_tensor(np.load(path, allow_pickle=False))
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}. Give a .npy file or a folder.") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as an array of numbers ({error}). Write it with "
            "`numpy.save(path, images)`."
        ) from error


def _read_folder(folder: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give the folder that holds the pictures.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not paths:
        raise DataError(
            f"The folder {folder} holds no pictures ({', '.join(_PICTURES)}). Give the folder "
            "that holds the files themselves, not one above it."
        )
    pictures: list[npt.NDArray[np.uint8]] = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                if picture.mode not in _EIGHT_BIT:
                    raise DataError(
                        f"The picture {path} is of PIL's mode {picture.mode!r}, not 8 bits per "
                        "channel. Save it with 8 bits, or read it yourself and give an array in "
                        "[0, 1]."
                    )
                pictures.append(np.asarray(picture.convert("L")))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DataError(
                f"The picture {path} cannot be read ({error}). Repair or remove it."
            ) from error
        if pictures[-1].shape != pictures[0].shape:
            height, width = pictures[0].shape
            raise DataError(
                f"All pictures must have one size, but {path.name} has {pictures[-1].shape[1]}x"
                f"{pictures[-1].shape[0]} pixels and {paths[0].name} has {width}x{height}. "
                "Resize them first."
            )
    return torch.from_numpy(np.stack(pictures))
