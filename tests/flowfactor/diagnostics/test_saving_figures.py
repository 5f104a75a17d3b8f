import matplotlib
import pytest
from PIL import Image

from flowfactor.diagnostics import paper_style, plot_errors, save
from flowfactor.errors import RunError


@pytest.fixture
def figure():
    return plot_errors({"hue": {"flow": [2.0, 3.0], "identity": [5.0, 7.0], "floor": 1.0}})


@pytest.mark.parametrize(
    ("suffix", "start"),
    [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")],
)
def test_suffix_gives_the_format(figure, suffix, start, tmp_path):
    path = save(figure, tmp_path / f"figure{suffix}")
    assert path == tmp_path / f"figure{suffix}"
    assert path.read_bytes().startswith(start)


def test_png_has_200_dots_per_inch(figure, tmp_path):
    width, height = figure.get_size_inches()
    size = Image.open(save(figure, tmp_path / "figure.png")).size
    assert size == pytest.approx((200 * width, 200 * height), abs=1)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_same_figure_gives_the_same_bytes(figure, suffix, tmp_path):
    first = save(figure, tmp_path / f"a{suffix}").read_bytes()
    assert save(figure, tmp_path / f"b{suffix}").read_bytes() == first


@pytest.mark.parametrize("name", ["figure.jpg", "figure", ".png"])
def test_unknown_suffixes_are_refused_and_nothing_is_written(figure, name, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png, \.pdf or \.svg"):
        save(figure, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_drawing_leaves_the_old_file(figure, tmp_path, monkeypatch):
    path = save(figure, tmp_path / "figure.png")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(MemoryError):
        save(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_writing_leaves_the_old_file(figure, tmp_path, monkeypatch):
    path = save(figure, tmp_path / "figure.png")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="No space left"):
        save(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_style_ends_with_its_block():
    before = matplotlib.rcParams["axes.linewidth"]
    with paper_style():
        assert matplotlib.rcParams["axes.linewidth"] == 0.6
    assert matplotlib.rcParams["axes.linewidth"] == before != 0.6
