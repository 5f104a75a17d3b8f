import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from flowfactor.diagnostics import Animation, Illustration, Section, write_report
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
        if "style" not in self.open and data.strip():
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
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
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
    assert "script" not in reader.tags
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
