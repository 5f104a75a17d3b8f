"""Networks: shapes, sizes that are refused, and a start that keeps the signal alive."""

import pytest
import torch
from checking import unchecked

from flowfactor.networks import ConvDecoder, ConvEncoder, MLPDecoder, make_decoder


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 32, 48), (3, 64, 64)])
def test_shapes(shape):
    channels = (4, 8, 16) if shape[1] > 28 else (4, 8)
    x = torch.rand(2, *shape)
    assert ConvEncoder(shape, 5, channels, 16)(x).shape == (2, 10)
    z = torch.randn(2, 5)
    assert ConvDecoder(shape, 5, channels, 16)(z).shape == x.shape
    assert MLPDecoder(shape, 5, (16, 8))(z).shape == x.shape


@pytest.mark.parametrize("decoder", [MLPDecoder, ConvDecoder])
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
        (lambda: unchecked(make_decoder)((3, 28, 28), 4, "unet"), "mlp, conv"),
        (lambda: unchecked(make_decoder)((3, 28, 28), 4, "mlp", channels=(4,)), "channels"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
