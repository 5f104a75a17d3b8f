"""Networks: shapes, sizes that are refused, and a start that keeps the signal alive."""

import pytest
import torch

from flowfactor.inference import TransformationPosterior
from flowfactor.networks import (
    ConvDecoder,
    ConvDecoderOptions,
    ConvEncoder,
    ConvEncoderOptions,
    MLPDecoder,
    MLPDecoderOptions,
    PatchEncoder,
    PatchEncoderOptions,
    ResidualBlock,
    WarpDecoder,
    WarpDecoderOptions,
    WarpEncoder,
    WarpEncoderOptions,
    default_channels,
)
from flowfactor.registries import DECODERS, ENCODERS

SIDES = {28: (32, 64), 32: (32, 64), 64: (32, 64, 128), 128: (32, 64, 128, 128)}
SMALL = {"channels": (4, 8), "hidden": 16}


KINDS = [(28, "conv"), (28, "residual"), (64, "residual"), (28, "warp")]


@pytest.mark.parametrize(("side", "kind"), KINDS)
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


@pytest.mark.parametrize(("shape", "patch"), [((3, 28, 28), 4), ((1, 12, 30), 6)])
def test_a_patch_encoder_sees_each_square_through_the_same_layer(shape, patch):
    torch.manual_seed(0)
    options = PatchEncoderOptions(patch=patch, hidden=(16, 8))
    encoder, x = options.build(shape, 5), torch.rand(8, *shape)
    assert encoder(x).shape == (8, 10)
    assert 0.1 < encoder(x)[:, :5].std() < 10
    features = []
    squares = next(layer for layer in encoder.modules() if isinstance(layer, torch.nn.Linear))
    squares.register_forward_hook(lambda layer, given, out: features.append(out))
    rolled = x.roll(patch, -1)
    encoder(x), encoder(rolled)
    columns = shape[2] // patch
    before, after = (out.unflatten(1, (-1, columns)) for out in features)
    assert torch.allclose(before.roll(1, 2), after, atol=1e-5)
    encoder(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters())


def hold_pose(network, theta=((1.0, 0, 0), (0, 1.0, 0))):
    """Let a network that warps give all images one pose."""
    pose = torch.tensor(theta)
    network.theta.register_forward_hook(lambda *given: pose.expand(len(given[-1]), 2, 3))
    return network


def test_an_encoder_with_the_pose_1_sees_the_image_itself():
    options = WarpEncoderOptions(width=4, pose_width=4, pose_hidden=8, hidden=(8,))
    encoder = hold_pose(options.build((3, 12, 8), 5))
    x = torch.rand(2, 3, 12, 8)
    seen = torch.cat([encoder.pose(x), encoder.content(x)], dim=1)
    assert torch.allclose(encoder(x), encoder.head(seen), atol=1e-5)
    # It undoes what the pose says: here the image was moved to the left, by two pixels of 8.
    hold_pose(encoder, ((1.0, 0, -2 * 2 / 8), (0, 1.0, 0)))
    upright = torch.zeros_like(x)
    upright[..., 2:] = x[..., :-2]
    seen = torch.cat([encoder.pose(x), encoder.content(upright)], dim=1)
    assert torch.allclose(encoder(x), encoder.head(seen), atol=1e-5)


@pytest.mark.parametrize("tint", [False, True])
def test_a_decoder_moves_its_picture_into_the_dark(tint):
    decoder = WarpDecoderOptions(hidden=(8,), tint=tint).build((3, 12, 8), 5)
    z = torch.randn(4, 5)
    hidden = decoder.hidden(z)
    picture = decoder.picture(hidden).sigmoid()
    if tint:  # a grey picture times a colour
        picture = picture * decoder.colour(hidden).sigmoid()[:, :, None, None]
    assert torch.allclose(hold_pose(decoder)(z).sigmoid(), picture, atol=1e-5)
    hold_pose(decoder, ((1.0, 0, 0), (0, 1.0, 2 * 3 / 12)))
    moved = decoder(z).sigmoid()
    assert torch.allclose(moved[..., :-3, :], picture[..., 3:, :], atol=1e-5)
    assert moved[..., -3:, :].max() < 0.01


def test_a_tint_of_any_size_has_finite_logits_and_gradients():
    decoder = WarpDecoderOptions(hidden=(8,), tint=True).build((3, 4, 4), 5)
    for picture, colour in ((300.0, 300.0), (-300.0, -300.0), (300.0, -300.0), (-300.0, 300.0)):
        with torch.no_grad():
            decoder.picture[0].bias.fill_(picture)
            decoder.colour.bias.fill_(colour)
        logits = decoder(torch.randn(2, 5))
        assert logits.isfinite().all()
        assert ((logits > 0) == (min(picture, colour) > 0)).all()
        logits.sum().backward()
        assert all(p.grad.isfinite().all() for p in decoder.parameters())


def test_the_gradient_reaches_the_pose():
    encoder = WarpEncoderOptions(pose_hidden=8).build((3, 12, 8), 5)
    decoder = WarpDecoderOptions(hidden=(8,), tint=True).build((3, 12, 8), 10)
    decoder(encoder(torch.rand(4, 3, 12, 8))).square().sum().backward()
    for network in (encoder, decoder):
        assert all(p.grad.abs().max() > 0 for p in network.parameters())


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


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "canvas"])
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


@pytest.mark.parametrize("sides", [(4, 5), (9, 15), (31, 30)])
def test_convolutions_encode_images_of_any_size(sides):
    """Only what draws an image by doubling it must be able to halve it without a rest."""
    options = ConvEncoderOptions(channels=(2, 2), hidden=4, blocks=1)
    assert ConvEncoder((1, *sides), 3, options)(torch.rand(2, 1, *sides)).shape == (2, 6)
    posterior = TransformationPosterior((1, *sides), 3, horizon=2)
    assert posterior(torch.rand(2, 3, 1, *sides), torch.arange(3).expand(2, 3)).shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ConvEncoder((3, 3, 28), 4), "3 x 28"),
        (lambda: PatchEncoder((3, 30, 28), 4), "patch"),
        (lambda: WarpEncoder((3, 28, 30), 4), "patch"),
        (lambda: WarpDecoder((3, 28, 28), 4, WarpDecoderOptions(hidden=())), "hidden"),
        (lambda: ConvEncoder((3, 28, 28), 4, ConvEncoderOptions(channels=())), "channels"),
        (lambda: ConvDecoder((3, 36, 36), 4, ConvDecoderOptions(channels=(4,) * 3)), "36 x 36"),
        (lambda: MLPDecoder((3, 28, 28), 4, MLPDecoderOptions(hidden=())), "hidden"),
    ],
)
def test_sizes_that_do_not_fit(make, word):
    with pytest.raises(ValueError, match=word):
        make()
