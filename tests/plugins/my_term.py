"""A term of the objective in one file."""

from flowfactor.registries import TERMS


@TERMS.register("small_latents")
def small_latents(context):
    """The mean squared length of the latents at the batch's frames."""
    return context.z.square().sum(-1).mean(1)
