"""What stands beside a model of recordings: intervals of its accuracy, and mean training films."""

import pytest
import torch
from scipy.stats import binomtest
from small_models import small

from flowfactor.data import Recordings
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.metrics import Inferred, MeanFilmMetric, mean_film_error, proportion_interval


@pytest.mark.parametrize(("right", "count"), [(0, 4), (7, 10), (330, 330), (1, 2)])
def test_the_interval_of_independent_samples_is_wilsons(right, count):
    samples = torch.arange(count) < right
    wanted = binomtest(right, count).proportion_ci(method="wilson")
    for groups in (None, torch.randperm(count) + 7):
        assert proportion_interval(samples, groups) == pytest.approx((wanted.low, wanted.high))


def test_samples_that_belong_together_count_less():
    torch.manual_seed(0)
    groups = torch.arange(200) // 10
    together = (torch.rand(20) < 0.6)[groups]
    apart = together[torch.randperm(200)]
    wide, narrow = (proportion_interval(each, groups) for each in (together, apart))
    alone = proportion_interval(together[::10])
    assert wide[1] - wide[0] == pytest.approx(alone[1] - alone[0], rel=0.1)
    assert narrow[1] - narrow[0] < 0.6 * (wide[1] - wide[0])
    low, high = proportion_interval(torch.ones(200, dtype=torch.bool), groups)
    assert 0.8 < low < 0.9
    assert high == pytest.approx(1)
    assert proportion_interval(together, torch.zeros_like(groups)) == (0, 1)


def test_intervals_cover_what_they_should():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(120) // 6
    covered = 0
    for _ in range(300):
        chance = 0.2 + 0.6 * torch.rand(20, generator=generator)  # of each group
        right = torch.rand(120, generator=generator) < chance[groups]
        low, high = proportion_interval(right, groups)
        covered += low < 0.5 < high
    assert 0.92 <= covered / 300 <= 0.99


def recordings(labels, groups=None, seed=0):
    frames = torch.rand(len(labels), 4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Recordings(frames, torch.tensor(labels), ["x", "y"], groups=groups)


def test_mean_films_know_the_label_and_nothing_else():
    training, data = recordings([0, 0, 0, 1, -1]), recordings([1, -1, 0, 0], seed=1)
    errors = mean_film_error(training, data, frames=3, batch_size=2)
    x, y = (each.sample(range(len(each))).frames[:, 1:] for each in (training, data))
    assert errors["x"] == pytest.approx(float((y[2:] - x[:3].mean(0)).abs().sum() / 2))
    assert errors["y"] == pytest.approx(float((y[0] - x[3]).abs().sum()))
    assert set(mean_film_error(recordings([0, 0]), data, frames=3)) == {"x"}
    with pytest.raises(ValueError, match="transformations"):
        mean_film_error(data.relabel(["x", "z"], data.labels), data, frames=3)


def test_both_stand_in_the_tables_of_a_weak_model():
    model = small("weak_flow_vae", ("x", "y"), (1, 8, 8), 3).eval()
    model.arrange((0, 1), ("x", "y"))
    training, data = recordings([0, 1]), recordings([1, 0, 0, 1], ["a", "a", "b", "c"], seed=1)
    options = EvaluationOptions(metrics={"log_likelihood": False})
    evaluation = evaluate(model, data, options, training=training)
    inferred = evaluation.result(Inferred)
    right = model.choose(data.sample(range(4))) == data.labels
    assert inferred.interval == pytest.approx(proportion_interval(right, data.groups))
    assert (inferred.accuracy, inferred.common) == (float(right.float().mean()), 0.5)
    films = evaluation.result(MeanFilmMetric)
    assert films.errors == mean_film_error(training, data, frames=3)
    for table in ("errors", "inferred"):
        shown = evaluation.tables()[table]
        place = [column.key for column in shown.columns].index("mean film")
        assert [row.values[place] for row in shown.rows[:2]] == list(films.errors.values())
    assert evaluate(model, data, options).result(MeanFilmMetric) is None


def test_several_flows_can_mean_one_transformation():
    model = small("weak_flow_vae", ("x", "y"), (1, 8, 8), 3, flows=3).eval()
    model.arrange((0, 1, 2), ("x", "y", "more"))
    data, validation = recordings([0, 0, 1, 1]), recordings([0, 0, 1, 1, 1], seed=1)
    chosen = {2: [0, 0], 4: [0, 1, 2, 2], 5: [0, 0, 0, 1, 2]}
    model.choose = lambda sequences: torch.tensor(chosen[len(sequences)])
    options = EvaluationOptions(metrics={"log_likelihood": False})
    result = evaluate(model, data, options, validation=validation).result(Inferred)
    assert (result.accuracy, result.majority, result.common) == (0.25, 0.75, 0.5)
    assert result.majority_interval[0] < 0.75 < result.majority_interval[1]
    assert evaluate(model, data, options).result(Inferred).majority is None
