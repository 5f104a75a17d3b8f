"""Time a training step: closed forms against nested autograd, and its growth with K.

    python -m experiments.benchmarks.training_step [--out FILE]

Batch 64, T = 8, all frames decoded. Every case is timed in turn, round after round, so that a
machine that changes speed changes all of them; what counts are the ratios of medians.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments import environment
from experiments.benchmarks.timing import medians
from experiments.config import read_config
from experiments.runs import write_json
from flowfactor import AutogradPotential, RidgePotential
from flowfactor.data import SequenceBatch
from flowfactor.models import FlowVAE, Objective
from flowfactor.potentials import Potential, Selector

BATCH, HORIZON = 64, 8
COUNTS = (3, 6, 12, 24, 48)


class NestedRidge(RidgePotential):
    """The same bank with its gradients and Laplacians by automatic differentiation."""

    def select(self, k: Selector) -> Potential:
        """Return the choice, knowing nothing of it but its value."""
        return AutogradPotential(super().select(k), self.dim)


def make_model(names: list[str], objective: Objective, nested: bool = False) -> FlowVAE:
    """Return the model of the mnist configuration with some number of transformations."""
    options = read_config("mnist")[1].model
    torch.manual_seed(0)
    bank = NestedRidge if nested else RidgePotential
    potential = bank(names, options.latent_dim, options.width, horizon=HORIZON)
    options = dataclasses.replace(options, potential=potential, objective=objective)
    return FlowVAE.from_options(options, names, (3, 28, 28), HORIZON)


def step_of(model: FlowVAE, chosen: int | None = None) -> Callable[[], None]:
    """Return one training step on fixed images: loss, backward, Adam.

    The batch has ``chosen`` different transformations, by default all of the model's.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(BATCH, HORIZON + 1, *model.image_shape, generator=generator)
    labels = (torch.arange(BATCH) % (chosen or len(model.names))).sort().values
    sequences = SequenceBatch.full(frames, labels)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(model.loss(sequences).values())).sum().backward()
        optimizer.step()

    return step


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "training_step.json"
    )
    arguments = parser.parse_args()

    names = ["scaling", "rotation", "hue"]
    objectives = {
        "without density": Objective(),
        "with density": Objective(path_kl=0.1),
    }
    result: dict[str, Any] = {"batch": BATCH, "horizon": HORIZON, "rounds": arguments.rounds}
    for title, objective in objectives.items():
        found = medians(
            {
                "closed form": step_of(make_model(names, objective)),
                "nested autograd": step_of(make_model(names, objective, nested=True)),
            },
            arguments.rounds,
        )
        ratio = found["nested autograd"] / found["closed form"]
        result[title] = {"milliseconds": found, "nested / closed": ratio}
        print(f"{title}: nested autograd / closed form = {ratio:.2f}  {found}")

    # Two ways to have more transformations: those of a batch stay three, or all appear in it.
    for title, chosen in (("three of K in the batch", 3), ("all K in the batch", None)):
        models = {K: make_model([f"k{i}" for i in range(K)], Objective()) for K in COUNTS}
        found = medians(
            {str(K): step_of(model, chosen) for K, model in models.items()}, arguments.rounds
        )
        growth = {K: found[K] / found[str(COUNTS[0])] for K in found}
        result[title] = {"milliseconds": found, "relative to K = 3": growth}
        print(f"{title}:", "  ".join(f"{K}: {ratio:.2f}" for K, ratio in growth.items()))

    result["command"] = "python -m experiments.benchmarks.training_step"
    result["environment"] = environment.describe()
    write_json(arguments.out, result)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
