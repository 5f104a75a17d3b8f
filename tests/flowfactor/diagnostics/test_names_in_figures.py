"""Names that anyone may have chosen, in figures: no formula, no line break, no endless label."""

import pytest
import torch
from small_models import small

from flowfactor.data import SequenceBatch
from flowfactor.diagnostics import animate, plot_film_strips, plot_transport
from flowfactor.diagnostics.io import render
from flowfactor.diagnostics.latent_grid import explore_latent

NAMES = ("$x_$", "[red]\n" + "名" * 300, "_a")


@pytest.fixture(scope="module")
def strange():
    return small("flow_vae", NAMES, (3, 8, 8), 4)


def test_strange_names_are_drawn(strange):
    films = SequenceBatch.full(torch.rand(3, 5, 3, 8, 8), torch.arange(3))
    for figure in (
        plot_film_strips(strange, films),
        explore_latent(strange, films.frames[:1, 0], times=[0, 1]),
        plot_transport(strange, films.frames[:2, 0], substeps=1),
    ):
        assert render(figure, dpi=30)
    assert len(figure.legends[0].get_texts()) == 3
    assert len(animate(strange, films.frames[:1, 0], substeps=1).pictures) == 8


def test_of_long_sequences_some_frames_are_drawn(strange):
    films = SequenceBatch.full(torch.rand(1, 83, 3, 8, 8), torch.zeros(1, dtype=torch.long))
    figure = plot_film_strips(strange, films)
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks[:3] == ["0", "3", "6"]
    assert ticks[-1] == "81"
    assert len(animate(strange, films.frames[:, 0], horizon=20).pictures) <= 128
