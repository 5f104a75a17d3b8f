"""The figures of a run and its report."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowfactor
from experiments.config import Config
from experiments.models import PotentialSection
from experiments.runs import EVALUATION_FILE, load_measured, read_json, read_run_config
from experiments.tables import mean_identity, observation_label, solver_change
from flowfactor import diagnostics
from flowfactor.data import (
    SequenceDataset,
    Sprites,
    TransformedImages,
    round_robin,
    samples_undergoing,
)
from flowfactor.diagnostics import Illustration, Section, Table
from flowfactor.errors import DataError, RunError
from flowfactor.models import SequenceModel
from flowfactor.training import read_metrics

FIGURES = "figures"

# Of flows that are drawn together.
_PAIRS = 3


def plot(run: Path, *, on_stage: Callable[[str], None] | None = None) -> Path:
    """Draw every figure of an evaluated run and write ``report.html``.

    Args:
        run: the folder; it must have been evaluated.
        on_stage: called with what is being drawn.

    Returns:
        The path of the report.

    Raises:
        RunError, DataError: the run or its data cannot be read.
    """
    report = on_stage or (lambda _: None)
    config = read_run_config(run)
    model = flowfactor.load(run)
    if not (run / EVALUATION_FILE).is_file():
        raise RunError(
            f"{run} has not been evaluated yet: it has no {EVALUATION_FILE}. "
            f"`flowfactor evaluate {run}` writes it; then plot again."
        )
    result = read_json(run / EVALUATION_FILE)
    data = load_measured(config, result["split"], model)
    chosen = one_of_each_class(data)

    sections = [_overview(result, run, config)]
    sections.append(_films(model, data, chosen, run, report))
    if result.get("composition", {}).get("superposition"):
        sections.append(_composition(model, data, result, run, report))
    if hasattr(model, "potentials"):
        sections.append(_landscapes(model, data, chosen, run, report))
        sections.append(_transport(model, data, run, report))
    sections.append(_numbers(result, run, config, model.horizon, report))
    return diagnostics.write_report(
        run, f"flowfactor: {run.name}", sections, subtitle=result.get("command", "")
    )


def one_of_each_class(data: SequenceDataset) -> Tensor:
    """Return the first sample of each class, or the first ten where there are no classes."""
    classes = (
        data.classes if isinstance(data, TransformedImages | Sprites) else torch.zeros(len(data))
    )
    classes = classes.unique()
    if len(classes) == 1:
        return torch.arange(min(10, len(data)))
    return torch.stack([(classes == c).nonzero()[0, 0] for c in classes])


def _first_frames(data: SequenceDataset, indices: Tensor) -> Tensor:
    times = torch.zeros(len(indices), 1, dtype=torch.long)
    return data.sample(indices, round_robin(data, indices), times).frames[:, 0]


def _shown(data: SequenceDataset, chosen: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Return samples for a number of strips of each transformation, different ones if possible."""
    samples, factors = [], []
    for k in range(len(data.names)):
        able = samples_undergoing(data, k)
        if not len(able):
            continue
        able = able if len(able) < len(data) else chosen
        samples.append(able[torch.arange(k * each, (k + 1) * each) % len(able)])
        factors.append(torch.full((each,), k))
    return torch.cat(samples), torch.cat(factors)


def _overview(result: dict[str, Any], run: Path, config: Config) -> Section:
    rows: list[list[str | int | float]] = [
        [
            name,
            round(error["error"], 1),
            round(error["identity"], 1),
            round(error["floor"], 1),
            solver_change(result, name),
        ]
        for name, error in result["errors"].items()
    ]
    rows.append(["mean", round(result["mean_error"], 1), round(mean_identity(result), 1), "", ""])
    likelihood = result["log_likelihood"]
    bounds: list[list[str | int | float]] = [
        [
            observation_label(name, bound),
            round(bound["per_sequence"], 1),
            round(bound["per_frame"], 1),
        ]
        for name in ("trained", "unit_gaussian")
        for bound in [likelihood[name]]
    ]
    return Section(
        "How well the flows do",
        f"Frame 0 of a held-out sample is encoded, its latent flows, and every frame is decoded "
        f"again. E is the sum of absolute pixel errors over t = 1..{result['frames']} and all "
        f"channels, averaged over {result['images']} {result['split']} samples. Identity is the "
        f"error of a latent that stays where it is; the floor is what the autoencoder alone costs "
        f"(decoding frame 0 from its own latent). {_how_latents_move(result, config)}",
        tables=[
            Table(("transformation", "E", "identity", "floor", "with dopri5"), rows),
            Table(
                ("observation model", "nats per sequence", "nats per frame"),
                bounds,
                f"IWAE bound of the log-likelihood, {likelihood['samples']} samples, "
                f"{likelihood['sequences']} sequences",
            ),
        ],
    )


def _how_latents_move(result: dict[str, Any], config: Config) -> str:
    if "rule" in result:
        return (
            f"The latent moves by a rule, `{result['rule']}`, which was learned from training "
            f"sequences after the training."
        )
    assert isinstance(config.model, PotentialSection)
    return (
        f"The last column is the change of E when the flow is solved by dopri5 at 1e-6 in place of "
        f"the trained {config.model.solver.name}: a small one says that the model is an ODE, not a "
        f"property of its solver."
    )


def _films(
    model: SequenceModel,
    data: SequenceDataset,
    chosen: Tensor,
    run: Path,
    report: Callable[[str], None],
) -> Section:
    report("film strips")
    folder = run / FIGURES
    # A different sample for each strip, two strips for each transformation.
    samples, labels = _shown(data, chosen, 2)
    strips = diagnostics.plot_film_strips(model, data.sample(samples, labels))
    diagnostics.save(strips, folder / "film_strips.png")
    try:
        longer = data.with_last(data.horizon + 4).sample(samples[::2], labels[::2])
    except DataError:  # a grid or a recording that ends: nothing to compare later frames with
        longer = data.sample(samples[::2], labels[::2])
    outside = diagnostics.plot_film_strips(model, longer, before=3)
    diagnostics.save(outside, folder / "extrapolation.png")
    report("the animation")
    animation = diagnostics.animate(model, _first_frames(data, chosen[:6]))
    animation.save(folder / "flows.gif")
    return Section(
        "Film strips",
        "Upper rows: what the transformation does to the image. Lower rows: the same frames "
        "decoded along the learned flow, from the latent of frame 0 alone.\n\n"
        "In the second figure the flow also runs backwards from frame 0 and beyond the last frame "
        "of the training; such frames have a coloured rim, and nothing has taught the model what "
        "they look like.",
        [
            Illustration(animation, "Up to six held-out samples along each flow, there and back."),
            Illustration(strips, "Truth and flow, two held-out samples for each transformation."),
            Illustration(outside, "Before the first and beyond the last frame of the training."),
        ],
    )


def composition_strips(
    model: SequenceModel,
    data: SequenceDataset,
    pairs: list[tuple[str, str]],
    *,
    random_starts: bool = False,
    seed: int = 0,
) -> list[diagnostics.CompositionStrips]:
    """Return two strips of each pair, of one sample: both flows at once, then in turn.

    Args:
        model: of the run.
        data: held-out samples.
        pairs: names of two transformations each.
        random_starts: transform frame 0 at random beforehand.
        seed: of the samples, and of these starts.
    """
    found = []
    generator = torch.Generator().manual_seed(seed)
    clock = torch.arange(data.horizon + 1)[None]
    turn = math.ceil(data.horizon / 2)
    round_robin = [clock.clamp(max=turn), (clock - turn).clamp(min=0)]
    for pair in pairs:
        sample = torch.randint(len(data), (1,), generator=generator)
        start = torch.rand(1, data.start_size, generator=generator) if random_starts else None
        both = data.compose(sample, pair, start=start)
        found.append(diagnostics.composition_data(model, both, pair))
        switched = data.compose(sample, pair, start=start, elapsed=round_robin)
        found.append(diagnostics.composition_data(model, switched, pair, turn=turn))
    return found


def _composition(
    model: SequenceModel,
    data: SequenceDataset,
    result: dict[str, Any],
    run: Path,
    report: Callable[[str], None],
) -> Section:
    report("flows put together")
    composed = result["composition"]
    pairs = [(a, b) for a, _, b in (name.partition(" + ") for name in composed["superposition"])]
    figure = diagnostics.draw_composition(composition_strips(model, data, pairs[:_PAIRS]))
    diagnostics.save(figure, run / FIGURES / "composition.png")
    columns = ("E", "identity", "floor")
    tables = []
    for kind, caption in (
        ("superposition", "two flows at once"),
        ("switching", "one flow, then the other"),
        ("reversal", "backwards from the last frame that is measured"),
    ):
        rows: list[list[str | int | float]] = [
            [name, *(round(error[key], 1) for key in ("error", "identity", "floor"))]
            for name, error in composed[kind].items()
        ]
        tables.append(Table((caption, *columns), rows))
    return Section(
        "Flows put together",
        "No training sequence shows more than one transformation. The truth undergoes two, at "
        "once or in turn; the latent of frame 0 follows the sum of both potentials, or one after "
        "the other.",
        [Illustration(figure, "Truth and flow, at once and in turn.")],
        tables,
    )


def _landscapes(
    model: SequenceModel,
    data: SequenceDataset,
    chosen: Tensor,
    run: Path,
    report: Callable[[str], None],
) -> Section:
    folder = run / FIGURES
    shown = []
    for k, name in enumerate(model.names):
        report(f"the landscape of {name}")
        images = _first_frames(data, chosen[[(2 + k) % len(chosen)]])
        figure = diagnostics.plot_landscape(model, images, name)
        diagnostics.save(figure, folder / f"landscape_{name}.png")
        shown.append(Illustration(figure, f"The potential of {name} along a sample's trajectory."))
    report("trajectories")
    count = min(24, len(data))
    trajectories = diagnostics.plot_trajectories(model, _first_frames(data, torch.arange(count)))
    diagnostics.save(trajectories, folder / "trajectories.png")
    shown.append(
        Illustration(trajectories, f"{count} held-out samples under every transformation.")
    )
    return Section(
        "Potential landscapes",
        "A plane through a sample's trajectory in latent space: the potential as colour, its "
        "gradient, along which the latent moves, as arrows, and decoded frames beside the path. "
        "The potential depends on time, so each panel shows it at one time. The axes are principal "
        "directions of the trajectory, with the share of its variance that they explain.",
        shown,
    )


def _transport(
    model: SequenceModel, data: SequenceDataset, run: Path, report: Callable[[str], None]
) -> Section:
    report("transport along the flows")
    images = _first_frames(data, torch.arange(min(200, len(data))))
    figure = diagnostics.plot_transport(model, images)
    diagnostics.save(figure, run / FIGURES / "transport.png")
    return Section(
        "Optimal transport",
        "The residual of the Hamilton-Jacobi equation, du/dt + 1/2 |grad u|^2, and the kinetic "
        "energy 1/2 |grad u|^2 along held-out trajectories. Where the residual is small against "
        "the energy, paths are close to straight lines at constant speed.",
        [Illustration(figure, "Hamilton-Jacobi residual and kinetic energy over time.")],
    )


def _numbers(
    result: dict[str, Any],
    run: Path,
    config: Config,
    model_last: int,
    report: Callable[[str], None],
) -> Section:
    report("errors over time and training curves")
    folder = run / FIGURES
    curves = {
        name: {
            "flow": error["per_frame"],
            "identity": error["identity_per_frame"],
            "floor": error["floor"] / result["frames"],
        }
        for name, error in result["errors"].items()
    }
    errors = diagnostics.plot_errors(curves, horizon=model_last)
    diagnostics.save(errors, folder / "errors.png")
    shown = [Illustration(errors, "Error of each frame, with identity and floor.")]
    metrics = read_metrics(run)
    if metrics:
        training = diagnostics.plot_training(metrics)
        diagnostics.save(training, folder / "training.png")
        shown.append(Illustration(training, "Terms of the objective during training."))
    facts = result.get("training", {})
    hardware = facts.get("hardware", {})
    rows: list[list[str | int | float]] = [
        ["command", str(facts.get("command", "unknown"))],
        ["seed", config.seed],
        ["steps", facts.get("steps", "unknown")],
        ["seconds of training", facts.get("seconds", "unknown")],
        ["parameters", facts.get("parameters", "unknown")],
        ["training samples", facts.get("training_samples", "unknown")],
        ["processor", f"{hardware.get('processor')}, {hardware.get('threads')} threads"],
        ["accelerator", str(hardware.get("accelerator"))],
        ["versions", ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items())],
    ]
    return Section(
        "Errors over time, and the training",
        "The same figures are in evaluation.json, the curves in metrics.jsonl.",
        shown,
        [Table(("what", "value"), rows)],
    )
