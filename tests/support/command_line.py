"""A way to call the command line within a test's process."""

from typer.testing import CliRunner

from experiments.cli import app


def call(*words: object) -> tuple[int, str]:
    """Call the command line; return exit code and what was printed, on one line."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())
