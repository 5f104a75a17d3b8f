"""Without supervision: stages, what the fields find, the bound, names afterwards."""

import pytest
import torch
from small_models import NAMES, films, small
from torch import nn

from flowfactor.activity import Projections
from flowfactor.data import SequenceBatch
from flowfactor.errors import ConfigError
from flowfactor.models import SparseFlowVAE
from flowfactor.models.activity_autoencoder import Stages
from flowfactor.options import parse


def sparse(**options):
    return small("sparse_flow_vae", **options)


def staged(autoencoder=1, fields=1, **options):
    stages = {"autoencoder": autoencoder, "fields": fields, "anneal": 1}
    return sparse(stages=stages, **options)


def differentiate(model, batch):
    """Leave the gradient of a loss in the parameters; return the names of its terms."""
    model.zero_grad()
    terms = model.loss(batch)
    torch.stack(list(terms.values())).sum().backward()
    return set(terms)


def learning(part):
    """Which parts of a model, or of its teacher, have a gradient."""
    parts = {"encoder": part.encoder, "decoder": part.decoder, "fields": part.potentials}
    if getattr(part, "network", None) is not None:
        parts["network"] = part.network
    return {name for name, each in parts.items() if any(map(_learns, each.parameters()))}


def _learns(parameter):
    return parameter.grad is not None and bool((parameter.grad != 0).any())


@pytest.mark.parametrize("inference", ["exact", "amortised"])
def test_the_teacher_learns_first_its_autoencoder_then_its_fields(inference):
    model = staged(inference=inference)
    network = {"network"} if inference == "amortised" else set()
    inferring = {"inference"} if network else set()
    autoencoder, coding = {"encoder", "decoder"}, {"reconstruction", "kl"}
    stages = [
        (coding, autoencoder, set()),
        ({"evidence"} | inferring, {"fields"} | network, set()),
        (coding, set(), autoencoder | {"fields"}),
        (coding, set(), autoencoder | {"fields"}),
    ]
    for step, (terms, by_teacher, by_model) in enumerate(stages):
        model.on_step(step)
        assert differentiate(model, films()) == terms, step
        assert learning(model.teacher) == by_teacher, step
        assert learning(model) == by_model, step
        assert model.first_step == (2 if step >= 2 else 0)
    assert model.schedule_steps == 2


def test_labels_are_not_looked_at():
    frames, losses = films().frames, []
    for labels in ([0] * 6, [1] * 6, None):
        model = staged(0, 0)
        torch.manual_seed(0)
        labels = None if labels is None else torch.tensor(labels)
        losses.append(model.loss(SequenceBatch.full(frames, labels)))
    assert losses[0] == losses[1] == losses[2]


def test_the_encoder_learns_from_where_its_latents_arrive():
    """From frames whose own encoding is not decoded: those that flow to another."""
    model = staged(0, 0)
    model.on_step(0)
    terms = model.loss(films())
    terms["reconstruction"].backward()
    assert learning(model) == {"encoder", "decoder", "fields"}


def test_a_teacher_may_have_another_decoder_and_shares_nothing():
    model = sparse(teacher_decoder={"kind": "mlp", "hidden": [5]})
    assert model.teacher.decoder.network[0].out_features == 5
    assert model.decoder.network[0].out_features == 16
    own = seer()
    assert own.teacher.encoder is not own.encoder
    assert len({id(p) for p in own.parameters()}) == 2 * len(list(own.teacher.parameters()))


def test_every_parameter_is_in_one_group():
    model = staged(inference="amortised")
    grouped = [p for group in model.parameter_groups() for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


def test_a_finished_model_is_made_again_from_its_description_and_can_go_on_learning():
    model = sparse().eval()
    begun = SparseFlowVAE.from_spec(model.spec())
    assert set(begun.state_dict()) == set(model.state_dict())
    model.finish([], [films(20)])
    again = SparseFlowVAE.from_spec(model.spec()).eval()
    again.load_state_dict(model.state_dict())
    found, expected = (each.infer_activity(films().frames) for each in (again, model))
    assert torch.equal(found.coefficients, expected.coefficients)
    assert again.names == model.names
    again.train().on_step(0)
    differentiate(again, films())
    assert again.schedule_steps == 0
    assert learning(again) == {"encoder", "decoder", "fields"}


def test_fields_begin_as_fast_as_displacements():
    teacher = sparse().teacher
    with torch.no_grad():
        means, _ = teacher.encode_all(films(20).frames)
        teacher.start_fields(means)
        squares = teacher.potentials.velocities(means[:, 0], 0.0).square().sum(-1).mean(0)
        moved = means.diff(dim=1).square().sum(-1).mean()
    torch.testing.assert_close(teacher.speed.square() * squares, moved.expand(2))


def test_a_posterior_is_as_sure_as_the_encoder():
    teacher = sparse(sureness=3.0).teacher
    with torch.no_grad():
        means, scales = teacher.encode_all(films(20).frames)
        sure, unsure = (teacher.posterior(means, scale) for scale in (scales, 10 * scales))
        at_once = Projections.of(
            means.diff(dim=1),
            teacher.potentials.velocities(
                means[:, 1:].lerp(means[:, :-1], 0.5).flatten(0, 1), 0.0
            ).unflatten(0, (20, -1)),
            means.shape[1] / 3 * (scales[:, 1:].square() + scales[:, :-1].square()),
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


class Draw(nn.Module):
    """Decodes to the image that :class:`Look` encodes."""

    def forward(self, z):
        pixels = torch.full((len(z), 64), 0.5).index_copy(1, torch.arange(2), z.clamp(0.01, 0.99))
        return pixels.view(-1, 1, 8, 8).logit()


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
    model.decoder = Draw()
    for bank in (model.potentials, model.teacher.potentials):
        with torch.no_grad():
            for parameter in bank.parameters():
                parameter.zero_()
            bank.coefficients[0, 0, 16:18] = torch.tensor([0.0, -0.05])
            bank.coefficients[1, 0, 16:18] = torch.tensor([0.05, 0.0])
    return model


def test_activity_is_inferred_with_its_speed_and_direction():
    frames, activity = world()
    found = informed().infer_activity(frames)
    expected = torch.stack([-activity[..., 1], activity[..., 0]], -1)
    assert torch.equal(found.active > 0.5, expected != 0)
    torch.testing.assert_close(found.coefficients, expected, atol=0.1, rtol=0)
    right = torch.where(expected > 0, found.forward, 1 - found.forward)[expected != 0]
    assert float(right.min()) > 0.99


def test_speeds_that_last_are_known_better():
    frames, activity = world()
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([-activity[..., 1], activity[..., 0]], -1)
    missed = []
    for speeds in ("run", "step"):
        model = informed(speeds=speeds, sureness=1.0)
        found = model.infer_activity(frames + 0.003 * noise)
        missed.append(float((found.coefficients - expected).square().mean()))
    assert missed[0] < 0.75 * missed[1]


def test_speeds_are_refined_by_what_the_flows_show():
    """The model's own fields are twice as fast as its teacher's here."""
    frames, activity = world()
    expected = torch.stack([-activity[..., 1], activity[..., 0]], -1) / 2
    missed = []
    for speeds in ("frames", "run"):
        model = informed(speeds=speeds)
        with torch.no_grad():
            model.potentials.scale_(torch.full((2,), 2.0))
        found = model.infer_activity(frames).coefficients
        missed.append(float((found - expected).square().mean().sqrt()))
        learning = model.train().infer_activity(frames).coefficients
        assert torch.equal(learning, found) == (speeds == "run")
    assert missed[0] < 0.1 * missed[1]


def test_finish_orders_directs_and_names_the_fields():
    model, (frames, activity) = informed(), world(200)
    with torch.no_grad():
        model.teacher.speed.fill_(0.5)  # half as fast as they seem
        model.teacher.potentials.scale_(torch.full((2,), 2.0))
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


@pytest.mark.parametrize("inference", ["exact", "amortised"])
def test_fields_are_found_that_nobody_told(inference):
    stages = {"autoencoder": 0, "fields": 150, "anneal": 50}
    model, (frames, _) = seer(stages=stages, inference=inference), world(48)
    teacher = model.teacher
    learning = [teacher.potentials, *filter(None, [teacher.network])]
    optimizer = torch.optim.Adam([p for each in learning for p in each.parameters()], 0.02)
    for step in range(stages["fields"]):
        model.on_step(step)
        optimizer.zero_grad()
        torch.stack(list(model.loss(SequenceBatch.full(frames)).values())).sum().backward()
        optimizer.step()
    frames, activity = world(100, seed=1)
    batch = SequenceBatch(frames, torch.arange(5).expand(100, -1), None, 4, activity=activity)
    model.eval().finish([], [batch])
    found = model.infer_activity(frames).coefficients
    assert float(torch.corrcoef(torch.stack([found.flatten(), activity.flatten()]))[0, 1]) > 0.9
    assert torch.equal(found[activity != 0].sign(), activity[activity != 0].sign())


def test_the_start_that_explains_sequences_best_is_kept_and_no_other():
    model = staged(0, 3, starts=3)
    best = {name: each.clone() for name, each in model.teacher.rivals[1].named_parameters()}
    with torch.no_grad():
        means, _ = model.teacher.encode_all(films().frames)
        model.teacher.start_fields(means)
        model.teacher.evidences.copy_(torch.tensor([1.0, 2.0, 3.0]))
    model.on_step(3)
    for bank in (model.teacher.potentials, model.teacher.rivals[1]):
        assert all(torch.equal(best[name], each) for name, each in bank.named_parameters())
    assert torch.equal(model.teacher.speed, model.teacher.rival_speeds[1])
    model.eval().finish([], [films()])
    assert not len(model.teacher.rivals)
    again = SparseFlowVAE.from_spec(model.spec())
    again.load_state_dict(model.state_dict())


def test_all_starts_learn_at_once():
    model = staged(autoencoder=0, fields=3, starts=2)
    model.on_step(0)
    assert differentiate(model, films()) == {"evidence"}
    assert all(map(_learns, model.teacher.rivals[0].parameters()))
    assert float(model.teacher.evidences.abs().min()) > 0


def test_the_temperature_falls_by_the_same_factor_in_each_step():
    stages = Stages(anneal=2, temperature=8.0, final_temperature=0.5)
    assert [stages.temperature_after(step) for step in range(4)] == [8.0, 2.0, 0.5, 0.5]


def test_a_network_has_one_start():
    with pytest.raises(ValueError, match="starts must be 1"):
        sparse(inference="amortised", starts=2)


def test_latents_follow_the_activity_from_any_frame_to_any_other():
    model = sparse().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    z, coefficients = torch.randn(4, 4, generator=generator), torch.randn(4, 3, 2)
    start, end = torch.tensor([0, 1, 3, 2]), torch.tensor([3, 2, 0, 2])
    reached = model.trace_between(z, coefficients, start, end)
    forwards = model.trace_activity(z, coefficients)
    torch.testing.assert_close(reached[0], forwards[3, 0])
    torch.testing.assert_close(reached[1], model.trace_activity(z, coefficients[:, 1:2])[1, 1])
    back = model.trace_activity(z, -coefficients.flip(1))
    torch.testing.assert_close(reached[2], back[3, 2])
    assert torch.equal(reached[3], z[3])


def test_a_path_of_one_field_is_its_flow_and_runs_back():
    model = sparse(solver={"name": "rk4", "steps": 4}).eval().requires_grad_(False)
    model.potentials.scale_(torch.tensor([4.5, 18.0]))
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
