"""Evaluations: which metrics are measured, and that their record is read back as it was."""

import json
from types import SimpleNamespace

import pytest
import torch
from small_models import small

from flowfactor.data import Recordings
from flowfactor.errors import ConfigError, RunError
from flowfactor.evaluation import EvaluationOptions, check_metrics, evaluate
from flowfactor.matching import match_flows
from flowfactor.metrics import (
    Equivariance,
    ErrorSummaries,
    ErrorSummary,
    Inferred,
    Traversals,
    assignments,
    error_table,
    infer_labels,
)
from flowfactor.models import fit_traversals
from flowfactor.options import dump, parse
from flowfactor.records import Evaluation, evaluation_columns
from flowfactor.registries import METRICS

FEW = {"log_likelihood": {"sequences": 2, "samples": 2}}
MANY = FEW | {
    "composition": {},
    "extrapolation": {},
    "closure": {},
    "sharpness": {},
    "paths": None,
    "predictability": {"width": 2, "epochs": 1},
    "disentanglement": {"codes": 400, "trees": 1},
}


@pytest.fixture(scope="module")
def evaluation(digits):
    model = small("flow_vae", digits.names, digits.image_shape, digits.horizon).eval()
    options = EvaluationOptions(images=10, metrics=MANY)
    return evaluate(model, digits, options, source="digits", held_out=digits, held_out_values="3")


def test_everything_that_is_measured_has_columns_and_tables(evaluation, digits):
    assert set(evaluation.metrics) == set(MANY) | {
        "equivariance",
        "solver_independence",
        "held_out",
    }
    assert evaluation.transformations == digits.names
    assert evaluation.result(Traversals) is None
    columns = {column.key: column.value(evaluation) for column in evaluation_columns([evaluation])}
    assert {key for key, value in columns.items() if value is not None} == {
        *(f"error.{name}" for name in digits.names),
        *("mean_error", "log_likelihood", "log_likelihood_trained", "solver_change"),
        *("predictability", "factor_vae", "mig", "dci", "dci_completeness"),
        *("dci_informativeness", "sap", "straightness", "kinetic_energy", "superposition"),
        *("switching", "reversal", "order_gap", "held_out", "beyond", "beyond_identity"),
        *("beyond_over_identity", "closure", "sharpness"),
    }
    mean = sum(columns[f"error.{name}"] for name in digits.names) / 3
    assert columns["mean_error"] == pytest.approx(mean)
    tables = evaluation.tables()
    assert set(tables) == {
        *("errors", "log_likelihood", "composition", "reversal", "extrapolation"),
        *("paths", "predictability", "disentanglement", "held_out", "closure", "sharpness"),
        "properties",
    }
    assert [row.label for row in tables["errors"].rows] == [*digits.names, "mean"]


def test_the_summary_is_what_the_tables_say(evaluation):
    tables = evaluation.tables()
    assert next(iter(tables)) == "properties"
    summary = {row.label: row.values for row in tables["properties"].rows}
    assert len(summary) == 8
    *_, mean = tables["errors"].rows
    assert summary["one transformation"][:3] == [mean.values[i] for i in (0, 2, 3)]
    result = evaluation.metrics["composition"]
    assert summary["simultaneous"][0] == pytest.approx(result.means.superposition)
    assert summary["sequential"][0] == pytest.approx(result.means.switching)
    assert summary["backwards"][0] == pytest.approx(result.means.reversal)
    for label in ("one transformation", "simultaneous", "sequential", "backwards"):
        assert all(isinstance(number, float) and number > 0 for number in summary[label])
    columns = {column.key: column for column in evaluation_columns([evaluation])}
    for key in ("beyond_over_identity", "closure", "sharpness", "solver_change"):
        column = columns[key]
        assert summary[column.summary][0] == column.write(column.value(evaluation))


def forget(content, keys):
    for key in keys:
        content.pop(key, None)
    for below in content.values():
        if isinstance(below, dict):
            forget(below, keys)


def test_evaluations_of_earlier_versions_are_read(evaluation):
    content = json.loads(evaluation.to_json())
    forget(content["metrics"], ("copy", "seen"))
    earlier = Evaluation.from_dict(content).tables()
    for name, table in evaluation.tables().items():
        keys = [column.key for column in table.columns]
        kept = [key for key in keys if key not in ("pixel copy", "later states")]
        without = [key for key in kept if not key.endswith("_copy")]
        assert [column.key for column in earlier[name].columns] == without
        assert len(earlier[name].rows) == len(table.rows)


def test_a_record_is_read_back_as_it_was(evaluation, tmp_path):
    path = tmp_path / "evaluation.json"
    evaluation.write(path)
    assert Evaluation.read(path) == evaluation
    # Results of a metric whose plug-in is not loaded are kept as they are.
    content = json.loads(path.read_text())
    content["metrics"]["elsewhere"] = {"score": 1}
    other = Evaluation.from_dict(content)
    assert other.to_dict()["metrics"]["elsewhere"] == {"score": 1}
    assert set(other.tables()) == set(evaluation.tables())


def test_damaged_records_are_refused(evaluation, tmp_path):
    path = tmp_path / "evaluation.json"
    with pytest.raises(RunError, match=r"evaluation\.json"):
        Evaluation.read(path)
    content = evaluation.to_dict()
    content["metrics"]["equivariance"].pop("errors")
    for text, where in (("{", "JSON"), ("{}", "split"), (json.dumps(content), "errors")):
        path.write_text(text)
        with pytest.raises(RunError, match=where):
            Evaluation.read(path)


def test_options_hold_the_metrics_that_are_measured_by_default():
    options = parse(EvaluationOptions, {"metrics": {"held_out": False, "paths": True, **FEW}})
    content = dump(options)
    assert content["metrics"]["log_likelihood"] == FEW["log_likelihood"]
    assert content["metrics"]["held_out"] is False
    assert content["metrics"]["paths"] == content["metrics"]["equivariance"] == {}
    assert "composition" not in content["metrics"]
    assert parse(EvaluationOptions, content) == options
    for metrics, where in (
        ({"compositon": {}}, "composition"),
        ({"paths": {"images": 3}}, "images"),
        ({"disentanglement": {"codes": 3}}, "codes"),
        (["paths"], "metrics"),
    ):
        with pytest.raises(ConfigError, match=where):
            EvaluationOptions(metrics=metrics)


def test_metrics_that_do_not_apply_are_refused_when_asked_for(digits):
    model = small("vae", digits.names, digits.image_shape, digits.horizon).eval()
    options = EvaluationOptions(metrics={"composition": {}})
    for call in (check_metrics, evaluate):
        with pytest.raises(ConfigError, match="composition"):
            call(model, digits, options)
    check_metrics(model, digits, EvaluationOptions())
    flows = small("flow_vae", digits.names, digits.image_shape, digits.horizon).eval()
    options = EvaluationOptions(images=1, metrics={"predictability": {}} | FEW)
    with pytest.raises(RunError, match="predictability"):  # of one image none is left to test on
        evaluate(flows, digits, options)


def test_every_traversal_is_measured(digits):
    model = small("vae", digits.names, digits.image_shape, digits.horizon).eval()
    fit_traversals(model, [digits.sample(range(6))], sequences=2, ranges=(-1.0, 1.0))
    chosen = model.traversal
    evaluation = evaluate(model, digits, EvaluationOptions(images=4, metrics=FEW))
    result = evaluation.result(Traversals)
    assert (result.chosen, model.traversal) == (chosen, chosen)
    assert set(result.traversals) == set(model.TRAVERSALS)
    assert result.traversals[chosen] == evaluation.result(Equivariance)
    assert "solver_independence" not in evaluation.metrics
    assert [row.label for row in evaluation.tables()["traversals"].rows] == list(model.TRAVERSALS)


def test_what_is_no_better_than_an_image_that_stands_still_is_said():
    def error(flow, identity, copy):
        return ErrorSummary(flow, 0.1, identity, 1.0, 0.1, [flow], [identity], copy)

    errors = {"good": error(2, 5, 4), "fog": error(4.5, 5, 4), "still": error(5, 5, None)}
    table = error_table(ErrorSummaries(1.0, errors), "")
    *rows, _ = table.rows
    assert [bool(row.footnote) for row in rows] == [False, True, True]
    assert rows[1].footnote in table.to_html()


# ---- weak supervision


class Guess:
    """Chooses the flow that the first pixel says."""

    names, supervised, device = ("a", "b", "c"), False, torch.device("cpu")

    def choose(self, sequences):
        return (sequences.frames[:, 0, 0, 0, 0] * 10).round().long()


def recordings(choices, labels=None):
    frames = torch.tensor(choices)[:, None, None, None, None] / 10
    names = None if labels is None else ["x", "y"]
    return Recordings(frames.expand(-1, 2, 1, 2, 2), labels, names)


def test_flows_are_matched_by_the_most_sequences():
    data = recordings([2, 2, 0, 2, 0, 1], [0, 0, 0, 1, 1, 1])
    matching = match_flows(Guess(), [data.sample(range(6))], 2)
    assert matching.counts.tolist() == [[1, 0, 2], [1, 1, 1]]
    assert (matching.flow_of[0], matching.order[0]) == (2, 2)
    assert sorted(matching.order) == [0, 1, 2]
    assert matching.accuracy == pytest.approx(3 / 6)
    assert matching.purity == pytest.approx((1 + 1 + 2) / 6)
    with pytest.raises(ValueError, match="transformations"):
        match_flows(Guess(), [], 4)
    with pytest.raises(ValueError, match="label"):
        match_flows(Guess(), [recordings([1, 1], [0, -1]).sample([0, 1])], 2)


@pytest.mark.wrong_types
def test_only_unknown_labels_are_inferred():
    unknown = infer_labels(Guess(), recordings([2, 0, 1], [-1, -1, -1]), batch_size=2)
    assert (unknown.names, unknown.labels.tolist()) == (Guess.names, [2, 0, 1])
    known = recordings([2, 0, 1], [0, 1, 1])
    assert infer_labels(Guess(), known) is known
    supervised = SimpleNamespace(supervised=True)
    assert infer_labels(supervised, recordings([1], [-1])).labels.tolist() == [-1]
    with pytest.raises(ValueError, match="transformations"):
        infer_labels(Guess(), recordings([2, 0], [0, -1]))


@pytest.mark.parametrize(("known", "accuracy"), [(4, 1.0), (2, 1.0), (0, None)])
def test_a_weak_model_is_measured_on_labels_as_far_as_there_are_some(known, accuracy):
    """Flows have the names of the transformations; one is to spare."""
    model = small("weak_flow_vae", ("x", "y"), (1, 8, 8), 3, flows=3).eval()
    frames = torch.rand(4, 4, 1, 8, 8)
    plain = Recordings(frames, torch.full((4,), -1), ["x", "y"])
    choices = model.choose(plain.sample(range(4)))
    order = [*choices.unique().tolist(), *set(range(3)) - set(choices.tolist())]
    model.arrange(order, ("x", "y", "more"))
    labels = model.choose(plain.sample(range(4)))
    labels[known:] = -1
    data = Recordings(frames, labels, ["x", "y"])
    evaluation = evaluate(model, data, EvaluationOptions(metrics=FEW))
    inferred = evaluation.result(Inferred)
    assert inferred.accuracy == accuracy
    assert inferred.mean_error == pytest.approx(evaluation.result(Equivariance).mean_error)
    assert evaluation.transformations == (("x", "y") if known else ("x", "y", "more"))
    counts = evaluation.tables()["assignments"]
    assert [column.key for column in counts.columns] == ["x", "y", "more"]
    assert sum(sum(row.values) for row in counts.rows) == (known or 4)
    table = assignments(model, data, batch_size=3)
    found = {column.key: place for place, column in enumerate(table.columns)}
    chances = model.infer(data.sample(range(4))).detach().exp()
    for i, row in enumerate(table.rows):
        k = int(chances[i].argmax())
        assert row.values[found["flow"]] == model.names[k]
        assert row.values[found["probability"]] == pytest.approx(float(chances[i, k]), abs=1e-5)
        if known:
            label = row.values[found["transformation"]]
            assert label == (model.names[labels[i]] if i < known else None)


def test_assignments_of_samples_whose_transformation_is_chosen(digits):
    model = small("weak_flow_vae", digits.names, digits.image_shape, digits.horizon).eval()
    table = assignments(model, digits, [5, 7])
    assert [row.label for row in table.rows] == ["5", "7"] * 3
    assert [row.values[0] for row in table.rows[::2]] == list(digits.names)


def test_metrics_are_registered_in_the_order_of_tables():
    assert METRICS["equivariance"] is Equivariance
    assert METRICS["equivariance"].order < METRICS["composition"].order < 1000
