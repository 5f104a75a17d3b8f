"""Imports run one way: experiments -> flowfactor -> solvers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"solvers": {"flowfactor", "experiments"}, "flowfactor": {"experiments"}}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path
        # Extras and tools of the tests are not needed to import the library.
        assert not imported(path) & {"beartype", "pytest", "sklearn"}, path


def test_importing_the_library_has_no_side_effects():
    """No output, no figure window, no seed drawn, no thread count changed."""
    program = (
        "import torch; before = torch.get_rng_state(), torch.get_num_threads()\n"
        "import flowfactor, flowfactor.diagnostics, flowfactor.metrics, solvers, sys\n"
        "assert torch.equal(before[0], torch.get_rng_state())\n"
        "assert before[1] == torch.get_num_threads()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'experiments' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
