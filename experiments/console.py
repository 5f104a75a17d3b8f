"""What the command line and the scripts share: consoles, error messages, bars of progress."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

# Importing torch takes seconds; what needs it is imported where it is used.
if TYPE_CHECKING:
    from experiments.cells import Cell
    from experiments.sweep import Event
    from flowfactor.training import Progress

DEBUG = "FLOWFACTOR_DEBUG"

# Of typer's own copy of click, or of click.
_UsageError: Any = typer.BadParameter.__base__

out_console = Console()
error_console = Console(stderr=True)


def say(text: object, console: Console | None = None, style: str | None = None) -> None:
    """Print text for the user as it is: no markup, and no line is broken.

    Args:
        text: what to print.
        console: where; None is standard output.
        style: of ``rich``.
    """
    from flowfactor.names import show_invisible

    (console or out_console).print(
        show_invisible(str(text)),
        style=style,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
    )


@contextlib.contextmanager
def show_stage(verb: str) -> Iterator[Callable[[str], None]]:
    """Show what a command is doing and for how long already; on a terminal only.

    What takes seconds before the first stage, such as importing torch, belongs into the context.

    Args:
        verb: comes before each stage.
    """
    from rich.progress import TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with _progress(*columns, transient=True) as progress:
        task = progress.add_task(verb, total=None)

        def show(stage: str) -> None:
            from flowfactor.names import one_line

            progress.update(task, description=f"{verb} {one_line(stage, 60)}")

        yield show


def prepare() -> None:
    """Let letters that the terminal lacks be printed as escapes, and require a working folder."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except OSError:  # libraries end the process without a word
        error_console.print("[bold red]Error:[/] The working folder does not exist any more.")
        sys.exit(2)


def run_script(function: Callable[..., None]) -> None:
    """Run a function as a program: its parameters are the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(function)
    prepare()
    app()


class _ReportsErrors:
    """A command that turns errors that a user can help into one paragraph and exit code 2.

    Attributes:
        others: classes of such errors, besides those that :func:`flowfactor.errors.explain` knows.
    """

    others: ClassVar[tuple[type[Exception], ...]] = ()

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the command line, or print the help."""
        with self._reporting():
            return super().make_context(*args, **kwargs)  # type: ignore[misc]

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with self._reporting():
            result = super().invoke(ctx)  # type: ignore[misc]
            if sys.stdout is not None:
                sys.stdout.flush()
            return result

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except _UsageError as error:
            if not error.format_message():  # no word at all: the help has been printed
                raise
            _end(_usage(error))
        except (BrokenPipeError, typer.Exit):  # whoever reads has enough; the end of a command
            raise
        except Exception as error:
            from flowfactor.errors import explain
            from solvers import SolverError

            if os.environ.get(DEBUG):
                raise
            text = explain(error)
            if text is None and isinstance(error, (SolverError, *self.others)):
                text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            if text is None:
                raise
            _end(text)


def _usage(error: Any) -> str:
    """Return what is wrong with the words of a command line."""
    text = str(error.format_message()).replace("Value error, ", "")
    path = error.ctx.command_path if error.ctx is not None else ""
    return f"{text}\n`{path} --help` lists what may be given." if path else text


def _end(text: str) -> NoReturn:
    """Say what is wrong, and end."""
    with contextlib.suppress(OSError):
        error_console.print("[bold red]Error:[/]", end=" ")
        say(text, error_console)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # it would be tried once more at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(2) from None


class Command(_ReportsErrors, TyperCommand):
    """A program of one command, whose arguments go to figures that check them."""

    others = (ValueError, KeyError)


class Group(_ReportsErrors, TyperGroup):
    """A program of several commands."""


@contextlib.contextmanager
def training_bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar with the losses and the time left; on a terminal only."""
    bar = _bar("step {task.fields[step]}", "[cyan]{task.fields[left]} left[/]")
    validation = ""
    with bar:
        task = bar.add_task("train", total=1.0, step=0, left="?", text="")

        def show(progress: Progress) -> None:
            nonlocal validation
            terms = "  ".join(f"{name} {value:.4g}" for name, value in progress.terms.items())
            if progress.split == "validation":
                validation = f"  validation {progress.terms['loss']:.1f}"
                return
            bar.update(
                task,
                completed=progress.fraction,
                step=progress.step,
                left=progress.time_left,
                text=terms + validation,
            )

        yield show


@contextlib.contextmanager
def cells_bar(count: int) -> Iterator[Callable[[Event], None]]:
    """Show which cells run and how far they are; what has ended is a line of its own."""
    from flowfactor.names import one_line

    bar = _bar("{task.description}")
    with bar:
        whole = bar.add_task("cells", total=count, text="")
        tasks: dict[Cell, Any] = {}
        ended = {"finish": 0, "fail": 0, "stop": 0}

        def show(event: Event) -> None:
            cell = event.cell
            if event.kind == "progress":
                if cell not in tasks:
                    tasks[cell] = bar.add_task(one_line(cell.name, 60), total=1.0, text="")
                bar.update(tasks[cell], completed=event.fraction, text=event.text)
                return
            ended[event.kind] += 1
            if cell in tasks:
                bar.remove_task(tasks.pop(cell))
            failed = f", {ended['fail']} failed" if ended["fail"] else ""
            done = sum(ended.values())
            bar.update(whole, completed=done, text=f"{done} of {count} done{failed}")
            if event.kind == "fail":
                say(f"{cell.name}: failed: {event.text}", error_console, "red")
            else:
                word = {"finish": "finished", "stop": "stopped early"}[event.kind]
                say(f"{cell.name}: {word}", error_console)

        yield show


class _ConsoleHandler(logging.Handler):
    """Prints what is logged, a line each that is never broken."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless the bar of a training shows the same."""
        if error_console.is_terminal and getattr(record, "split", None) == "train":
            return
        with contextlib.suppress(OSError):
            say(self.format(record), error_console)


def log_to_console() -> None:
    """Show what the packages log."""
    for name in ("flowfactor", "experiments"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
            handler = _ConsoleHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
            logger.addHandler(handler)


def _bar(*columns: str) -> Any:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn

    first, *others = (TextColumn(column, markup="[" in column) for column in columns)
    last = TextColumn("{task.fields[text]}", markup=False)
    return _progress(first, BarColumn(bar_width=None), TaskProgressColumn(), *others, last)


def _progress(*columns: Any, transient: bool = False) -> Any:
    """Return a display of progress that prints nothing but on a terminal."""
    from rich.progress import Progress, SpinnerColumn

    shown = error_console.is_terminal
    # A disabled one ends with an empty line in some versions of rich, but on a quiet console.
    console = error_console if shown else Console(quiet=True)
    return Progress(
        SpinnerColumn(), *columns, console=console, disable=not shown, transient=transient
    )
