"""Experiment files: read strictly, *all* faults in one error, before any rank starts work."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from gdps_ds.config import Config, DataConfig, DecodeConfig
from gdps_ds.fields import Section
from gdps_ds.plan import PlanError, SharingPlan

S = TypeVar("S", bound=Section)


class ConfigError(ValueError):
    """A configuration that cannot run; ``faults`` holds one line per fault."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        listing = "\n".join(f"  - {fault}" for fault in faults)
        super().__init__(f"{source}: {len(faults)} fault(s)\n{listing}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load an experiment file, apply ``key.sub=value`` overrides (values are YAML) and check everything.

    Raises:
        ConfigError: lists every unknown key, wrong type, bad override and missing file at once.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(str(path), ["no such file (--config)"])
    tree = read_sections(path)
    faults = [fault for override in overrides for fault in _apply_override(tree, override)]
    config = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults += [_describe(problem) for problem in error.errors()]
    if config is not None:
        faults += list(_faulty_files(config))
    if faults or config is None:
        raise ConfigError(str(path), faults)
    return config


def read_sections(path: Path) -> dict[str, Any]:
    """The sections of an experiment file, or of a run's resolved configuration, as they stand there.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        tree = yaml.safe_load(text_of(path))
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [f"not valid YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), [f"must be a mapping of sections, found {type(tree).__name__}"])
    return tree


def load_resolved(path: Path) -> Config:
    """The resolved configuration of a run; its corpora and plan files need not be there any more.

    Raises:
        ConfigError: it cannot be read, or this version knows no such configuration.
    """
    try:
        return Config.model_validate(read_sections(path))
    except ValidationError as error:
        raise ConfigError(str(path), [_describe(dict(problem)) for problem in error.errors()]) from None


def load_section(name: str, kind: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Section ``name`` of the configuration of a run (its defaults without one), with ``name.key=value`` overrides.

    Raises:
        ConfigError: the file cannot be read, or lists every value that does not fit.
    """
    run = read_sections(path) if path is not None and path.is_file() else {}
    tree = {name: run.get(name) or {}}
    source = str(path) if run else "command line"
    faults = [f"{text}: only {name}.key=value can be set here" for text in overrides if not text.startswith(f"{name}.")]
    faults += [fault for text in overrides if text.startswith(f"{name}.") for fault in _apply_override(tree, text)]
    try:
        section = kind.model_validate(tree[name])
    except ValidationError as error:
        raise ConfigError(
            source, faults + [_describe(dict(problem) | {"loc": (name, *problem["loc"])}) for problem in error.errors()]
        ) from None
    if faults:
        raise ConfigError(source, faults)
    return section


def load_decoding(path: Path | None, overrides: Sequence[str] = ()) -> DecodeConfig:
    """Section ``decode`` of a run's configuration (:func:`load_section`), with pieces as long as that run's
    ``data.max_seconds`` where it does not say how long; without a run, as that setting's default.

    Raises:
        ConfigError: as :func:`load_section`, or ``data.max_seconds`` is no number.
    """
    settings = load_section("decode", DecodeConfig, path, overrides)
    run = read_sections(path) if path is not None and path.is_file() else {}
    data = run.get("data")
    longest = (data if isinstance(data, dict) else {}).get("max_seconds", DataConfig.model_fields["max_seconds"].default)
    if type(longest) not in (int, float):
        raise ConfigError(str(path), [f"data.max_seconds: must be a number (found {longest!r})"])
    return settings.with_pieces_of(longest)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; loading it gives an equal :class:`Config`."""
    return yaml.safe_dump(json.loads(config.model_dump_json(by_alias=True)), sort_keys=False, allow_unicode=True)


def text_of(path: Path) -> str:
    """The content of a configuration file; a :class:`ConfigError` says why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"not UTF-8 (byte {error.start})"]) from None


def _apply_override(tree: dict[str, Any], override: str) -> Iterator[str]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        yield f"override '{override}' is not of the form key.sub=value"
        return
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        yield f"override '{override}': the value is not valid YAML; patterns with * stand in quotes"
        return
    *parents, last = key.split(".")
    node: dict[str, Any] | list[Any] = tree
    for parent in parents:
        child = node.setdefault(parent, {}) if isinstance(node, dict) else _item(node, parent)
        if not isinstance(child, dict | list):
            yield f"override '{override}': {parent} is not a section"
            return
        node = child
    if isinstance(node, dict):
        node[last] = value
    elif _item(node, last) is None:
        yield f"override '{override}': the list has {len(node)} items, numbered from 0"
    else:
        node[int(last)] = value


def _item(items: list[Any], number: str) -> Any:
    """An item of a list as errors name it, such as the 0 of ``data.corpora.0.root``; None where there is none."""
    return items[int(number)] if number.isdecimal() and int(number) < len(items) else None


def _describe(problem: Mapping[str, Any]) -> str:
    location = problem["loc"]
    name = ".".join(str(part) for part in location if not _is_union_member(part)) or "config"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; known keys: {', '.join(known)}"
        return f"{name}: unknown key{hint if known else ''}"
    if problem["type"] == "missing":
        return f"{name}: required, but missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]} (found {problem['input']!r})" if len(location) else message


def _is_union_member(part: object) -> bool:
    """Pydantic puts the tried member of a union, such as ``constrained-int``, into the location."""
    return isinstance(part, str) and ("-" in part or "[" in part or part in {"str", "int", "float", "bool"})


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    section: Any = Config
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        if field is None:
            return []
        section = section_of(field)
        if section is None:
            return []
    return [field.alias or name for name, field in section.model_fields.items()]


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, alone or several of, if it holds one."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _faulty_files(config: Config) -> Iterator[str]:
    if not Path(config.deepspeed).is_file():
        yield f"deepspeed: no file {config.deepspeed}"
    plans = {"plan.from": config.plan.from_file} if config.plan.from_file is not None else {}
    later = config.train.specialise.later_plans
    plans |= {f"train.specialise.later_plans.{number}.from": plan.from_file for number, plan in enumerate(later)}
    for option, path in plans.items():
        yield from (f"{option}: {fault}" for fault in _plan_faults(path, config.data.languages))
    for number, corpus in enumerate(config.data.corpora):
        if not Path(corpus.root).is_dir():
            hint = " (it is a file; give the folder that holds it)" if Path(corpus.root).is_file() else ""
            yield f"data.corpora.{number}.root: no folder {corpus.root}{hint}"


def _plan_faults(path: str, languages: Sequence[str]) -> list[str]:
    """What is wrong with a plan file as far as can be told without the model."""
    if not Path(path).is_file():
        return [f"no file {path}"]
    try:
        return [f"{path}: {fault}" for fault in SharingPlan.load(path).language_faults(languages)]
    except PlanError as error:
        return [f"{path}: {fault}" for fault in error.faults]
