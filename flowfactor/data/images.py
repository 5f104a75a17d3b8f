"""Still images, and the sequences they become when they are scaled, rotated and coloured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Tensor

from flowfactor.data.base import check_integers
from flowfactor.data.checks import check_choice
from flowfactor.data.io import ImageStore, TensorStore, open_stills, read_classes
from flowfactor.data.options import Count, ParametricOptions, Transformations
from flowfactor.data.rendering import CENTRES, render
from flowfactor.data.splits import Part, split_sizes
from flowfactor.data.transformations import ParametricDataset, Transformation
from flowfactor.errors import DataError
from flowfactor.options import options
from flowfactor.registries import DATA

NEUTRAL = {"scale": 1.0, "angle": 0.0, "hue": 0.0}
"""The value of each parameter that leaves the image as it is (a grey image becomes red)."""

IMAGE_TRANSFORMATIONS: Mapping[str, Transformation] = {
    "scaling": Transformation("scale", 1.0, 0.1, path_range=(0.7, 1.9)),
    "rotation": Transformation("angle", 0.0, 10.0, path_range=(0.0, 120.0)),
    "hue": Transformation("hue", 0.0, 20.0, path_range=(0.0, 240.0)),
}
"""The default transformations: at frame 8 scale 1.8, 80 degrees, hue 160."""

_DEFAULTS = {str(each.parameter): each for each in IMAGE_TRANSFORMATIONS.values()}


class TransformedImages(ParametricDataset):
    """Still images from which sequences are rendered on demand on their device.

    Images that take more than 1 GiB stay in their file or folder.

    Frame ``x_t`` of image ``i`` under a transformation is the image with the transformation's
    parameter at ``start + step * t`` and the others neutral: original size, upright, and red if it
    is grey or its own hues if it is in colour; see :func:`render`. Bright strokes on black suit the
    transformations best: what moves out of the image is lost, and what moves in is black.

    Args:
        images: ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with 1 or 3 channels, ``uint8``
            (0..255) or floating point in [0, 1] (kept to 8 bits), a tensor or an array; or the path
            of a ``.npy``, ``.npz`` or HDF5 file with one; or a folder of pictures of one size,
            in natural order.
        classes: class of each image, integers ``(N,)``, if known.
        transformations: what the sequences undergo, by name; their order is their index.
        horizon: ``T``, the number of the last frame.
        centre: fixed point of scaling and rotation, see :func:`render`.
        active_start, random_start_prob: see :class:`ParametricDataset`.
        initial_state: see :class:`SequenceDataset`.
        device: where images are held and frames are rendered; that of ``images`` by default.

    Raises:
        DataError: images that cannot be read or have another type, shape or value; classes that do
            not match; what :class:`ParametricDataset` refuses.

    Example:
        >>> import torch
        >>> images = torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8)
        >>> dataset = TransformedImages(images)
        >>> dataset.names
        ('scaling', 'rotation', 'hue')
        >>> batch = dataset.sample([3, 5], "hue")
        >>> tuple(batch.frames.shape), batch.labels.tolist()
        ((2, 9, 3, 28, 28), [2, 2])
    """

    per_sample: ClassVar[tuple[str, ...]] = (*ParametricDataset.per_sample, "_numbers")

    def __init__(
        self,
        images: Tensor | npt.NDArray[np.generic] | str | Path | ImageStore,
        classes: Tensor | None = None,
        transformations: Mapping[str, Transformation] = IMAGE_TRANSFORMATIONS,
        *,
        horizon: int = 8,
        centre: str = "true",
        active_start: str = "random",
        random_start_prob: float = 0.8,
        initial_state: str = "canonical",
        device: torch.device | str | None = None,
    ) -> None:
        check_choice("centre", centre, CENTRES)
        if isinstance(images, Tensor | np.ndarray | str | Path):
            images = open_stills(images)
        channels, height, width = images.image_shape
        if channels not in (1, 3):
            raise DataError(f"images must have 1 or 3 channels, but they have {channels}.")
        if classes is not None:
            check_integers("classes", classes, (len(images),))
        if device is None and isinstance(images, TensorStore):
            device = images.images.device
        super().__init__(
            transformations,
            _DEFAULTS,
            horizon,
            (3, height, width),
            rest=NEUTRAL,
            active_start=active_start,
            random_start_prob=random_start_prob,
            initial_state=initial_state,
            classes=classes,
            device=device,
        )
        self.store = images.to(self.device)
        self.centre = centre
        self._numbers = torch.arange(len(images), device=self.device)

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """The images of all samples, as bytes in memory."""
        return self.store.read(self._numbers).mul_(255).round_().to(torch.uint8)

    def to(self, device: torch.device | str) -> Self:
        """Return the same data set with its frames, and images in memory, on another device."""
        other = super().to(device)
        other.store = self.store.to(device)
        return other

    def render_frames(
        self,
        indices: Int[Tensor, "b"],
        elapsed: Real[Tensor, "k b f"],
        active: Bool[Tensor, "k b"],
        starts: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Return frames of images while some transformations act; see :class:`SequenceDataset`."""
        parameters = self._parameters(elapsed, active, starts, NEUTRAL)
        images = self.store.read(self._numbers[indices])
        return render(images, **parameters, centre=self.centre)


@options
class StillOptions(ParametricOptions):
    """What data sets of still images have in common."""

    transformations: Transformations = dataclasses.field(
        default_factory=lambda: dict(IMAGE_TRANSFORMATIONS)
    )
    """What sequences undergo, by name: ``scale``, ``angle`` or ``hue`` that changes."""

    centre: Literal["true", "authors"] = "true"
    """Fixed point of scaling and rotation: the image's centre, or half a pixel off as in the
    authors' code."""

    train: Count | None = None
    """Number of training images; all by default."""

    def transform(self, images: Tensor | ImageStore, classes: Tensor | None) -> TransformedImages:
        """Return the sequences of some images."""
        return TransformedImages(
            images,
            classes,
            self.transformations,
            horizon=self.horizon,
            centre=self.centre,
            active_start=self.active_start,
            random_start_prob=self.random_start_prob,
            initial_state=self.initial_state,
        )


@DATA.register("images")
@options
class ImagesOptions(StillOptions):
    """Your own still images, grey or in colour."""

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = dataclasses.field(kw_only=True)
    """A folder of pictures of one size, or of folders of them that are named after classes, or with
    a ``metadata.csv`` of columns ``file_name`` and ``label``; or a ``.npy``, ``.npz``, HDF5 or zarr
    file."""

    validation: Part = 0.1
    """Validation images: a number, or a fraction of all."""

    test: Part = 0.1
    """Test images: a number, or a fraction of all."""

    def load(self, split: str, seed: int) -> TransformedImages:
        """Return a split, drawn by the seed."""
        images = open_stills(self.path)
        return self.split(images, read_classes(self.path), split, seed)

    def split(
        self, images: Tensor | ImageStore, classes: Tensor | None, split: str, seed: int
    ) -> TransformedImages:
        """Return those of some images that are in a split."""
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        sizes = split_sizes(len(images), self.validation, self.test, "images")
        parts = order.split([*sizes[1:], sizes[0]])
        chosen = dict(zip(("validation", "test", "train"), parts, strict=True))[split]
        if split == "train":
            chosen = chosen[: self.train]
        return self.transform(images, classes).subset(chosen)

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny; writes a file of random images."""
        images = np.random.default_rng(0).integers(0, 256, (40, 16, 20, 3), dtype=np.uint8)
        np.save(folder / "images.npy", images)
        return {"path": str(folder / "images.npy"), "validation": 8, "test": 8}
