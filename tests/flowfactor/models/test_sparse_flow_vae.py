"""Without supervision: stages, what the fields find, the bound, names afterwards."""

import pytest
import torch
from small_models import NAMES, films, small
from torch import nn

from flowfactor.activity import Projections
from flowfactor.data import SequenceBatch
from flowfactor.errors import ConfigError
from flowfactor.models import SparseFlowVAE
from flowfactor.options import parse


def sparse(**options):
    return small("sparse_flow_vae", **options)


def staged(autoencoder=1, fields=1):
    return sparse(stages={"autoencoder": autoencoder, "fields": fields, "together": 1, "anneal": 1})


def learning(model, batch):
    """Which parts of a model get a gradient from a loss."""
    model.zero_grad()
    terms = model.loss(batch)
    torch.stack(list(terms.values())).sum().backward()
    parts = {"encoder": model.encoder, "decoder": model.decoder, "fields": model.potentials}
    return set(terms), {
        name for name, part in parts.items() if any(_learns(each) for each in part.parameters())
    }


def _learns(parameter):
    return parameter.grad is not None and bool((parameter.grad != 0).any())


def test_each_stage_teaches_what_it_should():
    model = staged()
    joint = {"reconstruction", "kl", "activity", "evidence", "prediction"}
    stages = [
        ({"reconstruction", "kl", "evidence"}, {"encoder", "decoder"}),
        ({"reconstruction", "kl", "evidence"}, {"fields"}),
        (joint, {"encoder", "decoder", "fields"}),
        (joint, {"decoder", "fields"}),
    ]
    for step, expected in enumerate(stages):
        model.on_step(step)
        assert learning(model, films()) == expected, step
    assert model.schedule_steps == 2


def test_labels_are_not_looked_at():
    frames, losses = films().frames, []
    for labels in ([0] * 6, [1] * 6, None):
        model = staged(0, 0)
        torch.manual_seed(0)
        labels = None if labels is None else torch.tensor(labels)
        losses.append(model.loss(SequenceBatch.full(frames, labels)))
    assert losses[0] == losses[1] == losses[2]


def test_a_network_learns_beside_the_fields():
    model = sparse(inference="amortised", stages={"autoencoder": 1, "fields": 1, "anneal": 0})
    for step, learns in enumerate((False, True, True)):
        model.on_step(step)
        terms, _ = learning(model, films())
        assert ("inference" in terms) == learns
        assert any(map(_learns, model.network.parameters())) == learns, step


@pytest.mark.parametrize("term", ["evidence", "prediction"])
def test_what_flows_does_not_reach_the_encoder(term):
    model = staged(0, 0)
    model.on_step(0)
    model.loss(films())[term].backward()
    assert all(each.grad is None for each in model.encoder.parameters())


def field_gradient(path):
    """The gradient of the fields from the decoded frames alone, in the joint stage."""
    model = sparse(path=path, stages={"autoencoder": 0, "fields": 0, "anneal": 0})
    torch.manual_seed(1)
    model.on_step(1)
    model.loss(films())["prediction"].backward()
    return model.potentials.turns.grad


def test_fields_learn_as_much_from_decoded_frames_as_asked():
    whole = field_gradient(1.0)
    assert float(whole.abs().max()) > 0
    torch.testing.assert_close(field_gradient(0.25), 0.25 * whole)
    assert not field_gradient(0.0).any()


def test_fields_begin_as_fast_as_displacements():
    model = staged(3, 3)
    model.on_step(3)
    with torch.no_grad():
        means, scales = model.encode_all(films(20).frames)
        model.explain(means, scales)
        z = means[:, 0]
        moved = means.diff(dim=1).square().sum(-1).mean()
        for name in model.names:
            squares = model.select(name).velocity(z, 0.0).square()
            torch.testing.assert_close(squares.sum(-1).mean(), moved)
        before = model.speed.clone()
        model.on_step(4)
        model.explain(2 * means, scales)
        assert torch.equal(model.speed, before)


def test_a_posterior_is_as_sure_as_the_encoder():
    model = sparse().eval()
    with torch.no_grad():
        means, scales = model.encode_all(films(20).frames)
        sure, unsure = (model.posterior(means, scale) for scale in (scales, 10 * scales))
        at_once = Projections.of(
            means.diff(dim=1),
            model.potentials.velocities(
                means[:, 1:].lerp(means[:, :-1], 0.5).flatten(0, 1), 0.0
            ).unflatten(0, (20, -1)),
            means.shape[1] * (scales[:, 1:].square() + scales[:, :-1].square()),
        )
    assert float(sure.kl.mean()) > float(unsure.kl.mean())
    torch.testing.assert_close(sure.projections.linear, at_once.linear)
    torch.testing.assert_close(sure.projections.gram, at_once.gram)
    torch.testing.assert_close(sure.projections.base, at_once.base)


# A world of two dimensions, seen as it is: pixels (0, 0) and (0, 1) are the latent.


class Look(nn.Module):
    """Encodes an image as its first two pixels, nearly certain of them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return torch.cat([x[:, 0, 0, :2] * self.scale, torch.full((len(x), 2), -7.0)], 1)


class Show(nn.Module):
    """Decodes to anything."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 64)

    def forward(self, z):
        return self.linear(z).view(-1, 1, 8, 8)


def world(count=40, seed=0):
    """Sequences of a point that moves along one axis, or the other, or both: (frames, speeds)."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.rand(count, 4, 1, generator=generator).sub(0.5).sign().cumprod(1)
    acts = torch.cat([axis > 0, axis < 0], -1)
    speed = 0.5 + torch.rand(count, 1, 2, generator=generator)
    sign = torch.where(torch.rand(count, 1, 2, generator=generator) < 0.5, -1.0, 1.0)
    activity = acts * speed * sign
    path = torch.cat([torch.zeros(count, 1, 2), activity.cumsum(1)], 1)
    frames = torch.full((count, 5, 1, 8, 8), 0.5)
    frames[:, :, 0, 0, :2] = 0.5 + 0.05 * path
    return frames, activity


def seer(**options):
    torch.manual_seed(0)
    return SparseFlowVAE.build(
        NAMES,
        (1, 8, 8),
        horizon=4,
        latent_dim=2,
        width=8,
        encoder=Look(),
        decoder=Show(),
        **options,
    )


def informed(**options):
    """A model whose fields are the axes of the world, the second one backwards and first."""
    model = seer(**options).eval()
    with torch.no_grad():
        for parameter in model.potentials.parameters():
            parameter.zero_()
        model.potentials.coefficients[0, 0, 16:18] = torch.tensor([0.0, -0.05])
        model.potentials.coefficients[1, 0, 16:18] = torch.tensor([0.05, 0.0])
    return model


def test_activity_is_inferred_with_its_speed_and_direction():
    frames, activity = world()
    found = informed().infer_activity(frames)
    expected = torch.stack([-activity[..., 1], activity[..., 0]], -1)
    assert torch.equal(found.active > 0.5, expected != 0)
    torch.testing.assert_close(found.coefficients, expected, atol=0.1, rtol=0)
    right = torch.where(expected > 0, found.forward, 1 - found.forward)[expected != 0]
    assert float(right.min()) > 0.99


def test_finish_orders_directs_and_names_the_fields():
    model, (frames, activity) = informed(), world(200)
    with torch.no_grad():
        model.speed.fill_(0.5)  # half as fast as they seem
        model.potentials.scale_(torch.full((2,), 2.0))
    batch = SequenceBatch(
        frames, torch.arange(5).expand(200, -1), None, horizon=4, activity=activity
    )
    facts = model.finish([], [batch])["matching"]
    assert model.names == NAMES
    assert facts["accuracy"] == 1
    found = model.infer_activity(frames)
    torch.testing.assert_close(found.coefficients, activity, atol=0.15, rtol=0)
    z = torch.tensor([[0.2, 0.3]])
    mean = activity[activity != 0].abs().mean()
    moved = model.flow(z, "right", 2.0)
    torch.testing.assert_close(moved, z + torch.tensor([[0.0, 0.1]]) * mean, atol=0.01, rtol=0)
    assert SparseFlowVAE.build(NAMES, flows=3).names == ("flow 1", "flow 2", "flow 3")


def test_finish_without_any_truth_orders_the_fields_by_use():
    model, (frames, activity) = informed(), world()
    often = (activity != 0).float().mean((0, 1))
    facts = model.finish([], [SequenceBatch.full(frames)])["matching"]
    assert facts["flows"] == ["flow 1", "flow 2"]
    assert facts["active"] == pytest.approx(sorted(often.tolist(), reverse=True), abs=0.05)


def test_labels_of_ordinary_sequences_name_the_fields_too():
    model, (frames, activity) = informed(), world(60)
    one = torch.zeros_like(activity)
    labels = torch.arange(60) % 2
    one[torch.arange(60), :, labels] = 1.0
    frames[:, 1:, 0, 0, :2] = frames[:, :1, 0, 0, :2] + 0.05 * one.cumsum(1)
    assert model.finish([], [SequenceBatch.full(frames, labels)])["matching"]["accuracy"] == 1
    assert torch.equal(model.choose(SequenceBatch.full(frames, labels)), labels)


def test_fields_are_found_that_nobody_told():
    stages = {"autoencoder": 0, "fields": 150, "anneal": 50}
    model, (frames, _) = seer(stages=stages), world(48)
    optimizer = torch.optim.Adam(model.potentials.parameters(), 0.01)
    for step in range(stages["fields"]):
        model.on_step(step)
        optimizer.zero_grad()
        model.loss(SequenceBatch.full(frames))["evidence"].backward()
        optimizer.step()
    frames, activity = world(100, seed=1)
    batch = SequenceBatch(frames, torch.arange(5).expand(100, -1), None, 4, activity=activity)
    model.eval().finish([], [batch])
    found = model.infer_activity(frames).coefficients
    assert float(torch.corrcoef(torch.stack([found.flatten(), activity.flatten()]))[0, 1]) > 0.9
    assert torch.equal(found[activity != 0].sign(), activity[activity != 0].sign())


@pytest.mark.parametrize("inference", ["exact", "amortised"])
def test_fields_settle_where_the_encoder_came_to_rest(inference):
    frames, _ = world(60)
    batch = SequenceBatch.full(frames)
    missed = []
    for settle in (0, 20):
        stages = {"autoencoder": 5, "anneal": 0, "settle": settle}
        model = informed(stages=stages, inference=inference, field_rate=0.04, prior={"pairs": 0.0})
        with torch.no_grad():  # the axes are not quite right
            model.potentials.coefficients[:, 0, 16:18] += torch.tensor([[0.02, 0.0], [0.0, 0.02]])
        others = [*model.encoder.parameters(), *model.decoder.parameters()]
        before = [each.clone() for each in others]
        model.finish([batch], [batch])
        assert all(map(torch.equal, others, before))
        found = model.infer_activity(frames)
        with torch.no_grad():
            path = model.trace_activity(model.represent(frames[:, 0]), found.coefficients)
        missed.append(float((path.transpose(0, 1) - frames[:, :, 0, 0, :2]).norm()))
    assert missed[1] < 0.5 * missed[0]


def test_a_path_of_one_field_is_its_flow_and_runs_back():
    model = sparse(solver={"name": "rk4", "steps": 4}).eval().requires_grad_(False)
    with torch.no_grad():
        model.speed.copy_(torch.tensor([0.5, 2.0]))
        model.potentials.scale_(torch.tensor([9.0, 9.0]))
    z = torch.randn(3, 4)
    coefficients = torch.zeros(3, 2, 2)
    coefficients[..., 1] = 1.0
    path = model.trace_activity(z, coefficients)
    times = [0.0, 1.0, 2.0]
    torch.testing.assert_close(path, model.flow(z, "flow 2", times))
    torch.testing.assert_close(path, model.flow(z, torch.tensor([1, 1, 1]), times))
    torch.testing.assert_close(path, model.flow(z, coefficients[:, 0], times))
    assert float((path[-1] - z).norm()) > 0.1
    back = model.trace_activity(path[-1], -coefficients)[-1]
    torch.testing.assert_close(back, z, atol=1e-3, rtol=0)
    assert torch.equal(model.trace_activity(z, 0 * coefficients)[-1], z)


@pytest.mark.parametrize("inference", ["exact", "amortised"])
def test_the_loss_is_the_bound_that_importance_weights_estimate(inference):
    model, batch = sparse(inference=inference).eval(), films(30)
    torch.manual_seed(0)
    with torch.no_grad():
        costs = [sum(model.loss(batch).values()) for _ in range(20)]
    bound = -float(torch.stack(costs).mean())
    weights = model.log_weights(batch.frames, 20, generator=torch.Generator().manual_seed(1))
    spread = float(torch.stack(costs).std())
    assert float(weights.mean()) == pytest.approx(bound, abs=max(spread, 0.5))
    tighter = weights.logsumexp(0) - torch.tensor(20.0).log()
    assert float(tighter.mean()) > float(weights.mean())


def test_validation_costs_no_less_than_any_divergence_allows():
    terms = sparse().eval().loss(films())
    assert set(terms) == {"reconstruction", "kl", "activity"}
    assert float(terms["activity"]) >= 0
    assert float(terms["kl"]) >= 0


def test_whole_sequences_are_needed():
    model = sparse()
    with pytest.raises(ValueError, match="frames"):
        model.infer_activity(torch.rand(2, 1, 1, 8, 8))
    with pytest.raises(ValueError, match="frames"):
        model.infer_activity(torch.rand(2, 3, 1, 7, 8))
    batch = films()
    part = SequenceBatch(batch.frames[:, :2], batch.times[:, :2], None, batch.horizon)
    with pytest.raises(ValueError, match="frames"):
        model.loss(part)


@pytest.mark.parametrize(
    "given", [{"parts": "curl"}, {"stages": {"fields": -1}}, {"prior": {"stay": 1.0}}, {"flows": 0}]
)
def test_options_that_are_refused(given):
    with pytest.raises(ConfigError):
        parse(SparseFlowVAE.Options, given)
