"""YAML of strangers: refused at once and in one sentence, whatever it holds."""

import pytest

from experiments.config import read_config, validate
from experiments.yaml_files import parse_yaml, read_yaml
from flowfactor.errors import ConfigError

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 9)]
)

REFUSED = {
    "aliases": (LAUGHS, "aliases"),
    "an alias to itself": ("a: &a [*a]", "aliases"),
    "a merge of itself": ("a: &a {<<: *a}", "aliases"),
    "flow depth": ("[" * 50_000, "deep"),
    "block depth": ("\n".join(" " * i + f"k{i}:" for i in range(100)), "deep"),
    "bytes": ("a: 1\n" * 50_000, "bytes"),
    "values": ("a: [" + "1," * 9_000 + "]", "values"),
    "digits": ("a: " + "9" * 5000, "5,000 characters"),
    "hexadecimal digits": ("a: 0x" + "f" * 5000, "characters"),
    "sexagesimal digits": ("a: " + ":".join(["59"] * 3000), "characters"),
    "a number as key": ("1: 2", "'1' is no name"),
    "a truth value as key": ("on: 2", "'on' is no name"),
    "nothing as key": ("~: 1", "no name"),
    "a list as key": ("? [a]\n: 1", "no name"),
    "an empty key": ("'': 1", "1 to 500"),
    "a long key": (f"? {'k' * 900}\n: 1", "1 to 500"),
    "a repeated key": ("a: {b: 1, b: 2}", "'b' occurs twice"),
    "tab": ("a:\n\tb: 1", "cannot start any token"),
    "NUL": ("a: \0", "#x0000"),
    "half a surrogate pair": ('a: "\\ud800"', "ud800"),
    "no character": ('a: "\\U99999999"', "not valid"),
    "no date": ("a: 2001-99-99", "timestamp"),
    "no integer": ("a: !!int foo", "no int"),
    "no truth value": ("a: !!bool x", "no bool"),
    "code": ("a: !!python/object/apply:os.system [ls]", "tag"),
    "a long tag": (f"a: !{'x' * 3000} 1", "tag"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_hostile_yaml(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text)
    assert len(str(caught.value)) < 400


def test_what_is_well_meant_is_read(tmp_path):
    assert parse_yaml("base: &b {x: 1}\nmore: {<<: *b, y: *b}") == {
        "base": {"x": 1},
        "more": {"x": 1, "y": {"x": 1}},
    }
    path = tmp_path / "windows.yaml"
    path.write_bytes("\ufeffdescription: Größe\r\nseed: 3\r\n".encode())
    assert read_yaml(str(path)).content == {"description": "Größe", "seed": 3}


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a: 1\n" * 1_000_000)
    with pytest.raises(ConfigError, match="bytes"):
        read_yaml(str(path))
    path.write_text("a: 1", encoding="utf-16")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_yaml(str(path))


@pytest.mark.parametrize("word", ["yes", "on", "off", "no", "true"])
@pytest.mark.parametrize("key", ["training.steps", "training.learning_rate", "seed"])
def test_truth_values_are_no_numbers(key, word):
    with pytest.raises(ConfigError, match=f"{key}: .*truth value"):
        read_config("demo", [f"{key}={word}"])


LONG = "x" * 50_000


@pytest.mark.parametrize(
    "content",
    [
        {"training": {"steps": LONG}},
        {"training": {"steps": 10**6000}},
        {"training": {"steps": ["a"] * 10_000}},
        {"training": [LONG]},
        {"model": {"kind": LONG}},
        {"model": {"observation": LONG}},
        {"model": {"solver": {"name": LONG}}},
        {"model": {"decoder": {"kind": LONG}}},
        {"data": {"source": "sprites", "transformations": {LONG: {"parameter": LONG}}}},
        {"data": {"source": "sprites", "transformations": {LONG: {LONG: LONG}}}},
        {"data": {"source": "recordings", "path": "p", "names": [LONG, 3]}},
        {"data": {"source": "sprites", "active_start": LONG}},
        {"evaluation": {"metrics": {LONG: LONG}}},
        {"training": {f"key{i}": i for i in range(1000)}},
        {LONG: 1},
    ],
)
def test_errors_never_show_a_whole_value(content):
    with pytest.raises(ConfigError) as caught:
        validate(content, "mine.yaml")
    assert len(str(caught.value)) < 8_000
    assert max(map(len, str(caught.value).splitlines())) < 1_100


def test_values_of_the_command_line_are_cut():
    with pytest.raises(ConfigError) as caught:
        read_config("demo", [f"training.steps={LONG}"])
    assert len(str(caught.value)) < 400
