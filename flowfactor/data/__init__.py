"""Images under transformation: sequences of frames, where they come from, how they are batched.

A pixel's way: `load_mnist` or `from_images` gives still images, `SequenceDataset` turns any of
them into the frames of a transformation, `SequenceLoader` gives the batches of a training.
"""

from flowfactor.data.dataset import SequenceDataset
from flowfactor.data.images import from_images
from flowfactor.data.loader import SequenceLoader
from flowfactor.data.mnist import Digits, load_mnist, resolve_source
from flowfactor.data.rendering import Centre, hue_to_rgb, render
from flowfactor.data.sequences import Sequences, SequenceSource
from flowfactor.data.source import TransformedSequences
from flowfactor.data.transforms import Hue, Rotation, Scaling, Transformation

__all__ = [
    "Centre",
    "Digits",
    "Hue",
    "Rotation",
    "Scaling",
    "SequenceDataset",
    "SequenceLoader",
    "SequenceSource",
    "Sequences",
    "Transformation",
    "TransformedSequences",
    "from_images",
    "hue_to_rgb",
    "load_mnist",
    "render",
    "resolve_source",
]
