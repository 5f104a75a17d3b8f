"""Names of strangers: as parts of file names, and as lines."""

import random
import re
import unicodedata

import pytest

from flowfactor.names import file_names, one_line

RESERVED = {"con", "prn", "aux", "nul", "com1", "lpt9"}
HOSTILE = [
    "",
    ".",
    "..",
    "/",
    "\\",
    "\0",
    "../../x",
    "C:\\x",
    "~",
    "a\nb",
    "CON",
    "nul.txt",
    "\udcff",
]


def check_safe(name):
    assert name
    assert not re.search(r"[\\/:*?\"<>|\x00-\x1f\ud800-\udfff.\s]", name)
    assert len(name.encode()) <= 70
    assert name.lower() not in RESERVED
    assert not any(unicodedata.category(letter)[0] == "C" for letter in name)


def draw_labels(chance: random.Random) -> set[str]:
    """Return labels of any code points, or of few letters so that some resemble others."""
    every = [chr(chance.randrange(0x110000)) for _ in range(20)]
    letters = chance.choice((every, "aAé\u0301_ ./", "con1.\0\n\udcff~"))
    sizes = [chance.choice((1, 2, 3, 40)) for _ in range(chance.randrange(7))]
    return {"".join(chance.choices(letters, k=size)) for size in sizes}


def test_any_names_become_safe_names_of_their_own():
    chance = random.Random(0)
    for labels in (draw_labels(chance) for _ in range(200)):
        names = file_names([*labels, *HOSTILE])
        for name in names.values():
            check_safe(name)
        different = {name.casefold() for name in names.values()}
        assert len(different) == len(labels | set(HOSTILE)), labels


def test_usual_names_of_any_script_remain_readable():
    for name in ("rotation", "flow_1", "Größe", "旋转", "हिन्दी", "مرحبا"):
        assert file_names([name])[name] == name


@pytest.mark.parametrize(
    "labels",
    [("a b", "a/b"), ("A", "a"), ("e\u0301", "é"), ("x" * 299 + "1", "x" * 299 + "2")],
)
def test_names_that_would_be_one_stay_apart_in_any_order(labels):
    names = file_names(labels)
    assert len({name.casefold() for name in names.values()}) == 2
    assert names == file_names(labels[::-1])


def test_a_line_shows_what_is_invisible():
    assert one_line(" two\r\nlines\t\x1b[31m\udcff\u202e ") == "two lines \\x1b[31m\\udcff\\u202e"
    assert len(one_line("名" * 300, 40)) == 40
