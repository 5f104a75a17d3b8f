"""Wrong arguments from Python: an exception of ours that names the argument, for every function."""

import dataclasses
import inspect
import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import HORIZON, NAMES, SHAPE, choose_frames, films, small
from torch import nn

import flowfactor
from flowfactor import AutogradField, diagnostics, pretrained
from flowfactor.data import Recordings, SequenceBatch, SequenceDataset, TransformedImages
from flowfactor.data.mnist import MNISTOptions
from flowfactor.diagnostics.explorer import read_picture
from flowfactor.diagnostics.sampling import to_pixels
from flowfactor.errors import ConfigError, DataError
from flowfactor.evaluation import evaluate
from flowfactor.matching import match_activity
from flowfactor.metrics import (
    CodeTable,
    classify_pairs,
    commutation_error,
    dci,
    encode_dataset,
    equivariance_error,
    factor_vae_score,
    frame_errors,
    infer_labels,
    log_likelihood,
    match_flows,
    mean_error,
    mig,
    path_measures,
    reversal_error,
    sap,
    solver_independence,
    superposition_error,
    switching_error,
    variation_predictability,
)
from flowfactor.metrics.intervals import proportion_interval
from flowfactor.models import FlowVAE, Objective
from flowfactor.models.base import trusted_arguments
from flowfactor.options import parse
from flowfactor.potentials import IndependentFields
from flowfactor.potentials.base import LinearCombination
from flowfactor.registries import MODELS
from flowfactor.training import TrainingOptions, fit
from solvers import Euler

pytestmark = pytest.mark.wrong_types
D = 4
X = torch.rand(2, *SHAPE)
Z = torch.zeros(2, D)
NAN = float("nan")

BAD_IMAGES = {
    "array": X.numpy(),
    "list": X.tolist(),
    "uint8": (X * 255).byte(),
    "float64": X.double(),
    "no batch": X[0],
    "channels": torch.rand(2, 3, 8, 8),
    "empty": X[:0],
    "not finite": torch.where(X > 0.5, NAN, X),
    "to 255": X * 255,
    "negative": X - 2,
    "meta": X.to("meta"),
    "none": None,
}
BAD_LATENTS = {
    "array": Z.numpy(),
    "list": Z.tolist(),
    "integers": Z.long(),
    "float64": Z.double(),
    "no batch": Z[0],
    "dimension": torch.zeros(2, D + 1),
    "empty": Z[:0],
    "not finite": Z + float("inf"),
    "meta": Z.to("meta"),
    "none": None,
}
BAD_TIMES = {
    "text": "1",
    "none": None,
    "not finite": NAN,
    "not sorted": [0.0, 2.0, 1.0],
    "twice": [0.0, 0.0],
    "empty": [],
    "matrix": torch.zeros(2, 2),
}
BAD_FLOWS = {
    "name": "lfet",
    "index": 2,
    "list": [0, 1],
    "number": 1.5,
    "function": lambda z, t: z.sum(-1),
    "per sample": torch.tensor([0, 2]),
    "count": torch.tensor([0, 1, 0]),
    "weights": torch.rand(2, 3),
    "bad weights": torch.full((2, 2), NAN),
}
MESSAGES = (TypeError, ValueError, KeyError, IndexError, DataError)


def refuses(call, word):
    """Check that a call raises one of our exceptions, which names an argument."""
    with pytest.raises(MESSAGES, match=rf"\b{word}\b") as caught:
        call()
    text = str(caught.value)
    assert "mat1" not in text
    assert "object has no attribute" not in text
    assert len(text) < 400


@pytest.fixture(scope="module")
def models():
    return {kind: small(kind).eval() for kind in MODELS}


@pytest.mark.parametrize("bad", BAD_IMAGES)
def test_images(models, bad):
    for model in models.values():
        refuses(lambda m=model: m.encode(BAD_IMAGES[bad]), "x")
        refuses(lambda m=model: m.represent(x=BAD_IMAGES[bad]), "x")


@pytest.mark.parametrize("bad", BAD_LATENTS)
def test_latents(models, bad):
    z = BAD_LATENTS[bad]
    if isinstance(z, torch.Tensor) and z.shape[-1:] == (D,):
        model = models["flow_vae"]
        refuses(lambda: flowfactor.flow(z, model.potentials["left"], 1.0), "z")
        refuses(lambda: flowfactor.trace(z, model.potentials["left"], 1.0), "z")
        refuses(lambda: model.trace(z, "left", 1.0), "z")
    for kind in ("flow_vae", "poflow", "vae"):
        model = models[kind]
        for call in (model.decode, model.decode_logits, lambda z, m=model: m.flow(z, "left", 1.0)):
            refuses(lambda c=call: c(z), "z")


@pytest.mark.parametrize("bad", BAD_TIMES)
def test_times(models, bad):
    model = models["flow_vae"]
    for call in (model.flow, model.trace):
        refuses(lambda c=call: c(Z, "left", BAD_TIMES[bad]), "t")
    refuses(lambda: flowfactor.flow(Z, model.potentials["left"], BAD_TIMES[bad]), "t")


@pytest.mark.parametrize("bad", BAD_FLOWS)
def test_choices(models, bad):
    refuses(lambda: models["flow_vae"].flow(Z, BAD_FLOWS[bad], 1.0), "k")
    refuses(lambda: models["vae"].flow(Z, BAD_FLOWS[bad], 1.0), "k")
    refuses(lambda: flowfactor.flow(Z, BAD_FLOWS[bad], 1.0), "k")


GOOD = films(2)
BAD_BATCHES = {
    "tensor": (GOOD.frames, "sequences"),
    "none": (None, "sequences"),
    "uint8": ({"frames": (GOOD.frames * 255).byte()}, "sequences.frames"),
    "float64": ({"frames": GOOD.frames.double()}, "sequences.frames"),
    "to 255": ({"frames": GOOD.frames * 255}, "sequences.frames"),
    "not finite": ({"frames": GOOD.frames * NAN}, "sequences.frames"),
    "images": ({"frames": GOOD.frames[:, 0]}, "sequences.frames"),
    "empty": ({"frames": GOOD.frames[:0]}, "sequences.frames"),
    "array": ({"frames": GOOD.frames.numpy()}, "sequences.frames"),
    "times": ({"times": GOOD.times[:, :2]}, "sequences.times"),
    "negative times": ({"times": GOOD.times - 1}, "sequences.times"),
    "infinite times": ({"times": GOOD.times / 0}, "sequences.times"),
    "true times": ({"times": GOOD.times > 0}, "sequences.times"),
    "labels": ({"labels": torch.tensor([0, 2])}, "sequences.labels"),
    "float labels": ({"labels": torch.tensor([0.0, 1.0])}, "sequences.labels"),
    "label count": ({"labels": torch.tensor([0])}, "sequences.labels"),
}


@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_batches(models, bad):
    change, word = BAD_BATCHES[bad]
    batch = SequenceBatch(**{**vars(GOOD), **change}) if isinstance(change, dict) else change
    for model in models.values():
        refuses(lambda m=model: m.loss(batch), word)
        refuses(lambda m=model: m.choose(batch), word)
    refuses(lambda: log_likelihood(models["vae"], batch, 2), word)


def test_only_some_models_take_sequences_from_another_frame_on(models):
    batch = choose_frames(GOOD, [1, 0, 2])
    for model in models.values():
        if model.encodes_any_frame:
            assert all(torch.isfinite(term) for term in model.loss(batch).values())
        else:
            refuses(lambda m=model: m.loss(batch), "sequences.times")


@pytest.mark.parametrize("change", [0.5, 1.0])
def test_only_some_models_take_frames_off_the_grid(models, change):
    """Those between whole numbers, and those after the last one."""
    times = GOOD.times.clone()
    times[:, -1] += change
    batch = dataclasses.replace(GOOD, times=times)
    for model in models.values():
        if model.real_times:
            assert all(torch.isfinite(term) for term in model.loss(batch).values())
        else:
            refuses(lambda m=model: m.loss(batch), "sequences.times")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"names": "left"}, "names"),
        ({"names": ("left", "left")}, "names"),
        ({"names": ()}, "names"),
        ({"names": (1, 2)}, "names"),
        ({"names": 3}, "names"),
        ({"image_shape": (8, 8)}, "image_shape"),
        ({"image_shape": (1, 8.0, 8)}, "image_shape"),
        ({"image_shape": (1, 0, 8)}, "image_shape"),
        ({"image_shape": X}, "image_shape"),
        ({"horizon": 0}, "horizon"),
        ({"horizon": 2.5}, "horizon"),
        ({"horizon": True}, "horizon"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"latent_dimm": 4}, "latent_dimm"),
        ({"encoder": nn.Linear(5, 8)}, "encoder"),
        ({"encoder": nn.Sequential(nn.Flatten(), nn.Linear(64, D))}, "encoder"),
        ({"decoder": nn.Linear(D, 64)}, "decoder"),
    ],
)
def test_build(change, word):
    good = {"names": NAMES, "image_shape": SHAPE, "horizon": HORIZON, "latent_dim": D}
    refuses(lambda: FlowVAE.build(**{**good, **change}), word)


def test_own_networks_are_tried_without_a_trace():
    """Neither the random state nor statistics, modes or weights change when sizes are tried."""
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 2 * D), nn.BatchNorm1d(2 * D), nn.Dropout(0.5)
    )
    encoder[3].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(3)
    options = FlowVAE.Options(latent_dim=D, width=8, decoder={"hidden": [8]}, encoder=encoder)
    model = FlowVAE(options, NAMES, SHAPE, HORIZON)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    again = FlowVAE(options, NAMES, SHAPE, HORIZON)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.potentials.directions, model.potentials.directions)
    assert [module.training for module in encoder] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    "function",
    [nn.Sequential(nn.Linear(D, 1)), lambda z: z.sum(-1), nn.Linear, 3, "u"],
    ids=["network", "one argument", "class", "number", "text"],
)
def test_functions_of_a_potential(function):
    refuses(lambda: flowfactor.AutogradPotential(function, D), "function")


def test_values_of_a_potential():
    for function in (lambda z, t: z[:, :1], lambda z, t: 1.0):
        potential = flowfactor.AutogradPotential(function, D)
        refuses(lambda u=potential: u(Z, 0.0), "function")


class Own(FlowVAE):
    """A model of one's own, which encodes by itself."""

    def encode(self, x):
        return super().encode(x.flip(-1))


def test_own_models_are_checked_at_their_doors_only():
    model = Own.build(NAMES, SHAPE, horizon=HORIZON, latent_dim=D, width=8)
    refuses(lambda: model.encode(255 * X), "x")
    bad = SequenceBatch(2 * GOOD.frames, GOOD.times, GOOD.labels, HORIZON)
    refuses(lambda: model.loss(bad), "sequences.frames")
    with trusted_arguments():  # as in a training step
        assert set(model.loss(bad)) == set(model.loss(GOOD))
    assert model.double().encode(X.double()).mean.dtype == torch.float64
    assert model.decode(model.flow(Z.double(), "left", 1.0)).dtype == torch.float64
    assert torch.func.vmap(lambda z: model.decode(z[None])[0])(Z.double()).shape == (2, *SHAPE)


class Frames(SequenceDataset):
    """A data set of one's own, which renders what it is told to."""

    def __init__(self, result):
        super().__init__(NAMES, HORIZON, SHAPE)
        self.result = result

    def __len__(self):
        return 2

    def render_frames(self, indices, elapsed, active, starts):
        return self.result


class Moving(Frames):
    """The frames of some films, whatever they undergo."""

    def render_frames(self, indices, elapsed, active, starts):
        return self.result[indices[:, None], elapsed.amax(0)]


@pytest.mark.parametrize(
    "result",
    [
        GOOD.frames.numpy(),
        (GOOD.frames * 255).byte(),
        GOOD.frames * 255,
        GOOD.frames * NAN,
        GOOD.frames[:, 1:],
        GOOD.frames[:, 0],
        None,
    ],
    ids=["array", "uint8", "to 255", "not finite", "frames", "images", "none"],
)
def test_rendered_frames(result):
    for call in (lambda d: d.sample([0, 1]), lambda d: d.compose([0, 1], NAMES)):
        with pytest.raises(DataError, match=r"Frames.render_frames"):
            call(Frames(result))


# ---- metrics


@pytest.fixture(scope="module")
def data():
    return Moving(films(2).frames)


FUNCTIONS = (
    equivariance_error,
    path_measures,
    reversal_error,
    superposition_error,
    switching_error,
    commutation_error,
    variation_predictability,
    solver_independence,
)
BAD_ARGUMENTS = [
    ("model", "flow_vae"),
    ("data", GOOD),
    ("data", TransformedImages(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))),
    ("indices", [0.5]),
    ("indices", [2]),
    ("indices", [-1]),
    ("indices", []),
    ("indices", "all"),
    ("indices", torch.tensor([True, False])),
    ("batch_size", 0),
    ("batch_size", 2.5),
    ("frames", 99),
    ("frames", 0),
    ("frames", 2.5),
    ("per_frame", 0),
    ("pairs", [("left", "up")]),
    ("pairs", "lr"),
    ("time", NAN),
    ("time", "1"),
    ("train_fraction", 2),
    ("train_fraction", NAN),
    ("method", "rk4"),
    ("options", {"epochs": 1}),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_errors_of_flows(models, data, function):
    known = inspect.signature(function).parameters
    for word, bad in BAD_ARGUMENTS:
        if word in known:
            good = {"model": models["flow_vae"], "data": data}
            good |= {"frames": HORIZON} if "frames" in known else {}
            refuses(lambda g=good, w=word, b=bad: function(**{**g, w: b}), word)


def unlabelled():
    """Return recordings of which nobody knows what they undergo."""
    return Recordings(films(2).frames, names=NAMES)


CODES = torch.rand(60, 2)
FACTORS = torch.arange(3).repeat(20)[:, None]
TABLE = CodeTable(CODES, FACTORS)
PATH = torch.zeros(HORIZON + 1, 2, D)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda m, d: superposition_error(m["vae"], d, frames=3), "model"),
        (lambda m, d: commutation_error(m["vae"], d), "model"),
        (lambda m, d: reversal_error(m["vae"], d, frames=3), "model"),
        (lambda m, d: solver_independence(m["vae"], d), "model"),
        (lambda m, d: frame_errors(m["vae"], GOOD.frames * 255, PATH), "x"),
        (lambda m, d: frame_errors(m["vae"], GOOD.frames.numpy(), PATH), "x"),
        (lambda m, d: frame_errors(m["vae"], GOOD.frames, PATH[1:]), "z"),
        (lambda m, d: frame_errors(m["vae"], GOOD.frames, PATH * NAN), "z"),
        (lambda m, d: mean_error({}), "errors"),
        (lambda m, d: mean_error([1.0]), "errors"),
        (lambda m, d: log_likelihood("vae", GOOD), "model"),
        (lambda m, d: log_likelihood(m["vae"], GOOD, 0), "samples"),
        (lambda m, d: log_likelihood(m["vae"], GOOD, 2.5), "samples"),
        (lambda m, d: log_likelihood(m["vae"], GOOD, observation="gaussian"), "observation"),
        (lambda m, d: log_likelihood(m["vae"], GOOD, batch_size=0), "batch_size"),
        (lambda m, d: match_flows("vae", [GOOD], 2), "model"),
        (lambda m, d: match_flows(m["weak_flow_vae"], [GOOD], 3), "transformations"),
        (lambda m, d: match_flows(m["weak_flow_vae"], [], 2), "batches"),
        (lambda m, d: match_flows(m["weak_flow_vae"], [GOOD.frames], 2), "batches"),
        (lambda m, d: infer_labels("weak_flow_vae", unlabelled()), "model"),
        (lambda m, d: infer_labels(m["weak_flow_vae"], GOOD), "data"),
        (lambda m, d: encode_dataset(m["vae"], GOOD), "data"),
        (lambda m, d: encode_dataset(m["vae"], d, 0), "count"),
        (lambda m, d: encode_dataset(m["vae"], d, bins=1), "bins"),
        (lambda m, d: factor_vae_score(CODES), "source"),
        (lambda m, d: factor_vae_score(TABLE, samples=1), "samples"),
        (lambda m, d: factor_vae_score(TABLE, test_votes=2.5), "test_votes"),
        (lambda m, d: factor_vae_score(TABLE, least_std=NAN), "least_std"),
        (lambda m, d: mig([[1.0], [1.0, 2.0]], FACTORS), "codes"),
        (lambda m, d: mig(CODES * NAN, FACTORS), "codes"),
        (lambda m, d: mig(CODES[0], FACTORS), "codes"),
        (lambda m, d: mig(CODES, FACTORS.float()), "factors"),
        (lambda m, d: mig(CODES, np.array([["a"]] * 60)), "factors"),
        (lambda m, d: mig(CODES[:0], FACTORS[:0]), "codes"),
        (lambda m, d: mig(CODES, FACTORS, bins=1.5), "bins"),
        (lambda m, d: dci(CODES, FACTORS, trees=0), "trees"),
        (lambda m, d: dci(CODES, FACTORS, test_fraction=NAN), "test_fraction"),
        (lambda m, d: sap(CODES, FACTORS, test_fraction="a"), "test_fraction"),
        (lambda m, d: sap(CODES, FACTORS, seed=-1), "seed"),
        (lambda m, d: classify_pairs(X.numpy(), X, torch.arange(2)), "before"),
        (lambda m, d: classify_pairs(X, X[:1], torch.arange(2)), "after"),
        (lambda m, d: classify_pairs(X, X * NAN, torch.arange(2)), "after"),
        (lambda m, d: classify_pairs(X, X, [0, 1]), "labels"),
        (lambda m, d: classify_pairs(X, X, torch.arange(3)), "labels"),
        (lambda m, d: classify_pairs(X, X, torch.arange(2), torch.zeros(3)), "groups"),
        (lambda m, d: evaluate("vae", d), "model"),
        (lambda m, d: evaluate(m["vae"], GOOD), "data"),
        (lambda m, d: evaluate(m["vae"], d, {"images": 3}), "options"),
        (lambda m, d: evaluate(m["vae"], d, seed="a"), "seed"),
        (lambda m, d: evaluate(m["vae"], d, held_out=GOOD), "held_out"),
    ],
)
def test_metrics(models, data, call, word):
    refuses(lambda: call(models, data), word)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": "flow_vae"}, "model"),
        ({"training": GOOD}, "training"),
        ({"training": None}, "training"),
        ({"training": TransformedImages(torch.zeros(2, 1, 28, 28).byte())}, "training"),
        ({"validation": GOOD}, "validation"),
        ({"validation": [GOOD.frames]}, "validation"),
        ({"validation": [SequenceBatch.full(GOOD.frames.double())]}, "sequences.frames"),
        ({"options": {"steps": 1}}, "options"),
        ({"run": None}, "run"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_training(models, data, tmp_path, change, word):
    options = TrainingOptions(steps=1, loggers=(), accelerator="cpu")
    good = {"model": models["flow_vae"], "training": data, "validation": data, "run": tmp_path}
    refuses(lambda: fit(**{"options": options, **good, **change}), word)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "content"),
    [
        (TrainingOptions, {"betas": [False, 0.5]}),
        (TrainingOptions, {"steps": True}),
        (TrainingOptions, {"learning_rate": "on"}),
        (MNISTOptions, {"exclude_digits": [True]}),
        (FlowVAE.Options, {"latent_dim": True}),
    ],
)
def test_truth_values_are_no_numbers(options, content):
    with pytest.raises(ConfigError, match=next(iter(content))):
        parse(options, content)


def test_numbers_may_be_written_as_text():
    """YAML 1.1 reads 1e-3, which has no point, as text."""
    assert parse(TrainingOptions, {"learning_rate": "1e-3"}).learning_rate == 1e-3
    assert parse(TrainingOptions, {"steps": "20"}).steps == 20


# ---- what is drawn, counted and put together


def moving(**options):
    return small("flow_vae", **options)


def fields_without_parts():
    return IndependentFields({"left": AutogradField(lambda z, t: z, D)})


class Infinite(CodeTable):
    """Codes that turn out to be infinite when they are drawn."""

    def __init__(self):
        super().__init__(torch.zeros(60, 2), torch.arange(60)[:, None] % 2)

    def sample(self, count, generator):
        return np.full((count, 2), np.inf), np.zeros((count, 1))


def picture():
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


FEW = torch.zeros(2, 1, 3, 1)
EACH = torch.tensor([[0.0, 1.0], [0.0, 2.0]])


def curl():
    parts = {"parts": "solenoidal", "objective": {"hamilton_jacobi": 0}}
    return moving(**parts)


REFUSALS = {
    "no kinds": (lambda: diagnostics.plot_activity(moving(), {}), "sequences"),
    "one time": (
        lambda: diagnostics.draw_animation(torch.zeros(1, 1, 1, 1, 8, 8), ["left"], [0.0]),
        "times",
    ),
    "arrows": (lambda: diagnostics.plot_landscape(moving(), X, 0, arrows="up"), "arrows"),
    "blends": (lambda: diagnostics.player_data(moving(), X, blends=0), "blends"),
    "no potential": (lambda: diagnostics.plot_transport(curl(), X), "left"),
    "no curves": (lambda: diagnostics.draw_transport({}), "curves"),
    "two channels": (lambda: to_pixels(torch.zeros(2, 4, 4)), "channels"),
    "a picture for two channels": (lambda: read_picture(picture(), (2, 4, 4)), "channels"),
    "no samples": (lambda: proportion_interval(torch.zeros(0, dtype=torch.bool)), "right"),
    "few fields": (lambda: match_activity(*FEW, torch.zeros(1, 3, 2)), "fields"),
    "codes": (lambda: factor_vae_score(Infinite()), "codes"),
    "complex times": (lambda: moving().flow(Z, "left", 1j), "t"),
    "times of each": (
        lambda: flowfactor.trace(
            Z, moving().potentials[0], EACH, log_density="discrete", method=Euler(1)
        ),
        "log-density",
    ),
    "steps of each": (
        lambda: flowfactor.trace(
            Z, moving().potentials[0], 1.0, log_density="discrete", method=Euler(1), per_sample=True
        ),
        "per_sample",
    ),
    "infinite within a step": (lambda: moving().trace(Z, 0, [0.0, float("inf")]), "t"),
    "the model for its flow": (lambda: flowfactor.flow(Z, moving(), 1.0), "k"),
    "solver": (lambda: moving(solver=3), "solver"),
    "encoder": (lambda: moving(encoder=3), "encoder"),
    "objective": (lambda: Objective(beta=-1), "objective"),
    "objective of a model": (lambda: moving(objective=3), "objective"),
    "parts of a field": (lambda: fields_without_parts().gradient_part["left"], "parts"),
    "other parts": (lambda: fields_without_parts().solenoidal_part, "parts"),
    "no terms": (lambda: LinearCombination([]), "term"),
    "a bank's latents": (lambda: moving().potentials[0].velocity(Z.long(), 0.0), "z"),
    "a model that does not ship": (lambda: pretrained.folder("mnsit"), "mnsit"),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.wrong_types
def test_what_else_is_refused(case):
    call, word = REFUSALS[case]
    refuses(call, word)
