"""Networks: shapes, sizes that are refused, and a start that keeps the signal alive."""

import pytest
import torch

from flowfactor.networks import (
    ConvDecoder,
    ConvDecoderOptions,
    ConvEncoder,
    ConvEncoderOptions,
    MLPDecoder,
    MLPDecoderOptions,
    ResidualBlock,
    default_channels,
)
from flowfactor.registries import DECODERS, ENCODERS

SIDES = {28: (32, 64), 32: (32, 64), 64: (32, 64, 128), 128: (32, 64, 128, 128)}
SMALL = {"channels": (4, 8), "hidden": 16}


@pytest.mark.parametrize(("side", "kind"), [(28, "conv"), (28, "residual"), (64, "residual")])
def test_default_networks_fit_every_size(kind, side):
    shape = (3, side, side)
    encoder, decoder = ENCODERS[kind]().build(shape, 5), DECODERS[kind]().build(shape, 5)
    x, z = torch.rand(8, *shape), torch.randn(16, 5)
    assert encoder(x).shape == (8, 10)
    assert decoder(z).shape == (16, *shape)
    # ... which is neither lost nor blown up on its way through.
    assert 0.1 < encoder(x)[:, :5].std() < 10
    logits = decoder(z)
    assert 0.05 < logits.std(0).mean() < 3
    assert logits.sigmoid().median().item() == pytest.approx(0.05, abs=0.02)


def test_default_channels():
    assert {side: default_channels((1, side, side)) for side in SIDES} == SIDES


NETWORKS = [
    {"blocks": 0, "norm": "none", "upsampling": "transposed"},
    {"blocks": 1, "norm": "none", "upsampling": "transposed"},
    {"blocks": 2, "norm": "group", "upsampling": "transposed"},
    {"blocks": 1, "norm": "group", "upsampling": "nearest"},
]


@pytest.mark.parametrize("given", NETWORKS)
def test_the_gradient_reaches_every_parameter(given):
    shape = (1, 16, 32)
    decoder = ConvDecoderOptions(**SMALL, **given).build(shape, 5)
    given = {name: value for name, value in given.items() if name != "upsampling"}
    encoder = ConvEncoderOptions(**SMALL, **given).build(shape, 5)
    for network in (encoder, decoder):
        blocks = [layer for layer in network.modules() if isinstance(layer, ResidualBlock)]
        assert len(blocks) == 2 * given["blocks"]
    parameters = [*encoder.named_parameters(), *decoder.named_parameters()]
    for step in range(2):
        mean, log_scale = encoder(torch.rand(8, *shape)).chunk(2, dim=1)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        (decoder(z) - torch.rand(8, *shape)).square().mean().backward()
        for name, parameter in parameters:
            assert parameter.grad is not None, name
            # Blocks are the identity at first, which leaves their inside out of the first step.
            if step == 1:
                assert parameter.grad.abs().max() > 0, name
            with torch.no_grad():
                parameter -= 0.01 * parameter.grad
            parameter.grad = None


def test_a_block_begins_as_the_identity():
    encoder = ConvEncoderOptions(**SMALL, blocks=2, norm="group").build((1, 16, 16), 3)
    block = next(layer for layer in encoder.modules() if isinstance(layer, ResidualBlock))
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("kind", DECODERS)
def test_an_untrained_decoder_draws_the_asked_brightness(kind):
    drawn = DECODERS[kind](brightness=0.2).build((3, 28, 28), 48)(torch.randn(60, 48)).sigmoid()
    assert drawn.median().item() == pytest.approx(0.2, abs=0.03)
    # ... and already answers to its latent, as torch's default initialisation does not.
    assert drawn.std(0).mean() > 0.03


def test_the_encoder_starts_with_a_moderate_posterior():
    out = ConvEncoder((3, 28, 28), 48)(torch.rand(32, 3, 28, 28))
    mean, log_scale = out.chunk(2, dim=1)
    assert mean.std() > 0.1
    assert log_scale.mean().item() == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ConvEncoder((3, 30, 28), 4), "30 x 28"),
        (lambda: ConvEncoder((3, 28, 28), 4, ConvEncoderOptions(channels=())), "channels"),
        (lambda: ConvDecoder((3, 36, 36), 4, ConvDecoderOptions(channels=(4,) * 3)), "36 x 36"),
        (lambda: MLPDecoder((3, 28, 28), 4, MLPDecoderOptions(hidden=())), "hidden"),
    ],
)
def test_sizes_that_do_not_fit(make, word):
    with pytest.raises(ValueError, match=word):
        make()
