"""Every option of an experiment file with its default and meaning, as ``train.py --options`` prints them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from gdps_ds.config import Config
from gdps_ds.config_file import section_of
from gdps_ds.fields import Section

WIDTH = 120


def options() -> str:
    """A paragraph for each option: its name as it is given on the command line, its default, its choices, its meaning."""
    return "\n".join(_paragraphs(Config, ""))


def _paragraphs(section: type[Section], prefix: str) -> Iterator[str]:
    for key, field in section.model_fields.items():
        name, inner = f"{prefix}{field.alias or key}", section_of(field)
        meaning = field.description or (inner.__doc__ if inner else None) or ""
        yield textwrap.fill(f"{name}{_value(field)}", WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False)
        yield textwrap.fill(" ".join(meaning.split()), WIDTH, initial_indent="    ", subsequent_indent="    ")
        if inner is not None:
            yield from _paragraphs(inner, f"{name}.0." if get_origin(field.annotation) is tuple else f"{name}.")


def _value(field: FieldInfo) -> str:
    """What stands behind the name: nothing for a section that is always there."""
    choices = " | ".join(str(choice) for choice in _choices(field.annotation))
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if isinstance(default, Section) or (field.is_required() and section_of(field)):
        return ""
    shown = "  (required)" if field.is_required() else f" = {json.dumps(default)}"
    return f"{shown}  [{choices}]" if choices else shown


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in _choices(part))
