"""Compare an accelerator with the processor: speed, memory, and equality of what is computed.

    python -m experiments.benchmarks.gpu_check [--device NAME] [--steps N] [--out FILE]

``make gpu-check`` runs it. The table has a row for a training step of ``mnist`` in each precision,
compiled or not; for the loss and the gradient, the flow and the decoder of every model; for the
loss and the gradient by compiled flows; for an evaluation, figures, and a training that is resumed.
Exit code 1: something differs by more than it may. 2: there is no accelerator.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from experiments import environment
from experiments.benchmarks.timing import positive
from experiments.config import Config, read_config
from experiments.runs import write_json
from flowfactor import diagnostics, machine
from flowfactor.checkpoints import load
from flowfactor.data import SequenceDataset, SequenceLoader, TransformedImages
from flowfactor.errors import ConfigError
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.flow import compiled_flows
from flowfactor.models import PotentialModel, SequenceModel, TraversalModel, fit_traversals
from flowfactor.registries import MODELS
from flowfactor.tables import Column, Row, Table
from flowfactor.training import Progress, TrainingOptions, fit

TOLERANCE = 1e-3
"""By how much results may differ, as a fraction of the largest number of each tensor."""

INTERVALS = ("flow_vae", "weak_flow_vae")
"""Models that are trained on intervals of frames, whose flow ``training.compile`` compiles."""

CPU = torch.device("cpu")
_NETWORKS: dict[str, Any] = {
    "latent_dim": 12,
    "encoder": {"channels": [8], "hidden": 32},
    "decoder": {"kind": "mlp", "hidden": [32]},
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "flow_vae": {"width": 16},
    "weak_flow_vae": {"width": 16, "inference": {"warmup": 1, "anneal": 0}},
    "poflow": {"width": 16},
    "sparse_flow_vae": {"width": 16, "stages": {"autoencoder": 1, "fields": 0, "anneal": 0}},
    "factor_vae": {"discriminator_width": 16, "discriminator_layers": 2},
    "topographic_vae": {"capsules": 2, "window": 1},
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        name: of what was computed.
        processor, accelerator: milliseconds there; None where they are not measured.
        memory: bytes on the accelerator at most; None if unknown.
        difference: of the results, see :data:`TOLERANCE`; None if none are compared.
        problem: what went wrong, if something did.
    """

    name: str
    processor: float | None = None
    accelerator: float | None = None
    memory: int | None = None
    difference: float | None = None
    problem: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing went wrong, and results differ by no more than they may."""
        return not self.problem and (self.difference is None or self.difference <= TOLERANCE)


class SameNoise(TorchDispatchMode):
    """Draw random numbers on the processor, so that every device gets the same ones."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute an operation, one that draws on the processor."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        device = kwargs.get("device") or (tensors[0].device if tensors else CPU)
        if "device" in kwargs:
            kwargs["device"] = CPU
        here, options = tree_map_only(Tensor, Tensor.cpu, (args, kwargs))
        out = function(*here, **options)
        if function._schema.name.endswith("_"):
            return args[0].copy_(out)
        return tree_map_only(Tensor, lambda x: x.to(device), out)


def make_data(count: int = 24, side: int = 28) -> TransformedImages:
    """Return images of noise that are transformed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    return TransformedImages(images, horizon=4)


def make_model(kind: str, data: SequenceDataset) -> SequenceModel:
    """Return a small model, the same at every call."""
    torch.manual_seed(0)
    options = _NETWORKS | _OPTIONS.get(kind, {})
    model: SequenceModel = MODELS[kind].build(
        data.names, data.image_shape, horizon=data.horizon, **options
    )
    if isinstance(model, TraversalModel):
        fit_traversals(model, [data.sample(range(12))])
    return model


# ---- speed


def time_step(
    config: Config, device: torch.device, *, half: bool, compiled: bool, steps: int
) -> tuple[float, int | None]:
    """Return the milliseconds of a training step, and the memory that it takes.

    Args:
        config: of the model, the batches and the optimiser.
        device: that computes.
        half: compute the networks in bfloat16.
        compiled: compile the flow.
        steps: that are timed, after as many and five more.
    """
    data_options: Any = config.data
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1000, 1, 28, 28), generator=generator, dtype=torch.uint8)
    data = data_options.transform(images, None).to(device)
    training = config.training
    loader = SequenceLoader(
        data,
        training.batch_size,
        frames_per_sequence=training.frames_per_sequence,
        encoded_frame=training.encoded_frame,
    )
    torch.manual_seed(0)
    model = MODELS[config.kind].from_options(
        config.model, data.names, data.image_shape, data.horizon
    )
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=training.learning_rate, fused=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = 0.0
    for step in range(2 * steps + 5):
        if step == steps + 5:
            _wait_for(device)
            began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half), compiled_flows(compiled):
            loss = torch.stack(list(model.loss(loader.batch(step)).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    _wait_for(device)
    return 1e3 * (time.perf_counter() - began) / steps, _most_memory(device)


def check_speed(
    device: torch.device, config: Config, steps: int, *, compiled: Sequence[bool] = (False, True)
) -> Iterator[Check]:
    """Yield how fast a training step is, in each precision, compiled or not."""
    for half in (False, True):
        for compiles in compiled:
            name = f"step of mnist, {'bfloat16' if half else 'float32'}"
            name += ", flow compiled" if compiles else ""
            few = max(1, steps // 10)
            here = time_step(config, CPU, half=half, compiled=compiles, steps=few)[0]
            there, memory = time_step(config, device, half=half, compiled=compiles, steps=steps)
            yield Check(name, here, there, memory)


# ---- equality


def loss_and_gradient(
    model: SequenceModel, data: SequenceDataset, frames: int | None = None
) -> dict[str, Tensor]:
    """Return the terms of the loss in each stage of a training, and the gradient.

    Args:
        model: whose.
        data: of six sequences.
        frames: how many of each beside the first, as in a training; None: all of them.
    """
    batch = data.sample(range(6))
    if frames is not None:
        batch = SequenceLoader(data, 6, frames_per_sequence=frames).batch(0)
    found: dict[str, Tensor] = {}
    if not model.supervised:
        batch = dataclasses.replace(batch, labels=None)
    for step in {0, model.schedule_steps}:
        torch.manual_seed(step)
        model.train().on_step(step)
        terms = model.loss(batch)
        torch.stack(list(terms.values())).sum().backward()
        found |= {f"{name} at step {step}": value.detach() for name, value in terms.items()}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def flow_and_film(model: SequenceModel, data: SequenceDataset) -> dict[str, Tensor]:
    """Return latents along the flow of a transformation, and their images."""
    z = model.eval().represent(data.sample(range(6)).frames[:, 0])
    path = model.flow(z, 1, [0.0, 1.0, 2.5])
    return {"path": path, "film": model.decode(path.flatten(0, 1))}


def measured(model: SequenceModel, data: SequenceDataset) -> Any:
    """Return an evaluation by metrics that need nothing of the data."""
    metrics: dict[str, Any] = {"log_likelihood": {"sequences": 4, "samples": 4}, "paths": {}}
    if isinstance(model, PotentialModel):
        metrics["composition"] = {}
    return evaluate(model.eval(), data, EvaluationOptions(images=12, metrics=metrics)).metrics


def drawn(model: SequenceModel, data: SequenceDataset) -> list[Any]:
    """Return the numbers behind figures."""
    batch = data.sample([0, 1])
    images = batch.frames[:, 0]
    found: list[Any] = [
        diagnostics.film_strip_data(model.eval(), batch, identity=True),
        diagnostics.trajectory_data(model, images),
        diagnostics.player_data(model, images),
    ]
    if isinstance(model, PotentialModel):
        found.append(diagnostics.landscape_data(model, images, model.names[0], resolution=8))
        found.append(diagnostics.transport_data(model, images))
    return found


def check_equality(
    device: torch.device,
    what: str,
    compute: Callable[[SequenceModel, SequenceDataset], Any],
    kinds: Sequence[str],
    data: SequenceDataset,
) -> Iterator[Check]:
    """Yield whether models compute the same on both devices, and how long that takes.

    Args:
        device: to compare with the processor.
        what: it is that they compute.
        compute: does it.
        kinds: of models.
        data: that is looked at.
    """
    for kind in kinds:
        name = f"{what}: {kind}"
        results: list[list[np.ndarray]] = []
        times: list[float] = []
        try:
            for place in (CPU, device):
                model, seen = make_model(kind, data).to(place), data.to(place)
                began = time.perf_counter()
                with SameNoise():
                    results.append(list(numbers(compute(model, seen))))
                _wait_for(place)
                times.append(1e3 * (time.perf_counter() - began))
        except Exception as error:  # whatever the device lacks is what the table is for
            yield Check(name, problem=_one_line(error))
            continue
        here, there = times
        yield Check(name, here, there, _most_memory(device), largest_difference(*results))


def check_compiled(
    device: torch.device, kinds: Sequence[str], data: SequenceDataset
) -> Iterator[Check]:
    """Yield whether compiled flows give models the loss and the gradient that others do.

    Args:
        device: that computes both.
        kinds: of models.
        data: that is looked at.
    """
    for kind in kinds:
        name = f"loss and gradient, flow compiled or not: {kind}"
        results: list[list[np.ndarray]] = []
        try:
            for compiled in (False, True):
                model, seen = make_model(kind, data).to(device), data.to(device)
                with compiled_flows(compiled):
                    results.append(list(numbers(loss_and_gradient(model, seen, frames=2))))
        except Exception as error:  # whatever the compiler lacks
            yield Check(name, problem=_one_line(error))
        else:
            yield Check(name, difference=largest_difference(*results))


class _EndedError(Exception):
    """The end of a training that is to be resumed."""


def check_training(device: torch.device, data: SequenceDataset) -> Check:
    """Return whether a training that is ended and resumed has the weights of one that is not."""
    options = TrainingOptions(
        steps=6,
        batch_size=6,
        validate_every=3,
        log_every=1,
        loggers=(),
        accelerator=str(device),
        precision="32-true",
        threads=1,
        compile=False,
    )

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise _EndedError

    weights = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ends in (("whole", False), ("resumed", True)):
            model, path = make_model("flow_vae", data), Path(folder) / name
            if ends:
                with contextlib.suppress(_EndedError):
                    fit(model, data, data, options, path, on_progress=stop)
                model = make_model("flow_vae", data)
            fit(model, data, data, options, path, resume=ends)
            weights.append(list(numbers(load(path).state_dict())))
    difference = largest_difference(*weights)
    return Check("a training that is resumed, against one that is not", difference=difference)


def numbers(value: Any) -> Iterator[np.ndarray]:
    """Yield all floating-point numbers in a result, as arrays."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    if isinstance(value, np.ndarray | float):
        yield np.asarray(value, dtype=float)
    elif dataclasses.is_dataclass(value):
        yield from numbers(vars(value))
    elif isinstance(value, dict):
        yield from numbers(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from numbers(each)


def largest_difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the largest difference, of each array as a fraction of its largest number."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if not a.size or np.array_equal(a, b, equal_nan=True):
            continue
        difference = np.abs(a - b)
        if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return math.inf
        worst = max(worst, float(np.nanmax(difference) / max(np.nanmax(np.abs(a)), 1e-6)))
    return worst


# ---- the table


def table_of(checks: Sequence[Check], device: torch.device) -> Table:
    """Return the table."""
    columns = [
        Column("processor, ms", format=".1f"),
        Column("accelerator, ms", format=".1f"),
        Column("times as fast", format=".1f"),
        Column("memory, MB", format=".0f"),
        Column("difference", format=".1e"),
        Column("verdict"),
    ]
    rows = []
    for each in checks:
        faster = each.processor / each.accelerator if each.processor and each.accelerator else None
        memory = None if each.memory is None else each.memory / 1e6
        values = (each.processor, each.accelerator, faster, memory, each.difference)
        cells = [
            None if value is None else column.write(value)
            for column, value in zip(columns, values, strict=False)
        ]
        verdict = each.problem or ("good" if each.good else "differs")
        rows.append(Row(each.name, [*cells, verdict]))
    title = f"{environment.describe(device)['hardware']['accelerator']} and the processor"
    return Table(columns, rows, title, "what")


def run(device: torch.device, steps: int) -> Iterator[Check]:
    """Yield all checks."""
    yield from check_speed(device, read_config("mnist")[1], steps)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # or convolutions keep three digits
    try:
        data, flows = make_data(), ("flow_vae", "slow_vae")
        yield from check_equality(device, "loss and gradient", loss_and_gradient, [*MODELS], data)
        yield from check_equality(device, "flow and decoder", flow_and_film, [*MODELS], data)
        yield from check_compiled(device, INTERVALS, data)
        yield from check_equality(device, "evaluation", measured, flows, data)
        yield from check_equality(device, "figures", drawn, flows, data)
        yield check_training(device, data)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _most_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None


def main(words: Sequence[str] | None = None) -> int:
    """Run the list, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N or mps")
    parser.add_argument("--steps", type=positive, default=50, help="that are timed")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args(words)
    try:
        device = machine.find_device(arguments.device)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if device.type == "cpu":
        print("This machine has no accelerator, CUDA or MPS, to compare with.", file=sys.stderr)
        return 2
    checks = []
    for check in run(device, arguments.steps):
        checks.append(check)
        print(f"{check.name}: {'good' if check.good else check.problem or 'differs'}")
    print(table_of(checks, device).to_markdown())
    if arguments.out is not None:
        content = {"checks": [dataclasses.asdict(each) for each in checks]}
        write_json(arguments.out, content | environment.origin(device))
    return 0 if all(check.good for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
