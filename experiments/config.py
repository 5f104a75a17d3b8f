"""Configurations: what a YAML file may say, read into the options of what it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import solvers
from experiments.yaml_files import apply_override, read_yaml, set_key
from flowfactor import plugins, registries
from flowfactor.data import DataOptions
from flowfactor.errors import ConfigError
from flowfactor.evaluation import EvaluationOptions
from flowfactor.options import NonNegativeInt, dump, options, parse, shorten
from flowfactor.registries import DATA, MODELS
from flowfactor.training import TrainingOptions
from solvers.registry import Registry, UnknownNameError, suggest

CONFIG_FILE = "config.yaml"

# The one in C is a hundred times as fast.
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

# Sections of which there are several kinds: the key that names the kind, and the default.
_KINDS: dict[str, tuple[str, str]] = {"data": ("source", "mnist"), "model": ("kind", "flow_vae")}
_SECTIONS = ("data", "model", "training", "evaluation")

REGISTRIES = [
    registry
    for module in (registries, solvers)
    for registry in vars(module).values()
    if isinstance(registry, Registry)
]
"""What holds the names that configurations use."""

# How many wrong keys an error lists.
_SHOWN = 20
# By these files a folder is known to be a run's, whose plug-ins are not executed.
_RUN_FILES = ("model.safetensors", "model.pt", "checkpoint.pt", "metrics.jsonl", "train.log")


@options
class GeneralOptions:
    """The keys of a configuration that are in no section."""

    description: str = ""
    """Purpose of the configuration."""
    plugins: tuple[str, ...] = ()
    """Files, relative to that of the configuration, or modules whose kinds can be named."""
    seed: NonNegativeInt = 0
    """Seed of the weights, the batches and everything else that is drawn at random."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
        data: which sequences.
        model: which model.
        training: how it is trained.
        evaluation: what is measured, and on what.
        source: the name of the data set.
        kind: the name of the model.
        general: description, plug-ins and seed.
    """

    data: DataOptions
    model: Any
    training: TrainingOptions
    evaluation: EvaluationOptions
    source: str
    kind: str
    general: GeneralOptions

    @property
    def seed(self) -> int:
        """Return the seed."""
        return self.general.seed

    def replace(self, **changes: Any) -> Config:
        """Return a copy with other sections."""
        return dataclasses.replace(self, **changes)

    def with_seed(self, seed: int) -> Config:
        """Return a copy with another seed."""
        return self.replace(general=dataclasses.replace(self.general, seed=seed))


def read_config(
    name: str,
    overrides: Iterable[str] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    plugin_names: Iterable[str] = (),
    folder: Path | None = None,
) -> tuple[str, Config]:
    """Read a configuration.

    Args:
        name: a YAML file, or the name of a configuration that ships.
        overrides: ``key.path=value``, the value being YAML.
        settings: values by ``key.path``; they come before the overrides.
        plugin_names: plug-ins besides those that the file names.
        folder: where a relative path is looked for before the working directory.

    Returns:
        The configuration's name and its content.

    Raises:
        ConfigError: there is no such file, it is no YAML, a key is unknown, a value is not allowed,
            or a plug-in cannot be imported.
    """
    file = read_yaml(name, folder=folder)
    content = file.content
    extra = [plugins.resolve(each) for each in plugin_names]
    if file.folder is not None and isinstance(content.get("plugins"), list):
        stored = _replace_moved([str(each) for each in content["plugins"]], extra)
        if Path(name).name == CONFIG_FILE and _is_run(file.folder):
            plugins.check_outside([each for each in stored if each not in extra], file.folder)
        content["plugins"] = [plugins.resolve(each, file.folder) for each in stored]
    for key, value in (settings or {}).items():
        set_key(content, key, value)
    for override in overrides:
        apply_override(content, override)
    return file.title, validate(content, name, extra)


def on_device(name: str) -> str:
    """Return the override that lets a device compute."""
    return f"training.accelerator={name}"


def validate(content: Mapping[str, Any], source: str, plugin_names: Iterable[str] = ()) -> Config:
    """Return the configuration that plain data stands for.

    Args:
        content: of a YAML file; relative paths of plug-ins are relative to the working directory.
        source: what messages call it.
        plugin_names: plug-ins besides those that it names.

    Raises:
        ConfigError: with the path of every key that is wrong and what is allowed there.
    """
    problems: list[str] = []

    def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ConfigError as error:
            problems.extend(str(error).splitlines())
            return None

    keys = [field.name for field in dataclasses.fields(GeneralOptions)]
    general = attempt(parse, GeneralOptions, {k: content[k] for k in keys if k in content})
    plugins.load_installed()
    names = [*getattr(general, "plugins", ()), *plugin_names]
    loaded = [attempt(plugins.load, each) for each in names]
    known = [*keys, *_SECTIONS]
    problems += [
        f"{key}: unknown key; {suggest(key, known)}" for key in content if key not in known
    ]
    if None in loaded:  # what they define would be reported as unknown
        _refuse(source, problems)
    parsed = {section: attempt(_parse_section, section, content) for section in _SECTIONS}
    if problems:
        _refuse(source, problems)
    kinds = {
        key: (content.get(section) or {}).get(key, kind) for section, (key, kind) in _KINDS.items()
    }
    config = Config(general=general, **parsed, **kinds)
    used = dict.fromkeys([*loaded, *_plugins_used(config)])
    config = config.replace(general=dataclasses.replace(general, plugins=tuple(used)))
    for section in _SECTIONS:
        check = getattr(parsed[section], "check", None)
        if check is not None:
            attempt(check, config)
    if problems:
        _refuse(source, problems)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Return a configuration as plain data, every key written out."""
    content = dump(config.general)
    for section in _SECTIONS:
        content[section] = dump(getattr(config, section))
        if section in _KINDS:
            key = _KINDS[section][0]
            content[section] = {key: getattr(config, key), **content[section]}
    return content


def to_yaml(config: Config) -> str:
    """Return a configuration as YAML, every key written out."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def differences(old: Config, new: Config) -> list[str]:
    """Return ``key: old -> new`` for every key in which two configurations differ."""
    return list_changes(to_dict(old), to_dict(new))


def list_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return ``key: old -> new`` for every key in which nested data differ."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested data with one key of the form ``a.b.c`` for each value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def options_of(section: str, kind: str) -> Any:
    """Return the class of options that a section holds.

    Raises:
        UnknownNameError: nothing is registered under the name.
    """
    if section == "data":
        return DATA[kind]
    if section == "model":
        return MODELS[kind].Options
    return {"training": TrainingOptions, "evaluation": EvaluationOptions}[section]


def _parse_section(section: str, content: Mapping[str, Any]) -> Any:
    below = content.get(section)
    below = {} if below is None else below
    if not isinstance(below, dict):
        raise ConfigError(f"{section}: must be a section with keys below it")
    key, kind = _KINDS.get(section, ("", ""))
    if key:
        kind, below = below.get(key, kind), {k: v for k, v in below.items() if k != key}
    try:
        cls = options_of(section, kind)
    except UnknownNameError as error:
        raise ConfigError(f"{section}.{key}: {error}") from error
    return parse(cls, below, section)


def _refuse(source: str, problems: list[str]) -> None:
    listed = "\n".join(f"  {shorten(problem, 1000)}" for problem in problems[:_SHOWN])
    if len(problems) > _SHOWN:
        listed += f"\n  and {len(problems) - _SHOWN:,} more"
    raise ConfigError(f"{source} is no valid configuration:\n{listed}")


def _plugins_used(config: Config) -> Iterator[str]:
    """Yield the plug-ins of what is named: those of installed distributions are in no list."""
    keys = flatten({**to_dict(config), "plugins": None, "description": None})
    names = {word for key in keys for word in key.split(".")}
    for value in keys.values():
        words = value if isinstance(value, list) else [value]
        names |= {word for word in words if isinstance(word, str)}
    for registry in REGISTRIES:
        for name in names.intersection(registry):
            if (plugin := registry.plugin_of(name)) is not None:
                yield plugin


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _RUN_FILES)


def _replace_moved(stored: list[str], given: list[str]) -> list[str]:
    """Return plug-ins with files of the same name at the places that the command line names."""
    places = {Path(name).name: name for name in given if plugins.is_file(name)}
    return [places.get(Path(name).name, name) if plugins.is_file(name) else name for name in stored]
