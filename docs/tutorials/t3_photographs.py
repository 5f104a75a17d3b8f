"""
Your own photographs
====================

A folder of photographs is enough for a data set of transformations: windows are cut out of them
that pan, zoom, turn and change colour. How a model learns their flows, and how to tell whether it
did.
"""

# %%
# A folder
# --------
#
# Replace the folder by one of yours. Here it is filled with ten free photographs that come with
# scikit-image, scikit-learn and matplotlib; pictures may have any sizes.

import shutil
import tempfile
from pathlib import Path

import torch

import flowfactor
from flowfactor.data import PhotosOptions, free_photographs
from flowfactor.diagnostics import plot_film_strips
from flowfactor.evaluation import EvaluationOptions, evaluate

STEPS = 1000
folder = Path(tempfile.mkdtemp())
for file in free_photographs():
    shutil.copy(file, folder)

# %%
# Sequences
# ---------
#
# The split is by photograph: nothing of a picture for testing is seen in training. All sequences
# are exact, resampled from the photograph itself, so that the truth is known for compositions and
# for later frames too.

source = PhotosOptions(path=folder, size=32, initial_state="random")
train, validation, test = (source.load(s, 0) for s in ("train", "validation", "test"))
print(train.names, train.image_shape)

# %%
# Training
# --------
#
# A photograph has more detail than a code of fifty numbers holds. The ``canvas`` networks code it
# square by square, and move and colour it as a whole. Any frame is encoded and leads to any other,
# forwards or backwards. A minute of training shows the way; ``flowfactor run photos`` is the
# real one.

torch.manual_seed(0)
model = flowfactor.FlowVAE.build(
    train.names,
    train.image_shape,
    latent_dim=4 * 4 * 32 + 16,
    width=16,
    autonomous=True,
    observation="gaussian_learned",
    encoder={"kind": "canvas", "code": 32},
    decoder={"kind": "canvas", "code": 32},
    interval_steps=4,
    objective={"hamilton_jacobi": 0.0},
)
training = flowfactor.TrainingOptions(
    steps=STEPS,
    batch_size=32,
    encoded_frame="random",
    frames_per_sequence=1,
    learning_rate=3e-3,
    validation_sequences=32,
)
with tempfile.TemporaryDirectory() as run:
    flowfactor.fit(model, train, validation, training, run)
    model = flowfactor.load(run)

# %%
# Look
# ----
#
# Each strip has the truth, the flow, and a row without motion.

films = test.sample([0, 1, 2], torch.tensor([0, 3, 4]))
figure = plot_film_strips(model, films, identity=True)

# %%
# And measure
# -----------
#
# A blurry model flatters itself if it is compared with its own blur, so that the error of the first
# frame as it is, the *pixel copy*, stands beside that of a latent that does not move.

options = EvaluationOptions(images=60, metrics={"log_likelihood": False})
print(evaluate(model, test, options).tables()["errors"].to_markdown())
