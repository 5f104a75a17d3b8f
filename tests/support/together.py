"""Train a tiny model as one of the processes of torchrun, and write down what it has drawn.

Arguments: a folder, steps, sequences per process, and words: ``resume``; ``die`` kills the second
process in its fourth step; ``same`` lets all of them share the batch of one process, without noise.
"""

import dataclasses
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from small_models import small
from toy_data import Tiny

from flowfactor.data import SequenceLoader
from flowfactor.errors import FlowFactorError
from flowfactor.training import TrainingOptions, fit

DATA = Tiny(horizon=2)


class Shares:
    """Each process has a part of the batch that one process would have."""

    def __init__(self, batch_size: int) -> None:
        self.rank, self.count = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        self.whole = SequenceLoader(DATA, batch_size * self.count)

    def batch(self, step: int):
        batch = self.whole.batch(step)
        mine = slice(self.rank, None, self.count)
        parts = {name: getattr(batch, name)[mine] for name in ("frames", "times", "labels")}
        return dataclasses.replace(batch, **parts)


def main(folder: Path, steps: int, batch_size: int, *words: str) -> None:
    rank, drawn = int(os.environ["RANK"]), []
    # The flow equation is looked at at random times, which each process draws.
    still = {"objective": {"hamilton_jacobi": 0.0}} if "same" in words else {}
    model = small("flow_vae", ("move", "brighten"), horizon=2, **still)
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
    training = DATA
    if "same" in words:
        training, torch.randn_like = Shares(batch_size), torch.zeros_like
        torch.distributions.Normal.rsample = lambda self, *_: self.loc
    try:
        fit(model, training, validation, options, folder, resume="resume" in words)
    except FlowFactorError as error:
        sys.exit(f"rank {rank}: {error}")
    (folder / f"drawn_{rank}_{steps}.json").write_text(json.dumps(drawn))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
