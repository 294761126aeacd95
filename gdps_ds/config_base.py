"""What every section of a configuration is made of: strictness, and ranges that occur more than once."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,8}$")]
Globs = Annotated[tuple[str, ...], Field(min_length=1)]
ConfigValue = bool | int | float | str | None


class Section(BaseModel):
    """A node of the tree: immutable, and strict about keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, populate_by_name=True)
