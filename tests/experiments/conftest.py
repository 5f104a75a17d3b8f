"""A tiny run that the tests of the command line share, and a way to call it."""

import pytest
from tiny import sets
from typer.testing import CliRunner

from experiments.cli import app


@pytest.fixture
def call():
    """Call the command line; return exit code and what was printed, on one line."""

    def run(*words: str):
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.exit_code, " ".join(result.output.split())

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Train the demo's configuration for four steps; do not change the folder."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    result = CliRunner().invoke(app, ["train", "demo", *sets(), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder
