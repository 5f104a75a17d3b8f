"""What a page asks for and is answered, as plain data: no page, no server, no Gradio."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowfactor.diagnostics.explorer import (
    Discrepancy,
    Explorer,
    View,
    Window,
    paint_landscape,
    read_picture,
)
from flowfactor.errors import DataError

MOST_WEIGHT = 2.0
"""How strong a flow may be made by its slider, in either direction."""


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Images to choose from.

    Attributes:
        numbers: of those that are shown to be chosen.
        images: of these, ``(N, C, H, W)``.
        count: how many there are in all.
        get: returns the image of a number, ``(C, H, W)``.
        note: a sentence on where they come from.
    """

    numbers: Sequence[int]
    images: Float[Tensor, "n c h w"]
    count: int
    get: Callable[[int], Float[Tensor, "c h w"]]
    note: str


@dataclasses.dataclass(eq=False)
class _State:
    """Where the path of a model starts, and the plane that it is shown in."""

    z: Tensor
    window: Window


class Session:
    """One page: an image, its latent under each model, and a plane for each.

    A request is a JSON object, and so is its answer.

    .. code-block:: text

        weights   {name: weight}        of the flows; others rest
        t         number                the time of the image
        start     {"sample": number} | {"picture": base64} | {"model": i, "x": x, "y": y}
                  a held-out sample, the content of a file, or a place in the landscape of a model;
                  optional, as is all that follows
        plane     [name, name]          two flows that span the plane
        test      "there_and_back" | "either_order"
        record    "gif" | "python"

    The answer has ``models``, one view for each, and ``note``, a sentence; ``test`` and ``record``
    if they were asked for. Nothing in a request names a file.

    Args:
        explorers: by the names of the runs, in their order.
        samples: to choose from.
    """

    def __init__(self, explorers: Mapping[str, Explorer], samples: Samples) -> None:
        self.explorers = dict(explorers)
        self.samples = samples
        self.names = union_of_names(explorers.values())
        self.plane = (self.names[0], self.names[min(1, len(self.names) - 1)])
        self.states = self._states_of(samples.images[0])
        self.longest = 2 * max(each.model.horizon for each in self.explorers.values())

    def answer(self, request: Any) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            DataError: with a sentence for whoever sees the page.
        """
        if not isinstance(request, Mapping):
            raise DataError("A request must be a JSON object.")
        weights, t = self._weights(request.get("weights", {})), self._time(request.get("t", 0))
        note = self._start(request["start"]) if request.get("start") is not None else ""
        if request.get("plane") is not None:
            self._set_plane(request["plane"])
        answer: dict[str, Any] = {"note": note}
        answer["models"] = [
            self._view(name, _of(explorer, weights), t) for name, explorer in self.explorers.items()
        ]
        if (test := request.get("test")) is not None:
            answer["test"] = self._test(test, weights, t)
        if (kind := request.get("record")) is not None:
            answer["record"] = self._record(kind, weights, t)
        return answer

    # ---- requests

    def _weights(self, weights: Any) -> dict[str, float]:
        if not isinstance(weights, Mapping) or not set(weights) <= set(self.names):
            raise DataError(f"Weights are of the flows {', '.join(self.names)}.")
        return {
            name: _number(w, f"The weight of {name}", MOST_WEIGHT) for name, w in weights.items()
        }

    def _time(self, t: Any) -> float:
        return _number(t, "The time", self.longest)

    def _start(self, start: Any) -> str:
        if not isinstance(start, Mapping) or len(start) not in (1, 3):
            raise DataError("A start is a sample, a picture or a place.")
        if "sample" in start:
            number = start["sample"]
            if type(number) is not int or not 0 <= number < self.samples.count:
                raise DataError(f"Samples have the numbers 0 to {self.samples.count - 1}.")
            self.states = self._states_of(self.samples.get(number))
            return f"Sample {number}. {self.samples.note}".strip()
        if "picture" in start:
            try:
                content = base64.b64decode(start["picture"], validate=True)
            except (TypeError, ValueError, binascii.Error) as error:
                raise DataError("The picture did not arrive whole.") from error
            shape = next(iter(self.explorers.values())).model.image_shape
            image, done = read_picture(content, shape)
            self.states = self._states_of(image)
            return f"Your picture. {done}".strip()
        return self._place(start)

    def _place(self, start: Mapping[str, Any]) -> str:
        """Start at a place of a landscape, other models at the image that is decoded there."""
        try:
            name = list(self.explorers)[int(start["model"])]
            x, y = (_number(start[key], "A place", 1.0) for key in "xy")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError("There is no such place.") from error
        z = self.states[name].window.lift(x, y)
        image = self.explorers[name].decode(z)[0]
        for each, explorer in self.explorers.items():
            self.states[each].z = z if each == name else explorer.encode(image)
        return "The path starts at a point of the plane."

    def _set_plane(self, plane: Any) -> None:
        if not isinstance(plane, list) or len(plane) != 2 or not set(plane) <= set(self.names):
            raise DataError(f"A plane is of two of the flows {', '.join(self.names)}.")
        self.plane = (plane[0], plane[1])
        for name, explorer in self.explorers.items():
            z = self.states[name].z
            self.states[name] = _State(z, self._window(explorer, z))

    def _states_of(self, image: Float[Tensor, "c h w"]) -> dict[str, _State]:
        states = {}
        for name, explorer in self.explorers.items():
            z = explorer.encode(image)
            states[name] = _State(z, self._window(explorer, z))
        return states

    def _window(self, explorer: Explorer, z: Tensor) -> Window:
        """Return the window of a model, of its own flows where it lacks the chosen ones."""
        first, second = (
            name if name in explorer.names else explorer.names[0] for name in self.plane
        )
        return explorer.window(z, first, second)

    # ---- answers

    def _view(self, name: str, weights: Mapping[str, float], t: float) -> dict[str, Any]:
        explorer, state = self.explorers[name], self.states[name]
        view = explorer.view(state.z, weights, t, state.window)
        return {
            "image": image_uri(view.image),
            "strip": image_uri(rearrange(view.strip, "n c h w -> c h (n w)")),
            "landscape": None if view.landscape is None else _landscape_uri(view.landscape),
            "path": _rounded(view.path),
            "now": _rounded(view.now),
            "outside": not 0 <= t <= explorer.model.horizon,
            "text": _describe(explorer, view, weights, t),
        }

    def _test(self, kind: Any, weights: Mapping[str, float], t: float) -> list[dict[str, Any]]:
        results = []
        for name, explorer in self.explorers.items():
            z, own = self.states[name].z, _of(explorer, weights)
            try:
                if kind == "there_and_back":
                    found = explorer.there_and_back(z, own, t)
                elif kind == "either_order":
                    found = explorer.either_order(z, own, t)
                else:
                    raise DataError("A test is there_and_back or either_order.")
            except ValueError as error:
                raise DataError(f"{error}.".capitalize()) from error
            results.append(
                {
                    "model": name,
                    "frames": [
                        {"image": image_uri(frame), "label": label}
                        for label, frame in zip(found.labels, found.frames, strict=True)
                    ],
                    "text": _describe_gap(kind, found),
                }
            )
        return results

    def _record(self, kind: Any, weights: Mapping[str, float], t: float) -> list[dict[str, Any]]:
        results = []
        for name, explorer in self.explorers.items():
            z, own = self.states[name].z, _of(explorer, weights)
            if kind == "gif":
                try:
                    content = explorer.animate(z, own, t).gif()
                except ValueError as error:
                    raise DataError(f"{error}.".capitalize()) from error
                text = f"data:image/gif;base64,{base64.b64encode(content).decode()}"
            elif kind == "python":
                text = explorer.snippet(name, z, own, t)
            else:
                raise DataError("A record is a gif or python.")
            results.append({"model": name, "content": text})
        return results


def union_of_names(explorers: Any) -> tuple[str, ...]:
    """Return the flows of some models, each once."""
    return tuple(dict.fromkeys(name for each in explorers for name in each.names))


def image_uri(image: Float[Tensor, "c h w"]) -> str:
    """Return an image as the URI of a PNG."""
    pixels = (255 * image.clamp(0, 1) + 0.5).byte().numpy()
    return _uri(pixels[0] if len(pixels) == 1 else rearrange(pixels, "c h w -> h w c"))


def _landscape_uri(value: Float[np.ndarray, "g g"]) -> str:
    return _uri(paint_landscape(value), "JPEG", quality=90)


def _uri(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _of(explorer: Explorer, weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the flows that a model has."""
    return {name: w for name, w in weights.items() if name in explorer.names}


def _rounded(points: np.ndarray) -> Any:
    return np.round(points.astype(float), 4).tolist()


def _number(value: Any, what: str, most: float) -> float:
    """Return a number of a request.

    Raises:
        DataError: it is none, or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{what} must be a number.")
    if abs(value) > most:
        raise DataError(f"{what} must be in -{most:g} to {most:g}; it is {value:g}.")
    return float(value)


def _describe(explorer: Explorer, view: View, weights: Mapping[str, float], t: float) -> str:
    text = f"t = {t:.1f}, {explorer.describe(weights)}. "
    if not 0 <= t <= explorer.model.horizon:
        text += f"No training has shown this time (it was 0 to {explorer.model.horizon}). "
    if view.landscape is None:
        return text + f"{100 * view.inside:.0f} % of the path lies in the plane."
    low, high = float(view.landscape.min()), float(view.landscape.max())
    return (
        f"{text}The potential is {low:.2f} (dark) to {high:.2f} (light); {100 * view.inside:.0f} % "
        f"of the path lies in the plane."
    )


def _describe_gap(kind: str, found: Discrepancy) -> str:
    what = (
        "Forwards and backwards again, the latent misses its start by"
        if kind == "there_and_back"
        else "In either order the latents end apart by"
    )
    return (
        f"{what} {100 * found.latent:.2g} % of the way; the images differ by {found.pixels:.1f} "
        f"(sum of absolute differences), where the flow changes {found.moved:.1f}."
    )
