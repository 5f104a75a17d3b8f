"""Draw the figures of the benchmarks of solvers from their JSON, which they also do themselves.

python -m experiments.benchmarks.solver_figures [--results FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.benchmarks.solver_tables import SETTINGS
from experiments.runs import read_json
from flowfactor.diagnostics.io import save
from flowfactor.diagnostics.style import (
    FAINT,
    INK,
    MUTED,
    PAGE_WIDTH,
    PALETTE,
    draw_grid,
    new_figure,
    styled,
)

FLOOR = "matrix products alone"

AXES = {
    "batch": "batch size $B$",
    "dim": "latent size $D$",
    "width": "ridges $H$",
    "kinds": "transformations $K$",
    "steps": "steps of rk4",
}

LINES: dict[str, dict[str, Any]] = {
    "ours": {"color": PALETTE[0], "marker": "o", "zorder": 3},
    "torchdiffeq": {"color": PALETTE[1], "marker": "s", "linestyle": (0, (5, 1.6))},
    "torchdiffeq, nested autograd": {"color": PALETTE[2], "marker": "^", "linestyle": (0, (3, 1))},
    FLOOR: {"color": MUTED, "marker": None, "linestyle": (0, (1.2, 1.2))},
}


_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


@styled
def draw_ratios(result: dict[str, Any]) -> Figure:
    """Draw the times of ``solver_speed``, relative to ours: a panel per method and setting."""
    panels = []
    for method in (m for m in ("rk4", "dopri5", "tsit5") if m in result[SETTINGS[0]]):
        for setting in SETTINGS:
            found = result[setting]
            cases = {k: v for k, v in found[method].items() if "skipped" not in v}
            if method == "rk4":
                cases |= {FLOOR: found["matrix products of rk4"]}
            panels.append((f"{method}, {setting}", cases))
    for _, cases in panels:
        base = cases["ours"]["milliseconds"]
        for known in cases.values():
            known["ratio"] = known["milliseconds"] / base
            known["spread"] = [x / base for x in known["quartiles"]]
    starts = range(0, len(panels), 2)
    heights = [max(len(cases) for _, cases in panels[i : i + 2]) for i in starts]
    figure = new_figure(PAGE_WIDTH, 0.165 * sum(heights) + 1.3)
    grid = figure.subplots(len(starts), 2, height_ratios=heights)
    furthest = max(min(v["ratio"], 3.2) for _, cases in panels for v in cases.values())
    for axes, (title, cases) in zip(grid.flat, panels, strict=True):
        _bars(axes, cases, limit=1.25 * furthest)
        axes.set_title(title, loc="left")
    for i, axes in enumerate(grid.flat):
        if i % 2 and list(panels[i][1]) == list(panels[i - 1][1]):
            axes.set_yticklabels([])
    for axes in grid[-1]:
        axes.set_xlabel("time relative to ours, with quartiles")
    return figure


def _bars(axes: Axes, cases: dict[str, dict[str, Any]], limit: float) -> None:
    """Draw bars from the top, ours and its variants in one colour, long ones cut short."""
    for place, (name, known) in enumerate(cases.items()):
        ratio, spread = known["ratio"], known["spread"]
        colour = PALETTE[0] if name.startswith("ours") else FAINT
        style: dict[str, Any] = {"color": colour}
        if name == FLOOR:
            style = {"facecolor": "white", "edgecolor": MUTED}
        axes.barh(place, min(ratio, limit), height=0.72, **style)
        label = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
        text: dict[str, Any] = {"x": limit, "s": f"{label} »", "ha": "right"}
        if ratio <= limit:
            axes.hlines(place, *spread, color=INK, linewidth=0.8)
            text = {"x": max(ratio, spread[1]) + 0.02 * limit, "s": label, "bbox": _PAPER}
        axes.text(y=place, va="center", fontsize=7, color=INK, zorder=4, **text)
    axes.axvline(1, color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
    axes.set_yticks(range(len(cases)), list(cases), fontsize=7)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_xlim(0, limit)
    axes.tick_params(axis="y", length=0)


@styled
def draw_scaling(result: dict[str, Any]) -> Figure:
    """Draw the times of ``solver_scaling``: a panel for each size that varies."""
    figure = new_figure(PAGE_WIDTH, 3.5)
    grid = figure.subplots(2, 3, sharey=True)
    for axes, (name, label) in zip(grid.flat, AXES.items(), strict=False):
        values, times = result[name]["values"], result[name]["milliseconds"]
        for case, style in LINES.items():
            known = [(x, ms) for x, ms in zip(values, times[case], strict=True) if ms is not None]
            if known:
                axes.plot(*zip(*known, strict=True), **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        draw_grid(axes)
        axes.tick_params(axis="x", labelsize=7)
    for axes in grid[:, 0]:
        axes.set_ylabel("milliseconds")
    last = grid.flat[-1]
    last.axis("off")
    handles = [Line2D([], [], **{**style, "zorder": 1}) for style in LINES.values()]
    base = result["sizes"]
    fixed = (
        f"elsewhere $B$ = {base['batch']}, $D$ = {base['dim']},\n"
        f"$H$ = {base['width']}, $K$ = {base['kinds']}, {base['steps']} steps;\n"
        "forward + backward, with log-density"
    )
    last.legend(handles, list(LINES), loc="upper left", borderaxespad=0)
    last.text(0.03, 0.06, fixed, transform=last.transAxes, fontsize=7.5, color=MUTED)
    return figure


@styled
def draw_precision(result: dict[str, Any]) -> Figure:
    """Draw the times of ``solver_precision`` over the errors of the states."""
    figure = new_figure(PAGE_WIDTH, 4.2)
    axes = figure.subplots()
    cases = {name: case for name, case in result["cases"].items() if "skipped" not in case}
    for i, (name, case) in enumerate(cases.items()):
        own, compiled = name.startswith("ours"), "compiled" in name or "jit" in name
        axes.plot(
            case["states"],
            case["milliseconds"],
            label=name,
            color=PALETTE[i % len(PALETTE)],
            marker="o" if own else "s",
            markersize=3,
            linestyle="-" if compiled else (0, (4, 1.5)),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("relative error of the states")
    axes.set_ylabel("milliseconds, forward and backward")
    draw_grid(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Draw the figures anew."""
    parser = argparse.ArgumentParser(
        "experiments.benchmarks.solver_figures",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    folder = parser.parse_args(argv).results
    for name, draw in (
        ("solver_speed", draw_ratios),
        ("solver_scaling", draw_scaling),
        ("solver_precision", draw_precision),
    ):
        path = folder / f"{name}.json"
        if not path.is_file():
            print(
                f"left out: {path} is not there; python -m experiments.benchmarks.{name} makes it"
            )
            continue
        print(f"written: {save(draw(read_json(path)), path.with_suffix('.png'), dpi=300)}")


if __name__ == "__main__":
    main()
