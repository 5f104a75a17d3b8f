"""Inferred activity against the true one, for models of which the answer is known."""

import dataclasses

import pytest
import torch
from toy_activity import STEP, Dials, Reader

from flowfactor.activity import Activity
from flowfactor.data import ActivityLaw, Recordings
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.metrics import (
    ActivityMetric,
    Equivariance,
    find_switch,
    match_fields,
    score_activity,
)
from flowfactor.records import Evaluation

ONLY = {"log_likelihood": False, "inferred": False, "solver_independence": False}


def measure(model, data, validation=None, **options):
    chosen = EvaluationOptions(metrics={**ONLY, "activity": options}, images=len(data), frames=5)
    return evaluate(model.eval(), data, chosen, validation=validation)


def inferred(speeds, sure=1.0) -> Activity:
    speeds = torch.tensor(speeds)
    return Activity(speeds, sure * (speeds != 0), (speeds > 0).float(), torch.zeros(len(speeds)))


# ---- by hand


def test_a_step_is_right_if_exactly_what_acts_is_active():
    truth = torch.tensor([[[1.0, 0.0], [1.0, 2.0], [0.0, 2.0], [0.0, 0.0]]])
    found = inferred([[[0.9, 0.0, 0.0], [1.1, 0.0, 0.0], [0.0, -2.1, 0.3], [0.0, 0.0, 0.0]]])
    scores = score_activity(
        found, truth, match_fields(inferred([[[1.0, 0, 0], [0, 1, 0]]]), torch.eye(2)[None])
    )
    assert scores.accuracy == 0.5  # the second lacks one of two, the third has one too many
    assert scores.direction == pytest.approx(2 / 3)  # of the three that were found
    assert scores.correlation == [None, None]  # the true speeds are constant
    assert scores.switch_error is None
    unsure = score_activity(
        dataclasses.replace(found, active=0.4 * found.active), truth, match_fields(found, truth)
    )
    assert (unsure.accuracy, unsure.direction) == (0.25, None)


def test_speeds_correlate_over_the_steps_in_which_something_acts():
    truth = torch.tensor([[[1.0], [2.0], [-3.0], [0.0]]])
    found = inferred([[[2.0], [4.0], [3.0], [7.0]]])
    scores = score_activity(found, truth, match_fields(found, truth))
    x, y = [1.0, 2.0, -3.0], [2.0, 4.0, 3.0]
    expected = torch.corrcoef(torch.tensor([x, y]))[0, 1].item()
    assert scores.correlation == pytest.approx([expected])
    expected = torch.corrcoef(torch.tensor([[1.0, 2.0, 3.0], y]))[0, 1].item()
    assert scores.speed_correlation == pytest.approx([expected])


def test_the_switch_is_where_one_field_hands_over():
    active = torch.tensor(
        [
            [[0.9, 0.1], [0.2, 0.3], [0.1, 0.8], [0.0, 1.0]],
            [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]],
        ]
    )
    assert find_switch(active).tolist() == [1, 3]
    truth = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]], [[0, 1], [0, 1], [0, 1], [1, 0]]])
    found = Activity(active, active, active, torch.zeros(2))
    assert score_activity(found, truth, match_fields(found, truth)).switch_error == 0.5


def test_too_few_fields_leave_a_transformation_without_one():
    truth = torch.eye(3)[None]
    found = inferred([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    scores = score_activity(found, truth, match_fields(found, truth))
    assert scores.accuracy == pytest.approx(2 / 3)


# ---- models that know


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"order": [2, 0, 1]},
        {"order": [1, 2, 0], "signs": [-1.0, 1.0, -1.0]},
        {"scale": 2.0},
    ],
    ids=["as it is", "permuted", "and reversed", "slower"],
)
def test_who_knows_is_right_whatever_the_fields_are_called(change):
    data = Dials()
    result = measure(Reader(data, **change), data, Dials(count=20)).result(ActivityMetric)
    assert list(result.kinds) == ["ordinary", "single", "random speed", "switch", "pairs"]
    for each in result.kinds.values():
        assert (each.scores.accuracy, each.scores.direction) == (1, 1)
        assert each.errors.error == pytest.approx(0, abs=1e-4)
        assert each.errors.encoded == pytest.approx(0, abs=1e-4)
        assert each.errors.identity > 0.2
    for kind in ("random speed", "switch", "pairs"):
        scores = result.kinds[kind].scores
        assert scores.correlation == pytest.approx([1] * 3, abs=1e-4)
        assert scores.speed_correlation == pytest.approx([1] * 3, abs=1e-3)
    assert result.kinds["switch"].scores.switch_error == 0
    assert result.inferred.mean_error == pytest.approx(0, abs=1e-4)
    assert result.alone.mean_error == pytest.approx(0, abs=1e-4)
    order, signs = change.get("order", [0, 1, 2]), change.get("signs", [1.0] * 3)
    for k, field in enumerate(result.fields.values()):
        assert field.field == order.index(k)
        assert field.reversed == (signs[field.field] < 0)
        assert field.speed == pytest.approx(change.get("scale", 1), abs=1e-3)
    assert result.matched_on == "validation"


def test_a_flow_of_its_own_and_a_field_alone_agree():
    """At speed 1 both are what the transformation does."""
    data = Dials()
    evaluation = measure(Reader(data), data)
    assert evaluation.result(Equivariance).mean_error == pytest.approx(0, abs=1e-4)
    result = evaluation.result(ActivityMetric)
    # From frame 0 on, 1..5 steps off.
    identity = STEP * (1 + 2 + 3 + 4 + 5)
    assert result.alone.errors["a"].identity == pytest.approx(identity, rel=1e-4)
    assert result.matched_on == "measured"


def test_who_sees_everything_a_step_too_late_is_a_step_off():
    data = Dials()
    result = measure(Reader(data, late=1), data).result(ActivityMetric)
    switch = result.kinds["switch"].scores
    truth = data.draw_sequences(range(40), ActivityLaw("switch")).activity
    frames = (truth[:, 1:] != truth[:, :-1]).any(2).long().argmax(1) + 1
    # A switch in the last step is not seen at all, and the first of all guesses is 1.
    off = torch.where(frames == 5, 4, 1)
    assert switch.switch_error == pytest.approx(off.double().mean().item())
    assert switch.accuracy == pytest.approx(5 / 6)
    assert result.kinds["single"].scores.accuracy == 1


def test_spare_fields_stay_at_rest_or_are_wrong():
    data = Dials()
    model = Reader(data, order=[0, 1, 2, 2])  # the third dial moves two fields
    result = measure(model, data).result(ActivityMetric)
    assert result.fields_in_all == 4
    assert result.kinds["ordinary"].scores.accuracy == pytest.approx(2 / 3)


# ---- what becomes of it


def test_tables_columns_and_properties_show_it():
    data = Dials()
    evaluation = measure(Reader(data), data)
    tables = evaluation.tables()
    assert {"activity", "fields", "activity_errors", "alone"} <= tables.keys()
    assert [row.label for row in tables["activity"].rows] == list(
        evaluation.result(ActivityMetric).kinds
    )
    again = Evaluation.from_json(evaluation.to_json())
    assert again.result(ActivityMetric) == evaluation.result(ActivityMetric)
    values = {
        column.key: column.value(again.result(ActivityMetric)) for column in ActivityMetric.columns
    }
    assert values["right_pairs"] == values["direction"] == 1
    assert values["speed_r"] == pytest.approx(1, abs=1e-4)
    properties = {row.label: row.values for row in again.properties().rows}
    assert any("inferred activity" in name for name in properties)


def test_kinds_that_the_data_cannot_have_are_left_out():
    frames = 0.2 + STEP * torch.arange(7.0).view(1, 7, 1, 1, 1) * torch.eye(2).repeat(4, 1).view(
        8, 1, 1, 1, 2
    )
    recorded = Recordings(frames, ["a", "b"] * 4, horizon=6)
    result = measure(Reader(recorded), recorded).result(ActivityMetric)
    assert list(result.kinds) == ["ordinary", "single", "random speed"]
    assert result.kinds["random speed"].scores.direction == 1
    slow = Dials(horizon=10)
    law = ActivityLaw("single", (0.5, 2.5))
    with pytest.raises(Exception, match="activity"):
        slow.with_activity(law)
    kinds = measure(Reader(slow), slow, speeds=(0.5, 2.5)).result(ActivityMetric).kinds
    assert list(kinds) == ["ordinary", "single"]


def test_other_models_and_unlabelled_recordings_have_no_activity_to_measure():
    data = Dials()
    model = Reader(data)
    result = evaluate(model.eval(), data, EvaluationOptions(metrics={**ONLY, "activity": False}))
    assert result.result(ActivityMetric) is None
    unlabelled = Recordings(torch.rand(4, 7, 1, 1, 2), names=["a", "b"])
    model = Reader(unlabelled)
    chosen = EvaluationOptions(metrics={**ONLY, "equivariance": False}, images=4)
    assert evaluate(model, unlabelled, chosen).result(ActivityMetric) is None
