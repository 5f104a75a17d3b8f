"""Models as files that run without this package: ONNX, or torch's own ``.pt2``."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import flowfactor
from flowfactor.checkpoints import write_file
from flowfactor.checks import check_type
from flowfactor.data.checks import check_choice
from flowfactor.errors import RunError
from flowfactor.extras import import_extra
from flowfactor.models import PotentialModel
from flowfactor.models.base import trusted_arguments
from flowfactor.names import one_line
from solvers import FixedMethod, Method

FACTS_FILE = "model.json"
Format = Literal["onnx", "torch"]
PARTS = ("encoder", "flow", "decoder")
_ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}


class Encoder(nn.Module):
    """``images (B, C, H, W)`` to the posterior's ``mean`` and ``scale``, ``(B, D)`` each."""

    inputs, outputs = ("images",), ("mean", "scale")

    def __init__(self, model: PotentialModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation."""
        posterior = self.model.encode(images)
        return posterior.mean, posterior.stddev


class Flow(nn.Module):
    """``latents (B, D)`` at time ``start`` to ``moved`` at time ``end``, by fixed steps.

    They follow ``sum_k weights[b, k] v^k``, ``weights (B, K)``: one of the transformations, several
    at once, or backwards. The steps are those of :meth:`PotentialModel.flow`: equally many for each
    frame, whole or begun, in either direction.

    Args:
        model: whose flows.
        method: the solver.
    """

    inputs, outputs = ("latents", "weights", "start", "end"), ("moved",)

    def __init__(self, model: PotentialModel, method: FixedMethod) -> None:
        super().__init__()
        self.fields = model.potentials
        self.tableau = method.tableau
        assert isinstance(method.steps, int)
        self.steps = method.steps

    def forward(self, latents: Tensor, weights: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Return where the latents are at ``end``."""
        from torch._higher_order_ops import while_loop

        count = ((end - start).abs() - 1e-6).ceil().clamp(min=1) * self.steps
        h = (end - start) / count

        def goes_on(i: Tensor, z: Tensor, *rest: Tensor) -> Tensor:
            return i < rest[-1]

        def step(
            i: Tensor, z: Tensor, weights: Tensor, start: Tensor, h: Tensor, count: Tensor
        ) -> tuple[Tensor, ...]:
            t = start + i * h
            slopes: list[Tensor] = []
            for c, row in zip(self.tableau.c, self.tableau.a, strict=True):
                moved = z
                for a, slope in zip(row, slopes, strict=True):
                    moved = moved + (a * h) * slope
                every = self.fields.velocities(moved, t + c * h)
                slopes.append((weights.unsqueeze(-1) * every).sum(1))
            for b, slope in zip(self.tableau.b, slopes, strict=True):
                z = z + (b * h) * slope
            # What a loop carries may not be what it was given.
            return i + 1, z, *(each.clone() for each in (weights, start, h, count))

        moved: Tensor = while_loop(
            goes_on, step, (torch.zeros_like(h), latents, weights, start, h, count)
        )[1]
        return moved


class Decoder(nn.Module):
    """``latents (B, D)`` to ``images (B, C, H, W)``, pixels in [0, 1]."""

    inputs, outputs = ("latents",), ("images",)

    def __init__(self, model: PotentialModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        """Return the mean of every pixel."""
        return self.model.decode(latents)


def export(
    model: PotentialModel,
    folder: str | os.PathLike[str],
    format: Format = "onnx",
    *,
    method: Method | None = None,
    parts: Collection[str] = PARTS,
) -> list[Path]:
    """Write encoder, flow and decoder of a model into files that run without this package.

    ``encoder`` maps ``images`` to ``mean`` and ``scale``; ``flow`` maps ``latents``, ``weights``
    (one for each transformation), ``start`` and ``end`` (times in frames) to ``moved``; ``decoder``
    maps ``latents`` to ``images``. Batches may have any size. ``model.json`` has the names of the
    transformations, sizes and the solver.

    Args:
        model: with potentials or other fields that move its latents.
        folder: where to.
        format: ``onnx``, for ONNX Runtime and others, or ``torch``, for ``torch.export.load``.
        method: a fixed-step solver; the model's own by default.
        parts: which of ``encoder``, ``flow`` and ``decoder``.

    Returns:
        The files.

    Raises:
        RunError: the model has no fields in closed form, the solver has no fixed steps, or a file
            cannot be written.
        MissingExtraError: ONNX needs the extra ``export``.
    """
    check_type("model", model, PotentialModel, "a model with potentials")
    check_choice("format", format, tuple(_ENDINGS))
    if format == "onnx":
        import_extra("onnxscript", "export")
    method = method or model.method
    if not isinstance(method, FixedMethod) or not isinstance(method.steps, int):
        raise RunError(
            f"An exported flow needs a solver of fixed steps, such as RK4(steps=4); it is {method}."
        )
    like = next(model.parameters())
    z = torch.zeros(2, model.latent_dim, dtype=like.dtype, device=like.device)
    images = z.new_zeros(2, *model.image_shape)
    numbers = z.new_zeros(()), z.new_ones(())
    every: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
        "encoder": (Encoder(model), (images,)),
        "flow": (Flow(model, method), (z, z.new_zeros(2, len(model.names)), *numbers)),
        "decoder": (Decoder(model), (z,)),
    }
    was_training, files = model.training, []
    model.eval()
    try:
        for name in parts:
            check_choice("parts", name, PARTS)
            part, inputs = every[name]
            path = Path(folder) / f"{name}{_ENDINGS[format]}"
            files.append(write_file(path, _exported(part, inputs, format)))
    finally:
        model.train(was_training)
    facts = {
        "names": list(model.names),
        "image_shape": list(model.image_shape),
        "latent_dim": model.latent_dim,
        "horizon": model.horizon,
        "solver": {"name": type(method).__name__, "steps per frame": method.steps},
        "flowfactor": flowfactor.__version__,
    }
    return [*files, write_file(Path(folder) / FACTS_FILE, json.dumps(facts, indent=2) + "\n")]


def _exported(part: Any, inputs: tuple[Tensor, ...], format: Format) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} if each.ndim else {} for each in inputs)
    try:
        with torch.no_grad(), trusted_arguments(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(part.eval(), inputs, dynamic_shapes=shapes)
            if format == "torch":
                buffer = io.BytesIO()
                torch.export.save(program, buffer)
                return buffer.getvalue()
            return _to_onnx(program, part)
    except Exception as error:  # whatever stands in the way of a trace
        raise RunError(
            f"The {type(part).__name__.lower()} cannot be exported: it does what a graph cannot "
            f"say ({type(error).__name__}: {one_line(str(error), 200)})."
        ) from error


def _to_onnx(program: Any, part: Any) -> bytes:
    names: dict[str, Any] = {
        "input_names": list(part.inputs),
        "output_names": list(part.outputs),
    }
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
    assert made is not None
    content: bytes = made.model_proto.SerializeToString()
    return content
