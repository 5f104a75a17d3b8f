"""The supervised flow model: a VAE whose latent flows along a field."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data import SequenceBatch
from flowfactor.flow import LogDensity
from flowfactor.models import terms
from flowfactor.models.autoencoder import PotentialAutoencoder, PotentialOptions
from flowfactor.models.objective import Context, Objective, properties_of
from flowfactor.options import NameIn, PositiveFloat, PositiveInt, options
from flowfactor.potentials import FieldBank, Parts, PotentialBank, VectorField
from flowfactor.priors import DiffusingPrior
from flowfactor.registries import FIELDS, MODELS, TERMS
from flowfactor.transport import Force
from solvers import Euler

__all__ = ["FlowVAE", "FlowVAEOptions", "terms"]


@options
class FlowVAEOptions(PotentialOptions):
    """Options of :class:`FlowVAE`."""

    # As it was called while all fields were gradients of potentials, so is it still read.
    field: Annotated[str | FieldBank[VectorField], NameIn(FIELDS, FieldBank)] = pydantic.Field(
        default="ridge", validation_alias=pydantic.AliasChoices("field", "potential")
    )
    """Family of the fields: ``ridge`` or ``mlp``; in Python also a bank of them."""
    parts: Parts = "gradient"
    """Parts of each field: ``gradient``, that of a potential; ``solenoidal``, without divergence,
    which can turn; or ``both``. ``mlp`` has the first alone."""
    autonomous: bool = False
    """Whether the fields do not depend on time."""
    force: Literal["zero", "learned"] = "zero"
    """Force of the Hamilton-Jacobi equation: zero, or learned and non-positive."""
    diffusion: PositiveFloat = 0.05
    """Initial value of the prior's diffusion coefficients ``D_k``."""
    density: Literal["integral", "discrete"] = "integral"
    """Log-density along the path: the ``integral`` of the Laplacian, or the exact ``discrete``
    determinant of the steps of Euler's method, whose error training cannot exploit."""
    interval_steps: PositiveInt | None = None
    """Steps of a fixed-step solver from the encoded frame to a decoded one in training on some
    frames of each sequence; null: as many as for the whole sequence."""
    objective: Objective = Objective()
    """Weights of the objective's terms."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> FlowVAEOptions:
        if self.density == "discrete" and not isinstance(self.solver, Euler):
            raise ValueError("density discrete needs solver {name: euler, steps: 4} or so")
        if self.parts != "gradient" and self.field != "ridge":
            raise ValueError(f"parts {self.parts} needs field ridge")
        needy = [name for name in self.objective.active if properties_of(name).potential]
        if needy and not self.has_potentials:
            raise ValueError(
                f"objective.{needy[0]} needs potentials; set its weight to 0, or parts to gradient"
            )
        if self.force == "learned" and self.objective["hamilton_jacobi"] == 0:
            raise ValueError("force learned needs a weight objective.hamilton_jacobi above 0")
        return self

    @property
    def has_potentials(self) -> bool:
        """Whether the fields are gradients of potentials."""
        if isinstance(self.field, FieldBank):
            return isinstance(self.field, PotentialBank)
        return self.parts == "gradient"

    def make_bank(self, names: Sequence[str], horizon: int) -> FieldBank[VectorField]:
        """Return the bank of fields, one for each name; a bank of your own as it is."""
        if isinstance(self.field, FieldBank):
            return self.field
        parts = {} if self.parts == "gradient" else {"parts": self.parts}
        bank: FieldBank[VectorField] = FIELDS[self.field](
            names,
            self.latent_dim,
            self.width,
            horizon=horizon,
            frequencies=self.frequencies,
            autonomous=self.autonomous,
            rank=self.rank,
            **parts,
        )
        return bank


@MODELS.register("flow_vae")
class FlowVAE(PotentialAutoencoder):
    r"""A variational autoencoder of sequences whose latent flows: ``dz/dt = v^k(z, t)``.

    With the transformation k of each sequence known, training minimises

    .. math::

        \begin{aligned}
        & -\mathbb{E}_q \Bigl[ \sum_{t=0}^T \log p(x_t \mid z_t) \Bigr]
          + \beta\, \mathrm{KL}(q(z_s \mid x_s) \parallel N(0, I)) \\
        +\, \mathrm{path\_kl} \;& \sum_{t \ne s}
          \mathrm{KL}(q_t(\cdot \mid x_s, k) \parallel p_{|t - s|}(\cdot \mid k)) \\
        +\, \mathrm{hamilton\_jacobi} \;& \mathrm{mean}_{t \in [0, T]}
          \bigl( \partial_t u + \tfrac{1}{2} |\nabla u|^2 - f \bigr)^2 \\
        +\, \mathrm{initial} \;& |v(z_s, s)|^2 \\
        +\, \mathrm{consistency} \;& \sum_{t \ne s}
          \mathrm{KL}(q_t(\cdot \mid x_s, k) \parallel q(\cdot \mid x_t)) \\
        +\, \mathrm{reversal} \;& \mathbb{E}_t\, \mathbb{E}_{z_t \sim q(\cdot \mid x_t)}
          [ -\log p(x_s \mid z_{t \to s}) ] \\
        +\, \mathrm{commutator} \;& |[v^k, v^j](z_t, t)|^2
        \end{aligned}

    averaged over the batch. ``v^k`` is ``grad u^k``, divergence-free, or the sum of two such parts,
    see ``parts``; ``hamilton_jacobi`` needs a potential. The encoded frame s is 0, or in training
    any (``training.encoded_frame: random``), from which the flow leads forwards and backwards.
    ``z_t`` is the flow of ``z_s ~ q(z_s | x_s)``, ``q_t`` its density, ``p_t`` the diffusing prior
    and ``z_{t->s}`` what flows back to time s; in the last line j is another transformation and t a
    time at random. The first line is the negative evidence bound for ``beta = 1``; the transitions
    are deterministic, so that it needs no further term. The terms are the functions in
    :mod:`flowfactor.models.terms`; others can be registered.

    Args:
        options: :class:`FlowVAEOptions`.
        names, image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.

    Raises:
        ValueError: sizes that do not fit, or a commutator of a single transformation.

    Source: Song, Keller, Sebe, Welling, arXiv:2309.13167.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import SequenceBatch
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8, width=16)
        >>> films = SequenceBatch.full(torch.rand(4, 9, 3, 28, 28), torch.tensor([0, 0, 1, 1]))
        >>> sorted(model.loss(films))
        ['hamilton_jacobi', 'kl', 'reconstruction']
        >>> model.decode(model.flow(model.encode(films.frames[:, 0]).mean, "hue", 2.5)).shape
        torch.Size([4, 3, 28, 28])
    """

    Options: ClassVar[type[Any]] = FlowVAEOptions

    def __init__(
        self,
        options: FlowVAEOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
    ) -> None:
        super().__init__(options, names, image_shape, horizon)
        self.objective = options.objective
        # The discrete density is that of steps on a grid from frame 0.
        self.encodes_any_frame = self.real_times = options.density != "discrete"
        if self.objective["commutator"] > 0 and len(names) < 2:
            raise ValueError("objective.commutator needs at least two transformations")
        learned = options.force == "learned"
        self.force = Force(self.latent_dim, horizon=horizon) if learned else None
        # Without the path term nothing teaches the diffusion, and distributed training would wait
        # for its gradient.
        self.prior = DiffusingPrior(len(names), options.diffusion)
        self.prior.requires_grad_(self.objective["path_kl"] > 0)

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        With some frames of each sequence only, the reconstruction is an unbiased estimate of that
        over all frames. Terms of weight 0 are left out and cost nothing.
        """
        context = self.context(sequences, self.choose(sequences))
        return {name: cost.mean() for name, cost in self.costs(context).items()}

    def context(
        self, sequences: SequenceBatch, k: Int[Tensor, "b"] | Float[Tensor, "b k"]
    ) -> Context:
        """Return the context of the objective's terms, see :class:`Context`."""
        needs = [properties_of(name) for name in self.objective.active]
        density: LogDensity = any(need.density for need in needs)
        if density and self.options.density == "discrete":
            density = "discrete"
        return Context(
            self,
            sequences,
            k,
            interval_steps=self.options.interval_steps,
            log_density=density,
            random_times=any(need.random_times for need in needs),
            prior=self.prior,
            force=self.force,
        )

    def costs(
        self, context: Context, enumeration: Collection[str] = ("each", "once", "never")
    ) -> dict[str, Float[Tensor, "b"]]:
        """Return the reconstruction and the weighted terms, for each sequence, in nats.

        Args:
            context: what they are computed from.
            enumeration: which terms, see :class:`~flowfactor.models.Term`.
        """
        costs = {}
        if "each" in enumeration:
            weights = context.batch.counted.weights
            costs["reconstruction"] = -(context.log_likelihood * weights).sum(1)
        for name, weight in self.objective.active.items():
            properties = properties_of(name)
            if properties.enumeration in enumeration:
                costs[properties.label or name] = weight * TERMS[name](context)
        return costs
