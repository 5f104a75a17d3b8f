import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from flowfactor.diagnostics import paper_style, save
from flowfactor.errors import RunError


@pytest.fixture(scope="module")
def figure():
    drawn = Figure(figsize=(2, 1))
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.plot([1, 2])
    axes.set_axis_off()
    return drawn


@pytest.mark.parametrize(
    ("suffix", "start"), [(".PNG", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_the_suffix_is_the_format_and_the_same_figure_gives_the_same_bytes(
    figure, suffix, start, tmp_path
):
    path = save(figure, tmp_path / f"figure{suffix}", dpi=50)
    content = path.read_bytes()
    assert content.startswith(start)
    assert save(figure, path, dpi=50).read_bytes() == content


def test_a_png_has_its_dots_per_inch_and_pyplot_knows_nothing(figure, tmp_path):
    width, height = figure.get_size_inches()
    size = Image.open(save(figure, tmp_path / "figure.png")).size
    assert size == pytest.approx((200 * width, 200 * height), abs=1)
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", ["figure.jpg", "figure", ".png"])
def test_unknown_suffixes_are_refused_and_nothing_is_written(figure, name, tmp_path):
    with pytest.raises(ValueError, match="must end in"):
        save(figure, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_writing_leaves_the_old_file(figure, tmp_path, monkeypatch):
    path = save(figure, tmp_path / "figure.png")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match=r"figure\.png"):
        save(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_style_ends_with_its_block():
    before = matplotlib.rcParams["axes.linewidth"]
    with paper_style():
        assert matplotlib.rcParams["axes.linewidth"] == 0.6
    assert matplotlib.rcParams["axes.linewidth"] == before != 0.6
