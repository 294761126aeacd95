"""An HTML page of text, tables and figures that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import matplotlib
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from gdps_ds.files import atomic_write

DOTS_PER_INCH = 160


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, and its caption."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Table:
    """Text by rows; the first entry of each names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A part of a page, shown in the order of its fields."""

    title: str
    text: tuple[str, ...] = ()
    summary: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write a page, and its figures beside it as PNG and SVG; the folder is made where it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = {}
    for picture in (picture for section in sections for picture in section.pictures):
        png = image_bytes(picture, "png")
        (path.parent / f"{picture.name}.png").write_bytes(png)
        (path.parent / f"{picture.name}.svg").write_bytes(image_bytes(picture, "svg"))
        # Bytes 16 to 19 of a PNG are its width; a CSS pixel gets two of the image's.
        width = int.from_bytes(png[16:20], "big") // 2
        images[picture.name] = {"data": f"data:image/png;base64,{base64.b64encode(png).decode()}", "width": width}
    template = files("gdps_ds.reporting").joinpath("page.html").read_text(encoding="utf-8")
    environment: Any = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["breakable"] = breakable
    with atomic_write(path) as file:  # a run and launchers/report.py may write it at the same time
        file.write(environment.from_string(template).render(title=title, sections=sections, images=images))


def breakable(text: str) -> Markup:
    """The text with room for line breaks in dotted names such as ``layers.11.ffn2``, but not in numbers."""
    return Markup(re.sub(r"(?<=[a-z_])\.(?=\w)|\.(?=[a-z_])", ".<wbr>", str(escape(text))))


def image_bytes(picture: Picture, kind: Literal["png", "svg"]) -> bytes:
    """The figure as a file, the same bytes each time."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": picture.name}):
        picture.figure.savefig(buffer, format=kind, dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    return buffer.getvalue()
