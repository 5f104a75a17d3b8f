"""Take the documentation's pictures of the explorer: on a screen, and on a phone in dark mode."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.console import run_script, say

_READY = "document.querySelector('#ff-page')?.dataset.busy === 'no'"


def main(
    runs: Annotated[list[Path], typer.Argument(help="One run, or two side by side.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write into.")] = Path(
        "docs/figures"
    ),
    weights: Annotated[str, typer.Option(help="Of the flows, in their order.")] = "0,1,0.5",
    time: Annotated[float, typer.Option(help="In frames.")] = 6.0,
    sample: Annotated[int, typer.Option(min=0, help="Which of the images shown first.")] = 4,
    test: Annotated[bool, typer.Option(help="Press *Either order*.")] = True,
) -> None:
    """Serve the runs, open the page in Chromium, set its sliders and take pictures."""
    from PIL import Image

    from experiments.explorer.browser import open_page, serve
    from experiments.explorer.runs import open_runs

    with serve(open_runs(runs)) as url, open_page(url) as tab:
        tab.wait_for_function(_READY)
        tab.locator(".ff-samples button").nth(sample).click()
        for k, weight in enumerate(weights.split(",")):
            tab.fill(f"#ff-weight-{k} input[type=number]", weight)
        tab.fill("#ff-time input[type=number]", str(time))
        if test:
            tab.click("#ff-order")
        tab.wait_for_timeout(1000)
        tab.wait_for_function(_READY)
        name = "explorer" if len(runs) == 1 else "explorer_two"
        files = [out / f"{name}.png"]
        tab.screenshot(path=files[0], full_page=True)
        if len(runs) == 1:
            files.append(out / f"{name}_phone.png")
            tab.emulate_media(color_scheme="dark")
            tab.set_viewport_size({"width": 390, "height": 844})
            tab.evaluate("scrollTo(0, 0)")
            tab.wait_for_timeout(500)
            tab.screenshot(path=files[1])
    for file in files:
        Image.open(file).convert("RGB").save(file, optimize=True)
        say(f"Picture: {file}")


if __name__ == "__main__":
    run_script(main)
