"""Compose two learned flows: simultaneous, sequential, in either order.

Uses the small model of coloured sprites that ships, and writes a figure of film strips.
"""

import sys
from pathlib import Path

import torch

import flowfactor
from flowfactor.data import Sprites
from flowfactor.diagnostics import composition_data, draw_film_strips, save


def main(out: Path) -> None:
    """Move sprites to the right while they change hue, and draw truth and flow."""
    model = flowfactor.load("sprites")
    data = Sprites(100, split="test")
    both = data.compose([0, 7], ("x", "hue"))
    clock = torch.arange(9).expand(2, -1)
    elapsed = [clock.clamp(max=4), (clock - 4).clamp(min=0)]  # x for four frames, then hue
    sequential = data.compose([0, 7], ("x", "hue"), elapsed=elapsed)
    strips = [
        composition_data(model, both, ("x", "hue")),
        composition_data(model, sequential, ("x", "hue"), turn=4),
    ]
    for part in strips:
        error = (part.truth - part.flows["flow"]).abs().sum((2, 3, 4)).mean()
        print(f"{part.labels[0]}: {error:.1f} per frame")
    print("written:", save(draw_film_strips(strips), out / "composition.png"))

    with torch.no_grad():
        z = model.represent(both.frames[:, 0])
        one_way = model.flow(model.flow(z, "x", 4.0), "hue", 4.0)
        other_way = model.flow(model.flow(z, "hue", 4.0), "x", 4.0)
    gap = (one_way - other_way).norm(dim=1) / (one_way - z).norm(dim=1)
    print(f"gap between the two orders, relative to the distance travelled: {gap.mean():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "figures"))
