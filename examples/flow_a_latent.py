"""Move latents along the flow of a transformation, there and back, with their density.

The model is untrained, so the pictures mean nothing; everything else works as after training.
"""

import torch

from flowfactor import FlowVAE


def main() -> None:
    """Encode images, move their latents, decode them."""
    torch.manual_seed(0)
    model = FlowVAE.build(("rotation", "hue"), image_shape=(3, 28, 28), latent_dim=16).eval()
    images = torch.rand(4, 3, 28, 28)
    with torch.no_grad():
        z0 = model.represent(images)
        path = model.trace(z0, "rotation", torch.arange(9.0), log_density=True)
        frames = model.decode(path.z[-1])
        back = model.flow(path.z[-1], "rotation", [8.0, 0.0])[-1]
        log_q0 = model.encode(images).log_prob(z0)
    print("frames after eight units of time:", tuple(frames.shape))
    print("distance travelled:", (path.z[-1] - z0).norm(dim=1).mean().item())
    print("distance after flowing back:", (back - z0).norm(dim=1).mean().item())
    print("log-density before and after:", log_q0.tolist(), (log_q0 - path.log_det[-1]).tolist())


if __name__ == "__main__":
    main()
