"""Do two flows commute? The Lie bracket of their velocity fields."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from flowfactor.potentials import Time, VectorField


def lie_bracket(
    v: VectorField, w: VectorField, z: Float[Tensor, "b d"], t: Time
) -> Float[Tensor, "b d"]:
    r"""Return the Lie bracket of two fields at fixed time, in closed form.

    .. math::

        [v, w](z, t) = \frac{\partial w(z, t)}{\partial z}\, v(z, t)
          - \frac{\partial v(z, t)}{\partial z}\, w(z, t)

    Two flows of fields without time commute, and their superposition equals one after the
    other, where the bracket vanishes. To first order the ends of the two orders are ``s r`` times
    the bracket apart when the flows run for the times ``s`` and ``r``.

    Args:
        v: a field; of a potential u it is ``grad u``.
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
    return w.jvp(z, t, v.velocity(z, t)) - v.jvp(z, t, w.velocity(z, t))
