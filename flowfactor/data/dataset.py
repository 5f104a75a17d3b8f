"""Still images, and the sequences they become under a set of transformations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from flowfactor.data.rendering import check_centre, render
from flowfactor.data.source import SequenceDataset, check_active_start
from flowfactor.data.transforms import NEUTRAL, Hue, Parameter, Rotation, Scaling, Transformation
from flowfactor.errors import DataError

DEFAULT_TRANSFORMATIONS: tuple[Transformation, ...] = (Scaling(), Rotation(), Hue())


class TransformedImages(SequenceDataset):
    """Grey images, held once, from which sequences are rendered on demand on their device.

    Frame `x_t` of image `i` under transformation `k` is the image with the parameter of `k` at
    `value(t)` and the other parameters neutral (original size, upright, red).

    Args:
        images: `uint8` of shape `(N, 1, H, H)`; see `from_images` for other kinds of array.
        classes: class of each image, whole numbers `(N,)`; -1 for all if not given.
        transformations: what the sequences undergo; their order is their index.
        horizon: `T`, the number of the last frame.
        centre: fixed point of scaling and rotation, see `render`.
        start_ranges: for transformations by name, between which values of its parameter a random
            start lies; by default between the values at frames 0 and `T`.
        active_start: where at a random start the transformations begin that then act: `random` like
            those that rest, or `canonical`, so that the sequences stay within what the canonical
            ones and their compositions show.
        random_start_prob: the part of the random starts that are not canonical after all, so that
            the images themselves are among the frames, is 1 minus this.
        device: where images are held and frames are rendered; that of `images` by default.

    Raises:
        DataError: images of another type or shape, none at all, labels that do not match,
            transformations without a name of their own, a scale that is not positive.

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

    def __init__(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        transformations: Sequence[Transformation] = DEFAULT_TRANSFORMATIONS,
        *,
        horizon: int = 8,
        centre: str = "true",
        start_ranges: Mapping[str, tuple[float, float]] | None = None,
        active_start: str = "random",
        random_start_prob: float = 0.8,
        device: torch.device | str | None = None,
    ) -> None:
        _check_images(images)
        if classes is None:
            classes = torch.full((len(images),), -1)
        if classes.shape != images.shape[:1] or classes.is_floating_point():
            raise DataError(
                f"classes must be one whole number for each of the {len(images)} images, but they "
                f"are {labels.dtype} of shape {tuple(labels.shape)}."
            )
        if horizon < 1:
            raise DataError(f"A sequence needs a last frame of at least 1, but last is {horizon}.")
        check_centre(centre)
        _check_transformations(transformations, horizon)
        if not 0 <= random_start_prob <= 1:
            raise DataError(f"random_start_prob must be in [0, 1], but it is {random_start_prob}.")
        self.start_ranges = _start_ranges(transformations, horizon, start_ranges or {})
        check_active_start(active_start)
        self.active_start = active_start
        self.random_start_prob = random_start_prob
        self.images: UInt8[Tensor, "n 1 h h"] = images.to(device)
        self.classes: Int[Tensor, " n"] = classes.to(self.images.device)
        self.transformations = tuple(transformations)
        self.centre = centre
        self._last = horizon

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformations, in the order of their index."""
        return tuple(transformation.name for transformation in self.transformations)

    @property
    def horizon(self) -> int:
        """`T`, number of the last frame of a sequence."""
        return self._last

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame, such as `(3, 28, 28)`."""
        return (3, int(self.images.shape[2]), int(self.images.shape[3]))

    @property
    def device(self) -> torch.device:
        """Where the images are held and the frames are rendered."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    @property
    def start_size(self) -> int:
        """One number for each transformation, and one that says whether they count."""
        return len(self.transformations) + 1

    def with_last(self, horizon: int) -> TransformedImages:
        """The same images in shorter or longer sequences, for instance to extrapolate.

        Random starts stay where they were.
        """
        return self._changed(horizon=horizon)

    def to(self, device: torch.device | str) -> TransformedImages:
        """The same data set with its images on another device."""
        return self._changed(device=device)

    def _changed(
        self, horizon: int | None = None, device: torch.device | str | None = None
    ) -> TransformedImages:
        return TransformedImages(
            self.images,
            self.classes,
            self.transformations,
            horizon=self.horizon if horizon is None else horizon,
            centre=self.centre,
            start_ranges=dict(zip(self.names, self.start_ranges, strict=True)),
            active_start=self.active_start,
            random_start_prob=self.random_start_prob,
            device=device,
        )

    def _frames(
        self,
        indices: Int[Tensor, " b"],
        elapsed: Sequence[Int[Tensor, "b f"]],
        active: Sequence[Bool[Tensor, " b"]],
        start: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Frames in which transformation `k` acts on the samples where `active[k]` is true."""
        parameters: dict[Parameter, Tensor] = {
            name: torch.full(elapsed[0].shape, neutral, device=self.device)
            for name, neutral in NEUTRAL.items()
        }
        # Every transformation is evaluated for every sample: K is small, a time is one number,
        # and nothing has to be looked up or brought back from the device.
        for k, (transformation, mask) in enumerate(zip(self.transformations, active, strict=True)):
            t = elapsed[k].float()
            name = transformation.parameter
            resting: float | Tensor = NEUTRAL[name]
            moving = transformation.value(t)
            if start is not None:
                low, high = self.start_ranges[k]
                anywhere = low + start[:, k : k + 1] * (high - low)
                random = start[:, -1:] < self.random_start_prob
                resting = torch.where(random, anywhere, resting)
                if self.active_start == "random":
                    moving = torch.where(random, transformation.value(t, anywhere), moving)
            value = torch.where(mask[:, None], moving, resting)
            before = parameters[name]
            parameters[name] = before * value if name == "scale" else before + value
        images = self.images[indices].float().div_(255)
        return render(images, **parameters, centre=self.centre)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise DataError(
            f"images must be uint8 (0..255), but they are {images.dtype}. `from_images` takes "
            "other types."
        )
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise DataError(
            "images must be grey and square, of shape (N, 1, H, H), but their shape is "
            f"{tuple(images.shape)}. `from_images` also takes (N, H, H)."
        )
    if 0 in images.shape:
        raise DataError(f"There are no images: the shape is {tuple(images.shape)}.")


def _check_transformations(transformations: Sequence[Transformation], horizon: int) -> None:
    names = [transformation.name for transformation in transformations]
    if not names or len(set(names)) < len(names):
        raise DataError(
            f"There must be at least one transformation and each needs its own name, but the "
            f"names are {names}. Tell two of a kind apart by `Rotation(name=...)`."
        )
    for transformation in transformations:
        if transformation.parameter not in NEUTRAL:
            raise DataError(
                f"Transformation {transformation.name!r} changes {transformation.parameter!r}, "
                f"which is not one of {', '.join(NEUTRAL)}."
            )
        if transformation.parameter == "scale":
            for t in range(horizon + 1):
                if transformation.value(t) <= 0:
                    raise DataError(
                        f"Transformation {transformation.name!r} has scale "
                        f"{transformation.value(t):g} at frame {t}, but a scale must be "
                        "positive. Choose a smaller step or fewer frames."
                    )


def _start_ranges(
    transformations: Sequence[Transformation],
    horizon: int,
    given: Mapping[str, tuple[float, float]],
) -> tuple[tuple[float, float], ...]:
    names = [transformation.name for transformation in transformations]
    for name in given:
        if name not in names:
            raise DataError(f"start_ranges names {name!r}; the transformations are {names}.")
    found = []
    for transformation in transformations:
        low, high = given.get(
            transformation.name, (transformation.value(0), transformation.value(horizon))
        )
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(
                f"The start range of {transformation.name!r} must be two finite numbers, but it is "
                f"({low}, {high})."
            )
        if transformation.parameter == "scale":
            for begin in (low, high):
                for t in range(horizon + 1):
                    if transformation.value(t, begin) <= 0:
                        raise DataError(
                            f"From {begin:g}, transformation {transformation.name!r} has a scale "
                            f"of {transformation.value(t, begin):g} at frame {t}, but a scale must "
                            "be positive. Choose another start range."
                        )
        found.append((float(low), float(high)))
    return tuple(found)
