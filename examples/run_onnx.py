"""Run an exported model without flowfactor and torch: only NumPy and ONNX Runtime.

First ``flowfactor export mnist --out exported``, then ``python examples/run_onnx.py exported``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(folder: Path) -> np.ndarray:
    """Encode an image, move it along each flow, there and back, and decode the frames."""
    facts = json.loads((folder / "model.json").read_text())
    encoder, flow, decoder = (
        onnxruntime.InferenceSession(folder / f"{part}.onnx", providers=["CPUExecutionProvider"])
        for part in ("encoder", "flow", "decoder")
    )
    image = np.zeros((1, *facts["image_shape"]), np.float32)
    image[:, :, 6:22, 13:16] = 1.0  # a stroke, for instance of the digit one
    latent = encoder.run(["mean"], {"images": image})[0]

    def move(z: np.ndarray, weights: np.ndarray, start: float, end: float) -> np.ndarray:
        times = {"start": np.array(start, np.float32), "end": np.array(end, np.float32)}
        return flow.run(["moved"], {"latents": z, "weights": weights, **times})[0]

    films, each = [], np.eye(len(facts["names"]), dtype=np.float32)
    for name, weights in zip(facts["names"], each, strict=True):
        path = [move(latent, weights[None], 0.0, float(t)) for t in range(facts["horizon"] + 1)]
        back = move(path[-1], weights[None], float(facts["horizon"]), 0.0)
        films.append(decoder.run(["images"], {"latents": np.concatenate(path)})[0])
        print(f"{name}: there and back misses by {np.abs(back - latent).max():.1e}")
    np.save(folder / "films.npy", np.stack(films))  # (K, T + 1, C, H, W)
    return np.stack(films)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
