"""Experiment files and DeepSpeed files: read strictly, *all* faults in one error, before any rank starts work."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from gdps_ds.config import Config, Section

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
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file (--config)"]) from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [f"not valid YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), [f"must be a mapping of sections, found {type(tree).__name__}"])
    faults = [fault for override in overrides for fault in _apply_override(tree, override)]
    config = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults += [_describe(problem) for problem in error.errors()]
    if config is not None:
        faults += list(_missing_files(config))
    if faults or config is None:
        raise ConfigError(str(path), faults)
    return config


def load_section(name: str, kind: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Section ``name`` of the configuration of a run (its defaults without one), with ``name.key=value`` overrides.

    Raises:
        ConfigError: lists every value that does not fit.
    """
    run = yaml.safe_load(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None
    tree = {name: dict((run or {}).get(name) or {})}
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


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; loading it gives an equal :class:`Config`."""
    return yaml.safe_dump(json.loads(config.model_dump_json(by_alias=True)), sort_keys=False, allow_unicode=True)


def load_deepspeed_file(path: str | Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file; what the experiment file owns (batch sizes, optimiser, schedule) must not be in it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(str(path), [f"not valid JSON: {error}"]) from None
    owned = {
        "optimizer": "train.unify and train.specialise",
        "scheduler": "train.unify.warmup",
        "gradient_clipping": "train.clip_norm",
        "train_batch_size": "train.micro_batches and data.max_frames",
        "train_micro_batch_size_per_gpu": "data.max_frames",
        "gradient_accumulation_steps": "train.micro_batches",
    }
    faults = [f"{key} is set by {owner} of the experiment file; remove it" for key, owner in owned.items() if key in content]
    if content.get("zero_optimization", {}).get("stage", 0) == 0:
        for precision in ("fp16", "bf16"):
            if content.get(precision, {}).get("enabled"):
                faults.append(f"{precision} without ZeRO cannot be split; take a ZeRO stage of 1 to 3, or torch_autocast")
    if faults:
        raise ConfigError(str(path), faults)
    return content


def _apply_override(tree: dict[str, Any], override: str) -> Iterator[str]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        yield f"override '{override}' is not of the form key.sub=value"
        return
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        yield f"override '{override}': the value is not valid YAML"
        return
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            yield f"override '{override}': {parent} is not a section"
            return
        node = child
    node[last] = value


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
        section = _section_of(field)
        if section is None:
            return []
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_of(field: FieldInfo) -> type[Section] | None:
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _missing_files(config: Config) -> Iterator[str]:
    if not Path(config.deepspeed).is_file():
        yield f"deepspeed: no file {config.deepspeed}"
    if config.plan.from_file is not None and not Path(config.plan.from_file).is_file():
        yield f"plan.from: no file {config.plan.from_file}"
    for number, later in enumerate(config.train.specialise.later_plans):
        if not Path(later.from_file).is_file():
            yield f"train.specialise.later_plans.{number}.from: no file {later.from_file}"
    for number, corpus in enumerate(config.data.corpora):
        if not Path(corpus.root).is_dir():
            yield f"data.corpora.{number}.root: no folder {corpus.root}"
