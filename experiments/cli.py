"""The command line: train, evaluate and plot runs from YAML configurations."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column, Table

from experiments.tables import mean_identity, observation_label, solver_change
from flowfactor.errors import FlowFactorError
from flowfactor.training import Progress
from solvers import SolverError

if TYPE_CHECKING:
    from experiments.table_runner import Cell, Event
    from experiments.table_runner import Table as FilledTable

app = typer.Typer(
    help="Flow factorized representation learning: train, evaluate and look at models whose "
    "latents move along learned potentials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out_console = Console()
error_console = Console(stderr=True)

ConfigName = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a configuration that ships.")
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, as `flowfactor train` writes it.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a key; may be repeated."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run folder; default: runs/<configuration>.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the training in the folder.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Split = Annotated[
    str | None, typer.Option(help="validation or test; default: what the configuration says.")
]
Images = Annotated[
    int | None, typer.Option(min=1, help="Held-out samples; default: what the configuration says.")
]


@app.command()
def train(
    config: ConfigName,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train a model into a run folder."""
    with _errors(debug):
        run = _train(config, overrides, out, resume)
        out_console.print(
            f"Trained: [bold]{run}[/]. Next: flowfactor evaluate {run}; flowfactor plot {run}"
        )


@app.command()
def evaluate(
    run: RunFolder, split: Split = None, images: Images = None, debug: Debug = False
) -> None:
    """Measure a run on held-out samples and print the table."""
    with _errors(debug):
        _check_split(split)
        _evaluate(run, split, images)


@app.command()
def plot(run: RunFolder, debug: Debug = False) -> None:
    """Draw the figures of a run and its report."""
    with _errors(debug):
        _plot(run)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more evaluated run folders.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            help="What a run is called, once for each; runs of one label are seeds of one method.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Film strips of each transformation.")] = 2,
    out: Annotated[Path, typer.Option("--out", help="The folder to write into.")] = Path(
        "runs/compare"
    ),
    split: Annotated[
        str | None, typer.Option(help="validation or test; default: that of the evaluations.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Put evaluated runs of the same data side by side: a table and film strips."""
    with _errors(debug):
        _check_split(split)
        from experiments import compare as comparing

        with out_console.status("") as status:
            result = comparing.compare(
                runs,
                labels=labels,
                samples=samples,
                out=out,
                split=split,
                on_stage=lambda stage: status.update(f"Comparing {stage}"),
            )
        out_console.print(comparing.console_table(result.rows, result.columns))
        for path in result.files:
            out_console.print(f"Written: {path}", soft_wrap=True)


@app.command(name="explore-latent")
def explore_latent(
    run: RunFolder,
    images: Annotated[int, typer.Option(min=1, help="How many held-out images.")] = 4,
    weights: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two flows to go between; default: the first two."),
    ] = None,
    times: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...",
            help="In frames, increasing, negative ones too: --times=-2,0,4,8; default: five from "
            "0 to the last frame of the training.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File of the first figure; default: in the run."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw held-out images under every flow, and one of them between two flows."""
    with _errors(debug):
        chosen = _numbers(times)
        from experiments import explore

        for path in explore.explore_latent(
            run, images=images, weights=weights, times=chosen, out=out
        ):
            out_console.print(f"Figure: {path}", soft_wrap=True)


@app.command(name="run")
def run_all(
    config: ConfigName,
    overrides: Overrides = None,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Train, evaluate and plot; what is already there is resumed or reused."""
    with _errors(debug):
        from experiments import runs

        folder = out or _default_run(config)
        if (folder / runs.TRAINING_FILE).is_file():
            out_console.print(f"{folder} is trained already; delete the folder to train it again.")
        else:
            _train(config, overrides, folder, (folder / "checkpoint.pt").is_file())
            if not runs.is_first_process():
                return
        _evaluate(folder, None, None)
        _plot(folder)


@app.command(name="table")
def fill_table(
    table: Annotated[
        str, typer.Argument(help="A YAML file of a table, or the name of one that ships.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Its folder; default: runs/tables/<table>.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Cells that run at once; default: what the table says."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="Run this method only; may be repeated."),
    ] = None,
    render_only: Annotated[
        bool, typer.Option("--render-only", help="Run nothing; write the table as it is so far.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train and evaluate several methods and seeds, and write the table; goes on where it was."""
    with _errors(debug):
        from experiments import table_runner

        plan = table_runner.plan(table, out=out, overrides=overrides or [])
        cells = plan.chosen(only)
        if render_only:
            plan.check_renderable()
        elif cells:
            _run_cells(plan, cells, plan.processes(processes))
        else:
            error_console.print("Every cell is finished already.")
        with error_console.status("Writing the table"):
            written = table_runner.write(plan)
        for text in (written.markdown, *written.notes):
            out_console.print(text, markup=False, highlight=False, soft_wrap=True)
        out_console.print(f"Table: {plan.out / 'table.md'}", soft_wrap=True)
        others = ", ".join(path.name for path in written.files if path.name != "table.md")
        out_console.print(f"Also in {plan.out}: {others}", soft_wrap=True)
        if not render_only and any(cell in plan.failures for cell in cells):
            raise typer.Exit(1)


@app.command()
def configs(debug: Debug = False) -> None:
    """List the configurations and the tables that ship."""
    with _errors(debug):
        from experiments.config import shipped
        from experiments.table_config import shipped_tables

        for kind, found in (("configuration", shipped()), ("table", shipped_tables())):
            table = Table(kind, "what it is for", box=None, pad_edge=False)
            for name, description in found.items():
                table.add_row(f"[bold]{name}[/]", description)
            table.add_row("", "")
            out_console.print(table)


@app.command()
def show(config: ConfigName, overrides: Overrides = None, debug: Debug = False) -> None:
    """Print a configuration with every key and default written out."""
    with _errors(debug):
        from experiments.config import dump, read_config

        typer.echo(dump(read_config(config, overrides)[1]), nl=False)


def main() -> None:
    """Run the command line."""
    app(prog_name="flowfactor")


# ---- the steps


def _train(config: str, overrides: list[str] | None, out: Path | None, resume: bool) -> Path:
    from experiments import runs
    from experiments.config import read_config

    title, content = read_config(config, overrides)
    run = out or Path("runs") / title
    _log_to_console()
    try:
        with _training_bar() as show_progress:
            runs.train(content, run, resume=resume, on_progress=show_progress)
    except KeyboardInterrupt:
        chosen = " ".join(f"--set {shlex.quote(each)}" for each in overrides or [])
        again = f"flowfactor train {config} {chosen}".strip()
        error_console.print(
            f"Interrupted; the state is kept. Continue with: {again} --out {run} --resume",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    return run


def _evaluate(run: Path, split: str | None, images: int | None) -> None:
    from experiments import runs

    with out_console.status("") as status:
        result = runs.evaluate(
            run,
            split=split,
            images=images,
            on_stage=lambda stage: status.update(f"Measuring {stage}"),
        )
    for table in tables(result):
        out_console.print(table)
    out_console.print(f"All figures: {run / runs.EVALUATION_FILE}")


def _plot(run: Path) -> None:
    from experiments import plots

    with out_console.status("") as status:
        report = plots.plot(run, on_stage=lambda stage: status.update(f"Drawing {stage}"))
    out_console.print(f"Figures: {report.parent / 'figures'}")
    out_console.print(f"Report:  [bold]{report}[/] (open it in a browser)")


def _run_cells(table: FilledTable, cells: Sequence[Cell], processes: int) -> None:
    from experiments import table_runner

    try:
        with _cells_bar(len(cells)) as show_event:
            table_runner.run_cells(table, cells, processes=processes, on_event=show_event)
    except KeyboardInterrupt:
        table_runner.write_state(table)
        error_console.print(
            "Interrupted; what was trained is kept. The same command continues.", soft_wrap=True
        )
        raise typer.Exit(130) from None


def _default_run(config: str) -> Path:
    from experiments.config import read_config

    return Path("runs") / read_config(config)[0]


def _check_split(split: str | None) -> None:
    if split not in (None, "validation", "test"):
        raise typer.BadParameter(f"--split is {split!r}; it is validation or test.")


def _numbers(text: str | None) -> list[float] | None:
    """Read numbers that commas separate."""
    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--times is {text!r}; give numbers with commas between them, as in --times 0,2.5,8."
        ) from None


# ---- what is shown


def tables(result: dict[str, Any]) -> list[Table]:
    """Return the tables of an evaluation, for the console."""
    frames = result["frames"]
    errors = Table(
        _names("flow"),
        title=f"Equivariance error on {result['images']} {result['split']} samples, "
        f"sum over t=1..{frames}",
        title_justify="left",
    )
    for column in ("E", "± s.e.", "identity", "floor", "per pixel", "with dopri5"):
        errors.add_column(column, justify="right")
    for name, error in result["errors"].items():
        errors.add_row(
            name,
            f"[bold]{error['error']:.1f}[/]",
            f"{error['standard_error']:.1f}",
            f"{error['identity']:.1f}",
            f"{error['floor']:.1f}",
            f"{error['per_frame_and_pixel']:.4f}",
            solver_change(result, name),
        )
    errors.add_section()
    errors.add_row(
        "mean", f"[bold]{result['mean_error']:.1f}[/]", "", f"{mean_identity(result):.1f}"
    )

    likelihood = result["log_likelihood"]
    bounds = Table(
        "observation model",
        title=f"IWAE bound of log p(x_0..x_T | k), {likelihood['samples']} samples, "
        f"{likelihood['sequences']} sequences, nats",
        title_justify="left",
    )
    for column in ("per sequence", "± s.e.", "per frame"):
        bounds.add_column(column, justify="right")
    for name in ("trained", "unit_gaussian"):
        bound = likelihood[name]
        bounds.add_row(
            observation_label(name, bound),
            f"{bound['per_sequence']:.1f}",
            f"{bound['standard_error']:.1f}",
            f"{bound['per_frame']:.1f}",
        )
    found = [errors, bounds]
    if inferred := result.get("inferred"):
        found.append(
            _error_table(
                f"Transformations inferred from the frames: {inferred['accuracy']:.2%} as named on "
                f"validation sequences"
                if "accuracy" in inferred
                else "Flows inferred from the frames; no sequence has a label to compare with",
                inferred["errors"],
            )
        )
    if rules := result.get("rules"):
        found.append(rule_table(rules, result["rule"]))
    if unseen := result.get("held_out"):
        found.append(
            _error_table(
                f"Held out of the training: {unseen['what']} ({unseen['images']} samples)",
                unseen["errors"],
            )
        )
    if composed := result.get("composition"):
        found += composition_tables(composed)
    if later := result.get("extrapolation"):
        found.append(extrapolation_table(later))
    if scores := code_scores(result):
        table = Table("score of the code", "", title="Disentanglement", title_justify="left")
        for name, score in scores.items():
            table.add_row(name, f"{score:.3f}")
        found.append(table)
    if paths := result.get("paths"):
        table = Table(_names("flow"), title="Paths of the latents", title_justify="left")
        for column in ("straightness", "kinetic energy", "distance"):
            table.add_column(column, justify="right")
        for name, path in paths.items():
            table.add_row(name, *(f"{value:.3g}" for value in path.values()))
        found.append(table)
    return found


def rule_table(rules: dict[str, Any], chosen: str) -> Table:
    """Return the errors of every rule by which latents may move, for the console."""
    table = Table(
        _names("rule"),
        title=f"E by each rule; `{chosen}` was best on training sequences",
        title_justify="left",
    )
    for name in (*next(iter(rules.values()))["errors"], "mean"):
        table.add_column(name, justify="right")
    for rule, result in rules.items():
        errors = [error["error"] for error in result["errors"].values()]
        table.add_row(rule, *(f"{error:.1f}" for error in [*errors, result["mean_error"]]))
    return table


def code_scores(result: dict[str, Any]) -> dict[str, float]:
    """Return the scores of a code that were measured, by what they are called."""
    keys = {
        "factor_vae": "FactorVAE",
        "mig": "MIG",
        "dci_disentanglement": "DCI disentanglement",
        "dci_completeness": "DCI completeness",
        "dci_informativeness": "DCI informativeness",
        "sap": "SAP",
    }
    scores = result.get("disentanglement", {})
    found = {label: scores[key] for key, label in keys.items() if key in scores}
    if told := result.get("predictability"):
        found[f"variation predictability (chance {told['chance']:.3f})"] = told["accuracy"]
    return found


def composition_tables(result: dict[str, Any]) -> list[Table]:
    """Return the tables of composed flows, for the console."""
    titles = {
        "superposition": "Two flows at once, sum over t=1..{frames}",
        "switching": "One flow, then the other, sum over t=1..{frames}",
        "reversal": "From frame {frames} backwards to frame 0",
    }
    found = [
        _error_table(title.format(**result), result[name])
        for name, title in titles.items()
        if result[name]
    ]
    if result["commutation"]:
        table = Table(_names("flows"), title="Either order, four frames each", title_justify="left")
        for column in ("latent, relative", "pixels apart", "pixels moved"):
            table.add_column(column, justify="right")
        for name, each in result["commutation"].items():
            table.add_row(
                name, f"{each['latent']:.3f}", f"{each['pixels']:.1f}", f"{each['moved']:.1f}"
            )
        found.append(table)
    return found


def extrapolation_table(result: dict[str, Any]) -> Table:
    """Return the errors of a frame within and beyond the times of the training."""
    horizon, end = result["trained_last"], result["last"]
    table = Table(
        _names("flow"),
        title=f"Error of a frame within the training (t=1..{horizon}) and beyond "
        + (f"(t={horizon + 1}..{end})" if end > horizon else "(the data ends)"),
        title_justify="left",
    )
    for column in ("E within", "identity", "E beyond", "identity"):
        table.add_column(column, justify="right")
    for name, error in result["errors"].items():
        cells: list[str] = []
        for part in (error["within"], error["beyond"]):
            cells += ["", ""] if part is None else [f"{part[k]:.1f}" for k in ("error", "identity")]
        table.add_row(name, *cells)
    return table


def _names(header: str) -> Column:
    """Return a column that is never cut: names are long at times, and other headings can break."""
    return Column(header, no_wrap=True)


def _error_table(title: str, errors: dict[str, Any]) -> Table:
    table = Table(_names("flow"), title=title, title_justify="left")
    for column in ("E", "± s.e.", "identity", "floor"):
        table.add_column(column, justify="right")
    for name, error in errors.items():
        keys = ("error", "standard_error", "identity", "floor")
        table.add_row(name, *(f"{error[key]:.1f}" for key in keys))
    if len(errors) > 1:
        mean = [sum(e[key] for e in errors.values()) / len(errors) for key in ("error", "identity")]
        table.add_section()
        table.add_row("mean", f"{mean[0]:.1f}", "", f"{mean[1]:.1f}")
    return table


@contextlib.contextmanager
def _training_bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar with the losses and the time left; on a terminal only."""
    bar = Bar(
        SpinnerColumn(),
        TextColumn("step {task.fields[step]}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("[cyan]{task.fields[left]} left[/]"),
        TextColumn("{task.fields[terms]}"),
        console=error_console,
        disable=not error_console.is_terminal,
    )
    logger = logging.getLogger("experiments.training")
    validation = ""
    with bar:
        task = bar.add_task("train", total=1.0, step=0, left="?", terms="")

        def show(progress: Progress) -> None:
            nonlocal validation
            terms = "  ".join(
                f"{_short(name)} {value:.4g}" for name, value in progress.terms.items()
            )
            if progress.split == "validation":
                validation = f"  [dim]validation {progress.terms['loss']:.1f}[/]"
                logger.info(
                    "step %d, %s left: validation %s", progress.step, _time(progress), terms
                )
                return
            bar.update(
                task,
                completed=progress.fraction,
                step=progress.step,
                left=_time(progress),
                terms=terms + validation,
            )

        yield show


@contextlib.contextmanager
def _cells_bar(count: int) -> Iterator[Callable[[Event], None]]:
    """Show which cells of a table run and how far they are; what has ended is a line of its own."""
    bar = Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=error_console,
        disable=not error_console.is_terminal,
    )
    ended = failed = 0
    with bar:
        whole = bar.add_task("cells", total=count, text="")
        tasks: dict[Cell, TaskID] = {}

        def show(event: Event) -> None:
            nonlocal ended, failed
            if event.kind == "start":
                tasks[event.cell] = bar.add_task(event.cell.name, total=1.0, text="starts")
                if error_console.is_terminal:
                    return
            elif event.kind == "progress":
                bar.update(tasks[event.cell], completed=event.fraction, text=event.text)
                return
            else:
                bar.remove_task(tasks.pop(event.cell))
                ended, failed = ended + 1, failed + (event.kind == "fail")
                text = f"{ended} of {count} done" + (f", {failed} failed" if failed else "")
                bar.update(whole, completed=ended, text=text)
            minutes, seconds = divmod(round(event.seconds), 60)
            said = {
                "start": "started",
                "finish": f"finished after {minutes}:{seconds:02d}",
                "fail": f"failed: {event.text}",
            }
            error_console.print(
                f"{event.cell.name}: {said[event.kind]}",
                style="red" if event.kind == "fail" else None,
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

        yield show


def _short(name: str) -> str:
    return {"reconstruction": "rec", "hamilton_jacobi": "HJ", "path_kl": "path"}.get(name, name)


def _time(progress: Progress) -> str:
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    return f"{minutes}:{seconds:02d}"


def _log_to_console() -> None:
    for name in ("flowfactor", "experiments"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, RichHandler) for handler in logger.handlers):
            handler = RichHandler(console=error_console, show_path=False, show_level=False)
            logger.addHandler(handler)


@contextlib.contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn the errors that a user can cause into one paragraph and the exit code 2."""
    debug = debug or bool(os.environ.get("FLOWFACTOR_DEBUG"))
    try:
        yield
    except (FlowFactorError, SolverError) as error:
        if debug:
            raise
        error_console.print(f"[bold red]Error:[/] {_escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from None


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
