"""A way to call the command line within a test's process."""

import functools

import typer.testing

from experiments.cli import app

# Making the commands takes as long as a short one runs.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def call(*words: object) -> tuple[int, str]:
    """Call the command line; return exit code and what was printed, on one line."""
    result = typer.testing.CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())
