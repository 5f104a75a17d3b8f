"""A model that is steered by hand: how much of each flow, for how long, and from where."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowfactor.diagnostics.animation import Animation, draw_animation
from flowfactor.diagnostics.plane import Plane
from flowfactor.diagnostics.sampling import decode_latents, encode_images, evaluating
from flowfactor.diagnostics.style import SEQUENTIAL
from flowfactor.errors import DataError
from flowfactor.models.base import PotentialModel, SequenceModel
from flowfactor.names import one_line

# Kinds of pictures that are read, and how many pixels one may have.
_KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
_MOST_PIXELS = 50_000_000

# Pictures of a film strip, at most; points along each side of a landscape that are computed.
_STRIP = 9
_GRID = 19

# Room around the paths in a window, as a share of their extent.
_MARGIN = 0.25

_COLOURS = (255 * SEQUENTIAL(np.linspace(0, 1, 256))[:, :3]).round().astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """A square part of a plane in latent space.

    Attributes:
        plane: the plane.
        corner: coordinates of the lower left corner in the plane.
        side: its length in latent units.
    """

    plane: Plane
    corner: tuple[float, float]
    side: float

    @classmethod
    def around(cls, plane: Plane, z: Float[Tensor, "*n d"], margin: float = _MARGIN) -> Window:
        """Return the window around the projections of latents, with a margin on each side."""
        points = plane.project(z).reshape(-1, 2)
        low, high = points.amin(0), points.amax(0)
        side = float((high - low).max().clamp_min(1e-6)) * (1 + 2 * margin)
        x, y = ((low + high) / 2 - side / 2).tolist()
        return cls(plane, (x, y), side)

    def locate(self, z: Float[Tensor, "*n d"]) -> Float[np.ndarray, "*n 2"]:
        """Return where latents are, from the upper left corner, (0, 0), to the lower right, (1, 1).

        Example:
            >>> import torch
            >>> window = Window(Plane(torch.zeros(3), torch.eye(3)[:2]), (-1.0, -1.0), 4.0)
            >>> window.locate(torch.tensor([-1.0, 3.0, 7.0])).tolist()
            [0.0, 0.0]
            >>> window.lift(0.0, 1.0)
            tensor([[-1., -1.,  0.]])
        """
        coordinates = self.plane.project(z).cpu()
        right, up = ((coordinates - torch.tensor(self.corner)) / self.side).unbind(-1)
        return np.asarray(torch.stack([right, 1 - up], dim=-1))

    def lift(self, x: float, y: float) -> Float[Tensor, "1 d"]:
        """Return the latent of the plane at a place, as :meth:`locate` counts."""
        a, b = self.corner
        point = torch.tensor([[a + self.side * x, b + self.side * (1 - y)]])
        return self.plane.lift(point.to(self.plane.origin))

    def grid(self, count: int) -> Float[Tensor, "n d"]:
        """Return the latents at the centres of ``count`` times ``count`` cells, row by row.

        The outermost cells lie around the window.
        """
        steps = (torch.arange(count) - 0.5) / (count - 2)
        y, x = torch.meshgrid(1 - steps, steps, indexing="ij")
        points = torch.tensor(self.corner) + self.side * torch.stack([x, y], dim=-1)
        return self.plane.lift(points.reshape(-1, 2).to(self.plane.origin))


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """What there is to see of a latent that flows.

    Attributes:
        image: decoded at the chosen time, ``(C, H, W)``.
        strip: decoded at ``strip_times``, ``(N, C, H, W)``.
        path: where the latents of the strip are in the window, ``(N, 2)``.
        now: where the latent of the image is, ``(2,)``.
        inside: the share of the way from ``z_0`` that lies in the plane, 0 to 1; 1 if nothing
            moves.
        landscape: the potential at the chosen time, ``(G, G)``, as :meth:`Window.grid` counts;
            None where there is none.
    """

    image: Float[Tensor, "c h w"]
    strip: Float[Tensor, "n c h w"]
    path: Float[np.ndarray, "n 2"]
    now: Float[np.ndarray, "2"]
    inside: float
    landscape: Float[np.ndarray, "g g"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Discrepancy:
    """How far apart two latents are that ought to be one.

    Attributes:
        labels: of the frames.
        frames: decoded, ``(N, C, H, W)``.
        latent: their distance over that from ``z_0`` to where the flows end (the mean of both
            ends where there are two); 0 if nothing moves.
        pixels: the sum of the absolute differences of the two decoded images.
        moved: the same between the decoded images before and after the flow, to compare with.
    """

    labels: tuple[str, ...]
    frames: Float[Tensor, "n c h w"]
    latent: float
    pixels: float
    moved: float


class Explorer:
    r"""A model whose flows are mixed by hand.

    .. math::

        \frac{dz}{dt} = \sum_k w_k \nabla u^k(z, t)

    for a model of potentials; a model that moves its latents otherwise adds up the displacements
    of its transformations, ``z_t = z_0 + sum_k w_k (flow(z_0, k, t) - z_0)``. Weights are any real
    numbers, by the names of the flows; flows that are not named rest.

    Args:
        model: any sequence model; it is put into evaluation mode.

    Attributes:
        model: as given.
        strip_times: of the frames of a film strip, ``(N,)``, from 0 to the horizon.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> explorer = Explorer(flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8))
        >>> z = explorer.encode(torch.rand(3, 28, 28))
        >>> window = explorer.window(z, "rotation", "hue")
        >>> view = explorer.view(z, {"rotation": 1.0, "hue": -0.5}, 2.5, window)
        >>> view.image.shape, view.strip.shape, view.landscape.shape
        (torch.Size([3, 28, 28]), torch.Size([9, 3, 28, 28]), (19, 19))
    """

    def __init__(self, model: SequenceModel) -> None:
        self.model = model.eval()
        count = min(_STRIP, model.horizon + 1)
        self.strip_times = torch.linspace(0, model.horizon, count).round()
        # What a slider of time does not change, and what weights do not change.
        self._last: tuple[Any, Tensor, Tensor] | None = None
        self._potential = functools.lru_cache(512)(self._evaluate_potential)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the flows."""
        return self.model.names

    def encode(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "1 d"]:
        """Return the latent that stands for an image.

        Raises:
            ValueError: an image of another shape than the model's.
        """
        with evaluating(self.model):
            return encode_images(self.model, image[None])

    def decode(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n c h w"]:
        """Return the images of latents, pixels in [0, 1]."""
        with evaluating(self.model):
            return decode_latents(self.model, z).clamp(0, 1)

    def draw(self, count: int, seed: int = 0) -> Float[Tensor, "n c h w"]:
        """Return images of latents from a standard normal distribution."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.model.latent_dim, generator=generator)
        return self.decode(z.to(next(self.model.parameters())))

    def flow(
        self,
        z: Float[Tensor, "b d"],
        weights: Mapping[str, float],
        times: Sequence[float] | Float[Tensor, "t"],
    ) -> Float[Tensor, "t b d"]:
        """Return where latents are at each time, ``(T, B, D)``, that are ``z`` at the first one.

        Raises:
            KeyError: no such flow.
        """
        chosen, model = self._moving(weights), self.model
        with evaluating(model):
            if chosen and isinstance(model, PotentialModel) and len(times) > 1:
                return model.flow(z, self._vector(z, chosen), times)
            path = z.expand(len(times), *z.shape).clone()
            for name, w in chosen.items():
                path += w * (model.flow(z, name, times) - z)
            return path

    def at(
        self, z: Float[Tensor, "1 d"], weights: Mapping[str, float], t: float
    ) -> Float[Tensor, "1 d"]:
        """Return the latent at a time, that is ``z`` at time 0.

        It flows from frame to frame, and from the last whole frame of the training to the time.

        Raises:
            KeyError: no such flow.
        """
        chosen = self._moving(weights)
        path, _ = self._strip(z, chosen)
        frame = self._frame_before(t)
        return self.flow(path[frame], chosen, [float(frame), float(t)][: 1 + (t != frame)])[-1]

    def window(self, z: Float[Tensor, "1 d"], first: str, second: str) -> Window:
        """Return the window on a plane through the paths of two flows from a latent.

        The axes are the ways that the two flows move it over the horizon, the second one made
        orthogonal to the first; of one flow, or of parallel ways, the principal components of the
        first one's path. The window has room for every flow, forwards and backwards.

        Raises:
            KeyError: no such flow.
        """
        horizon = self.model.horizon
        times = [float(t) for t in range(horizon + 1)]
        path = self.flow(z, {first: 1.0}, times)
        other = self.flow(z, {second: 1.0}, times)
        try:
            ways = path[-1, 0] - z[0], other[-1, 0] - z[0]
            plane = Plane.spanned_by(*ways, z[0])
        except ValueError:  # parallel, or nothing moves
            plane = Plane.through(torch.cat([path, z[None]]))
            plane = dataclasses.replace(plane, origin=z[0])
        ends = [self.flow(z, {name: w}, times) for name in (first, second) for w in (1.0, -1.0)]
        return Window.around(plane, torch.cat(ends))

    def view(
        self, z: Float[Tensor, "1 d"], weights: Mapping[str, float], t: float, window: Window
    ) -> View:
        """Return the image at a time, the film strip, and both in a window.

        Args:
            z: the latent at time 0.
            weights: of the flows.
            t: the time of the image, in frames, negative ones too.
            window: where the path and the potential are shown.

        Raises:
            KeyError: no such flow.
        """
        chosen = self._moving(weights)
        at = self.at(z, chosen, t)
        path, strip = self._strip(z, chosen)
        furthest = torch.cat([path[:, 0], at]) - z
        total = furthest.square().sum()
        kept = (furthest @ window.plane.axes.T).square().sum()
        return View(
            image=self.decode(at)[0],
            strip=strip,
            path=window.locate(path[:, 0]),
            now=window.locate(at[0]),
            inside=float(kept / total) if bool(total > 0) else 1.0,
            landscape=self._landscape(window, chosen, float(t)),
        )

    def there_and_back(
        self, z: Float[Tensor, "1 d"], weights: Mapping[str, float], t: float
    ) -> Discrepancy:
        """Run the flow to a time and backwards to 0, where the latent ought to be as before.

        Raises:
            KeyError: no such flow.
        """
        chosen = self._moving(weights)
        there = self.flow(z, chosen, [0.0, float(t)][: 1 + (t != 0)])[-1]
        back = self.flow(there, chosen, [float(t), 0.0][: 1 + (t != 0)])[-1]
        frames = self.decode(torch.cat([z, there, back]))
        labels = ("start", f"there, t = {t:g}", "and back")
        return _discrepancy(labels, frames, (z, back), (there - z).norm(), frames[[0, 2, 1, 0]])

    def either_order(
        self, z: Float[Tensor, "1 d"], weights: Mapping[str, float], t: float
    ) -> Discrepancy:
        """Run the flows one after the other, then in the reverse order, and all at once.

        Each runs for the time t with its weight, and its clock begins at 0.

        Raises:
            KeyError: no such flow.
            ValueError: fewer than two flows have a weight.
        """
        chosen = self._moving(weights)
        if len(chosen) < 2:
            raise ValueError("an order needs two flows with a weight other than 0")

        ends = [0.0, float(t)][: 1 + (t != 0)]

        def run(names: Sequence[str]) -> Tensor:
            at = z
            for name in names:
                at = self.flow(at, {name: chosen[name]}, ends)[-1]
            return at

        names = list(chosen)
        one, other, together = run(names), run(names[::-1]), self.flow(z, chosen, ends)[-1]
        frames = self.decode(torch.cat([z, one, other, together]))
        way = ((one - z).norm() + (other - z).norm()) / 2
        labels = ("start", ", then ".join(names), ", then ".join(names[::-1]), "at once")
        return _discrepancy(labels, frames, (one, other), way, frames[[1, 2, 1, 0]])

    def animate(self, z: Float[Tensor, "1 d"], weights: Mapping[str, float], t: float) -> Animation:
        """Animate the path to a time and back.

        Raises:
            KeyError: no such flow.
            ValueError: the time is 0.
        """
        if t == 0:
            raise ValueError("the path has no length: the time is 0")
        times = torch.linspace(0, t, 25).to(z)
        frames = self.decode(self.flow(z, weights, times))
        label = self.describe(weights)
        return draw_animation(frames[:, None], (label,), times.tolist(), side=168)

    def describe(self, weights: Mapping[str, float]) -> str:
        """Return which flows move, and how strongly, in words.

        Example:
            >>> import flowfactor
            >>> explorer = Explorer(flowfactor.FlowVAE.build(("x", "hue"), latent_dim=4))
            >>> explorer.describe({"x": 1.0, "hue": -0.5}), explorer.describe({})
            ('x - 0.5 hue', 'nothing moves')
        """
        text = ""
        for name, w in self._moving(weights).items():
            sign = ("- " if w < 0 else "+ ") if text else ("-" if w < 0 else "")
            size = "" if abs(w) == 1 else f"{abs(w):g} "
            text += f" {sign}{size}{name}" if text else f"{sign}{size}{name}"
        return text or "nothing moves"

    def snippet(
        self, run: str, z: Float[Tensor, "1 d"], weights: Mapping[str, float], t: float
    ) -> str:
        """Return Python that decodes the same image and the same film strip.

        Args:
            run: what :func:`flowfactor.load` opens.
            z: the latent at time 0.
            weights: of the flows.
            t: the time of the image.

        Raises:
            KeyError: no such flow.
        """
        chosen = self._moving(weights)
        dtype = "" if z.dtype == torch.float32 else f", dtype={z.dtype}"
        lines = [
            f"# {one_line(self.describe(chosen), 80)}, as `flowfactor explore` showed it.",
            "",
            "import torch",
            "",
            "import flowfactor",
            "",
            f"model = flowfactor.load({run!r})",
            f"z = torch.tensor({z.cpu().tolist()!r}{dtype})",
            f"frames = torch.arange({self.model.horizon + 1}, dtype=z.dtype)",
        ]
        frame = self._frame_before(t)
        if chosen and isinstance(self.model, PotentialModel):
            weights_of = [chosen.get(name, 0.0) for name in self.names]
            names = one_line(", ".join(self.names), 60)
            lines.append(f"weights = torch.tensor([{weights_of!r}], dtype=z.dtype)  # {names}")

        def moved(start: str, times: str, still: str) -> str:
            if chosen and isinstance(self.model, PotentialModel):
                return f"model.flow({start}, weights, {times})"
            terms = (
                f"{w!r} * (model.flow({start}, {name!r}, {times}) - {start})"
                for name, w in chosen.items()
            )
            return " + ".join([still, *terms])

        lines += [
            "with torch.no_grad():",
            f"    path = {moved('z', 'frames', 'z.expand(len(frames), *z.shape)')}",
            f"    film = model.decode(path[{self.strip_times.int().tolist()}, 0])",
            f"    z_t = path[{frame}]",
            *(
                [f"    z_t = ({moved('z_t', f'[{frame:.1f}, {float(t)!r}]', 'z_t[None]')})[-1]"]
                if t != frame
                else []
            ),
            "    image = model.decode(z_t)[0]  # pixels in [0, 1], as those of the film",
        ]
        return "\n".join(lines) + "\n"

    # ---- what the methods share

    def _moving(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weights that are not 0, in the order of the model's flows."""
        if unknown := [name for name in weights if name not in self.names]:
            raise KeyError(f"there is no flow {unknown[0]!r}; there are {', '.join(self.names)}")
        return {name: float(weights[name]) for name in self.names if weights.get(name)}

    def _vector(self, z: Tensor, chosen: Mapping[str, float]) -> Float[Tensor, "b k"]:
        """Return all weights in the order of the flows, with which the model mixes them at once."""
        weights = z.new_tensor([chosen.get(name, 0.0) for name in self.names])
        return weights.expand(len(z), -1)

    def _frame_before(self, t: float) -> int:
        """Return the last frame of the training that is not after a time, or the first one."""
        return min(max(math.floor(t), 0), self.model.horizon)

    def _strip(self, z: Tensor, chosen: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return the path at every frame and the images of the strip, those of before if equal."""
        key = (z.numpy(force=True).tobytes(), tuple(chosen.items()))
        last = self._last
        if last is None or last[0] != key:
            path = self.flow(z, chosen, [float(t) for t in range(self.model.horizon + 1)])
            shown = self.strip_times.long().to(path.device)
            self._last = last = (key, path, self.decode(path[shown, 0]))
        return last[1], last[2]

    def _landscape(
        self, window: Window, chosen: Mapping[str, float], t: float
    ) -> Float[np.ndarray, "g g"] | None:
        if not isinstance(self.model, PotentialModel) or not chosen:
            return None
        # Linear in the weights: each potential is evaluated once for a plane and a time.
        at = 0.0 if getattr(self.model.potentials, "autonomous", False) else t
        values = [w * self._potential(window, name, at) for name, w in chosen.items()]
        return np.asarray(np.sum(values, axis=0))

    def _evaluate_potential(self, window: Window, name: str, t: float) -> np.ndarray:
        assert isinstance(self.model, PotentialModel)
        potential = self.model.potentials[name].gradient_part
        with evaluating(self.model):
            (value,) = potential.evaluate(window.grid(_GRID), t, ("value",))
        return np.asarray(rearrange(value, "(y x) -> y x", x=_GRID).float().cpu())


def _discrepancy(
    labels: tuple[str, ...],
    frames: Float[Tensor, "n c h w"],
    ends: tuple[Tensor, Tensor],
    way: Tensor,
    compared: Float[Tensor, "4 c h w"],
) -> Discrepancy:
    """Compare two ends with the way that the latent went, and two pairs of images."""
    gap, length = float((ends[0] - ends[1]).norm()), float(way)
    one, other, after, before = compared.cpu().double()
    return Discrepancy(
        labels,
        frames,
        gap / length if length > 0 else 0.0,
        float((one - other).abs().sum()),
        float((after - before).abs().sum()),
    )


def paint_landscape(
    value: Float[np.ndarray, "g g"], size: int = 224, levels: int = 14
) -> UInt8[np.ndarray, "size size 3"]:
    """Paint values as colours with level lines, interpolated to a larger square.

    Much faster than a figure of matplotlib: it is painted anew whenever a slider moves.

    Args:
        value: at the centres of cells, of which the outermost are not painted.
        size: pixels along each side.
        levels: steps between lines from the smallest to the largest value.

    Example:
        >>> import numpy as np
        >>> paint_landscape(np.arange(25.0).reshape(5, 5), 12).shape
        (12, 12, 3)
    """
    coarse = Image.fromarray(np.asarray(value, np.float32))
    inner = (1, 1, len(value) - 1, len(value) - 1)
    field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, inner))
    low, high = float(field.min()), float(field.max())
    scaled = (field - low) / max(high - low, 1e-12)
    pixels = _COLOURS[(255 * scaled).astype(np.uint8)]
    band = (levels * scaled).astype(np.int16)
    line = np.zeros(band.shape, bool)
    line[1:] |= band[1:] != band[:-1]
    line[:, 1:] |= band[:, 1:] != band[:, :-1]
    pixels[line] += ((255 - pixels[line]) * 0.45).astype(np.uint8)
    return pixels


def read_picture(content: bytes, shape: tuple[int, int, int]) -> tuple[Float[Tensor, "c h w"], str]:
    """Return a picture of any size as an image of a model, and what was done to it.

    The middle of the picture is cut out in the proportions of the image, and scaled.

    Args:
        content: of a PNG, JPEG, GIF, WebP, BMP or TIFF file.
        shape: ``(C, H, W)`` of the image.

    Returns:
        The image, pixels in [0, 1], and a sentence; it is empty if nothing was done.

    Raises:
        DataError: it is no picture, a damaged one, or one that is too large.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (40, 20), 255).save(file, "PNG")
        >>> image, done = read_picture(file.getvalue(), (1, 8, 8))
        >>> image.shape, done
        (torch.Size([1, 8, 8]), 'The picture was cut from 40 x 20 to 20 x 20 and scaled to 8 x 8.')
    """
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(content), formats=_KINDS) as file:
            if file.width * file.height > _MOST_PIXELS:
                raise DataError(
                    f"The picture has {file.width} x {file.height} pixels; at most "
                    f"{_MOST_PIXELS // 1_000_000} million are read. Make it smaller."
                )
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits
                picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
            if "A" in picture.getbands() or "transparency" in picture.info:
                ground = Image.new("RGBA", picture.size, "black")
                picture = Image.alpha_composite(ground, picture.convert("RGBA"))
            picture = picture.convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise DataError(
            f"This file is no picture that can be read; {', '.join(_KINDS)} files are."
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError("This picture is damaged or too large and cannot be read.") from error
    if channels not in (1, 3):
        raise DataError(f"The model's images have {channels} channels; a picture has 1 or 3.")
    done = []
    scale = min(picture.width / width, picture.height / height)
    cut = max(1, round(scale * width)), max(1, round(scale * height))
    if cut != picture.size:
        done.append(f"cut from {picture.width} x {picture.height} to {cut[0]} x {cut[1]}")
    if cut != (width, height):
        done.append(f"scaled to {width} x {height}")
    # Cut before it is scaled, so that nothing from beside the cut gets in.
    fitted = ImageOps.fit(picture, cut).resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.array(fitted, dtype=np.float32).reshape(height, width, channels) / 255
    sentence = f"The picture was {' and '.join(done)}." if done else ""
    return rearrange(torch.from_numpy(pixels), "h w c -> c h w"), sentence
