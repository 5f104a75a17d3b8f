"""Images under transformation: sequences of frames, where they come from, how they are batched.

A data set, such as :class:`TransformedImages`, gives the frames of samples under transformations
when it is asked for them; :class:`SequenceLoader` gives the batches of a training. Each data set
has options beside it, which a configuration names by ``data.source``.
"""

from flowfactor.data.activity import ActivityLaw, PathRange
from flowfactor.data.base import UNLABELLED, SequenceBatch, SequenceDataset
from flowfactor.data.coverage import Coverage
from flowfactor.data.factor_grid import FactorGrid, FactorGridOptions, GridOptions
from flowfactor.data.factor_sampling import GridFactors, StartFactors
from flowfactor.data.glyphs import (
    ALPHABETS,
    DigitsOptions,
    LettersOptions,
    draw_letters,
    load_digits,
)
from flowfactor.data.images import (
    IMAGE_TRANSFORMATIONS,
    ImagesOptions,
    StillOptions,
    TransformedImages,
)
from flowfactor.data.io import repack_h5
from flowfactor.data.known_factors import KnownFactors
from flowfactor.data.loader import BackgroundLoader, Batches, SequenceLoader
from flowfactor.data.mnist import Digits, MNISTOptions, load_mnist, resolve_provider
from flowfactor.data.nvidia import Falcor3DOptions, Isaac3DOptions, falcor3d, isaac3d
from flowfactor.data.options import DataOptions, ParametricOptions
from flowfactor.data.photos import (
    PHOTO_TRANSFORMATIONS,
    Photos,
    PhotosOptions,
    free_photographs,
)
from flowfactor.data.public_grids import DSpritesOptions, MPI3DOptions, grid_of
from flowfactor.data.recordings import Recordings, RecordingsOptions
from flowfactor.data.rendering import hue_to_rgb, render, shift_hue
from flowfactor.data.shapes3d import SHAPES3D_TRANSFORMATIONS, Shapes3D, Shapes3DOptions
from flowfactor.data.sprites import SHAPES, SPRITE_TRANSFORMATIONS, Sprites, SpritesOptions
from flowfactor.data.transformations import ParametricDataset, Transformation

__all__ = [
    "ALPHABETS",
    "IMAGE_TRANSFORMATIONS",
    "PHOTO_TRANSFORMATIONS",
    "SHAPES",
    "SHAPES3D_TRANSFORMATIONS",
    "SPRITE_TRANSFORMATIONS",
    "UNLABELLED",
    "ActivityLaw",
    "BackgroundLoader",
    "Batches",
    "Coverage",
    "DSpritesOptions",
    "DataOptions",
    "Digits",
    "DigitsOptions",
    "FactorGrid",
    "FactorGridOptions",
    "Falcor3DOptions",
    "GridFactors",
    "GridOptions",
    "ImagesOptions",
    "Isaac3DOptions",
    "KnownFactors",
    "LettersOptions",
    "MNISTOptions",
    "MPI3DOptions",
    "ParametricDataset",
    "ParametricOptions",
    "PathRange",
    "Photos",
    "PhotosOptions",
    "Recordings",
    "RecordingsOptions",
    "SequenceBatch",
    "SequenceDataset",
    "SequenceLoader",
    "Shapes3D",
    "Shapes3DOptions",
    "Sprites",
    "SpritesOptions",
    "StartFactors",
    "StillOptions",
    "Transformation",
    "TransformedImages",
    "draw_letters",
    "falcor3d",
    "free_photographs",
    "grid_of",
    "hue_to_rgb",
    "isaac3d",
    "load_digits",
    "load_mnist",
    "render",
    "repack_h5",
    "resolve_provider",
    "shift_hue",
]
