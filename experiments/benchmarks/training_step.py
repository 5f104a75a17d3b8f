"""Time a training step: where its time goes, nested autograd instead of closed forms, K.

    python -m experiments.benchmarks.training_step [--threads N] [--only SECTION] [--out FILE]

``recipes``: a step of the published recipe and of the shipped ``mnist``, by its parts, beside the
speed that one large product reaches in the same process. ``density``: nested autograd against
closed forms. ``growth``: more transformations. The last two with batch 64, T = 8, all frames
decoded, the model of the published recipe.

Every case is timed in turn, round after round, so that a machine that changes speed changes all of
them; what counts are the ratios of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments import environment
from experiments.benchmarks.timing import medians, positive, use_threads
from experiments.config import Config, read_config
from experiments.runs import write_json
from flowfactor import AutogradPotential, RidgePotential, machine
from flowfactor.data import SequenceBatch, SequenceLoader
from flowfactor.models import FlowVAE, Objective
from flowfactor.potentials import Potential, Selector

NAMES = ("scaling", "rotation", "hue")
BATCH, HORIZON = 64, 8
COUNTS = (3, 6, 12, 24, 48)
ROOF = 2048
"""Rows and columns of the product that is the roof."""

PUBLISHED: dict[str, Any] = {
    "data.initial_state": "canonical",
    "model.autonomous": False,
    "model.encoder": {"kind": "conv"},
    "model.decoder": {"kind": "mlp", "hidden": [1024, 1024]},
    "model.solver": {"name": "rk4", "steps": 2},
    "model.interval_steps": None,
    "model.objective": {"beta": 1.0, "hamilton_jacobi": 0.01},
    "training.batch_size": 96,
    "training.encoded_frame": "first",
    "training.frames_per_sequence": 1,
}
"""The recipe of the published numbers: flows from frame 0, in the steps of the whole sequence."""

PLAIN = {
    "model.encoder": {"kind": "patch"},
    "model.decoder": {"kind": "mlp", "hidden": [1024, 1024]},
    "training.batch_size": 96,
}
RECIPES: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "mnist with patch encoder and mlp decoder": PLAIN,
    "mnist": {},
}
"""What is changed of the configuration ``mnist`` as it is shipped."""


class NestedRidge(RidgePotential):
    """The same bank with its gradients and Laplacians by automatic differentiation."""

    def select(self, k: Selector) -> Potential:
        """Return the choice, knowing nothing of it but its value."""
        return AutogradPotential(super().select(k), self.dim)


def clock() -> float:
    """Return milliseconds: of the processor for one thread, which others do not change."""
    return 1e3 * (time.process_time if torch.get_num_threads() == 1 else time.perf_counter)()


class Step:
    """One training step of a configuration, in parts that are timed one by one.

    The images are random: how they look costs no time.

    Args:
        config: of the model, the batches and the optimiser.
        half: whether the networks compute in bfloat16.
    """

    PARTS = ("data", "encoder", "flow", "decoder", "loss", "backward", "optimiser")

    def __init__(self, config: Config, half: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (1000, 1, 28, 28), generator=generator, dtype=torch.uint8)
        data_options: Any = config.data
        data = data_options.transform(images, None)
        training = config.training
        self.loader = SequenceLoader(
            data,
            training.batch_size,
            frames_per_sequence=training.frames_per_sequence,
            encoded_frame=training.encoded_frame,
        )
        torch.manual_seed(0)
        self.model = FlowVAE.from_options(config.model, data.names, data.image_shape, data.horizon)
        self.clip, self.half, self.count = training.clip, half, 0
        self.optimizer = torch.optim.AdamW(
            self.model.parameter_groups(),
            lr=training.learning_rate,
            betas=training.betas,
            fused=True,
        )
        self.times: dict[str, list[float]] = defaultdict(list)
        self.began = 0.0
        self.model.decoder.register_forward_pre_hook(self._enter_decoder)
        self.model.decoder.register_forward_hook(self._leave_decoder)

    def __call__(self) -> None:
        """Take the step, and note how long each of its parts took."""
        model = self.model
        with self.part("data"):
            batch = self.loader.batch(self.count)
        self.count += 1
        context = model.context(batch, model.choose(batch))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            with self.part("encoder"):
                _ = context.z0, context.entropy
            with self.part("flow"):
                _ = context.z
            with self.part("loss"):  # and the decoder, whose time is taken out of it
                loss = torch.stack([cost.mean() for cost in model.costs(context).values()]).sum()
        self.times["loss"][-1] -= self.times["decoder"][-1]
        self.optimizer.zero_grad(set_to_none=True)
        with self.part("backward"):
            loss.backward()
        with self.part("optimiser"):
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            self.optimizer.step()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note the milliseconds of a part."""
        began = clock()
        yield
        self.times[name].append(clock() - began)

    def count_gflop(self) -> float:
        """Return the operations of the matrix products and convolutions of a step, in 10^9."""
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops() / 1e9

    def summary(self, roof: float) -> dict[str, Any]:
        """Return the medians of the parts, and how the step compares with the roof.

        Args:
            roof: 10^9 operations per second of a large product.
        """
        gflop = self.count_gflop()
        self.times = {name: times[1:-1] for name, times in self.times.items()}  # first and counted
        whole = statistics.median(map(sum, zip(*self.times.values(), strict=True)))
        parts = {name: round(statistics.median(self.times[name]), 3) for name in self.PARTS}
        speed = 1e3 * gflop / whole
        return {
            "batch": self.loader.batch_size,
            "milliseconds": parts,
            "step": round(whole, 3),
            "gflop": round(gflop, 3),
            "gflop per second": round(speed, 1),
            "of the roof": round(speed / roof, 3),
        }

    def _enter_decoder(self, *_: Any) -> None:
        self.began = clock()

    def _leave_decoder(self, *_: Any) -> None:
        self.times["decoder"].append(clock() - self.began)


def time_product(half: bool) -> float:
    """Return the milliseconds of a large product."""
    x = torch.ones(ROOF, ROOF, dtype=torch.bfloat16 if half else torch.float32)
    began = clock()
    torch.mm(x, x)
    return clock() - began


def time_recipes(rounds: int) -> dict[str, Any]:
    """Return the parts of a step of each recipe, in float32 and where it is faster in bfloat16."""
    chosen, reason = machine.choose_precision(torch.device("cpu"), 192)
    print(f"bfloat16: {reason}")
    precisions = ("32-true", chosen) if chosen != "32-true" else ("32-true",)
    steps: dict[str, dict[str, Step]] = {
        name: {
            precision: Step(read_config("mnist", settings=changes)[1], precision != "32-true")
            for precision in precisions
        }
        for name, changes in RECIPES.items()
    }
    products: dict[str, list[float]] = {precision: [] for precision in precisions}
    for _ in range(1 + rounds):
        for precision, times in products.items():
            times.append(time_product(half=precision != "32-true"))
        for each in steps.values():
            for step in each.values():
                step()
    roofs = {name: 2e-6 * ROOF**3 / statistics.median(times) for name, times in products.items()}
    rows = {
        name: {precision: step.summary(roofs[precision]) for precision, step in each.items()}
        for name, each in steps.items()
    }
    for name, row_of in rows.items():
        for precision, row in row_of.items():
            parts = "  ".join(f"{part} {ms:.1f}" for part, ms in row["milliseconds"].items())
            print(
                f"{name}, {precision}: {row['step']:.1f} ms for {row['batch']}, "
                f"{row['gflop']:.2f} GFLOP, {row['gflop per second']:.0f} of "
                f"{roofs[precision]:.0f} GFLOP/s  ({parts})"
            )
    return {"roof in gflop per second": roofs, "threads": torch.get_num_threads(), "rows": rows}


def tabulate(recipes: dict[str, Any]) -> list[list[str]]:
    """Return the milliseconds of the parts of a step, and the whole by sequence and by the roof."""
    rows = [["", "sequences", *Step.PARTS, "step", "a sequence", "of the roof"]]
    for name, row_of in recipes["rows"].items():
        for precision, row in row_of.items():
            times = [row["milliseconds"][part] for part in Step.PARTS]
            times += [row["step"], row["step"] / row["batch"]]
            rows.append(
                [
                    f"{name}, {'float32' if precision == '32-true' else 'bfloat16'}",
                    str(row["batch"]),
                    *(f"{time:.1f}" if time > 3 else f"{time:.2f}" for time in times),
                    f"{row['of the roof']:.2f}",
                ]
            )
    return rows


def make_model(names: list[str], objective: Objective, nested: bool = False) -> FlowVAE:
    """Return the model of the published recipe with some number of transformations."""
    options = read_config("mnist", settings=PUBLISHED)[1].model
    torch.manual_seed(0)
    bank = NestedRidge if nested else RidgePotential
    fields = bank(names, options.latent_dim, options.width, horizon=HORIZON)
    options = dataclasses.replace(options, field=fields, objective=objective)
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


def time_density(rounds: int) -> dict[str, Any]:
    """Return how long a step takes with nested autograd, over closed forms."""
    result: dict[str, Any] = {}
    objectives = {"without density": Objective(), "with density": Objective(path_kl=0.1)}
    for title, objective in objectives.items():
        found = medians(
            {
                "closed form": step_of(make_model(list(NAMES), objective)),
                "nested autograd": step_of(make_model(list(NAMES), objective, nested=True)),
            },
            rounds,
        )
        ratio = found["nested autograd"] / found["closed form"]
        result[title] = {"milliseconds": found, "nested / closed": ratio}
        print(f"{title}: nested autograd / closed form = {ratio:.2f}  {found}")
    return result


def time_growth(rounds: int) -> dict[str, Any]:
    """Return how long a step takes with more transformations, over three of them.

    Two ways to have more: those of a batch stay three, or all appear in it.
    """
    result: dict[str, Any] = {}
    for title, chosen in (("three of K in the batch", 3), ("all K in the batch", None)):
        models = {K: make_model([f"k{i}" for i in range(K)], Objective()) for K in COUNTS}
        found = medians({str(K): step_of(model, chosen) for K, model in models.items()}, rounds)
        growth = {K: found[K] / found[str(COUNTS[0])] for K in found}
        result[title] = {"milliseconds": found, "relative to K = 3": growth}
        print(f"{title}:", "  ".join(f"{K}: {ratio:.2f}" for K, ratio in growth.items()))
    return result


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--threads", type=positive, help="of torch, each on a core of its own")
    parser.add_argument("--only", choices=("recipes", "density", "growth"))
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "training_step.json"
    )
    arguments = parser.parse_args()
    if arguments.threads is not None:
        use_threads(arguments.threads)

    rounds, wanted = arguments.rounds, arguments.only
    result: dict[str, Any] = {"batch": BATCH, "horizon": HORIZON, "rounds": rounds}
    if wanted in (None, "recipes"):
        result["recipes"] = time_recipes(rounds)
        result["tables"] = {"recipes": tabulate(result["recipes"])}
    if wanted in (None, "density"):
        result |= time_density(rounds)
    if wanted in (None, "growth"):
        result |= time_growth(rounds)
    write_json(arguments.out, result | environment.origin())
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
