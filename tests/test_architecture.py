"""Imports run one way, experiments -> flowfactor -> solvers, without circles or side effects."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Container, Iterator
from pathlib import Path

import pytest
import typer
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"solvers": {"flowfactor", "experiments"}, "flowfactor": {"experiments"}}


def packages_imported(path: Path) -> set[str]:
    """Return the packages that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def modules_imported(node: ast.AST, known: Container[str]) -> Iterator[str]:
    """Yield which of some modules another one imports, also for types only, but in no function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            for alias in child.names:
                below = f"{child.module}.{alias.name}"
                yield below if below in known else str(child.module)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from modules_imported(child, known)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    for path in files:
        packages = packages_imported(path)
        assert not packages & FORBIDDEN[package], path
        # Figures are drawn without its state and its windows.
        assert "import pyplot" not in path.read_text(), path
        assert "matplotlib.pyplot" not in path.read_text(), path
        # Extras and tools of the tests are not needed to import the library.
        assert not packages & {"beartype", "pytest", "sklearn"}, path


@pytest.mark.parametrize("package", ["solvers", "flowfactor", "experiments"])
def test_modules_import_one_another_without_circles(package):
    modules = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {
        name: set(modules_imported(ast.parse(path.read_text()), modules)) & set(modules)
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.fixture(scope="module")
def untouched_process() -> dict[str, object]:
    """Return what a process finds that imports the packages and nothing else."""
    program = """
import json, sys, torch
before = torch.get_rng_state(), torch.get_num_threads()
import flowfactor, flowfactor.diagnostics, flowfactor.metrics, solvers
alone = "experiments" not in sys.modules
from experiments import reference, write_docs
print(json.dumps({
    "alone": alone,
    "random": torch.equal(before[0], torch.get_rng_state()),
    "threads": before[1] == torch.get_num_threads(),
    "configuration": reference.page(),
    "commands": write_docs.commands_page(),
}))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(result.stdout) | {"errors": result.stderr}


def test_importing_the_library_has_no_side_effects(untouched_process):
    """No output, no seed drawn, no thread count changed."""
    assert untouched_process["alone"]
    assert untouched_process["random"]
    assert untouched_process["threads"]
    assert not untouched_process["errors"]


@pytest.mark.parametrize("page", ["configuration", "commands"])
def test_generated_pages_are_up_to_date(untouched_process, page):
    """As they are where no test has registered anything."""
    if page == "commands" and Version(typer.__version__) < Version("0.29"):
        pytest.skip("the page is written with typer 0.29; earlier ones write other usage lines")
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert text == untouched_process[page], "run `make generate`"


def test_the_command_line_helps_without_torch():
    program = (
        "import sys; from experiments.cli import app\n"
        "from typer.testing import CliRunner\n"
        "for words in (['--help'], ['train', '--help'], ['table', '--help']):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed():
    """Torch and the tools of ``make check`` are tested as installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = ("data", "demo", "dev", "photos", "video", "zarr")
    groups = [project["dependencies"], *(extras[name] for name in named)]
    wanted = [line for group in (*groups, extras["metrics"]) for line in group]
    allowed = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in wanted if ">" in line
    )
    pins = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in pins if not line.startswith("#"))
    for name in ("torch", "torchvision", "mypy", "pre-commit", "ruff"):
        del allowed[name]
    assert sorted(tested) == sorted(allowed)
    for name, version in allowed.items():
        assert re.sub(r"(\.0)+$", "", tested[name]) == version, name
