"""The reference of a configuration's keys, from the options themselves."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import pydantic
import rich.table
from pydantic import TypeAdapter
from rich.markup import escape

from experiments.config import GeneralOptions, options_of
from experiments.search import SearchOptions
from experiments.sweep import TableOptions
from flowfactor.errors import ConfigError
from flowfactor.options import KindIn, NameIn, fields_of
from flowfactor.records import registered_metrics
from flowfactor.registries import DATA, DECODERS, ENCODERS, LOGGERS, METRICS, MODELS, TERMS
from solvers.registry import suggest

_SINGLE = ("training", "evaluation")
_REGISTRIES = {
    "data.source": DATA,
    "model.kind": MODELS,
    "model.objective": TERMS,
    "evaluation.metrics": METRICS,
    "training.loggers": LOGGERS,
}
_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m experiments.write_docs`; change the options instead. -->

A configuration is a YAML file. `flowfactor configs` lists those that ship, `flowfactor show NAME`
prints one with every key written out, and `--set KEY.PATH=VALUE` changes a key on the command line.
`flowfactor options NAME` prints the tables of this page. [Extending](extending.md) shows how to add
a data set, a model, a metric or a term, whose options then work like these.
"""
# Of Sphinx: a role before a name, and literals.
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
_LITERAL = re.compile(r"``(.+?)``")


@dataclasses.dataclass(frozen=True)
class Listing:
    """Rows of text below headings, for the console and for Markdown.

    Attributes:
        title: what is listed.
        headings: of the columns.
        rows: their cells; the text of the last one may have the markup of docstrings.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        """Return the table, all cells but the last in the type of code."""
        lines = [_line(self.headings), "|" + "---|" * len(self.headings)]
        for *codes, text in self.rows:
            words = [f"`{code}`" if code else "" for code in codes]
            lines.append(_line([*words, _markdown(text)]))
        return "\n".join(lines) + "\n"

    def to_rich(self) -> rich.table.Table:
        """Return the table for a console of ``rich``."""
        table = rich.table.Table(
            *self.headings, title=escape(self.title) or None, title_justify="left"
        )
        for *codes, text in self.rows:
            table.add_row(*map(escape, codes), escape(_markdown(text).replace("`", "")))
        return table


def listings_of(name: str) -> list[Listing]:
    """Return the keys of a section, a data source, a model or a metric.

    Raises:
        ConfigError: there is nothing of that name.
    """
    known: dict[str, Any] = {
        "general": GeneralOptions,
        "table": TableOptions,
        "search": SearchOptions,
        **{section: options_of(section, "") for section in _SINGLE},
        **dict(DATA.items()),
        **{kind: model.Options for kind, model in MODELS.items()},
        **{kind: metric.Options for kind, metric in METRICS.items()},
        **{f"encoder.{kind}": options for kind, options in ENCODERS.items()},
        **{f"decoder.{kind}": options for kind, options in DECODERS.items()},
    }
    if name not in known:
        raise ConfigError(f"no section or kind is called {name!r}; {suggest(name, known)}")
    return list(_listings(known[name], name, set()))


def names() -> Listing:
    """Return everything that has a name."""
    rows = tuple(
        (name, key, registry.plugin_of(name) or "", _summary(item))
        for key, registry in _REGISTRIES.items()
        for name, item in registry.items()
    )
    return Listing("", ("name", "key", "plug-in", "description"), rows)


def page() -> str:
    """Return ``docs/configuration.md``."""
    sections: list[tuple[str, Any, Any]] = [
        ("Keys outside of sections", GeneralOptions, GeneralOptions),
        *((f"`data.source: {name}`", each, each) for name, each in DATA.items()),
        *((f"`model.kind: {name}`", each, each.Options) for name, each in MODELS.items()),
        *((f"`model.encoder.kind: {name}`", each, each) for name, each in ENCODERS.items()),
        *((f"`model.decoder.kind: {name}`", each, each) for name, each in DECODERS.items()),
        *((f"`{name}`", options_of(name, ""), options_of(name, "")) for name in _SINGLE),
        *((f"`evaluation.metrics.{name}`", x, x.Options) for name, x in registered_metrics()),
        ("Tables of several methods: `flowfactor table`", TableOptions, TableOptions),
        ("Searches: `flowfactor search`", SearchOptions, SearchOptions),
    ]
    shown = {options for registry in (ENCODERS, DECODERS) for _, options in registry.items()}
    parts = [_INTRODUCTION]
    for heading, described, options in sections:
        parts.append(f"## {heading}\n\n{_markdown(_summary(described))}\n")
        for listing in _listings(options, "", shown):
            parts += [f"Keys of `{listing.title}`:\n"] if listing.title else []
            parts += [listing.to_markdown()] if listing.rows else []
    for key in ("model.objective", "training.loggers"):
        items = _REGISTRIES[key].items()
        parts.append(f"## Names in `{key}`\n")
        summaries = {name: _summary(item).removeprefix("Return ") for name, item in items}
        lines = (f"- `{k}`: {_markdown(v[0].upper() + v[1:])}\n" for k, v in summaries.items())
        parts.append("".join(lines))
    return "\n".join(parts)


def _listings(options: Any, title: str, shown: set[Any]) -> Iterator[Listing]:
    """Yield the keys of options, and of options inside them that have not been shown."""
    hints = typing.get_type_hints(options, include_extras=True)
    fields = list(fields_of(options))
    rows = (
        (field.key, _type(hints[field.key]), _default(field.default, hints[field.key]))
        for field in fields
    )
    described = zip(rows, (" ".join(field.description.split()) for field in fields), strict=True)
    headings = ("key", "value", "default", "description")
    yield Listing(title, headings, tuple((*row, text) for row, text in described))
    for field in fields:
        for kind, nested in _options_in(hints[field.key]):
            if nested not in shown:
                shown.add(nested)
                path = ".".join(filter(None, [title, field.key]))
                yield from _listings(nested, f"{path} ({kind})" if kind else path, shown)


def _options_in(hint: Any) -> Iterator[tuple[str, Any]]:
    """Yield the kinds and the classes of the options that an annotation allows."""
    for part in typing.get_args(hint):
        if isinstance(part, KindIn):
            yield from part.registry.items()
            return
    if isinstance(hint, type) and hasattr(hint, "__pydantic_fields__"):
        yield "", hint
    for part in typing.get_args(hint):
        yield from _options_in(part)


def _type(hint: Any) -> str:
    """Return which values an annotation allows, in words."""
    parts = typing.get_args(hint)
    for part in parts:
        if isinstance(part, NameIn):
            return ", ".join(part.registry)
        if isinstance(part, KindIn):
            return f"kind: {', '.join(part.registry)}"
    try:
        return _schema_text(TypeAdapter(hint).json_schema())
    except (pydantic.errors.PydanticInvalidForJsonSchema, pydantic.errors.PydanticUserError):
        nested = [_type(part) for part in parts if typing.get_args(part)]
        return f"list of {nested[0]}" if nested else "keys"


def _schema_text(schema: dict[str, Any]) -> str:
    """Return what a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_schema_text(part) for part in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_schema_text(part) for part in schema['prefixItems'])}]"
        return f"list of {_schema_text(items) if (items := schema.get('items')) else 'values'}"
    if kind == "object" and "properties" not in schema:
        below = schema.get("additionalProperties")
        return f"name: {_schema_text(below) if isinstance(below, dict) else 'value'}"
    if kind in ("integer", "number"):
        signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
        return " ".join([kind, ", ".join(limits)]).strip()
    words = {"string": "text", "boolean": "true, false", "null": "null"}
    return words.get(str(kind), "keys")


def _default(value: Any, hint: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    for part in typing.get_args(hint):
        if isinstance(part, KindIn):
            return f"kind: {part.registry.name_of(type(value))}"
    return _plain(TypeAdapter(hint).dump_python(value, mode="json"))


def _plain(value: Any) -> str:
    """Return plain data as YAML in one line, leaving out what is null in sections."""
    if isinstance(value, dict):
        pairs = (f"{key}: {_plain(each)}" for key, each in value.items() if each is not None)
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _summary(item: Any) -> str:
    return " ".join((inspect.getdoc(item) or "").partition("\n\n")[0].split())


def _markdown(text: str) -> str:
    """Return the text of a docstring as Markdown."""
    return _LITERAL.sub(r"`\1`", _ROLE.sub(r"`\1`", text))


def _line(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in escaped)
