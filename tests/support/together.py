"""Train a tiny model as one of the processes of torchrun, and write down what it has drawn.

Arguments: a folder, steps, sequences per process, and words: ``resume``; ``die`` kills the second
process in its fourth step.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from small_models import small
from toy_data import Tiny

from flowfactor.errors import FlowFactorError
from flowfactor.training import TrainingOptions, fit

DATA = Tiny(horizon=2)


def main(folder: Path, steps: int, batch_size: int, *words: str) -> None:
    rank, drawn = int(os.environ["RANK"]), []
    model = small("flow_vae", ("move", "brighten"), horizon=2)
    loss = model.loss

    def watched(batch):
        if model.training:
            drawn.append(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())
            if "die" in words and rank == 1 and len(drawn) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        return loss(batch)

    model.loss = watched
    options = TrainingOptions(
        steps=steps,
        warmup=2,
        batch_size=batch_size,
        log_every=1,
        validate_every=max(2, steps // 5),
        checkpoint_every=max(2, steps // 5),
        loggers=(),
        accelerator="cpu",
        precision="32-true",
        threads=1,
    )
    validation = [DATA.sample([0, 1]), DATA.sample([2, 3])]
    try:
        fit(model, DATA, validation, options, folder, resume="resume" in words)
    except FlowFactorError as error:
        sys.exit(f"rank {rank}: {error}")
    (folder / f"drawn_{rank}_{steps}.json").write_text(json.dumps(drawn))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
