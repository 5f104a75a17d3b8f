"""What the command line and the scripts share: consoles, error messages, bars of progress."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

# Importing torch takes seconds; what needs it is imported where it is used.
if TYPE_CHECKING:
    from experiments.sweep import Cell, Event
    from flowfactor.training import Progress

DEBUG = "FLOWFACTOR_DEBUG"

out_console = Console()
error_console = Console(stderr=True)


def say(text: object, **style: Any) -> None:
    """Print a line for the user, as it is."""
    out_console.print(str(text), markup=False, highlight=False, soft_wrap=True, **style)


def run_script(function: Callable[..., None]) -> None:
    """Run a function as a program: its parameters are the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(function)
    app()


class _ReportsErrors:
    """A command that turns the errors a user can cause into one paragraph and exit code 2.

    Attributes:
        others: classes of errors that a user can cause, besides those of the packages.
    """

    others: ClassVar[tuple[type[Exception], ...]] = ()

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)  # type: ignore[misc]
        except Exception as error:
            # Unless they have been imported, it is none of these; importing them takes seconds.
            if "flowfactor" not in sys.modules:
                raise
            from flowfactor.errors import FlowFactorError
            from solvers import SolverError

            reported = (FlowFactorError, SolverError, *self.others)
            if not isinstance(error, reported) or os.environ.get(DEBUG):
                raise
            error_console.print("[bold red]Error:[/]", end=" ")
            text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            error_console.print(text, markup=False, highlight=False, soft_wrap=True)
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
    logger = logging.getLogger("experiments.training")
    validation = ""
    with bar:
        task = bar.add_task("train", total=1.0, step=0, left="?", text="")

        def show(progress: Progress) -> None:
            nonlocal validation
            terms = "  ".join(f"{name} {value:.4g}" for name, value in progress.terms.items())
            left = _clock(progress.seconds_left)
            if progress.split == "validation":
                validation = f"  validation {progress.terms['loss']:.1f}"
                logger.info("step %d, %s left: validation %s", progress.step, left, terms)
                return
            bar.update(
                task,
                completed=progress.fraction,
                step=progress.step,
                left=left,
                text=terms + validation,
            )

        yield show


@contextlib.contextmanager
def cells_bar(count: int) -> Iterator[Callable[[Event], None]]:
    """Show which cells run and how far they are; what has ended is a line of its own."""
    bar = _bar("{task.description}")
    with bar:
        whole = bar.add_task("cells", total=count, text="")
        tasks: dict[Cell, Any] = {}
        ended = {"finish": 0, "fail": 0}

        def show(event: Event) -> None:
            cell = event.cell
            if cell not in tasks:
                tasks[cell] = bar.add_task(cell.name, total=1.0, text="")
            if event.kind == "progress":
                bar.update(tasks[cell], completed=event.fraction, text=event.text)
                return
            ended[event.kind] += 1
            bar.remove_task(tasks[cell])
            failed = f", {ended['fail']} failed" if ended["fail"] else ""
            done = sum(ended.values())
            bar.update(whole, completed=done, text=f"{done} of {count} done{failed}")
            error_console.print(
                f"{cell.name}: "
                + (f"failed: {event.text}" if event.kind == "fail" else "finished"),
                style="red" if event.kind == "fail" else None,
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

        yield show


def log_to_console() -> None:
    """Show what the packages log."""
    from rich.logging import RichHandler

    for name in ("flowfactor", "experiments"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, RichHandler) for handler in logger.handlers):
            handler = RichHandler(console=error_console, show_path=False, show_level=False)
            logger.addHandler(handler)


def _bar(*columns: str) -> Any:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    first, *others = (TextColumn(column, markup="[" in column) for column in columns)
    return Progress(
        SpinnerColumn(),
        first,
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        *others,
        TextColumn("{task.fields[text]}", markup=False),
        console=error_console,
        disable=not error_console.is_terminal,
    )


def _clock(seconds: float) -> str:
    return "{}:{:02d}".format(*divmod(round(seconds), 60))
