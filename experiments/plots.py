"""The figures of a run and its report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments import environment
from experiments.comparison import Method, choose_columns
from experiments.comparison_figures import column_figure
from experiments.runs import FIGURES, Run, open_run
from experiments.samples import choose_few, first_frames, one_of_each_class, samples_of_each
from flowfactor import diagnostics
from flowfactor.data import SequenceBatch, SequenceDataset
from flowfactor.diagnostics import ErrorCurve, FilmStrips, Illustration, Section
from flowfactor.errors import DataError
from flowfactor.metrics import (
    ActivityMetric,
    ActivityOptions,
    Composition,
    Equivariance,
    ErrorSummary,
    InfersActivity,
)
from flowfactor.models import PotentialModel, SequenceModel
from flowfactor.names import file_names
from flowfactor.potentials import PotentialBank
from flowfactor.records import Evaluation
from flowfactor.tables import Column, Row, Table
from flowfactor.training import read_metrics

# Of flows that are drawn together.
_PAIRS = 3

# Sequences in a raster of activity, about.
_RASTER = 24

# Points of a curve over time, about, however long the sequences are.
_POINTS = 128

Draw = Callable[[Figure, str, str], Illustration]


def plot(
    folder: Path,
    *,
    device: str | None = None,
    plugin_names: Iterable[str] = (),
    on_stage: Callable[[str], None] | None = None,
) -> Path:
    """Draw every figure of an evaluated run and write ``report.html``.

    Args:
        folder: of the run; it must have been evaluated.
        device: what computes; None is what the configuration says.
        plugin_names: plug-ins besides those that the run names.
        on_stage: called with what is being drawn.

    Returns:
        The path of the report.

    Raises:
        RunError, DataError: the run or its data cannot be read.
        ConfigError: a plug-in is missing.
    """
    report = on_stage or (lambda _: None)
    run = open_run(folder, plugin_names, device)
    data = run.data(run.evaluation.split)

    def draw(figure: Figure, name: str, caption: str) -> Illustration:
        report(name.replace("_", " "))
        file = diagnostics.save(figure, folder / FIGURES / f"{name}.png")
        return Illustration(figure, caption, file)

    parts: list[Callable[[Run, SequenceDataset, Draw], Section]] = [_overview, _film_strips]
    if run.evaluation.result(Composition) is not None and len(data.names) > 1:
        parts.append(_composition)
    if isinstance(run.model, InfersActivity):
        parts.insert(1, _activity)
    if isinstance(run.model, PotentialModel):
        parts.append(_landscapes)
        if isinstance(run.model.potentials, PotentialBank):
            parts.append(_transport)
    parts.append(_numbers)
    sections = [part(run, data, draw) for part in parts]
    title = f"flowfactor: {folder.name}"
    return diagnostics.write_report(folder, title, sections, subtitle=run.evaluation.command)


def composition_strips(
    model: PotentialModel,
    data: SequenceDataset,
    pairs: Iterable[tuple[str, str]],
    *,
    random_starts: bool = False,
    seed: int = 0,
) -> list[FilmStrips]:
    """Return two strips of each pair, of one sample: simultaneous flows, then sequential ones.

    Args:
        model: of the run.
        data: held-out samples.
        pairs: names of two transformations each.
        random_starts: transform frame 0 at random beforehand.
        seed: of the samples, and of these starts.
    """
    generator = torch.Generator().manual_seed(seed)
    clock = torch.arange(data.horizon + 1)[None]
    turn = math.ceil(data.horizon / 2)
    clocks = [clock.clamp(max=turn), (clock - turn).clamp(min=0)]
    strips = []
    for pair in pairs:
        sample = torch.randint(len(data), (1,), generator=generator)
        starts = data.random_starts(1, generator) if random_starts else None
        both = data.compose(sample, pair, starts=starts)
        strips.append(diagnostics.composition_data(model, both, pair))
        sequential = data.compose(sample, pair, starts=starts, elapsed=clocks)
        strips.append(diagnostics.composition_data(model, sequential, pair, turn=turn))
    return strips


def _overview(run: Run, data: SequenceDataset, draw: Draw) -> Section:
    evaluation = run.evaluation
    methods = [Method(run.path.name, (evaluation,))]
    columns = column_figure(methods, choose_columns(methods, None))
    shown = [] if columns is None else [draw(columns, "metrics", "The metrics of this run.")]
    inferred = (
        ""
        if run.model.supervised
        else "\n\nThe model has no labels: it infers the flow of a sequence from its frames. A "
        "table shows the error of the inferred flows, another one the sequences of each flow; "
        "assignments.csv has the flow of every sequence, and its probability."
    )
    return Section(
        "How well the flows do",
        f"Frame 0 of a held-out sample is encoded, its latent flows, and every frame is decoded "
        f"again. E is the sum of absolute pixel errors over t = 1..{evaluation.frames} and all "
        f"channels, averaged over {evaluation.images} {evaluation.split} samples. Identity is the "
        f"error of a latent that does not move, pixel copy that of frame 0 without any model; "
        f"the floor is what the autoencoder alone costs (decoding frame 0 from its own latent).\n\n"
        f"The first table sums up what the model can do. Simultaneous: two flows together; "
        f"sequential: one after the other; backwards: from the last frame to frame 0; closure: a "
        f"cyclic flow once around; sharpness: squared differences of neighbouring pixels, decoded "
        f"over true."
        f"{inferred}",
        shown,
        list(evaluation.tables().values()),
    )


def _activity(run: Run, data: SequenceDataset, draw: Draw) -> Section:
    result, names = run.evaluation.result(ActivityMetric), data.names
    matching = None if result is None else result.matching()
    several = _activity_sequences(run, data, _RASTER)
    one = _activity_sequences(run, data, 1)
    model = run.model
    return Section(
        "What happens, and when",
        "Nobody told the model what a sequence undergoes, when, how fast and which way: it infers "
        "the signed speed of each of its fields in every step. Frame 0 is encoded and moved along "
        "the inferred activity.",
        [
            draw(
                diagnostics.plot_activity(model, several, matching, matching and names),
                "activity",
                "Signed speed of each field in each step of held-out sequences, true and inferred."
                if matching
                else "Inferred signed speed of each field in each step of held-out sequences.",
            ),
            draw(
                diagnostics.draw_film_strips(
                    diagnostics.activity_strips(model, one, matching, matching and names)
                ),
                "activity_strips",
                "True frames, and those decoded along the inferred activity. An arrow below two "
                "frames is a field that acts between them, as long as it is fast, to the left if "
                "it runs backwards.",
            ),
        ],
    )


def _activity_sequences(run: Run, data: SequenceDataset, count: int) -> dict[str, SequenceBatch]:
    """Return held-out sequences, about so many in all, by what happens in them if it is known."""
    laws = ActivityOptions().laws()
    del laws["single"]  # of random speed there are others
    laws = {kind: law for kind, law in laws.items() if data.can_follow(law)}
    if not laws:
        return {"recorded": data.sample(torch.arange(min(count, len(data))))}
    share = max(1, count // len(laws))
    return {
        kind: data.draw_sequences(
            torch.arange(number * share, (number + 1) * share) % len(data), law, run.config.seed
        )
        for number, (kind, law) in enumerate(laws.items())
    }


def _film_strips(run: Run, data: SequenceDataset, draw: Draw) -> Section:
    model, samples = run.model, one_of_each_class(data)
    shown = choose_few(model.names)
    animation = diagnostics.animate(model, first_frames(data, samples[:6]), names=shown)
    animation.save(run.path / FIGURES / "flows.gif")
    player = diagnostics.player_data(model, first_frames(data, samples[:4]), names=shown)
    caption = "Held-out samples by flow and time; between two flows is their mixture."
    if len(model.names) < len(data.names):
        return Section(
            "Flows",
            "There are fewer flows than transformations, so that none of them is one of these.",
            [Illustration(player, caption)],
        )
    names = choose_few(data.names)
    few = (
        ""
        if len(names) == len(data.names)
        else f" {len(names)} of {len(data.names)} transformations."
    )
    two_of_each = data.sample(*samples_of_each(data, names, 2))
    strips = diagnostics.plot_film_strips(model, two_of_each, identity=True)
    try:
        longer = data.with_horizon(data.horizon + 4)
    except DataError:  # a grid or a recording that ends: nothing to compare later frames with
        longer = data
    later = longer.sample(*samples_of_each(longer, names, 1))
    return Section(
        "Film strips",
        "Truth: what the transformation does to the image. Flow: the same frames decoded along the "
        "learned flow, from the latent of frame 0 alone. Identity: decoded from that latent, which "
        "stays where it is.\n\n"
        "In the second figure the flow also runs backward from frame 0 and beyond the last frame "
        "of the training; such frames have a coloured rim, and nothing has taught the model what "
        "they look like.",
        [
            Illustration(player, f"{caption} Below, the film strips of the same flow.{few}"),
            draw(
                strips,
                "film_strips",
                f"Truth, flow and identity, two held-out samples for each transformation.{few}"
                f"{_errors(run, data, names)}",
            ),
            draw(
                diagnostics.plot_film_strips(model, later, before=3),
                "extrapolation",
                f"Before the first and beyond the last frame of the training.{few}",
            ),
        ],
    )


def _composition(run: Run, data: SequenceDataset, draw: Draw) -> Section:
    assert isinstance(run.model, PotentialModel)
    pairs = itertools.islice(itertools.combinations(data.names, 2), _PAIRS)
    strips = composition_strips(run.model, data, pairs)
    return Section(
        "Flows put together",
        "No training sequence shows more than one transformation. The truth undergoes two, "
        "simultaneously or sequentially; the latent of frame 0 follows the sum of both potentials, "
        "or one after the other.",
        [
            draw(
                diagnostics.draw_film_strips(strips),
                "composition",
                "Truth and flow, simultaneous and sequential.",
            )
        ],
    )


def _landscapes(run: Run, data: SequenceDataset, draw: Draw) -> Section:
    model, samples = run.model, one_of_each_class(data)
    assert isinstance(model, PotentialModel)
    shown = []
    files = file_names(model.names)
    names = choose_few(model.names)
    few = _count(names, model)
    for k, name in enumerate(names):
        images = first_frames(data, samples[[(2 + k) % len(samples)]])
        figure = diagnostics.plot_landscape(model, images, name)
        caption = f"The potential of {name} along a sample's trajectory."
        shown.append(draw(figure, f"landscape_{files[name]}", caption))
    count = min(24, len(data))
    images = first_frames(data, torch.arange(count))
    paths = diagnostics.trajectory_data(model, images, names=names, substeps=_substeps(model))
    trajectories = diagnostics.draw_trajectories(paths)
    caption = f"{count} held-out samples under every transformation.{few}"
    shown.append(draw(trajectories, "trajectories", caption))
    return Section(
        "Potential landscapes",
        "A plane through a sample's trajectory in latent space: the potential as colour, its "
        "gradient, along which the latent moves, as arrows, and decoded frames beside the path. "
        "The potential depends on time, so each panel shows it at one time. The axes are principal "
        f"directions of the trajectory, with the share of its variance that they explain.{few}",
        shown,
    )


def _transport(run: Run, data: SequenceDataset, draw: Draw) -> Section:
    assert isinstance(run.model, PotentialModel)
    images = first_frames(data, torch.arange(min(200, len(data))))
    names = choose_few(run.model.names)
    figure = diagnostics.plot_transport(
        run.model, images, names=names, substeps=_substeps(run.model)
    )
    caption = "Hamilton-Jacobi residual and kinetic energy over time."
    return Section(
        "Optimal transport",
        "The residual of the Hamilton-Jacobi equation, du/dt + 1/2 |grad u|^2, and the kinetic "
        "energy 1/2 |grad u|^2 along held-out trajectories. Where the residual is small against "
        "the energy, paths are close to straight lines at constant speed.",
        [draw(figure, "transport", caption + _count(names, run.model))],
    )


def _numbers(run: Run, data: SequenceDataset, draw: Draw) -> Section:
    evaluation, shown = run.evaluation, []
    if measured := _measured(evaluation):
        names = choose_few(tuple(measured))
        curves = {
            name: ErrorCurve(
                error.per_frame, error.identity_per_frame, error.floor / evaluation.frames
            )
            for name, error in measured.items()
            if name in names
        }
        caption = "Error of each frame, with identity and floor. Each panel has a scale of its own."
        if len(names) < len(measured):
            caption += f" {len(names)} of {len(measured)} transformations."
        errors = diagnostics.plot_errors(curves, horizon=run.model.horizon)
        shown.append(draw(errors, "errors", caption))
    if metrics := read_metrics(run.path):
        figure = diagnostics.plot_training(metrics)
        shown.append(draw(figure, "training", "Terms of the objective during training."))
    return Section(
        "Errors over time, and the training",
        "The same figures are in evaluation.json, the curves in metrics.jsonl.",
        shown,
        [_facts(run.config.seed, evaluation.training)],
    )


def _measured(evaluation: Evaluation) -> dict[str, ErrorSummary]:
    """Return the equivariance errors by transformation, none if they were not measured."""
    result = evaluation.result(Equivariance)
    return {} if result is None else dict(result.errors)


def _errors(run: Run, data: SequenceDataset, names: Sequence[str]) -> str:
    """Return a sentence with the error of each transformation, and of how many samples it is."""
    evaluation = run.evaluation
    measured, parts = _measured(evaluation), []
    for name in names:
        if name in measured:
            error = measured[name]
            samples = data.samples_undergoing(data.names.index(name))
            count = int((samples < evaluation.images).sum())
            beside = f"identity {error.identity:.1f}"
            if error.copy is not None:
                beside += f", pixel copy {error.copy:.1f}"
            parts.append(f"{name} {error.error:.1f} ({beside}; n = {count:,})")
    return f" E on all that was measured: {'; '.join(parts)}." if parts else ""


def _facts(seed: int, facts: Any) -> Table:
    hardware = facts.get("hardware", {})
    values = {
        "command": facts.get("command"),
        "seed": seed,
        "steps": facts.get("steps"),
        "seconds of training": facts.get("seconds"),
        "parameters": facts.get("parameters"),
        "training samples": facts.get("training_samples"),
        "processor": f"{hardware.get('processor')}, {hardware.get('threads')} threads",
        "accelerator": hardware.get("accelerator"),
        **facts.get("chosen", {}),
        "versions": ", ".join(
            f"{k} {v}" for k, v in facts.get("versions", {}).items() if k in environment.MAIN
        ),
    }
    rows = [Row(name, (str(value),)) for name, value in values.items() if value is not None]
    return Table([Column("value")], rows, label="training")


def _count(names: Sequence[str], model: SequenceModel) -> str:
    """Return a sentence on how many flows are shown, if these are not all."""
    total = len(model.names)
    return "" if len(names) == total else f" {len(names)} of {total} flows."


def _substeps(model: SequenceModel) -> int:
    """Return the points per frame of a curve."""
    return max(1, min(4, _POINTS // model.horizon))
