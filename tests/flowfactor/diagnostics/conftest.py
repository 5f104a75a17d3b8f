import pytest
import torch
from small_models import small

from flowfactor.data import TransformedImages


@pytest.fixture(scope="session")
def data():
    """Return six noisy images of 8 x 8 pixels, with frames up to t = 4."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return TransformedImages(images, horizon=4)


@pytest.fixture(scope="session")
def model(data):
    """Return an untrained model whose flows move noticeably."""
    model = small("flow_vae", data.names, (3, 8, 8), 4)
    with torch.no_grad():
        model.potentials.coefficients[:, 0].mul_(3)
    return model.eval()


@pytest.fixture(scope="session")
def images(data):
    return data.sample([0, 1], "hue").frames[:, 0]


@pytest.fixture(scope="session")
def z0(model, images):
    with torch.no_grad():
        return model.represent(images)


@pytest.fixture(scope="session")
def rows():
    train = [
        {
            "step": 10 * i,
            "split": "train",
            "loss": 5000.0 / i,
            "hamilton_jacobi": 0.5,
            "learning_rate": 1e-3,
            "seconds": float(i),
        }
        for i in range(1, 41)
    ]
    steps = (100, 200, 400)
    return train + [{"step": s, "split": "validation", "loss": 6000.0 / s} for s in steps]
