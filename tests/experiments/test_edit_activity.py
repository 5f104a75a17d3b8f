"""What happens in a sequence is changed, and decoded."""

import types

import pytest
import torch
import typer
from PIL import Image
from toy_activity import Dials, Reader
from typer.testing import CliRunner

from experiments.console import Command
from experiments.scripts import edit_activity
from experiments.scripts.edit_activity import edited_frames, parse_edit
from flowfactor.data import ActivityLaw

NAMES = ("a", "b", "c")


def test_edited_sequences_are_those_in_which_something_else_happened():
    data = Dials()
    batch = data.draw_sequences(range(4), ActivityLaw("single", (0.5, 1.0)), random_starts=False)
    edits = ["stop@2", "back", "speed=0.5", "next", "a=c@3"]
    changes = dict(parse_edit(text, NAMES, 6) for text in edits)
    strips = edited_frames(Reader(data).eval(), batch, "single", changes)
    assert len(strips.flows) == 1 + len(edits)
    starts = batch.frames[:, :1]
    for name, change in changes.items():
        moved = torch.nn.functional.pad(change(batch.activity).cumsum(1), (0, 0, 1, 0))
        truth = starts + 0.03 * moved[:, :, None, None]
        torch.testing.assert_close(strips.flows[name], truth, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            torch.from_numpy(strips.marks.speeds[name]).float(),
            change(batch.activity),
            rtol=0,
            atol=1e-3,
        )
    back = list(strips.flows.values())[2]
    torch.testing.assert_close(back, back.flip(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("text", ["halt", "stop@9", "stop@x", "a=d", "speed=fast", "speed="])
def test_bad_edits_are_refused(text):
    with pytest.raises(typer.BadParameter, match="edit"):
        parse_edit(text, NAMES, 6)


def test_the_script_draws_strips_and_an_animation(tmp_path, monkeypatch):
    run = types.SimpleNamespace(model=Reader(Dials()).eval(), data=Dials)
    monkeypatch.setattr(edit_activity, "open_run", lambda *_: run)
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(edit_activity.main)
    (tmp_path / "run").mkdir()
    words = [str(tmp_path / "run"), "--out", str(tmp_path), "--kind", "switch", "--images", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "edited.gif") as picture:
        assert picture.n_frames == 2 * 4 * 6  # there and back
    with Image.open(tmp_path / "edited.png") as picture:
        assert min(picture.size) > 100


def test_other_models_are_refused(tmp_path, monkeypatch):
    run = types.SimpleNamespace(model=torch.nn.Linear(1, 1), data=Dials)
    monkeypatch.setattr(edit_activity, "open_run", lambda *_: run)
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(edit_activity.main)
    (tmp_path / "run").mkdir()
    result = CliRunner().invoke(app, [str(tmp_path / "run")])
    assert result.exit_code != 0
    assert "activity" in result.output
