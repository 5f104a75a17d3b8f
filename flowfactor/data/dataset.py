"""Still images, and the sequences they become under a set of transformations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from flowfactor.data.rendering import check_centre, render
from flowfactor.data.sequences import Sequences
from flowfactor.data.transforms import NEUTRAL, Hue, Parameter, Rotation, Scaling, Transformation
from flowfactor.errors import DataError

DEFAULT_TRANSFORMATIONS: tuple[Transformation, ...] = (Scaling(), Rotation(), Hue())


class SequenceDataset:
    """Grey images, held once, from which sequences are rendered on demand on their device.

    Frame `x_t` of image `i` under transformation `k` is the image with the parameter of `k` at
    `value(t)` and the other parameters neutral (original size, upright, red).

    Args:
        images: `uint8` of shape `(N, 1, H, H)`; see `from_images` for other kinds of array.
        labels: class of each image, whole numbers `(N,)`; -1 for all if not given.
        transformations: what the sequences undergo; their order is their index.
        last: `T`, the number of the last frame.
        centre: fixed point of scaling and rotation, see `render`.
        device: where images are held and frames are rendered; that of `images` by default.

    Raises:
        DataError: images of another type or shape, none at all, labels that do not match,
            transformations without a name of their own, a scale that is not positive.

    Example:
        >>> import torch
        >>> images = torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8)
        >>> dataset = SequenceDataset(images)
        >>> dataset.names
        ('scaling', 'rotation', 'hue')
        >>> batch = dataset.sample([3, 5], "hue")
        >>> tuple(batch.frames.shape), batch.factor.tolist()
        ((2, 9, 3, 28, 28), [2, 2])
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        transformations: Sequence[Transformation] = DEFAULT_TRANSFORMATIONS,
        *,
        last: int = 8,
        centre: str = "true",
        device: torch.device | str | None = None,
    ) -> None:
        _check_images(images)
        if labels is None:
            labels = torch.full((len(images),), -1)
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise DataError(
                f"labels must be one whole number for each of the {len(images)} images, but they "
                f"are {labels.dtype} of shape {tuple(labels.shape)}."
            )
        if last < 1:
            raise DataError(f"A sequence needs a last frame of at least 1, but last is {last}.")
        check_centre(centre)
        _check_transformations(transformations, last)
        self.images: UInt8[Tensor, "n 1 h h"] = images.to(device)
        self.labels: Int[Tensor, " n"] = labels.to(self.images.device)
        self.transformations = tuple(transformations)
        self.centre = centre
        self._last = last

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformations, in the order of their index."""
        return tuple(transformation.name for transformation in self.transformations)

    @property
    def last(self) -> int:
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

    def with_last(self, last: int) -> SequenceDataset:
        """The same images in shorter or longer sequences, for instance to extrapolate."""
        return SequenceDataset(
            self.images, self.labels, self.transformations, last=last, centre=self.centre
        )

    def to(self, device: torch.device | str) -> SequenceDataset:
        """The same data set with its images on another device."""
        return SequenceDataset(
            self.images,
            self.labels,
            self.transformations,
            last=self.last,
            centre=self.centre,
            device=device,
        )

    def sample(
        self,
        indices: Tensor | Sequence[int],
        factor: Tensor | int | str,
        times: Tensor | None = None,
    ) -> Sequences:
        """The sequences of some images, after checking what is asked for.

        Args:
            indices: numbers of the images, `(B,)`.
            factor: the transformation, an index or a name for all or one index each `(B,)`.
            times: frames to render, whole numbers in `0..T` of shape `(B, F)`, the first of each
                row 0; all of `0..T` if not given.

        Raises:
            DataError: an image, a transformation or a frame that does not exist.
        """
        indices = self._indices(indices)
        if times is None:
            times = torch.arange(self.last + 1, device=self.device).expand(len(indices), -1)
        else:
            times = self._times(times, len(indices))
        return self.select(indices, self._factors(factor, len(indices)), times)

    def select(
        self, indices: Int[Tensor, " b"], factor: Int[Tensor, " b"], times: Int[Tensor, "b f"]
    ) -> Sequences:
        """The frames `times` of images `indices` under transformations `factor`, unchecked.

        What `sample` does, for callers that make their own valid numbers on the data set's
        device at every training step.
        """
        active = [factor == k for k in range(len(self.transformations))]
        frames = self._render(indices, times, active)
        return Sequences(frames, times, factor, self.last)

    def compose(
        self,
        indices: Tensor | Sequence[int],
        factors: Sequence[int | str],
        times: Tensor | None = None,
    ) -> Sequences:
        """Sequences that truly undergo several transformations at the same time.

        The truth against which a superposition of learned flows is measured. Two transformations
        of one parameter add up (scales multiply).

        Args:
            indices: numbers of the images, `(B,)`.
            factors: indices or names of the transformations, at least one.
            times: as for `sample`.

        Returns:
            Sequences whose `factor` is -1, for no single transformation describes them.

        Raises:
            DataError: an image, a transformation or a frame that does not exist.

        Example:
            >>> import torch
            >>> images = torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8)
            >>> both = SequenceDataset(images).compose([0, 1], ("rotation", "hue"))
            >>> tuple(both.frames.shape)
            (2, 9, 3, 28, 28)
        """
        if not factors:
            raise DataError(f"Name at least one transformation to compose, of {self.names}.")
        indices = self._indices(indices)
        if times is None:
            times = torch.arange(self.last + 1, device=self.device).expand(len(indices), -1)
        else:
            times = self._times(times, len(indices))
        chosen = {self._factor(factor) for factor in factors}
        everywhere = torch.ones(len(indices), dtype=torch.bool, device=self.device)
        active = [
            everywhere if k in chosen else ~everywhere for k in range(len(self.transformations))
        ]
        frames = self._render(indices, times, active)
        return Sequences(frames, times, torch.full_like(indices, -1), self.last)

    def _render(self, indices: Tensor, times: Tensor, active: list[Tensor]) -> Tensor:
        """Frames in which transformation `k` acts on the samples where `active[k]` is true."""
        t = times.float()
        parameters: dict[Parameter, Tensor] = {
            name: torch.full_like(t, neutral) for name, neutral in NEUTRAL.items()
        }
        # Every transformation is evaluated for every sample: K is small, a time is one number,
        # and nothing has to be looked up or brought back from the device.
        for transformation, mask in zip(self.transformations, active, strict=True):
            name = transformation.parameter
            before, value = parameters[name], transformation.value(t)
            after = before * value if name == "scale" else before + value
            parameters[name] = torch.where(mask[:, None], after, before)
        images = self.images[indices].float().div_(255)
        return render(images, **parameters, centre=self.centre)

    def _indices(self, indices: Tensor | Sequence[int]) -> Tensor:
        chosen = torch.as_tensor(indices, device=self.device)
        if chosen.ndim != 1 or len(chosen) == 0 or chosen.is_floating_point():
            raise DataError(
                f"indices must be a list of whole numbers, at least one, but they are "
                f"{chosen.dtype} of shape {tuple(chosen.shape)}."
            )
        low, high = int(chosen.min()), int(chosen.max())
        if low < 0 or high >= len(self):
            raise DataError(
                f"indices must be in 0..{len(self) - 1}, for there are {len(self)} images, but "
                f"they run from {low} to {high}."
            )
        return chosen.long()

    def _factor(self, factor: int | str) -> int:
        if isinstance(factor, str) and factor in self.names:
            return self.names.index(factor)
        if isinstance(factor, int) and 0 <= factor < len(self.names):
            return factor
        known = ", ".join(f"{k} ({name})" for k, name in enumerate(self.names))
        raise DataError(f"There is no transformation {factor!r}. There are: {known}.")

    def _factors(self, factor: Tensor | int | str, count: int) -> Tensor:
        if not isinstance(factor, Tensor):
            return torch.full((count,), self._factor(factor), device=self.device)
        if factor.shape != (count,) or factor.is_floating_point():
            raise DataError(
                f"factor must be one whole number for each of the {count} images, but it is "
                f"{factor.dtype} of shape {tuple(factor.shape)}."
            )
        for k in (int(factor.min()), int(factor.max())):
            self._factor(k)
        return factor.to(self.device).long()

    def _times(self, times: Tensor, count: int) -> Tensor:
        if times.ndim != 2 or len(times) != count or times.is_floating_point() or not times.numel():
            raise DataError(
                f"times must be whole numbers of shape ({count}, frames), but they are "
                f"{times.dtype} of shape {tuple(times.shape)}."
            )
        if int(times.min()) < 0 or int(times.max()) > self.last or bool((times[:, 0] != 0).any()):
            raise DataError(
                f"times must be in 0..{self.last}, each row beginning with 0, but they run from "
                f"{int(times.min())} to {int(times.max())} and begin with "
                f"{sorted(set(times[:, 0].tolist()))}. For later frames use `with_last`."
            )
        return times.to(self.device).long()


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


def _check_transformations(transformations: Sequence[Transformation], last: int) -> None:
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
            for t in range(last + 1):
                if transformation.value(t) <= 0:
                    raise DataError(
                        f"Transformation {transformation.name!r} has scale "
                        f"{transformation.value(t):g} at frame {t}, but a scale must be "
                        "positive. Choose a smaller step or fewer frames."
                    )
