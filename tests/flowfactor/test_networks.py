"""Networks: shapes, sizes that are refused, and a start that keeps the signal alive."""

import pytest
import torch
from checking import unchecked

from flowfactor.networks import (
    DECODERS,
    ENCODERS,
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    ResidualBlock,
    ResidualDecoder,
    ResidualEncoder,
    default_channels,
    make_decoder,
    make_encoder,
)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 32, 48), (3, 64, 64)])
def test_shapes(shape):
    channels = (4, 8, 16) if shape[1] > 28 else (4, 8)
    x = torch.rand(2, *shape)
    assert ConvEncoder(shape, 5, channels, 16)(x).shape == (2, 10)
    z = torch.randn(2, 5)
    assert ConvDecoder(shape, 5, channels, 16)(z).shape == x.shape
    assert MLPDecoder(shape, 5, (16, 8))(z).shape == x.shape


SIDES = {28: (32, 64), 32: (32, 64), 64: (32, 64, 128), 128: (32, 64, 128, 128)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_default_networks_fit_every_size(kind, colours, side):
    shape = (colours, side, side)
    assert default_channels(shape) == SIDES[side]
    x = torch.rand(2, *shape)
    encoder, decoder = make_encoder(shape, 5, kind), make_decoder(shape, 5, kind)
    assert encoder(x).shape == (2, 10)
    assert decoder(torch.randn(2, 5)).shape == x.shape
    # ... which is neither lost nor blown up on its way through.
    assert 0.1 < encoder(torch.rand(16, *shape))[:, :5].std() < 10
    logits = decoder(torch.randn(16, 5))
    assert 0.05 < logits.std(0).mean() < 3
    assert logits.sigmoid().median().item() == pytest.approx(0.05, abs=0.02)


def test_defaults_are_those_of_before():
    torch.manual_seed(3)
    given = ConvEncoder((3, 28, 28), 6, (32, 64), 256), ConvDecoder((3, 28, 28), 6, (32, 64), 256)
    torch.manual_seed(3)
    default = make_encoder((3, 28, 28), 6), make_decoder((3, 28, 28), 6, "conv")
    for one, other in zip(given, default, strict=True):
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])


RESIDUAL = [
    {"blocks": blocks, "norm": norm, "upsampling": upsampling}
    for blocks, norm, upsampling in [
        (1, "none", "transposed"),
        (2, "group", "transposed"),
        (2, "none", "nearest"),
        (1, "group", "nearest"),
    ]
]


@pytest.mark.parametrize("options", RESIDUAL)
@pytest.mark.parametrize("colours", [1, 3])
def test_residual_options(options, colours):
    shape = (colours, 64, 32)
    decoder = make_decoder(shape, 5, "residual", channels=(4, 8, 12), hidden=16, **options)
    options = {name: value for name, value in options.items() if name != "upsampling"}
    encoder = make_encoder(shape, 5, "residual", channels=(4, 8, 12), hidden=16, **options)
    for network in (encoder, decoder):
        blocks = [layer for layer in network.modules() if isinstance(layer, ResidualBlock)]
        assert len(blocks) == 3 * options["blocks"]
    out = decoder(encoder(torch.rand(4, *shape))[:, :5])
    assert out.shape == (4, *shape)
    assert out.isfinite().all()


@pytest.mark.parametrize("options", [{}, *RESIDUAL])
def test_the_gradient_reaches_every_parameter(options):
    shape = (3, 32, 32)
    kind = "residual" if options else "conv"
    sizes = {"channels": (8, 16), "hidden": 16}
    decoder = make_decoder(shape, 5, kind, **sizes, **options)
    options = {name: value for name, value in options.items() if name != "upsampling"}
    encoder = make_encoder(shape, 5, kind, **sizes, **options)
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
    encoder = ResidualEncoder((1, 16, 16), 3, (4, 8), 16, blocks=2, norm="group")
    block = next(layer for layer in encoder.modules() if isinstance(layer, ResidualBlock))
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_kinds():
    assert set(ENCODERS) == {"conv", "residual"}
    assert set(DECODERS) == {"mlp", "conv", "residual"}
    assert isinstance(make_encoder((3, 28, 28), 4), ConvEncoder)
    assert isinstance(make_decoder((3, 28, 28), 4, "mlp", hidden=(8,)), MLPDecoder)


@pytest.mark.parametrize("decoder", [MLPDecoder, ConvDecoder, ResidualDecoder])
def test_an_untrained_decoder_draws_the_asked_brightness(decoder):
    drawn = decoder((3, 28, 28), 48, brightness=0.2)(torch.randn(200, 48)).sigmoid()
    assert drawn.median().item() == pytest.approx(0.2, abs=0.03)
    # ... and already answers to its latent, as torch's default initialisation does not.
    assert drawn.std(0).mean() > 0.03


def test_the_encoder_starts_with_a_moderate_posterior():
    out = ConvEncoder((3, 28, 28), 48)(torch.rand(64, 3, 28, 28))
    mean, log_scale = out.chunk(2, dim=1)
    assert mean.std() > 0.1
    assert log_scale.mean().item() == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvEncoder((3, 30, 28), 4), "divisible by 4"),
        (lambda: ConvEncoder((3, 28, 28), 4, ()), "channels"),
        (lambda: ConvEncoder((3, 28, 28), 4, hidden=0), "hidden"),
        (lambda: ConvDecoder((3, 28, 28), 4, (4, 0)), "channels"),
        (lambda: MLPDecoder((3, 28, 28), 4, ()), "hidden"),
        (lambda: MLPDecoder((3, 28, 28), 4, brightness=1.0), "brightness"),
        (lambda: unchecked(make_decoder)((3, 28, 28), 4, "unet"), "mlp, conv, residual"),
        (lambda: make_encoder((3, 28, 28), 4, "mlp"), "no encoder is named 'mlp'.*conv, residual"),
        (lambda: make_encoder((3, 28, 28), 4, blocks=2), "conv encoder has no option 'blocks'"),
        (lambda: make_decoder((3, 28, 28), 4, "conv", norm="group"), "has channels, hidden, bri"),
        (lambda: make_decoder((3, 36, 36), 4, "residual", channels=(4,) * 3), "divisible by 8"),
        (lambda: make_encoder((3, 28, 28), 4, "residual", blocks=0), "blocks"),
        (lambda: make_encoder((3, 28, 28), 4, "residual", norm="batch"), "'none' or 'group'"),
        (
            lambda: make_decoder((3, 28, 28), 4, "residual", upsampling="bicubic"),
            "upsampling is 'bicubic'; it is either 'transposed' or 'nearest'",
        ),
        (lambda: unchecked(MLPDecoder)((3, 28, 28), 4, brightness=0.0), "brightness"),
        (lambda: ResidualDecoder((3, 28, 28), 4, hidden=0), "hidden"),
        (lambda: unchecked(make_decoder)((3, 28, 28), 4, "mlp", channels=(4,)), "channels"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
