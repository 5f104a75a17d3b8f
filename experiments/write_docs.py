"""Write the parts of the documentation that are generated: ``python -m experiments.write_docs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main
from typer.cli import get_docs_for_click

from experiments import cli, readme_tables, reference

DOCS = Path(__file__).parents[1] / "docs"


def commands_page() -> str:
    """Return the reference of the command line: the help of every command."""
    command = typer.main.get_command(cli.app)
    context: Any = command.make_context("flowfactor", [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, name="flowfactor")
    note = "<!-- Written by `python -m experiments.write_docs`; change the commands instead. -->"
    return text.replace("# `flowfactor`\n", f"# Commands\n\n{note}\n", 1).rstrip() + "\n"


def main() -> None:
    """Write the references of configuration and commands, and the tables of results."""
    (DOCS / "configuration.md").write_text(reference.page(), encoding="utf-8")
    (DOCS / "commands.md").write_text(commands_page(), encoding="utf-8")
    readme_tables.write()


if __name__ == "__main__":
    main()
