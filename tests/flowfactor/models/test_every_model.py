"""Every model trains, finishes, saves, loads, moves and is measured through one interface."""

import json

import pytest
import torch
from small_models import films, small
from torch import nn

import flowfactor
from flowfactor.errors import ConfigError, RunError
from flowfactor.metrics import equivariance_error, log_likelihood
from flowfactor.models import FlowVAE, PotentialModel, TraversalModel
from flowfactor.options import fields_of, options
from flowfactor.registries import ENCODERS, MODELS, TERMS
from flowfactor.training import TrainingOptions, fit, validation_batches

TINY = TrainingOptions(
    steps=2,
    warmup=1,
    validate_every=2,
    batch_size=6,
    frames_per_sequence=None,
    loggers=(),
    accelerator="cpu",
    precision="32-true",
)


# Fields with a part that is no gradient.
BOTH = {"parts": "both", "objective": {"hamilton_jacobi": 0.0, "path_kl": 0.1}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [*((kind, {}) for kind in MODELS), ("flow_vae", BOTH), ("weak_flow_vae", BOTH)],
)
def test_from_training_to_metrics(kind, options, digits, tmp_path):
    model = small(kind, digits.names, digits.image_shape, digits.horizon, **options)
    data = digits if model.supervised else digits.without_labels()
    fit(model, data, data, TINY, tmp_path)
    trained = flowfactor.load(tmp_path)
    batches = list(validation_batches(digits, 6))
    facts = trained.finish(batches, batches)
    assert json.loads(json.dumps(facts)) == facts
    flowfactor.save_model(trained, str(tmp_path))
    again = flowfactor.load(str(tmp_path))
    assert type(again) is MODELS[kind]
    assert again.names == digits.names
    assert again.options == model.options
    x = batches[0].frames[:, 0]
    z = trained.encode(x).mean
    assert torch.equal(again.encode(x).mean, z)
    for k, t in (("hue", 2.5), (1, [0.0, 1.0, 3.0]), (torch.tensor([2, 0] * 3), -1.0)):
        moved = trained.flow(z, k, t)
        assert torch.equal(flowfactor.flow(z, k, t, again), moved)
        assert moved.shape == ((3, *z.shape) if isinstance(t, list) else z.shape)
        assert torch.isfinite(again.decode(moved.reshape(-1, z.shape[1]))).all()
    errors = equivariance_error(again, digits, range(2), frames=2)
    assert list(errors) == list(digits.names)
    assert all(torch.isfinite(error.flow).all() for error in errors.values())
    assert torch.isfinite(log_likelihood(again, batches[0], samples=2)).all()
    assert isinstance(again, PotentialModel) != isinstance(again, TraversalModel)
    assert again.choose(batches[0]).shape == (6,)
    measured = again.measure(batches[0], batches)["error"]
    assert 0 < measured < x[0].numel() * 7


@pytest.mark.parametrize("kind", MODELS)
def test_a_loss_changes_no_parameter(kind, digits):
    """Else a training that is interrupted before the optimiser's step would go on as another."""
    model = small(kind, digits.names, digits.image_shape, digits.horizon).train()
    data = digits if model.supervised else digits.without_labels()
    batch = next(validation_batches(data, 6))
    before = [parameter.clone() for parameter in model.parameters()]
    for step in range(model.schedule_steps + 1):
        model.on_step(step)
        model.loss(batch)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("kind", MODELS)
def test_every_option_has_a_default_and_a_sentence(kind):
    for option in fields_of(MODELS[kind].Options):
        assert option.description, option.key
        assert option.key in MODELS[kind].Options.__dataclass_fields__


class Halve(nn.Module):
    """An encoder or decoder of one's own."""

    def __init__(self, before, after):
        super().__init__()
        self.shape, self.linear = after, nn.Linear(before, torch.Size(after).numel())

    def forward(self, x):
        return self.linear(x.flatten(1)).unflatten(1, self.shape)


def test_networks_of_ones_own(digits, tmp_path):
    def make():
        return FlowVAE.build(
            digits.names,
            horizon=digits.horizon,
            latent_dim=3,
            encoder=Halve(3 * 28 * 28, (6,)),
            decoder=Halve(3, (3, 28, 28)),
            field=flowfactor.RidgePotential(digits.names, 3, 8),
        )

    model = make()
    fit(model, digits, digits, TINY, str(tmp_path))
    with pytest.raises(RunError, match="model="):
        flowfactor.load(tmp_path)
    again = flowfactor.load(tmp_path, model=make())
    assert not again.training
    assert torch.equal(again.decoder.linear.weight, model.decoder.linear.weight)
    assert equivariance_error(again, digits, range(2), frames=2)
    with pytest.raises(ValueError, match="fields"):
        FlowVAE.build(("a",), field=flowfactor.RidgePotential(("b",), 48, 8))


class Louder(FlowVAE):
    """A shipped model with another loss, unregistered."""

    def loss(self, sequences):
        terms = super().loss(sequences)
        return terms | {"louder": 0.1 * terms["kl"]}


def test_a_subclass_of_a_shipped_model(digits, tmp_path):
    model = Louder.build(digits.names, latent_dim=4, width=8)
    fit(model, digits, digits, TINY, tmp_path)
    with pytest.raises(RunError, match="Louder"):
        flowfactor.load(tmp_path)
    fresh = Louder.from_spec(model.spec())
    assert torch.equal(
        flowfactor.load(tmp_path, model=fresh).potentials.directions, model.potentials.directions
    )


def test_a_network_and_a_term_of_a_plug_in(monkeypatch, tmp_path):
    for registry in (ENCODERS, TERMS):
        for attribute in ("_items", "_plugins"):
            monkeypatch.setattr(registry, attribute, dict(getattr(registry, attribute)))

    @TERMS.register("length")
    def length(context):
        return context.z.diff(dim=1).norm(dim=-1).sum(1)

    @ENCODERS.register("linear")
    @options
    class LinearOptions(flowfactor.networks.NetworkOptions):
        def build(self, image_shape, latent_dim):
            return Halve(64, (2 * latent_dim,))

    model = small("flow_vae", encoder={"kind": "linear"}, objective={"length": 0.5})
    torch.manual_seed(1)
    once = model.loss(films())
    model.objective = model.objective.replace(length=1.0)
    torch.manual_seed(1)
    assert model.loss(films())["length"] == 2 * once["length"] > 0
    flowfactor.save_model(model, tmp_path)
    assert flowfactor.load(tmp_path).options == model.options
    monkeypatch.undo()
    with pytest.raises(RunError, match="linear"):
        flowfactor.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "given", "key"),
    [
        ("flow_vae", {"encoder": {"kind": "unet"}}, "encoder"),
        ("flow_vae", {"encoder": {"hiden": 8}}, "encoder.hiden"),
        ("flow_vae", {"encoder": {"blocks": -1}}, "encoder.blocks"),
        ("flow_vae", {"decoder": {"kind": "mlp", "channels": [4]}}, "decoder.channels"),
        ("flow_vae", {"decoder": {"brightness": 1.0}}, "decoder.brightness"),
        ("flow_vae", {"observation": "poisson"}, "observation"),
        ("flow_vae", {"force": "gravity"}, "force"),
        ("flow_vae", {"force": "learned", "objective": {"hamilton_jacobi": 0}}, "hamilton_jacobi"),
        ("flow_vae", {"objective": {"beta": -1.0}}, "objective.beta"),
        ("flow_vae", {"objective": {"path_kl": float("nan")}}, "objective.path_kl"),
        ("flow_vae", {"objective": {"path": 1.0}}, "path_kl"),
        ("flow_vae", {"solver": {"name": "rk5"}}, "solver"),
        ("flow_vae", {"solver": {"steps": 0}}, "solver"),
        ("flow_vae", {"gradient": {"every": 2}}, "gradient"),
        ("flow_vae", {"field": "gp"}, "field"),
        ("flow_vae", {"parts": "curl"}, "parts"),
        ("flow_vae", {"parts": "both"}, "hamilton_jacobi"),
        ("flow_vae", {"parts": "both", "field": "mlp"}, "parts"),
        ("flow_vae", {"rank": -1}, "rank"),
        ("flow_vae", {"density": "discrete"}, "density"),
        ("flow_vae", {"latent_dim": True}, "latent_dim"),
        ("flow_vae", {"bta": 1.0}, "bta"),
        ("weak_flow_vae", {"inference": {"warmup": -1}}, "inference.warmup"),
        ("weak_flow_vae", {"inference": {"refresh": 0}}, "inference.refresh"),
        ("weak_flow_vae", {"inference": {"temperature": 0.0}}, "inference.temperature"),
        ("poflow", {"wave": -1.0}, "wave"),
        ("vae", {"beta": -1.0}, "beta"),
        ("factor_vae", {"gamma": -1.0}, "gamma"),
        ("factor_vae", {"discriminator_rate": 0.0}, "discriminator_rate"),
        ("slow_vae", {"laplace_rate": 0.0}, "laplace_rate"),
        ("slow_vae", {"gamma": float("nan")}, "gamma"),
        ("topographic_vae", {"latent_dim": 12, "capsules": 5}, "capsules"),
        ("topographic_vae", {"latent_dim": 12, "capsules": 6}, "window"),
    ],
)
@pytest.mark.wrong_types
def test_options_that_are_refused(kind, given, key):
    with pytest.raises(ConfigError, match=key):
        MODELS[kind].Options(**given)


@pytest.mark.parametrize(
    ("kind", "given", "word"),
    [
        ("flow_vae", {"image_shape": (3, 3, 28)}, "3 x 28"),
        ("flow_vae", {"encoder": {"channels": []}}, "channels"),
        ("flow_vae", {"horizon": 0}, "horizon"),
        ("flow_vae", {"names": ("a",), "objective": {"commutator": 1.0}}, "commutator"),
        ("weak_flow_vae", {"names": ("a", "b"), "flows": 1}, "flows"),
        ("weak_flow_vae", {"names": ()}, "flows"),
        ("vae", {"names": ("a", "a")}, "names"),
    ],
)
def test_sizes_that_do_not_fit(kind, given, word):
    with pytest.raises(ValueError, match=word):
        MODELS[kind].build(**{"names": ("a",), **given})


@pytest.mark.parametrize(
    "given",
    [
        {"solver": {"name": "dopri5", "rtol": 1e-3}, "gradient": {"name": "adjoint"}},
        {
            "solver": {"name": "euler", "steps": 2},
            "density": "discrete",
            "objective": {"path_kl": 1.0},
            "field": "mlp",
            "rank": 1,
            "force": "learned",
            "observation": "gaussian_learned",
            "encoder": {"kind": "residual", "channels": [4], "norm": "group"},
        },
    ],
)
def test_the_spec_builds_the_same_model(given):
    model = small("flow_vae", **given)
    again = FlowVAE.from_spec(json.loads(json.dumps(model.spec())))
    again.load_state_dict(model.state_dict())
    assert again.options == model.options
    losses = []
    for each in (model, again):
        torch.manual_seed(0)
        losses.append(sum(each.loss(films()).values()).item())
    assert losses[0] == losses[1]


def test_the_family_of_fields_has_its_former_name_too():
    """In configurations and model files from when every field was the gradient of a potential."""
    spec = small("flow_vae", field="mlp").spec()
    spec["options"]["potential"] = spec["options"].pop("field")
    del spec["options"]["parts"]
    assert FlowVAE.from_spec(spec).options.field == "mlp"


def test_a_label_is_needed_and_images_have_their_size():
    model = small("flow_vae")
    with pytest.raises(ValueError, match="label"):
        model.loss(films(labels=[0, 1, -1, 0, 1, 0]))
    with pytest.raises(ValueError, match="x must"):
        model.encode(torch.rand(2, 1, 28, 28))


def test_what_a_model_is_made_of_can_be_imported_to_derive_others():
    """Base classes and options of every model are public names of the package."""
    for model in map(MODELS.__getitem__, MODELS):
        for base in (*model.__mro__, *model.Options.__mro__):
            if base.__module__.startswith("flowfactor.models"):
                assert getattr(flowfactor.models, base.__name__) is base
