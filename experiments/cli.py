"""The command line: train, evaluate and plot runs from YAML configurations."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from experiments.console import (
    DEBUG,
    Group,
    cells_bar,
    error_console,
    log_to_console,
    out_console,
    prepare,
    say,
    show_stage,
    training_bar,
)

if TYPE_CHECKING:
    from experiments.reference import Listing
    from experiments.sweep import Status

# Importing torch takes seconds: every command imports what it needs, so that --help is quick.

app = typer.Typer(
    cls=Group,
    help="Flow factorized representation learning: train, evaluate and explore models whose "
    "latents move along learned potentials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DEVICES = "auto|cpu|cuda[:N]|mps"
# Columns of a console below which lists are no tables.
_NARROW = 60

ConfigName = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a configuration that ships.")
]


def _find_run(text: str) -> Path:
    """Return the folder of a run, or of a copy of a model that ships."""
    if Path(text).exists():
        return Path(text)
    from experiments.publish import find_run

    return find_run(text)


RunFolder = Annotated[
    Path,
    typer.Argument(
        parser=_find_run,
        metavar="RUN",
        help="A run folder, as `flowfactor train` writes it, or the name of a model that ships.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a key; may be repeated."),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE_OR_MODULE",
        help="Python code that defines data sets, models, metrics or terms; may be repeated.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar=_DEVICES,
        help="What computes; default: training.accelerator of the configuration.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run folder; default: runs/<configuration>.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the training in the folder.")]
CheckData = Annotated[
    bool, typer.Option("--check-data", help="Read every sample before the training begins.")
]
Split = Annotated[
    Literal["validation", "test"] | None,
    typer.Option(help="Which held-out samples; default: what the configuration says."),
]
Images = Annotated[
    int | None, typer.Option(min=1, help="Held-out samples; default: what the configuration says.")
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        metavar="KIND_OR_FILE",
        help="What runs the cells: local, slurm, ray, or a YAML file of its options; default: "
        "what the file says.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Cells that run at the same time; default: what the file says."),
]


@app.callback()
def options_of_all(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", envvar=DEBUG)
    ] = False,
) -> None:
    """Set what holds for every command."""
    if debug:
        os.environ[DEBUG] = "1"


@app.command()
def train(
    config: ConfigName,
    overrides: Overrides = None,
    device: Device = None,
    plugin: Plugins = None,
    out: Out = None,
    resume: Resume = False,
    check_data: CheckData = False,
) -> None:
    """Train a model into a run folder."""
    changes = _changes(overrides, device)
    run = _train(config, changes, plugin, out, resume=resume, check_data=check_data)
    say(f"Trained: {run}. Next: flowfactor evaluate {run}; flowfactor plot {run}")


@app.command()
def evaluate(
    run: RunFolder,
    split: Split = None,
    images: Images = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Measure a run on held-out samples and print the tables."""
    with show_stage("Measuring") as show:
        from experiments import runs

        result = runs.evaluate(
            run,
            split=split,
            images=images,
            device=device,
            plugin_names=plugin or (),
            on_stage=show,
        )
    for table in result.tables().values():
        out_console.print(table.to_rich())
    say(f"All figures: {run / runs.EVALUATION_FILE}")
    if (run / runs.ASSIGNMENTS_FILE).is_file():
        say(f"Which sequence got which flow: {run / runs.ASSIGNMENTS_FILE}")


@app.command()
def plot(run: RunFolder, device: Device = None, plugin: Plugins = None) -> None:
    """Draw the figures of a run and its report."""
    with show_stage("Drawing") as show:
        from experiments import plots

        report = plots.plot(run, device=device, plugin_names=plugin or (), on_stage=show)
    say(f"Figures: {report.parent / 'figures'}")
    say(f"Report:  {report} (open it in a browser)")


@app.command(name="run")
def run_all(
    config: ConfigName,
    overrides: Overrides = None,
    device: Device = None,
    plugin: Plugins = None,
    out: Out = None,
    check_data: CheckData = False,
) -> None:
    """Train, evaluate and plot; reuses what exists."""
    from experiments import runs
    from experiments.config import CONFIG_FILE, read_config

    changes = _changes(overrides, device)
    title, content = read_config(config, changes, plugin_names=plugin or ())
    folder = out or Path("runs") / title
    if (folder / runs.TRAINING_FILE).is_file():
        runs.check_resumable(content.replace(data=content.data.resolve()), folder)
        say(f"{folder} is trained already; delete the folder to train it again.")
    else:
        resume = (folder / CONFIG_FILE).is_file()
        _train(config, changes, plugin, folder, resume=resume, check_data=check_data)
        if not runs.is_first_process():
            return
    evaluate(folder, device=device, plugin=plugin)
    plot(folder, device=device, plugin=plugin)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=_find_run,
            metavar="RUNS",
            help="Two or more evaluated run folders, or names of models that ship.",
        ),
    ],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            help="What a run is called, once for each; runs of one label are seeds of one method.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Film strips per transformation.")] = 2,
    out: Annotated[Path, typer.Option("--out", help="The folder to write into.")] = Path(
        "runs/compare"
    ),
    split: Annotated[
        Literal["validation", "test"] | None,
        typer.Option(
            help="Split that the runs must have been evaluated on; default: that of the first."
        ),
    ] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Put evaluated runs of the same data side by side: a table and film strips."""
    with show_stage("Comparing") as show:
        from experiments import compare as comparing

        result = comparing.compare(
            runs,
            labels=labels,
            samples=samples,
            out=out,
            split=split,
            device=device,
            plugin_names=plugin or (),
            on_stage=show,
        )
    out_console.print(result.table.to_rich())
    for path in result.files:
        say(f"Written: {path}")


@app.command(name="explore-latent")
def explore_latent(
    run: RunFolder,
    images: Annotated[int, typer.Option(min=1, help="How many held-out images.")] = 4,
    sample: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Index of an image to draw instead; may be repeated."),
    ] = None,
    weights: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B", help="Two flows to interpolate between; default: the first two."
        ),
    ] = None,
    times: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...",
            help="In frames, increasing, may be negative: --times=-2,0,4,8; default: five from "
            "0 to the last frame of the training.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File of the first figure; default: in the run. A .gif shows all flows."
        ),
    ] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Draw held-out images under every flow (at most ten), and one of them between two flows."""
    numbers = _numbers(times)
    with show_stage("Drawing") as show:
        from experiments import explore

        figures = explore.explore_latent(
            run,
            images=images,
            samples=sample,
            weights=weights,
            times=numbers,
            out=out,
            device=device,
            plugin_names=plugin or (),
            on_stage=show,
        )
    for path in figures:
        say(f"Figure: {path}")


@app.command(name="explore")
def explore_run(
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=_find_run,
            metavar="RUN [RUN]",
            help="A run folder or the name of a model that ships; two are put side by side.",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others can connect to any but the default.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; default: the first free one from 7860 on."),
    ] = None,
    split: Split = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Open a page on which flows are mixed, run and steered by hand; needs the extra `app`."""
    with show_stage("Reading") as show:
        show("Gradio")
        from experiments.explorer import page
        from experiments.explorer.runs import open_runs

        page.import_gradio()
        make_session = open_runs(
            runs, split=split, device=device, plugin_names=plugin or (), on_stage=show
        )
        show("the page")
        local = page.is_loopback(host)
        served = page.make_app(make_session, local=local)
    sock = page.listen(host, port)
    address = f"http://{host}:{sock.getsockname()[1]}"
    if not local:
        say("Whoever reaches this machine can open the page.", error_console, "yellow")
    say(f"Open {address} in a browser. Ctrl-C ends it.")
    if browser:
        import webbrowser

        webbrowser.open(address)
    page.serve(served, sock)


@app.command(name="table")
def fill_table(
    table: Annotated[
        str, typer.Argument(help="A YAML file of a table, or the name of one that ships.")
    ],
    overrides: Overrides = None,
    device: Device = None,
    plugin: Plugins = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Its folder; default: runs/tables/<table>.")
    ] = None,
    executor: ExecutorName = None,
    processes: Processes = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="Run, or look at, this method only; may be repeated."),
    ] = None,
    render_only: Annotated[
        bool, typer.Option("--render-only", help="Run nothing; write the table as it is so far.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Run nothing; say what runs where, and what failed.")
    ] = False,
) -> None:
    """Train and evaluate several methods and seeds, and write the table; resumes what was begun."""
    from experiments import sweep as sweeps

    changes = _changes(overrides, device)
    sweep = sweeps.plan(table, out=out, overrides=changes, plugin_names=plugin or ())
    chosen = sweeps.choose_executor(executor, sweep.options.executor, processes=processes)
    some = sweep.only(only)
    if status:
        _show_status(sweeps.status(some))
        return
    cells = [] if render_only else some.unfinished()
    if cells:
        try:
            with cells_bar(len(cells)) as show:
                sweeps.run_cells(sweep, cells, chosen, on_event=show)
        except KeyboardInterrupt as error:
            _interrupted("Its state is saved; the same command continues.", error)
    elif not render_only:
        error_console.print("Every cell is finished already.")
    with error_console.status("Writing the table"):
        written = sweeps.write(sweep)
    for text in (written.markdown, *written.notes):
        say(text)
    say(f"Table: {sweep.out / 'table.md'}")
    say(f"Also in {sweep.out}: " + ", ".join(path.name for path in written.files))
    if any(cell.failure() for cell in cells):
        raise typer.Exit(1)


@app.command()
def search(
    space: Annotated[
        str, typer.Argument(help="A YAML file of a search, or the name of one that ships.")
    ],
    overrides: Overrides = None,
    device: Device = None,
    plugin: Plugins = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Its folder; default: runs/searches/<search>.")
    ] = None,
    executor: ExecutorName = None,
    processes: Processes = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials; default: what the search says.")
    ] = None,
) -> None:
    """Search for the best configuration on validation data; resumes what was begun."""
    from dataclasses import replace

    from experiments import search as searches
    from experiments import sweep

    changes = _changes(overrides, device)
    plan = searches.plan(space, out=out, overrides=changes, plugin_names=plugin or ())
    plan = replace(plan, options=replace(plan.options, trials=trials or plan.options.trials))
    chosen = sweep.choose_executor(executor, plan.options.executor, processes=processes)
    try:
        with cells_bar(plan.options.trials) as show:
            study = searches.run(plan, chosen, on_event=show)
    except KeyboardInterrupt as error:
        _interrupted("Its state is saved; the same command continues.", error)
    with error_console.status("Writing the table"):
        written = searches.write(plan, study)
    say(written.markdown)
    say(f"Best: {plan.out / searches.BEST_FILE}")
    say(f"Also in {plan.out}: " + ", ".join(path.name for path in written.files))


@app.command()
def configs() -> None:
    """List the configurations, the tables and the searches that ship."""
    from experiments.reference import Listing
    from experiments.yaml_files import descriptions

    for title, kind in (("configuration", ""), ("table", "tables"), ("search", "searches")):
        rows = tuple(descriptions(kind).items())
        _print_listing(Listing("", (title, "what it is for"), rows))


@app.command()
def models() -> None:
    """List the trained models that ship: `flowfactor.load(NAME)` opens them."""
    from experiments.publish import list_models

    _print_listing(list_models())


@app.command()
def publish(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    half: Annotated[
        bool, typer.Option("--half", help="Store weights in half precision, and evaluate them.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload it to the Hugging Face Hub, too."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is new, make it private.")
    ] = False,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Write a run into a folder to share: its model, with a card, and its records."""
    from experiments import publish as publishing
    from flowfactor import hub

    with show_stage("Measuring") as show:
        folder = publishing.publish(
            run,
            out,
            half=half,
            title=push,
            device=device,
            plugin_names=plugin or (),
            on_stage=show,
        )
    say(f"Written: {folder}. Next: flowfactor.from_pretrained({str(folder)!r})")
    if push is not None:
        say(f"Uploaded: {hub.push_to_hub(folder, push, private=private)}")


@app.command()
def export(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write into; default: in the run.")
    ] = None,
    format: Annotated[
        Literal["onnx", "torch"],
        typer.Option("--format", help="ONNX, or torch's own .pt2, for torch.export.load."),
    ] = "onnx",
    steps: Annotated[
        int | None, typer.Option(min=1, help="RK4 steps of a frame; default: the run's solver.")
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", metavar=_DEVICES, help="What the files of torch compute on."),
    ] = "cpu",
    plugin: Plugins = None,
) -> None:
    """Write encoder, flow and decoder into files that run without this package."""
    from experiments.runs import open_run
    from flowfactor.export import export as export_model
    from solvers import RK4

    model = open_run(run, plugin or (), device).potential_model
    method = None if steps is None else RK4(steps=steps)
    with show_stage("Exporting") as show:
        show(str(run))
        files = export_model(model, out or run / "export", format, method=method)
    for path in files:
        say(f"Written: {path}")


@app.command()
def reproduce(
    result: Annotated[Path, typer.Argument(help="An evaluation.json, or a committed result.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run folder; default: runs/reproduced/<result>."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Allowed relative difference, if no spread is known.")
    ] = 0.05,
    seeds: Annotated[
        list[Path] | None,
        typer.Option(
            "--seed-result",
            help="An evaluation.json of another seed, for the spread; may be repeated.",
        ),
    ] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Repeat the training and evaluation of a result, and compare; exit code 1 if they differ."""
    from experiments import reproduce as reproducing
    from flowfactor.interrupts import raise_signals

    folder = out or Path("runs/reproduced") / result.stem
    log_to_console()
    with raise_signals(), training_bar() as show_progress:
        found = reproducing.reproduce(
            result,
            folder,
            tolerance=tolerance,
            seeds=seeds or (),
            device=device,
            plugin_names=plugin or (),
            on_progress=show_progress,
        )
    out_console.print(found.table.to_rich())
    say(reproducing.summary(found))
    if found.outside:
        raise typer.Exit(1)


@app.command()
def show(config: ConfigName, overrides: Overrides = None, plugin: Plugins = None) -> None:
    """Print a configuration with every key and default written out."""
    from experiments.config import read_config, to_yaml

    content = read_config(config, overrides or (), plugin_names=plugin or ())[1]
    typer.echo(to_yaml(content), nl=False)


@app.command(name="options")
def list_options(
    name: Annotated[
        str | None,
        typer.Argument(
            help="general, training, evaluation, table, search, or the name of a data source, a "
            "model or a metric; default: all names."
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Print the keys of a configuration: what they mean, what they may be, and their defaults."""
    from experiments.reference import listings_of, names
    from flowfactor import plugins

    plugins.load_installed()
    for each in plugin or ():
        plugins.load(each)
    for listing in listings_of(name) if name else [names()]:
        _print_listing(listing)


def main() -> None:
    """Run the command line."""
    prepare()
    app(prog_name="flowfactor")


# ---- the steps


def _changes(overrides: list[str] | None, device: str | None) -> list[str]:
    """Return the keys that a command changes, its device among them."""
    from experiments.config import on_device

    return [*(overrides or ()), *([] if device is None else [on_device(device)])]


def _train(
    config: str,
    overrides: list[str] | None,
    plugin: list[str] | None,
    out: Path | None,
    *,
    resume: bool,
    check_data: bool,
) -> Path:
    from experiments import runs
    from experiments.config import read_config
    from flowfactor.checkpoints import STATE_FILE
    from flowfactor.interrupts import raise_signals

    title, content = read_config(config, overrides or (), plugin_names=plugin or ())
    run = out or Path("runs") / title
    log_to_console()
    with raise_signals():
        try:
            with training_bar() as show_progress:
                runs.train(
                    content, run, resume=resume, check_data=check_data, on_progress=show_progress
                )
        except KeyboardInterrupt as error:
            if not (run / STATE_FILE).is_file():
                again = "" if resume or not run.is_dir() else " with --resume"
                _interrupted(f"Nothing is saved yet; the same command{again} starts again.", error)
            words = [f"--set {shlex.quote(each)}" for each in overrides or ()]
            words += [f"--plugin {shlex.quote(each)}" for each in plugin or ()]
            words += [f"--out {shlex.quote(str(run))} --resume"]
            advice = " ".join(["Continue with: flowfactor train", shlex.quote(config), *words])
            _interrupted(f"The state is saved. {advice}", error)
    return run


def _interrupted(advice: str, error: KeyboardInterrupt) -> NoReturn:
    """Say how to go on, and end with the exit code of the signal."""
    say(f"Interrupted. {advice}", error_console)
    raise typer.Exit(getattr(error, "exit_code", 130))


def _print_listing(listing: Listing) -> None:
    """Print a table, or a line for each row where the console is too narrow for one."""
    if out_console.width < _NARROW:
        say("\n".join(" | ".join(filter(None, row)) for row in listing.rows))
    else:
        out_console.print(listing.to_rich())


def _show_status(cells: list[Status]) -> None:
    """Print what is to be said of cells: how many are in which state, and what they do."""
    count = Counter(each.state for each in cells)
    for each in cells:
        if each.text:
            say(f"{each.cell.name}: {each.state}: {each.text}")
    say(f"{len(cells):,} cells: " + ", ".join(f"{n:,} {state}" for state, n in count.items()))


def _numbers(text: str | None) -> list[float] | None:
    """Return numbers that commas separate."""
    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--times is {text!r}; give numbers with commas between them, as in --times 0,2.5,8."
        ) from None


if __name__ == "__main__":
    main()
