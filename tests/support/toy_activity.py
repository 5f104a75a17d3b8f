"""Sequences whose pixels are the states of transformations, and a model that reads them."""

import torch
from torch.distributions import Independent, Normal

from flowfactor.activity import Activity
from flowfactor.data import PathRange, SequenceDataset
from flowfactor.data.activity import accumulate
from flowfactor.models import SequenceModel
from flowfactor.observation import Gaussian

STEP = 0.03
"""By which a pixel changes in a step at speed 1."""


class Dials(SequenceDataset):
    """Pictures of a row of pixels, each of which is 0.2, at frame 0, and one's own brightness."""

    moves_by_whole_steps = False

    def __init__(self, names=("a", "b", "c"), horizon=6, count=40):
        super().__init__(names, horizon, (1, 1, len(names)), start_size=len(names))
        self.count = count

    def __len__(self):
        return self.count

    def path_range(self, k):
        return PathRange(-5, 15)

    def render_frames(self, indices, elapsed, active, starts):
        moved = (elapsed * active[..., None]).permute(1, 2, 0)
        own = 0.1 * (indices / self.count).view(-1, 1, 1)
        return (0.2 + own + STEP * moved)[:, :, None, None]


class Reader(SequenceModel):
    """A model that knows the truth, and can be made to misunderstand it.

    Args:
        order: which dial each of its fields is; as many fields as it has.
        signs: -1 for fields that run backwards.
        late: by how many steps it sees everything too late.
        scale: by which its fields are slower than the dials, so that coefficients are larger.
    """

    supervised = False

    def __init__(self, data, order=None, signs=None, late=0, scale=1.0):
        super().__init__(None, data.names, data.image_shape, data.horizon)
        count = len(data.names)
        self.order = list(range(count)) if order is None else list(order)
        self.signs = torch.ones(len(self.order)) if signs is None else torch.tensor(signs)
        self.late, self.scale = late, scale
        self.names, self.latent_dim = data.names, count
        self.observation = Gaussian()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def loss(self, sequences):
        return {"nothing": self.unused.square()}

    def choose(self, sequences):
        moved = sequences.frames[:, -1] - sequences.frames[:, 0]
        return moved.flatten(1).abs().argmax(1)

    def encode(self, x):
        mean = x.flatten(1)
        return Independent(Normal(mean, torch.full_like(mean, 0.01)), 1)

    def decode_logits(self, z):
        return z.clamp(0.001, 0.999).logit().unflatten(1, self.image_shape)

    def flow(self, z, k, t, **_):
        moved = torch.zeros(z.shape[-1])
        moved[k] = STEP
        times = torch.as_tensor(t, dtype=z.dtype)
        return z + (times.reshape(-1, 1, 1) * moved if times.ndim else times * moved)

    def infer_activity(self, frames):
        speeds = frames.flatten(2).diff(dim=1) / STEP
        speeds = torch.cat([speeds[:, :1]] * self.late + [speeds], 1)[:, : speeds.shape[1]]
        g = self.scale * speeds[..., self.order] * self.signs
        active = (g.abs() > 0.01).float()
        return Activity(g * active, active, (g > 0).float(), torch.zeros(len(g)))

    def trace_activity(self, z, coefficients):
        speeds = torch.zeros(*coefficients.shape[:2], self.latent_dim)
        speeds[..., self.order] = coefficients * self.signs / self.scale
        return (z[:, None] + STEP * accumulate(speeds)).transpose(0, 1)
