"""Which fields act at every step of a sequence, and how fast: exact inference and its prior."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.checks import check_integer
from flowfactor.options import Fraction, OpenFraction, PositiveFloat, options
from solvers.checks import widest

# How far apart speeds are from which derivatives are taken.
_APART = 0.05


@options
class ActivityPrior:
    r"""The prior of activity: few fields act at a time, they rarely switch, at speeds around 1.

    .. math::

        \begin{aligned}
        p(s_1) &= \pi(s_1), \\
        p(s_{t+1} \mid s_t) &= \mathrm{stay}\, [s_{t+1} = s_t]
          + (1 - \mathrm{stay})\, \pi'(s_{t+1} \mid s_t), \\
        g_k &\sim N(\pm 1, \mathrm{slab}^2) \text{ where field } k \text{ acts}, \quad
          g_k = 0 \text{ where it rests}
        \end{aligned}

    A state s says which fields act and in which directions: none, one, or two of them. :math:`\pi`
    shares ``none`` and ``pairs`` out evenly among the states of each kind, the rest among those of
    one field. :math:`\pi'` is proportional to it, but for states in which a field of ``s_t`` runs
    the other way: they count ``reverse`` times. Fields whose direction differs from place to place
    would make sequences that pass the border reverse.
    """

    none: OpenFraction = 0.05
    """Probability that nothing happens in a step."""
    pairs: Fraction = 0.1
    """Probability that two fields act at once; 0 leaves such states out."""
    stay: Fraction = 0.9
    """Probability that a step keeps the state of the one before; otherwise it is drawn anew, so
    that 0 is a prior without memory."""
    reverse: Fraction = 0.01
    """How probable it is that a field reverses from one step to the next, relative to other
    changes."""
    slab: PositiveFloat = 0.35
    """Standard deviation of the speeds around 1 and -1."""

    def __post_init__(self) -> None:
        """Refuse probabilities that leave nothing.

        Raises:
            ValueError: ``none`` and ``pairs`` leave nothing for single fields, or ``stay`` is 1.
        """
        if self.none + self.pairs >= 1:
            raise ValueError("none and pairs together must be less than 1")
        if self.stay >= 1:
            raise ValueError("stay must be less than 1, or nothing could ever switch")


@dataclasses.dataclass(frozen=True, eq=False)
class Activity:
    """What is known of the activity of K fields in n steps of each of b sequences.

    Attributes:
        coefficients: posterior mean of the signed speeds ``g``, ``(b, n, K)``.
        active: probability that field k acts, ``(b, n, K)``.
        forward: probability that its direction is positive, given that it acts, ``(b, n, K)``.
        evidence: log-evidence of the displacements of each sequence, in nats, ``(b,)``.
    """

    coefficients: Float[Tensor, "b n k"]
    active: Float[Tensor, "b n k"]
    forward: Float[Tensor, "b n k"]
    evidence: Float[Tensor, "b"]


@dataclasses.dataclass(frozen=True, eq=False)
class Projections:
    r"""All that inference has to know of displacements ``D ~ N(sum_k g_k F_k, diag R)``.

    ``log N(D) = base + h . g - 1/2 g^T G g``.

    Attributes:
        linear: ``h = F R^-1 D``, ``(b, n, K)``.
        gram: ``G = F R^-1 F^T``, ``(b, n, K, K)``.
        base: log-density of the displacement where nothing acts, ``(b, n)``.
    """

    linear: Float[Tensor, "b n k"]
    gram: Float[Tensor, "b n k k"]
    base: Float[Tensor, "b n"]

    @classmethod
    def of(
        cls,
        displacements: Float[Tensor, "b n d"],
        velocities: Float[Tensor, "b n k d"],
        variance: Float[Tensor, "*bn d"],
    ) -> Projections:
        """Return the projections of displacements on the velocities of K fields.

        Args:
            displacements: D.
            velocities: F, of each field.
            variance: R, of every dimension of the residual.
        """
        weighted = velocities / variance.unsqueeze(-2)
        square = (displacements.square() / variance + (2 * math.pi * variance).log()).sum(-1)
        return cls(
            (weighted @ displacements.unsqueeze(-1)).squeeze(-1),
            weighted @ velocities.mT,
            -0.5 * square,
        )

    def expected(
        self, first: Float[Tensor, "b n k"], second: Float[Tensor, "b n k k"]
    ) -> Float[Tensor, "b n"]:
        """Return ``E[log N(D)]`` over coefficients of given first and second moments."""
        return self.base + (self.linear * first).sum(-1) - 0.5 * (self.gram * second).sum((-1, -2))

    def detach(self) -> Projections:
        """Return the same without a gradient."""
        return Projections(self.linear.detach(), self.gram.detach(), self.base.detach())

    def log_density(self, coefficients: Float[Tensor, "*b n k"]) -> Float[Tensor, "*b n"]:
        """Return ``log N(D)`` of given coefficients."""
        square = ((coefficients.unsqueeze(-2) @ self.gram).squeeze(-2) * coefficients).sum(-1)
        return self.base + (self.linear * coefficients).sum(-1) - 0.5 * square


def steady_speeds(
    projections: Projections, directions: Float[Tensor, "b n k"], slab: float
) -> Float[Tensor, "b n k"]:
    r"""Return posterior means of speeds that last as long as what acts stays the same.

    Over a run of steps with the same directions c, of the fields s that act:

    .. math::

        g = P^{-1} \Bigl( \frac{c}{\mathrm{slab}^2} + \sum_t h_{t,s} \Bigr), \qquad
        P = \frac{I}{\mathrm{slab}^2} + \sum_t G_{t,ss}

    Args:
        projections: of displacements on the velocities of K fields.
        directions: 1 or -1 where a field acts, 0 where it rests.
        slab: standard deviation of the speeds around 1 and -1.

    Example:
        >>> seen = Projections(torch.tensor([[[5.0], [7.0]]]), torch.ones(1, 2, 1, 1) * 10, None)
        >>> steady_speeds(seen, torch.ones(1, 2, 1), 1e3)
        tensor([[[0.6000],
                 [0.6000]]])
    """
    runs = _number_runs(directions)
    # Which steps belong to the run of each step.
    same = (runs.unsqueeze(1) == runs.unsqueeze(2)).to(directions)
    acts = directions.abs()
    gram = torch.einsum("bmn,bnkl->bmkl", same, projections.gram)
    precision = gram * acts.unsqueeze(-1) * acts.unsqueeze(-2)
    precision = precision + torch.eye(acts.shape[-1]).to(acts) / slab**2
    pull = directions / slab**2 + acts * (same @ projections.linear)
    speeds: Tensor = torch.linalg.solve(precision, pull.unsqueeze(-1)).squeeze(-1)
    return acts * speeds


def refine_speeds(
    predict: Callable[[Float[Tensor, "b n k"]], Float[Tensor, "b ..."]],
    seen: Float[Tensor, "b ..."],
    speeds: Float[Tensor, "b n k"],
    directions: Float[Tensor, "b n k"],
    slab: float,
    drift: float = 0.01,
) -> Float[Tensor, "b n k"]:
    r"""Return speeds by which a sequence is predicted better than by those of its displacements.

    One Gauss-Newton step, with derivatives by differences, towards the least

    .. math::

        \begin{aligned}
        & \frac{1}{2 \sigma^2} \lVert x - \mathrm{predict}(g) \rVert^2
          + \sum_r \frac{(a_r - c_r)^2}{2\, \mathrm{slab}^2}
          + \sum_t \frac{b_t^2}{2\, \mathrm{drift}^2}, \\
        & g_t = a_{r(t)} + b_t c_t
        \end{aligned}

    over speeds ``a_r`` that last as long as what acts and by how much each step differs from them,
    ``c`` being the directions and ``sigma^2`` the mean square of a sequence's residuals at first.
    Sequences that it would make worse keep their speeds.

    Args:
        predict: what is seen if speeds are given.
        seen: x.
        speeds: constant as long as directions are, 0 where these are.
        directions: 1 or -1 where a field acts, 0 where it rests.
        slab: standard deviation of the speeds around 1 and -1.
        drift: standard deviation of a step's speed around that of its run: fields are not equally
            fast everywhere.

    Example:
        >>> x = torch.arange(1.0, 4.0).expand(1, 3) * 0.8
        >>> ones = torch.ones(1, 3, 1)
        >>> refine_speeds(lambda g: g[..., 0].cumsum(1), x, ones, ones, 1e3)[0, :, 0]
        tensor([0.8000, 0.8000, 0.8000])
    """
    runs = _separate_runs(directions)
    steps = torch.eye(directions.shape[1]).to(directions)[:, None, :, None] * directions
    ways = torch.cat([runs, steps])
    width = speeds.new_tensor([slab] * len(runs) + [drift] * len(steps))
    length = runs.sum((2, 3)).mT
    off = torch.einsum("pbnk,bnk->bp", runs, speeds - directions) / length.clamp(min=1)
    off = F.pad(off, (0, len(steps)))
    predicted = predict(speeds)
    residual = (seen - predicted).flatten(1)
    noise = residual.square().mean(1).clamp(min=torch.finfo(residual.dtype).eps)
    slopes = torch.stack(
        [(predict(speeds + _APART * way) - predicted).flatten(1) / _APART for way in ways], -1
    )
    pull = (slopes.mT @ residual.unsqueeze(-1)).squeeze(-1) / noise.unsqueeze(-1) - off / width**2
    precision = slopes.mT @ slopes / noise[:, None, None] + torch.diag(1 / width**2)
    change = torch.linalg.solve(precision, pull.unsqueeze(-1)).squeeze(-1)
    refined = speeds + torch.einsum("pbnk,bp->bnk", ways, change)

    def cost(residual: Tensor, off: Tensor) -> Tensor:
        return residual.square().sum(1) / noise + (off / width).square().sum(1)

    after = cost((seen - predict(refined)).flatten(1), off + change)
    return torch.where((after < cost(residual, off))[:, None, None], refined, speeds)


def _number_runs(directions: Float[Tensor, "b n k"]) -> Int[Tensor, "b n"]:
    """Return to which run each step belongs; in a run the same fields act, in one direction."""
    changes = (directions[:, 1:] != directions[:, :-1]).any(-1)
    return F.pad(changes.long().cumsum(1), (1, 0))


def _separate_runs(directions: Float[Tensor, "b n k"]) -> Float[Tensor, "p b n k"]:
    """Return 1 where the p-th speed of a sequence acts: each field has one in each run."""
    fields = directions.shape[-1]
    acts = (directions != 0).flatten(1)
    runs = _number_runs(directions).unsqueeze(-1) * fields
    number = (runs + torch.arange(fields, device=directions.device)).flatten(1)
    used = torch.zeros_like(number).scatter_reduce(1, number, acts.long(), "amax")
    place = used.cumsum(1).gather(1, number)
    speeds = torch.arange(1, int(used.sum(1).max()) + 1, device=directions.device)
    return ((place == speeds[:, None, None]) & acts).view(-1, *directions.shape).to(directions)


class SpikeStates:
    """The states that an :class:`ActivityPrior` knows of K fields, and exact inference over them.

    Every state has two slots, each of which holds a field and a direction, or nothing.

    Args:
        fields: K.
        prior: of the activity.
        device: of the tensors.

    Attributes:
        field: the field in each slot, ``(S, 2)``; 0 where there is none.
        sign: its direction, 1 or -1, ``(S, 2)``; 0 where there is none.
        start: ``pi``, the probabilities of the first step, ``(S,)``.
        change: ``p(s' | s)``, ``(S, S)``; a row for each s.

    Example:
        >>> states = SpikeStates(3, ActivityPrior())
        >>> len(states), len(SpikeStates(3, ActivityPrior(pairs=0.0)))
        (19, 7)
    """

    def __init__(
        self, fields: int, prior: ActivityPrior, device: torch.device | str | None = None
    ) -> None:
        check_integer("fields", fields)
        self.fields = fields
        self.prior = prior
        singles = [((k, sign), (0, 0)) for k in range(fields) for sign in (1, -1)]
        pairs = [
            ((i, a), (j, b))
            for i, j in itertools.combinations(range(fields), 2)
            for a, b in itertools.product((1, -1), repeat=2)
        ]
        if prior.pairs == 0:
            pairs = []
        wide = widest(torch.device(device or "cpu"))
        states = torch.tensor([((0, 0), (0, 0)), *singles, *pairs], device=device)
        self.field: Int[Tensor, "s two"] = states[..., 0]
        self.sign: Float[Tensor, "s two"] = states[..., 1].to(wide)
        several = prior.pairs if pairs else 0.0
        weights = [
            prior.none,
            *([(1 - prior.none - several) / len(singles)] * len(singles)),
            *([several / max(len(pairs), 1)] * len(pairs)),
        ]
        self.start: Float[Tensor, "s"] = torch.tensor(weights, dtype=wide, device=device)
        signed = F.one_hot(self.field, fields).to(wide) * self.sign.unsqueeze(-1)
        signed = signed.sum(1)
        against = (signed.unsqueeze(1) * signed < 0).any(-1)
        drawn = torch.where(against, prior.reverse * self.start, self.start)
        drawn = drawn / drawn.sum(1, keepdim=True)
        same = torch.eye(len(states), dtype=wide, device=device)
        self.change: Float[Tensor, "s s"] = prior.stay * same + (1 - prior.stay) * drawn

    def __len__(self) -> int:
        return len(self.field)

    def infer(self, projections: Projections) -> Posterior:
        r"""Return the exact posterior of states and speeds.

        With ``c`` the slots' directions, the slabs of a state integrate out in closed form:

        .. math::

            \begin{aligned}
            P &= I / \mathrm{slab}^2 + G_{ss}, \qquad m = P^{-1} (c / \mathrm{slab}^2 + h_s), \\
            \log p(D \mid s) &= \mathrm{base} - \tfrac{1}{2} \log |\mathrm{slab}^2 P|
              + \tfrac{1}{2} m^\top P m - \tfrac{1}{2} c^\top c / \mathrm{slab}^2
            \end{aligned}

        and forward-backward over the steps gives the posterior of the states. It can be
        differentiated.

        Args:
            projections: of the displacements on the velocities of the fields.
        """
        like = projections.linear
        sign, acts = self.sign.to(like), (self.sign != 0).to(like)
        i, j = self.field.unbind(-1)
        precision = 1 / self.prior.slab**2
        # An empty slot is a slab of mean 0 that nothing is seen of, which changes nothing.
        h_i, h_j = (projections.linear[..., each] * acts[:, s] for s, each in enumerate((i, j)))
        a = precision + projections.gram[..., i, i] * acts[:, 0]
        d = precision + projections.gram[..., j, j] * acts[:, 1]
        b = projections.gram[..., i, j] * acts.prod(-1)
        r_i, r_j = precision * sign[:, 0] + h_i, precision * sign[:, 1] + h_j
        det = a * d - b * b
        m_i, m_j = (d * r_i - b * r_j) / det, (a * r_j - b * r_i) / det
        fit = 0.5 * (m_i * r_i + m_j * r_j - precision * sign.square().sum(-1))
        log_likelihood = fit - 0.5 * (det / precision**2).log()
        covariance = torch.stack([d * acts[:, 0], -b, -b, a * acts[:, 1]], -1) / det.unsqueeze(-1)
        forward, backward, evidence = self._forward_backward(log_likelihood)
        return Posterior(
            self,
            projections,
            forward * backward,
            torch.stack([m_i, m_j], -1) * acts,
            covariance.unflatten(-1, (2, 2)),
            evidence + projections.base.sum(-1),
            forward,
        )

    def _forward_backward(
        self, log_likelihood: Float[Tensor, "b n s"]
    ) -> tuple[Float[Tensor, "b n s"], Float[Tensor, "b n s"], Float[Tensor, "b"]]:
        """Return ``p(s_t | D_1..D_t)``, the factors that the rest adds, and the log-evidence."""
        change = self.change.to(log_likelihood)
        peak = log_likelihood.amax(-1, keepdim=True).detach()
        steps = (log_likelihood - peak).exp().unbind(1)
        predicted, forward, scales = self.start.to(log_likelihood), [], []
        for seen in steps:
            joint = predicted * seen
            scales.append(joint.sum(-1, keepdim=True))
            forward.append(joint / scales[-1])
            predicted = forward[-1] @ change
        later = torch.ones_like(steps[0])
        backward = [later]
        for seen, scale in zip(steps[:0:-1], scales[:0:-1], strict=True):
            later = (seen * later / scale) @ change.mT
            backward.insert(0, later)
        evidence = (torch.stack(scales, 1).log() + peak).sum((1, 2))
        return torch.stack(forward, 1), torch.stack(backward, 1), evidence


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """``q(s, g | D)`` of the states and speeds in n steps.

    Attributes:
        states: what the states are.
        projections: what was seen.
        probabilities: of every state in every step, ``(b, n, S)``.
        mean: of the speeds in the slots of each state, ``(b, n, S, 2)``; 0 in an empty slot.
        covariance: of the same, ``(b, n, S, 2, 2)``.
        evidence: log-evidence of the displacements of each sequence, ``(b,)``.
        filtered: probabilities of the states given what came so far, ``(b, n, S)``.
    """

    states: SpikeStates
    projections: Projections
    probabilities: Float[Tensor, "b n s"]
    mean: Float[Tensor, "b n s two"]
    covariance: Float[Tensor, "b n s two two"]
    evidence: Float[Tensor, "b"]
    filtered: Float[Tensor, "b n s"]

    @cached_property
    def slots(self) -> Float[Tensor, "s two k"]:
        """1 where a slot of a state holds a field."""
        held = F.one_hot(self.states.field, self.states.fields).to(self.mean)
        return held * (self.states.sign != 0).to(self.mean).unsqueeze(-1)

    @cached_property
    def first(self) -> Float[Tensor, "b n k"]:
        """``E[g]``."""
        return torch.einsum("bns,bnsi,sik->bnk", self.probabilities, self.mean, self.slots)

    @cached_property
    def speed(self) -> Float[Tensor, "b n k"]:
        """``E[|g|]``, as far as slabs keep the sign of their spike."""
        sign = self.states.sign.to(self.mean)
        return torch.einsum("bns,bnsi,si,sik->bnk", self.probabilities, self.mean, sign, self.slots)

    @cached_property
    def second(self) -> Float[Tensor, "b n k k"]:
        """``E[g g^T]``."""
        each = self.covariance + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)
        weighted = self.probabilities[..., None, None] * each
        return torch.einsum("bnsij,sik,sjl->bnkl", weighted, self.slots, self.slots)

    @property
    def kl(self) -> Float[Tensor, "b"]:
        """``KL(q(s, g) || p(s, g))`` of each sequence, in nats: of spikes and slabs together.

        The posterior is ``p(s, g) N(D | g) / p(D)``, so that it is
        ``E[sum_t log N(D_t | g_t)] - log p(D)``.
        """
        return self.projections.expected(self.first, self.second).sum(-1) - self.evidence

    def activity(self) -> Activity:
        """Return the marginal of every field."""
        forward = torch.einsum(
            "bns,sik,si->bnk",
            self.probabilities,
            self.slots,
            (self.states.sign > 0).to(self.mean),
        )
        active = torch.einsum("bns,sik->bnk", self.probabilities, self.slots)
        tiny = torch.finfo(active.dtype).tiny
        share = torch.where(active > tiny, forward / active.clamp(min=tiny), 0.5)
        return Activity(self.first, active.clamp(max=1), share.clamp(max=1), self.evidence)

    def draw(
        self, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b"]]:
        """Draw coefficients; return ``log p(s, g) - log q(s, g)`` of them as well.

        States are drawn backwards in time, then the speeds of each.
        """
        change = self.states.change.to(self.mean)
        with torch.no_grad():
            weights = self.filtered[:, -1]
            chosen: list[Tensor] = []
            for before in (*self.filtered[:, :-1].flip(1).unbind(1), None):
                chosen.insert(0, torch.multinomial(weights, 1, generator=generator)[:, 0])
                if before is not None:
                    weights = before * change[:, chosen[0]].mT
            state = torch.stack(chosen, 1)
        mean, covariance = self._of(state)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        tiny = torch.finfo(mean.dtype).tiny
        # The Cholesky factor of two by two numbers; an empty slot has none.
        first = covariance[..., 0, 0].clamp(min=tiny).sqrt()
        cross = covariance[..., 1, 0] / first
        rest = (covariance[..., 1, 1] - cross.square()).clamp(min=tiny).sqrt()
        speed = mean + torch.stack(
            [first * noise[..., 0], cross * noise[..., 0] + rest * noise[..., 1]], -1
        )
        coefficients = torch.einsum("bni,bnik->bnk", speed, self.slots[state])
        return coefficients, self.evidence - self.projections.log_density(coefficients).sum(-1)

    def _of(
        self, state: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b n two"], Float[Tensor, "b n two two"]]:
        """Return mean and covariance of the slots of given states."""
        place = state[..., None, None]
        mean = self.mean.gather(2, place.expand(-1, -1, 1, 2)).squeeze(2)
        covariance = self.covariance.flatten(-2).gather(2, place.expand(-1, -1, 1, 4)).squeeze(2)
        return mean, covariance.unflatten(-1, (2, 2))
