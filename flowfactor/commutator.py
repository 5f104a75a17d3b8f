"""Do two flows commute? The Lie bracket of their velocity fields."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from flowfactor.potentials import Potential
from flowfactor.potentials.base import Time


def lie_bracket(
    u: Potential, w: Potential, z: Float[Tensor, "b d"], t: Time
) -> Float[Tensor, "b d"]:
    r"""Return the Lie bracket of ``grad u`` and ``grad w`` at fixed time, in closed form.

    .. code-block:: text

        [grad u, grad w](z, t) = Hessian w(z, t) grad u(z, t) - Hessian u(z, t) grad w(z, t)

    Two flows of potentials without time commute, and their superposition equals one after the
    other, where the bracket vanishes. To first order the ends of the two orders are ``s r`` times
    the bracket apart when the flows run for the times ``s`` and ``r``.

    Args:
        u: a potential.
        w: another one.
        z: latents ``(B, D)``.
        t: a number, or a tensor ``()`` or ``(B,)``.

    Returns:
        ``(B, D)``, in latent units per squared frame.

    Example:
        >>> import torch, flowfactor
        >>> stretch = flowfactor.AutogradPotential(lambda z, t: z[:, 0] ** 2, dim=2)
        >>> shift = flowfactor.AutogradPotential(lambda z, t: z[:, 0] + z[:, 1], dim=2)
        >>> lie_bracket(stretch, shift, torch.zeros(1, 2), 0.0).tolist()
        [[-2.0, 0.0]]
    """
    return w.hvp(z, u.gradient(z, t), t) - u.hvp(z, w.gradient(z, t), t)
