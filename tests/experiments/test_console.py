import io

import pytest
from rich.console import Console

from experiments import console


@pytest.mark.parametrize("terminal", [True, False])
def test_stages_are_shown_on_a_terminal_only(monkeypatch, terminal):
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "error_console", Console(file=screen, force_terminal=terminal, width=80)
    )
    with console.show_stage("Measuring") as show:
        show("[bold]a metric\n")
    text = screen.getvalue()
    assert ("Measuring [bold]a metric" in text) == terminal
    assert bool(text) == terminal
