"""Rasters of activity, and arrows below film strips, of a model that knows the truth."""

import dataclasses

import numpy as np
import pytest
import torch
from drawings import labels_of, legend_of
from matplotlib.text import Annotation
from toy_activity import Dials, Reader

from flowfactor.data import ActivityLaw
from flowfactor.diagnostics import (
    activity_data,
    activity_strips,
    draw_activity,
    draw_film_strips,
    plot_activity,
)
from flowfactor.metrics import match_fields

NAMES = ("a", "b", "c")
KINDS = {"switch": ActivityLaw("switch"), "pairs": ActivityLaw("pairs")}


@pytest.fixture(scope="module")
def sequences():
    return {kind: Dials().draw_sequences(range(3), law) for kind, law in KINDS.items()}


def arrows_of(figure):
    found = [text for axes in figure.axes for text in axes.texts if isinstance(text, Annotation)]
    return [arrow.xy[0] - arrow.xyann[0] for arrow in found]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_a_raster_holds_inferred_and_true_speeds_in_one_order(sequences, order):
    model = Reader(Dials(), order, [1.0, -1.0, 1.0]).eval()
    frames = torch.cat([batch.frames for batch in sequences.values()])
    truth = torch.cat([batch.activity for batch in sequences.values()])
    matching = match_fields(model.infer_activity(frames), truth)
    data = activity_data(model, sequences, matching, NAMES)
    assert data.kinds == ("switch",) * 3 + ("pairs",) * 3
    np.testing.assert_allclose(data.inferred, data.truth, atol=1e-4)
    figure = draw_activity(data)
    above, below = figure.axes[:2]
    for axes in (above, below):
        assert labels_of(axes.get_yticklabels()) == list(NAMES)
    shown = below.images[0].get_array()
    np.testing.assert_array_equal(shown[:, :6], data.inferred[0].T)
    assert {text.get_text() for text in above.texts} == {"switch", "pairs"}


def test_without_truth_or_with_spare_fields_a_raster_shows_what_there_is(sequences):
    model = Reader(Dials(), [0, 1, 2, 2]).eval()
    data = activity_data(model, sequences)
    assert data.names == (*NAMES, "spare 1")
    assert data.inferred.shape[-1] == data.truth.shape[-1] + 1
    draw_activity(data).canvas.draw()
    unknown = {kind: dataclasses.replace(batch, activity=None) for kind, batch in sequences.items()}
    figure = plot_activity(model, unknown)
    assert figure.axes[0].get_ylabel() == "inferred"
    with pytest.raises(ValueError, match="activity"):
        activity_data(model, {**unknown, "more": sequences["pairs"]})
    with pytest.raises(ValueError, match="kind"):
        activity_strips(model, {})


def test_strips_have_an_arrow_for_each_field_that_acts(sequences):
    strips = activity_strips(Reader(Dials()).eval(), sequences)
    assert strips.labels == ("switch",) * 3 + ("pairs",) * 3
    torch.testing.assert_close(strips.flows["inferred"], strips.truth, rtol=0, atol=1e-5)
    figure = draw_film_strips(strips)
    lengths = arrows_of(figure)
    # One field in 6 steps of 3 sequences, two in those of 3 more; in truth, and as inferred.
    assert len(lengths) == 2 * (18 + 36)
    truth = torch.cat([batch.activity for batch in sequences.values()])
    acting = truth[truth != 0]
    assert sum(length > 0 for length in lengths) == 2 * int((acting > 0).sum())
    assert max(map(abs, lengths)) / min(map(abs, lengths)) == pytest.approx(
        float(acting.abs().max() / acting.abs().min()), rel=1e-3
    )
    assert legend_of(figure) == list(NAMES)
    plain = draw_film_strips(dataclasses.replace(strips, marks=None))
    assert not arrows_of(plain)
    assert plain.get_figheight() < figure.get_figheight()
    with pytest.raises(ValueError, match="marks"):
        draw_film_strips([strips, dataclasses.replace(strips, marks=None)])
