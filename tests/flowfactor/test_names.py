"""Names of strangers: as parts of file names, and as lines."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec=None), max_size=40), max_size=6, unique=True))
def test_any_names_become_safe_names_of_their_own(labels):
    names = file_names([*labels, *HOSTILE])
    for name in names.values():
        check_safe(name)
    assert len({name.casefold() for name in names.values()}) == len(set(labels) | set(HOSTILE))


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
