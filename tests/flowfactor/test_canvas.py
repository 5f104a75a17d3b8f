"""Networks that code an image in squares, and move and colour it by group elements."""

import math

import pytest
import torch

from flowfactor.canvas import CanvasDecoderOptions, CanvasEncoderOptions
from flowfactor.models import FlowVAE
from flowfactor.registries import DECODERS, ENCODERS

SHAPE, SIZES = (3, 16, 24), {"patch": 8, "code": 2, "width": 4}
CODES, WHOLE = 2 * 3 * 2, 8


def decoder(shape=SHAPE, recolour=True, **generators):
    """Return a decoder with generators ``place`` and ``colour``: (number of z, entry): rate."""
    torch.manual_seed(0)
    options = CanvasDecoderOptions(**SIZES, recolour=recolour)
    network = options.build(shape, CODES + WHOLE).double()
    for name, entries in generators.items():
        exponential = getattr(network, name)
        with torch.no_grad():
            weight = exponential.generator.weight.zero_()
            for (number, entry), rate in entries.items():
                weight[entry, number] = rate / exponential.scale
    return network


def latents(count, *moved):
    z = torch.randn(count, CODES + WHOLE, dtype=torch.double)
    z[:, CODES:] = 0
    for number, value in moved:
        z[:, CODES + number] = value
    return z


@pytest.mark.parametrize("shape", [SHAPE, (1, 16, 24)])
def test_shapes_and_kinds(shape):
    options = {"kind": "canvas", **SIZES}
    networks = {"encoder": options, "decoder": options}
    model = FlowVAE.build(("a", "b"), shape, latent_dim=CODES + WHOLE, width=4, **networks)
    images = torch.rand(5, *shape)
    assert model.decode(model.represent(images)).shape == images.shape
    assert {"canvas"} <= set(ENCODERS) & set(DECODERS)
    model.encoder(images).square().sum().backward()
    model.decoder(torch.randn(5, CODES + WHOLE)).square().sum().backward()
    for network in (model.encoder, model.decoder):
        assert all(bool(p.grad.isfinite().all()) for p in network.parameters())
        moved = [p.grad.abs().max() > 0 for p in network.parameters()]
        assert sum(moved) >= len(moved) - 4  # not yet what residual blocks do inside


def test_a_square_is_coded_alike_wherever_it_is():
    encoder = CanvasEncoderOptions(**SIZES, blocks=0).build(SHAPE, CODES + WHOLE)
    x = torch.rand(1, *SHAPE)
    codes, rolled = (encoder(each)[0, :CODES].view(2, 2, 3) for each in (x, x.roll(8, -1)))
    assert torch.allclose(codes.roll(1, 2), rolled, atol=1e-6)


def test_untouched_the_picture_is_drawn_as_it_is():
    network, z = decoder(), latents(4)
    drawn = network.drawing(z[:, :CODES])
    assert torch.allclose(network(z), drawn, atol=1e-6)
    z = torch.randn_like(z)
    plain = decoder(recolour=False, place={})
    assert torch.allclose(plain(z), plain.drawing(z[:, :CODES]), atol=1e-6)


def test_a_latent_on_a_straight_line_moves_its_image_at_constant_speed():
    """Of the whole, number 1 shifts by a pixel and number 2 dims by a factor e."""
    dims = {(2, 0): -1.0, (2, 5): -1.0, (2, 10): -1.0}
    network = decoder(place={(1, 2): 2 / 24}, colour=dims)
    z = latents(3)
    still = network(z).sigmoid()
    z[:, CODES + 1] = 2.0
    shifted = network(z).sigmoid()
    assert torch.allclose(shifted[..., :-2], still[..., 2:], atol=1e-4)
    assert torch.allclose(shifted[..., -1], still[..., -1], atol=1e-4)  # its edge goes on
    z[:, CODES + 2] = 0.7
    assert torch.allclose(network(z).sigmoid(), shifted * math.exp(-0.7), atol=1e-3)


def test_places_and_colours_act_together_and_full_turns_are_nothing():
    turn, bright = 2 * math.pi, 0.25
    network = decoder((3, 16, 24), place={(0, 1): -1.5, (0, 3): 1 / 1.5}, colour={(1, 0): bright})
    z = latents(2)
    still = network(z)
    z[:, CODES] = turn  # exp(turn [[0, -a], [1/a, 0]]) is 1
    assert torch.allclose(network(z), still, atol=1e-3)
    z[:, CODES + 1] = 1.0
    red = (still[:, 0].sigmoid() * math.exp(bright)).clamp(max=1 - 1e-4)
    assert torch.allclose(network(z)[:, 0].sigmoid(), red, atol=1e-3)
    assert torch.allclose(network(z)[:, 1:], still[:, 1:], atol=1e-3)


@pytest.mark.parametrize("options", [CanvasEncoderOptions, CanvasDecoderOptions])
def test_refusals(options):
    with pytest.raises(ValueError, match="patch"):
        options(patch=5).build(SHAPE, 100)
    with pytest.raises(ValueError, match="latent_dim"):
        options(patch=8, code=4).build(SHAPE, 24)
