"""A tiny run that the tests of the command line share, and a way to call it."""

import shutil

import command_line
import pytest
from tiny import sets


@pytest.fixture
def call():
    return command_line.call


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Train the demo's configuration for four steps; do not change the folder."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    code, output = command_line.call("train", "demo", *sets(), "--out", folder)
    assert code == 0, output
    return folder


@pytest.fixture
def own_run(tiny_run, tmp_path):
    """Return a copy of the tiny run that a test may change."""
    return shutil.copytree(tiny_run, tmp_path / "own")
