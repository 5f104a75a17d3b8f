"""Write the parts of the documentation that are generated: ``python -m experiments.write_docs``."""

from __future__ import annotations

from pathlib import Path

from experiments import readme_tables, reference

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Write the reference of the configuration and the tables of results."""
    (DOCS / "configuration.md").write_text(reference.page(), encoding="utf-8")
    readme_tables.write()


if __name__ == "__main__":
    main()
