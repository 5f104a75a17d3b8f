"""Still images that come with other packages: letters of fonts, and 1,797 digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor

from flowfactor.data.checks import check_choice, check_distinct, check_range
from flowfactor.data.images import StillOptions, TransformedImages
from flowfactor.data.io import reading
from flowfactor.data.splits import Part, split_indices
from flowfactor.extras import find_extra
from flowfactor.options import options
from flowfactor.registries import DATA

ALPHABETS = {
    "latin": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    "greek": "ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩαβγδεζηθικλμνξοπρστυφχψω",
    "cyrillic": "АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя",
}
"""The letters of each alphabet."""

FONTS = tuple(
    f"DejaVu{family}{style}"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
    )
    for style in styles
)
"""The fonts that come with matplotlib and have all of these letters."""

Alphabet = Literal["latin", "greek", "cyrillic"]


def draw_letters(
    alphabets: Sequence[str] = tuple(ALPHABETS), fonts: Sequence[str] = FONTS, size: int = 28
) -> tuple[UInt8[Tensor, "n 1 h h"], Int[Tensor, "n"]]:
    """Return each letter in each font, and its class, the number of the letter among all.

    As in MNIST: bright on black, 20 of 28 pixels along the longer side, the centre of mass in the
    middle.

    Args:
        alphabets: some of :data:`ALPHABETS`.
        fonts: some of :data:`FONTS`; the letters of a font follow each other.
        size: pixels along each side.

    Raises:
        DataError: an unknown name; fonts that cannot be read.

    Example:
        >>> images, classes = draw_letters(["greek"], ["DejaVuSans", "DejaVuSerif"])
        >>> tuple(images.shape), int(classes.max())
        ((96, 1, 28, 28), 47)
    """
    check_range("size", size, 8)
    check_distinct("alphabets", alphabets)
    check_distinct("fonts", fonts)
    for name in alphabets:
        check_choice("alphabets", name, ALPHABETS)
    letters = "".join(ALPHABETS[name] for name in alphabets)
    pictures = []
    for name in fonts:
        check_choice("fonts", name, FONTS)
        path = find_extra("matplotlib", "demo") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
        with reading(path):
            # Four times as large as needed, and averaged.
            font = ImageFont.truetype(str(path), 4 * size)
        pictures += [_draw_letter(font, letter, size) for letter in letters]
    images = torch.from_numpy(np.stack(pictures))[:, None]
    return images, torch.arange(len(letters)).repeat(len(fonts))


def _draw_letter(font: Any, letter: str, size: int) -> UInt8[np.ndarray, "h h"]:
    left, top, right, bottom = font.getbbox(letter)
    ink = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), letter, 255, font=font)
    ratio = size * 20 / 28 / max(ink.size)
    small = ink.resize(
        (max(1, round(ink.width * ratio)), max(1, round(ink.height * ratio))),
        Image.Resampling.BOX,
    )
    pixels = np.array(small)
    middle = [
        float((np.indices(pixels.shape)[axis] + 0.5).ravel() @ pixels.ravel() / pixels.sum())
        for axis in (0, 1)
    ]
    image = np.zeros((size, size), np.uint8)
    row, column = (
        int(np.clip(round(size / 2 - at), 0, size - side))
        for at, side in zip(middle, pixels.shape, strict=True)
    )
    image[row : row + pixels.shape[0], column : column + pixels.shape[1]] = pixels
    return image


def load_digits(size: int = 28) -> tuple[UInt8[Tensor, "n 1 h h"], Int[Tensor, "n"]]:
    """Return the 1,797 digits of scikit-learn and their classes.

    They were scanned at 32 x 32 pixels in black and white, and averaged to 8 x 8 (Alpaydin and
    Kaynak, 1998). Here they are enlarged (bicubic) to 20 of 28 pixels, with a black margin, so that
    they look like MNIST's, but blurred.

    Args:
        size: pixels along each side.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> images, classes = load_digits()
        >>> tuple(images.shape), classes.bincount().min().item()
        ((1797, 1, 28, 28), 174)
    """
    check_range("size", size, 8)
    path = find_extra("sklearn", "metrics") / "datasets" / "data" / "digits.csv.gz"
    with reading(path):  # importing the package takes much longer
        table = torch.from_numpy(np.loadtxt(path, np.uint8, delimiter=","))
    inner = round(size * 20 / 28)
    small = table[:, :-1].reshape(-1, 1, 8, 8).float() / 16
    large = F.interpolate(small, (inner, inner), mode="bicubic", align_corners=False)
    before = (size - inner) // 2
    after = size - inner - before
    images = F.pad(large.clamp(0, 1), (before, after, before, after))
    return images.mul(255).round().to(torch.uint8), table[:, -1].long()


@options
class GlyphOptions(StillOptions):
    """What letters and digits have in common."""

    split_depends_on_seed: ClassVar[bool] = False

    size: Annotated[int, Field(ge=8, le=1024)] = 28
    """Pixels along each side."""

    validation: Part = 0.1
    """Validation samples: a number, or a fraction of all."""

    test: Part = 0.1
    """Test samples: a number, or a fraction of all."""

    def choose(
        self, images: Tensor, classes: Tensor, groups: Int[Tensor, "n"], what: str, split: str
    ) -> TransformedImages:
        """Return the images of the groups that are in a split."""
        distinct = groups.unique()
        parts = split_indices(len(distinct), self.validation, self.test, 0, what)
        chosen = torch.isin(groups, distinct[parts[split]]).nonzero()[:, 0]
        if split == "train":
            chosen = chosen[: self.train]
        return self.transform(images[chosen], classes[chosen])


@DATA.register("letters")
@options
class LettersOptions(GlyphOptions):
    """Letters of the fonts that come with matplotlib; no two splits share a letter."""

    alphabets: tuple[Alphabet, ...] = ("latin", "greek", "cyrillic")
    """Which letters."""

    fonts: tuple[str, ...] = FONTS
    """In which fonts."""

    def load(self, split: str, seed: int) -> TransformedImages:
        """Return the letters of a split, the same for every seed."""
        images, classes = draw_letters(self.alphabets, self.fonts, self.size)
        return self.choose(images, classes, classes, "letters", split)

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny."""
        return {"alphabets": ["greek"], "fonts": ["DejaVuSans"], "size": 16}


@DATA.register("digits")
@options
class DigitsOptions(GlyphOptions):
    """The 1,797 digits that come with scikit-learn."""

    def load(self, split: str, seed: int) -> TransformedImages:
        """Return the digits of a split, the same for every seed."""
        images, classes = load_digits(self.size)
        return self.choose(images, classes, torch.arange(len(images)), "digits", split)

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny."""
        return {"size": 16, "train": 60, "validation": 20, "test": 20}
