"""A data set that is rendered in no time."""

import itertools

import torch

from flowfactor.data import SequenceDataset


class Tiny(SequenceDataset):
    """Bars that move or brighten, rendered in no time."""

    def __init__(self, horizon):
        super().__init__(("move", "brighten"), horizon, image_shape=(1, 8, 8))

    def __len__(self):
        return 12

    def render_frames(self, indices, elapsed, active, starts):
        frames = torch.zeros(*elapsed.shape[1:], 1, 8, 8)
        for b, f in itertools.product(*map(range, elapsed.shape[1:])):
            place = int(indices[b]) % 4 + int(elapsed[0, b, f])
            frames[b, f, 0, place % 8] = 0.4 + 0.2 * float(elapsed[1, b, f])
        return frames
