import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import flowfactor
from flowfactor.diagnostics import (
    Animation,
    Illustration,
    Player,
    Section,
    player_data,
    write_report,
)
from flowfactor.tables import Column, Row, Table

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects what a browser would load or show."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open) and data.strip():
            self.text.append(data.strip())

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def figure(width=3.0):
    drawn = Figure(figsize=(width, 2))
    drawn.subplots().plot([0, 1])
    return drawn


def animation():
    pictures = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    return Animation(pictures, (50, 50, 50))


def test_report_holds_its_images_and_refers_to_nothing_else(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "dot.png")
    sections = [
        Section("Figures", "Look.", [figure(), Illustration(animation(), "moving")]),
        Section("Files", "", [Illustration(tmp_path / "dot.png", "a dot")]),
    ]
    path = write_report(tmp_path / "run", "A run", sections)
    assert path == tmp_path / "run" / "report.html"
    reader = read(path)
    assert not {"link", "iframe", "object", "base"} & set(reader.tags)
    sources = reader.values("src")
    assert [source.split(";")[0] for source in sources] == [
        "data:image/png",
        "data:image/gif",
        "data:image/png",
    ]
    for source in sources:
        content = base64.b64decode(source.split(",", 1)[1], validate=True)
        Image.open(io.BytesIO(content)).verify()
    assert all(link.startswith("#") for link in reader.values("href"))
    assert {link[1:] for link in reader.values("href")} == set(reader.values("id"))
    style = re.search(r"<style>(.*?)</style>", path.read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_a_browser_loads_nothing_and_runs_no_other_script(tmp_path):
    page = write_report(tmp_path, "A run", [Section("One")]).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    for word in ("fetch(", "XMLHttpRequest", "import(", "eval(", "http"):
        assert word not in script


def cells(page):
    """Return what a player shows, as the browser cuts it out: ``(P, T, B, H, W, 3)``."""
    data = json.loads(page.values("data-player")[0])
    source = next(each for each in page.values("src"))
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))))
    (high, wide), B = data["cell"], data["samples"]
    frames = [
        [
            [
                sheet[p * high :, (t * B + b) * wide :][: data["height"], : data["width"]]
                for b in range(B)
            ]
            for t in range(len(data["times"]))
        ]
        for p in range(len(data["labels"]))
    ]
    return data, np.array(frames)


def test_a_player_holds_the_frames_of_every_flow_and_time(tmp_path, model, images):
    player = player_data(model, images, names=("rotation", "hue"), blends=2, substeps=2)
    assert player.times == tuple(t / 2 for t in range(9))
    data, frames = cells(read(write_report(tmp_path, "A run", [Section("One", "", [player])])))
    np.testing.assert_array_equal(frames, player.frames)
    assert data["labels"] == ["rotation", "0.5 rotation + 0.5 hue", "hue"]
    both = 0.5 * model.potentials["rotation"] + 0.5 * model.potentials["hue"]
    with torch.no_grad():
        path = model.flow(model.represent(images), both, list(player.times))
        expected = model.decode(path[5])  # t = 2.5
    shown = torch.from_numpy(frames[1, 5]).movedim(-1, 1) / 255
    torch.testing.assert_close(shown, expected, atol=0.003, rtol=0)


def test_a_large_player_is_smaller_and_its_frames_do_not_mix(tmp_path):
    # Black beside white: a lossy image must not let one into the other.
    frames = np.zeros((2, 41, 4, 50, 52, 3), np.uint8)
    frames[:, ::2] = 255
    player = Player(frames, ("a", "b"), tuple(map(float, range(41))), 40)
    path = write_report(tmp_path, "A run", [Section("One", "", [player])])
    _, shown = cells(read(path))
    assert np.abs(shown.astype(int) - frames).max() <= 4
    assert path.stat().st_size < 1_000_000


def test_noise_in_a_large_player():
    """As models draw that have learned little; no image format makes it small."""
    frames = np.random.default_rng(0).integers(0, 256, (1, 10, 1, 256, 256, 3), np.uint8)
    kind, content = Player(frames, ("a",), tuple(map(float, range(10))), 9).sheet()
    assert kind == "image/jpeg"
    assert Image.open(io.BytesIO(content)).size == (2560, 256)


def test_the_pixels_of_a_player_are_bounded():
    model = flowfactor.FlowVAE.build(
        ("a", "b", "c"),
        (1, 128, 128),
        horizon=70,
        latent_dim=2,
        width=2,
        encoder={"channels": [2, 2], "hidden": 2},
        decoder={"hidden": [2]},
    )
    player = player_data(model, torch.rand(4, 1, 128, 128), blends=2, substeps=2)
    assert player.frames.size <= 3 * 4_000_000
    assert player.labels == ("a", "b", "c")
    assert (player.times[0], player.times[-1]) == (0, 70)
    assert player.frames.shape[1:3] == (65, 1)


def test_sections_text_and_tables_are_there_in_order(tmp_path):
    table = Table([Column("E")], [Row("hue", (12.34,))], "errors", "name")
    reader = read(
        write_report(
            tmp_path,
            "A run",
            [Section("Errors", "First.\n\nSecond\nparagraph.", [], [table])],
            subtitle="made by hand",
        )
    )
    assert reader.text == [
        "A run",
        "A run",
        "made by hand",
        "Errors",
        "First.",
        "Second paragraph.",
        "errors",
        "name",
        "E",
        "hue",
        "12.3",
    ]


def test_all_text_is_escaped(tmp_path):
    evil = '<script>alert("x")</script> & \'"'
    reader = read(
        write_report(
            tmp_path,
            evil,
            [
                Section(
                    evil,
                    evil,
                    [Illustration(figure(), evil)],
                    [Table([Column(evil)], [Row(evil, (evil,))], evil, evil)],
                ),
                Section(evil),
            ],
            subtitle=evil,
        )
    )
    assert reader.tags.count("script") == 1  # our own
    # Title twice, subtitle, two entries, two headings, paragraph, five of the table, caption.
    assert reader.text.count(evil) == 14
    assert reader.values("alt") == [evil]


def test_page_fits_narrow_windows_and_dark_mode(tmp_path):
    path = write_report(tmp_path, "A run", [Section("One", "", [figure(6.9)])])
    page = path.read_text()
    reader = read(path)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert ("div", "class", "wide") in reader.attributes


def test_an_older_report_is_replaced_and_nothing_else_left(tmp_path):
    write_report(tmp_path, "Old", [])
    path = write_report(tmp_path, "New", [])
    assert "Old" not in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"film\.mp4"):
        write_report(tmp_path, "A run", [Section("One", "", [Illustration("film.mp4")])])
    assert list(tmp_path.iterdir()) == []
