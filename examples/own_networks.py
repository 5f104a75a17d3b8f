"""Train a flow model with networks of your own, save it, load it and evaluate it."""

import sys
from pathlib import Path

from torch import nn

import flowfactor
from flowfactor.data import Sprites
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.training import TrainingOptions, fit

LATENT, SIZE = 8, 16


def make_model(names: tuple[str, ...]) -> flowfactor.FlowVAE:
    """Return a flow model with fully connected networks."""
    pixels = 3 * SIZE * SIZE
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, 2 * LATENT)
    )
    decoder = nn.Sequential(
        nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, pixels), nn.Unflatten(1, (3, SIZE, SIZE))
    )
    shape = (3, SIZE, SIZE)
    return flowfactor.FlowVAE.build(
        names, shape, latent_dim=LATENT, encoder=encoder, decoder=decoder
    )


def main(run: Path, steps: int) -> None:
    """Train on sprites, then measure the model that was saved."""
    train, validation, test = (
        Sprites(count, split=split, size=SIZE)
        for count, split in ((1000, "train"), (50, "validation"), (50, "test"))
    )
    options = TrainingOptions(steps=steps, batch_size=32, validation_sequences=50)
    fit(make_model(train.names), train, validation, options, run)

    model = flowfactor.load(run, model=make_model(train.names))
    few = {"log_likelihood": {"sequences": 10, "samples": 10}}
    evaluation = evaluate(model, test, EvaluationOptions(images=50, metrics=few))
    print(evaluation.tables()["errors"].to_markdown())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_networks"), steps=300)
