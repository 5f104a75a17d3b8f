"""Amortised inference of activity: a network instead of enumeration, for many fields."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.activity import Activity, ActivityPrior, Posterior, Projections, SpikeStates

_FEATURES = 6
# How often the speeds of all fields are computed from one another.
_SWEEPS = 3
# The logarithm of a probability that is 0.
_NEVER = -30.0


class ActivityNetwork(nn.Module):
    r"""``q(s, g | x)`` with independent fields and steps, from a network that sees a few steps.

    Where :class:`~flowfactor.activity.SpikeStates` enumerates ``O(K^2)`` states of each step and
    carries them through time, this costs ``O(K)`` evaluations of a small network, and allows any
    number of fields to act at once. Fields are alike to it: it can be used for another number.

    Of each field and step it sees how much of the displacement the field explains, alone and with
    the others, at which speeds, and the same of the neighbouring steps. It tells how probable it is
    that the field rests, runs forwards, or backwards; speeds follow in closed form
    (:class:`FactorisedPosterior`). It learns by maximising the evidence bound of the displacements,
    which has no sampling noise, or from a posterior that was found by enumeration.

    Args:
        prior: of the activity; fields are independent in it, at the same mean number of them.
        width: of the hidden layers.

    Example:
        >>> import torch
        >>> from flowfactor.activity import ActivityPrior, Projections
        >>> displacements, velocities = torch.randn(2, 8, 5), torch.randn(2, 8, 3, 5)
        >>> seen = Projections.of(displacements, velocities, torch.ones(5))
        >>> ActivityNetwork(ActivityPrior())(seen).activity().active.shape
        torch.Size([2, 8, 3])
    """

    def __init__(self, prior: ActivityPrior, width: int = 64) -> None:
        super().__init__()
        self.prior = prior
        self.network = nn.Sequential(
            nn.Conv1d(_FEATURES, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(width, 3, 1),
        )
        last = self.network[-1]
        assert isinstance(last, nn.Conv1d)
        assert last.bias is not None
        with torch.no_grad():
            last.weight *= 0.1
            last.bias.zero_()

    def forward(self, projections: Projections) -> FactorisedPosterior:
        """Return the posterior, which can be differentiated with respect to the network."""
        features = _features(projections, self.prior.slab)
        logits = self.network(rearrange(features, "b n k f -> (b k) f n"))
        logits = rearrange(logits, "(b k) s n -> b n k s", b=len(features))
        return FactorisedPosterior(projections, logits.log_softmax(-1), self.prior)


def _features(projections: Projections, slab: float) -> Float[Tensor, "b n k f"]:
    """Return what the network sees of each field in each step."""
    h, gram = projections.linear, projections.gram
    own = gram.diagonal(dim1=-2, dim2=-1)
    ridge = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device) / slab**2
    alone = h / (own + slab**-2)
    gain = 0.5 * alone * h
    together = torch.linalg.solve(gram + ridge, h.unsqueeze(-1)).squeeze(-1)
    total = (0.5 * together * h).sum(-1, keepdim=True)
    best = gain.amax(-1, keepdim=True)
    columns = [
        alone.clamp(-3, 3),
        together.clamp(-3, 3),
        gain.log1p(),
        (best - gain).log1p(),
        (total - gain).clamp(min=0).log1p(),
        own.log1p(),
    ]
    return torch.stack([each.expand_as(h) for each in columns], -1)


@dataclasses.dataclass(frozen=True, eq=False)
class FactorisedPosterior:
    r"""A posterior whose fields and steps are independent, and its evidence bound.

    .. math::

        \begin{aligned}
        q(s, g) &= \prod_{t, k} q(s_{t,k})\, N(g_{t,k} \mid m_{t,k}(s_{t,k}), v_{t,k}), \\
        \mathrm{evidence} &= \mathbb{E}_q \Bigl[ \sum_t \log N(D_t \mid g_t) \Bigr]
          - \mathrm{KL}(q(s, g) \parallel p(s, g)) \le \log p(D)
        \end{aligned}

    Given the spikes' probabilities, the best Gaussians for the bound depend on one another only
    through their means, ``v_k = 1 / (1 / slab^2 + G_kk)`` and
    ``m_k(c) = v_k (c / slab^2 + h_k - sum_{l != k} G_kl E[g_l])``: a few sweeps find them.

    Args:
        projections: what was seen.
        log_probability: that a field rests, runs forwards, and backwards, ``(b, n, K, 3)``.
        prior: of the activity. Here its fields are independent: each acts with the probability
            that makes the same mean number of them, and switches as one field does in it.
    """

    projections: Projections
    log_probability: Float[Tensor, "b n k three"]
    prior: ActivityPrior

    @cached_property
    def probability(self) -> Float[Tensor, "b n k three"]:
        """Of each state of each field."""
        return self.log_probability.exp()

    @cached_property
    def variance(self) -> Float[Tensor, "b n k"]:
        """``v``, of the speed of a field that acts."""
        own = self.projections.gram.diagonal(dim1=-2, dim2=-1)
        return 1 / (own + self.prior.slab**-2)

    @cached_property
    def mean(self) -> Float[Tensor, "b n k two"]:
        """``m``, the speeds of a field that runs forwards, and backwards."""
        gram = self.projections.gram
        others = gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
        signs = gram.new_tensor([1.0, -1.0]) / self.prior.slab**2
        acts = self.probability[..., 1:]
        first = torch.zeros_like(self.projections.linear)
        for sweep in range(_SWEEPS):
            left = self.projections.linear - (others @ first.unsqueeze(-1)).squeeze(-1)
            mean = self.variance.unsqueeze(-1) * (signs + left.unsqueeze(-1))
            # Half the way, or two fields that are alike would take turns.
            first = torch.lerp(first, (acts * mean).sum(-1), 1.0 if sweep == 0 else 0.5)
        return mean

    @cached_property
    def first(self) -> Float[Tensor, "b n k"]:
        """``E[g]``."""
        return (self.probability[..., 1:] * self.mean).sum(-1)

    @cached_property
    def second(self) -> Float[Tensor, "b n k k"]:
        """``E[g g^T]``."""
        square = self.mean.square() + self.variance.unsqueeze(-1)
        own = (self.probability[..., 1:] * square).sum(-1)
        outer = self.first.unsqueeze(-1) * self.first.unsqueeze(-2)
        return outer + torch.diag_embed(own - self.first.square())

    @property
    def speed(self) -> Float[Tensor, "b n k"]:
        """``E[|g|]``, as far as slabs keep the sign of their spike."""
        signs = self.mean.new_tensor([1.0, -1.0])
        return (self.probability[..., 1:] * self.mean * signs).sum(-1)

    @cached_property
    def kl(self) -> Float[Tensor, "b"]:
        """``KL(q(s, g) || p(s, g))`` of each sequence, in nats."""
        slab, p, log_p = self.prior.slab, self.probability, self.log_probability
        ratio = self.variance / slab**2
        signs = self.mean.new_tensor([1.0, -1.0])
        gap = ((self.mean - signs) / slab).square() + (ratio - 1 - ratio.log()).unsqueeze(-1)
        slabs = 0.5 * (p[..., 1:] * gap).sum((-1, -2, -3))
        start, change = self._spikes
        spikes = (p * log_p).sum((-1, -2, -3)) - (p[:, 0] * start).sum((-1, -2))
        between = torch.einsum("bnki,bnkj,ij->b", p[:, :-1], p[:, 1:], change)
        return slabs + spikes - between

    @property
    def evidence(self) -> Float[Tensor, "b"]:
        """The bound of the log-evidence of the displacements."""
        return self.projections.expected(self.first, self.second).sum(-1) - self.kl

    def cross_entropy(self, other: Posterior) -> Float[Tensor, "b"]:
        """Return the cross-entropy of each sequence with the states of each field in another."""
        known = other.activity()
        forward = known.active * known.forward
        target = torch.stack([1 - known.active, forward, known.active - forward], -1)
        return -(target * self.log_probability).sum((-1, -2, -3))

    @property
    def _spikes(self) -> tuple[Float[Tensor, "three"], Float[Tensor, "three three"]]:
        """Return the logarithms of the prior of one field: of its first state, of its changes."""
        K = self.first.shape[-1]
        acting = (1 - self.prior.none + self.prior.pairs * (K > 1)) / K
        rest = min(max(1 - acting, 1e-3), 1 - 1e-3)
        prior = dataclasses.replace(self.prior, none=rest, pairs=0.0)
        states = SpikeStates(1, prior, self.mean.device)
        start, change = (each.to(self.mean).log() for each in (states.start, states.change))
        return start.clamp(min=_NEVER), change.clamp(min=_NEVER)

    def activity(self) -> Activity:
        """Return the marginal of every field."""
        p = self.probability
        active = p[..., 1:].sum(-1)
        forward = p[..., 1] / active.clamp(min=torch.finfo(p.dtype).tiny)
        return Activity(self.first, active, forward.clamp(max=1), self.evidence)

    def draw(
        self, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b"]]:
        """Draw coefficients; return ``log p(s, g) - log q(s, g)`` of them as well."""
        b, n, K, _ = self.probability.shape
        state = torch.multinomial(self.probability.flatten(0, 2), 1, generator=generator)
        state = state.view(b, n, K)
        acts = (state > 0).to(self.mean)
        place = (state - 1).clamp(min=0).unsqueeze(-1)
        mean = self.mean.gather(-1, place).squeeze(-1)
        noise = torch.randn(b, n, K, generator=generator, dtype=mean.dtype, device=mean.device)
        speed = mean + self.variance.sqrt() * noise
        sign = 1.0 - 2.0 * (state == 2).to(mean)
        slab = self.prior.slab
        ratio = 0.5 * noise.square() - 0.5 * ((speed - sign) / slab).square()
        ratio = acts * (ratio + (self.variance.sqrt() / slab).log())
        start, change = self._spikes
        one_hot = F.one_hot(state, 3).to(mean)
        spikes = (one_hot[:, 0] * start).sum((-1, -2)) - (one_hot * self.log_probability).sum(
            (-1, -2, -3)
        )
        between = torch.einsum("bnki,bnkj,ij->b", one_hot[:, :-1], one_hot[:, 1:], change)
        return acts * speed, ratio.sum((-1, -2)) + spikes + between
