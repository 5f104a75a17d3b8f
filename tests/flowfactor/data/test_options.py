"""Options of data sets: what a configuration says about them."""

from pathlib import Path

import pytest

from flowfactor.data import (
    DataOptions,
    MNISTOptions,
    RecordingsOptions,
    Shapes3DOptions,
    SpritesOptions,
)
from flowfactor.errors import ConfigError
from flowfactor.options import dump, fields_of, parse
from flowfactor.registries import DATA

SOURCES = [
    "digits",
    "dsprites",
    "factor_grid",
    "falcor3d",
    "images",
    "isaac3d",
    "letters",
    "mnist",
    "mpi3d",
    "photos",
    "recordings",
    "shapes3d",
    "sprites",
]


@pytest.mark.parametrize("source", SOURCES)
def test_every_key_is_documented_and_survives_a_file(source, tmp_path):
    kind = DATA[source]
    assert all(option.description for option in fields_of(kind))
    options = parse(kind, kind.tiny(tmp_path))
    assert parse(kind, dump(options)) == options
    assert options.differences(options) == []


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "mnist"])
def test_tiny_data_sets_have_three_splits(source, tmp_path):
    options = parse(DATA[source], DATA[source].tiny(tmp_path))
    parts = [options.load(split, 0) for split in ("train", "validation", "test")]
    assert len({part.names for part in parts}) == 1
    assert all(1 <= len(part) <= 1000 for part in parts)
    if source != "recordings":
        random = parse(DATA[source], dump(options) | {"initial_state": "random"})
        assert random.load("train", 0).initial_state == "random"


@pytest.mark.parametrize(
    ("cls", "content", "key"),
    [
        (SpritesOptions, {"active_start": "anywhere"}, "data.active_start"),
        (SpritesOptions, {"transformations": {}}, "data.transformations"),
        (
            SpritesOptions,
            {"transformations": {"x": {"step": "far"}}},
            "data.transformations.x.step",
        ),
        (SpritesOptions, {"labelled_fraction": 2}, "data.labelled_fraction"),
        (SpritesOptions, {"sizes": 2}, "data.sizes"),
        (MNISTOptions, {"exclude_digits": list(range(10))}, "data.exclude_digits"),
        (MNISTOptions, {"exclude_digits": [10]}, "data.exclude_digits"),
        (RecordingsOptions, {}, "data.path"),
        (RecordingsOptions, {"path": "a", "initial_state": "random"}, "initial_state"),
    ],
)
def test_bad_options(cls, content, key):
    with pytest.raises(ConfigError, match=key):
        parse(cls, content, "data")


@pytest.mark.parametrize(
    ("first", "second", "keys"),
    [
        (SpritesOptions(), SpritesOptions(train=9, initial_state="random"), []),
        (SpritesOptions(), SpritesOptions(size=16, horizon=4), ["data.horizon", "data.size"]),
        (MNISTOptions(provider="download"), MNISTOptions(provider="torchvision", root="a"), []),
        (MNISTOptions(), MNISTOptions(exclude_digits=(3,)), ["data.exclude_digits"]),
        (Shapes3DOptions(path="a.h5"), Shapes3DOptions(path="b.h5", cache="c"), []),
        (Shapes3DOptions(), Shapes3DOptions(path="b.h5"), ["data.path"]),
        (RecordingsOptions(path="a"), RecordingsOptions(path="b"), ["data.path"]),
    ],
)
def test_differences_are_those_of_the_held_out_sequences(first, second, keys):
    assert [line.partition(":")[0] for line in first.differences(second)] == keys


def test_what_every_source_must_say():
    assert DataOptions.tiny(Path()) == {}
    with pytest.raises(NotImplementedError, match="load"):
        DataOptions().load("train", 0)
