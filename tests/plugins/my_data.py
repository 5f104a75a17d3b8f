"""A data set in one file: squares that move to the right or down."""

from pathlib import Path

import torch

from flowfactor.data import DataOptions, SequenceDataset
from flowfactor.options import PositiveInt, options
from flowfactor.registries import DATA


class MovingSquares(SequenceDataset):
    """Grey squares that move by a pixel a frame, each from a position of its own."""

    def __init__(self, positions, size, horizon, **kwargs):
        super().__init__(("right", "down"), horizon, (1, size, size), **kwargs)
        self.positions, self.size = positions, size

    def __len__(self):
        return len(self.positions)

    def render_frames(self, indices, elapsed, active, starts):
        moved = (elapsed * active[..., None]).permute(1, 2, 0)  # b f k
        corner = self.positions[indices, None] + moved
        pixel = torch.arange(self.size)
        inside = (pixel >= corner[..., None]) & (pixel < corner[..., None] + 4)  # b f k size
        columns, rows = inside.unbind(2)
        return (rows[..., None] & columns[..., None, :])[:, :, None].float()


@DATA.register("moving_squares")
@options
class MovingSquaresOptions(DataOptions):
    """Squares that move to the right or down."""

    count: PositiveInt = 40
    """The number of samples of each split."""
    size: PositiveInt = 16
    """Height and width of a frame."""
    horizon: PositiveInt = 4
    """The number of the last frame."""

    def load(self, split, seed):
        generator = torch.Generator().manual_seed(["train", "validation", "test"].index(split))
        positions = torch.randint(self.size // 2, (self.count, 2), generator=generator)
        return MovingSquares(positions, self.size, self.horizon, initial_state=self.initial_state)

    @classmethod
    def tiny(cls, folder: Path):
        return {"count": 12}
