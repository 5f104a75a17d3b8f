"""Images under transformation: sequences of frames, where they come from, how they are batched.

A pixel's way: `load_mnist` or `from_images` gives still images, `TransformedImages` turns any of
them into the frames of a transformation, `SequenceLoader` gives the batches of a training.
`Sprites` draws its frames, and `Recordings` reads one's own.
"""

from flowfactor.data.dataset import TransformedImages
from flowfactor.data.factor_grid import FactorGrid, Move
from flowfactor.data.hidden import Unlabelled
from flowfactor.data.image_stores import repack_h5
from flowfactor.data.images import from_images
from flowfactor.data.loader import SequenceLoader
from flowfactor.data.mnist import Digits, load_mnist, resolve_source
from flowfactor.data.nvidia import falcor3d, isaac3d
from flowfactor.data.recordings import Recordings
from flowfactor.data.rendering import Centre, hue_to_rgb, render
from flowfactor.data.sequences import (
    GivenFactor,
    SequenceBatch,
    SequenceSource,
    round_robin,
    samples_undergoing,
)
from flowfactor.data.shapes3d import Shapes3D
from flowfactor.data.source import SequenceDataset
from flowfactor.data.sprites import MOTIONS, SHAPES, Motion, Sprites
from flowfactor.data.transforms import Hue, Rotation, Scaling, Transformation

__all__ = [
    "MOTIONS",
    "SHAPES",
    "Centre",
    "Digits",
    "FactorGrid",
    "GivenFactor",
    "Hue",
    "Motion",
    "Move",
    "Recordings",
    "Rotation",
    "Scaling",
    "SequenceBatch",
    "SequenceDataset",
    "SequenceLoader",
    "SequenceSource",
    "Shapes3D",
    "Sprites",
    "Transformation",
    "TransformedImages",
    "Unlabelled",
    "falcor3d",
    "from_images",
    "hue_to_rgb",
    "isaac3d",
    "load_mnist",
    "render",
    "repack_h5",
    "resolve_source",
    "round_robin",
    "samples_undergoing",
]
