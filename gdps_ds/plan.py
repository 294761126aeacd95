"""The sharing plan: what rank 0 decides and every rank applies.

A plan says which languages form a group, which feed-forward blocks are split, and which hidden neurons of a block go to
the shared lane and to each group's private lane. It is a JSON file that a person can read, edit or write: only
``languages``, ``groups`` and ``sites`` are required, and a site may name just its ``shared_width``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gdps_ds.files import atomic_write

Width = Literal["preserve", "constant", "added"]
Init = Literal["neurons", "svd", "random"]


class PlanError(ValueError):
    """A plan that cannot be applied; ``faults`` holds one line per fault."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        listing = "\n".join(f"  - {fault}" for fault in faults)
        super().__init__(f"{source}: {len(faults)} fault(s)\n{listing}")


@dataclass(frozen=True)
class SitePlan:
    """How one feed-forward block is split.

    Attributes:
        name: dotted module name of the block.
        hidden: h, the hidden neurons of the dense block.
        shared: the r neurons of the shared lane, ascending.
        private: per group, the neurons of its private lane, ascending. ``width: preserve`` gives every group all h - r
            other neurons; ``width: constant`` gives each group (h - r) / G neurons, no neuron twice; ``width: added``
            shares all h, and gives every group new neurons h, h + 1, ..., which start with random inputs and zero outputs.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    hidden: int
    shared: tuple[int, ...]
    private: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SharingPlan:
    """Groups of languages and the blocks that are split for them; no sites means that the model stays uniform.

    Attributes:
        languages: every source language of the run.
        groups: a partition of ``languages``; one group if the model stays uniform.
        sites: the blocks to split.
        width: ``preserve``, ``constant`` or ``added``, see :class:`SitePlan`; with ``added`` there may be a single group,
            which makes the block a wider dense one.
        init: how the lanes are initialised.
        energy_shares: pi_g, each group's share of the gradient energy; sums to 1, and left out means equal shares.
        fallback: a language of the plan; languages of the run that the plan does not know pass through its group's lane.
        reason: why the plan is as it is, one decision a line.
        evidence: the figures and intervals behind the decisions, JSON-able.
        provenance: software versions, seeds and settings, JSON-able.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    languages: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    sites: tuple[SitePlan, ...]
    width: Width = "preserve"
    init: Init = "neurons"
    energy_shares: tuple[float, ...] = ()
    fallback: str | None = None
    reason: str = "written by hand"
    evidence: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.energy_shares and self.groups:
            object.__setattr__(self, "energy_shares", (1 / len(self.groups),) * len(self.groups))

    @classmethod
    def uniform(cls, languages: Sequence[str]) -> SharingPlan:
        """The plan of a model that is not split, or whose lanes are to be merged."""
        return cls(tuple(languages), (tuple(languages),), ())

    @property
    def is_uniform(self) -> bool:
        """Whether no block is split."""
        return not self.sites

    @property
    def digest(self) -> str:
        """32 hex digits of what is decided; the reason, evidence and provenance do not enter."""
        content = asdict(self)
        for key in ("reason", "evidence", "provenance"):
            del content[key]
        return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

    def group_of(self, language: str) -> int:
        """Index of the group that ``language`` belongs to.

        Raises:
            KeyError: the plan does not know the language.
        """
        for index, group in enumerate(self.groups):
            if language in group:
                return index
        raise KeyError(f"language '{language}' is in no group of the plan (languages: {', '.join(self.languages)})")

    def validate(self, hidden: Mapping[str, int], languages: Sequence[str], source: str | Path = "plan") -> None:
        """Check the plan against a model and a run before anything is touched.

        Args:
            hidden: hidden neurons of every block of the model that can be split.
            languages: the source languages of the run.
            source: names the plan in errors.

        Raises:
            PlanError: lists every fault.
        """
        faults = [*_faults(self), *self.language_faults(languages)]
        for index, site in enumerate(self.sites):
            if site.name not in hidden:
                faults.append(f"sites.{index}.name: the model has no feed-forward block '{site.name}'")
            elif hidden[site.name] != site.hidden:
                faults.append(f"sites.{index}.hidden: {site.hidden}, but '{site.name}' has {hidden[site.name]}")
        if faults:
            raise PlanError(str(source), faults)

    def language_faults(self, languages: Sequence[str]) -> list[str]:
        """What is wrong with the plan for a run with these source languages."""
        unknown, absent = set(languages) - set(self.languages), set(self.languages) - set(languages)
        if not absent and (not unknown or self.fallback is not None):
            return []
        return [f"languages: {', '.join(sorted(self.languages))}, but data.languages has {', '.join(sorted(languages))}"]

    def to_json(self) -> str:
        """The plan as JSON, each innermost list on one line; NaN and infinity in the evidence become null."""
        text = json.dumps(_finite(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
        return re.sub(r"\[[^\[\]{}]*\]", _on_one_line, text) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> SharingPlan:
        """Read a plan strictly; ``source`` names it in errors.

        Raises:
            PlanError: lists unknown, missing and ill-typed fields, or else everything that contradicts itself.
        """
        try:
            tree = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(source, [f"not valid JSON: {error}"]) from None
        if not isinstance(tree, dict):
            raise PlanError(source, [f"must be an object with languages, groups and sites, found {tree!r:.40}"])
        if written := list(_width_faults(tree)):  # alone, for lanes that such numbers make up are wrong in many ways
            raise PlanError(source, written)
        try:
            plan = TypeAdapter(cls).validate_json(json.dumps(_complete(tree)), strict=True)
        except ValidationError as error:
            raise PlanError(source, [_describe(dict(problem)) for problem in error.errors()]) from None
        faults = list(_faults(plan))
        if faults:
            raise PlanError(source, faults)
        return plan

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to ``path``, whole or not at all."""
        with atomic_write(Path(path)) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> SharingPlan:
        """Read a plan file; errors name the file."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise PlanError(str(path), [f"not UTF-8 (byte {error.start})"]) from None
        return cls.from_json(text, str(path))

    def summary(self) -> str:
        """The decisions and their reasons for a person to read."""
        lines = [f"Sharing plan {self.digest[:12]}: {'the model stays uniform' if self.is_uniform else 'split'}"]
        if self.is_uniform:
            lines.append(f"  languages {', '.join(self.languages)}")
        else:
            for index, (group, share) in enumerate(zip(self.groups, self.energy_shares, strict=True)):
                lines.append(f"  group {index}: {', '.join(group)} ({share:.1%} of the gradient energy)")
        for site in self.sites:
            fraction = len(site.shared) / site.hidden
            lines.append(
                f"  {site.name}: {len(site.shared)} of {site.hidden} neurons shared ({fraction:.1%}), "
                f"{len(site.private[0])} private to each group"
            )
        if not self.is_uniform:
            lines.append(f"  width {self.width}, init {self.init}")
        return "\n".join([*lines, "Why:", *(f"  {line}" for line in self.reason.splitlines())])


def _on_one_line(found: re.Match[str]) -> str:
    """Remove line breaks, which stand between JSON values only: within a string they are escaped."""
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(?<=\[)\s*\n\s*|\s*\n\s*(?=\])", "", found[0]))


def _width_faults(tree: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the numbers of hand-written sites, from which their lanes are made up."""
    groups, sites = tree.get("groups"), tree.get("sites")
    count = len(groups) if isinstance(groups, list) else 1
    for index, site in enumerate(sites if isinstance(sites, list) else []):
        if not isinstance(site, dict) or {"shared", "private"} <= site.keys() - {"shared_width"}:
            continue
        hidden, width = site.get("hidden"), tree.get("width", "preserve")
        if "hidden" in site and (type(hidden) is not int or hidden < 2):
            yield f"sites.{index}.hidden: must be the number of hidden neurons, 2 or more (found {hidden!r:.60})"
        elif type(hidden) is int and "shared_width" in site:
            yield from (f"sites.{index}.shared_width: {fault}" for fault in _shared_width_faults(site, hidden, count, width))


def _shared_width_faults(site: Mapping[str, Any], hidden: int, groups: int, width: object) -> Iterator[str]:
    found, highest = site["shared_width"], {"added": hidden, "constant": hidden - groups}.get(str(width), hidden - 1)
    if "shared" in site:
        yield "shared names the neurons already; give one of the two"
    elif type(found) is not int or not 1 <= found <= highest:
        yield f"must be an integer from 1 to {highest}, as the block has {hidden} hidden neurons (found {found!r:.60})"
    elif width == "constant" and "private" not in site and (hidden - found) % groups:
        yield f"leaves {hidden - found} of {hidden} neurons, which {groups} groups cannot share equally (width: constant)"


def _complete(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill in the lanes that a hand-written plan leaves out; ill-typed values are left for the strict check."""
    groups, sites = tree.get("groups"), tree.get("sites")
    if not isinstance(groups, list) or not groups or not isinstance(sites, list):
        return tree
    width = tree.get("width", "preserve")
    return tree | {"sites": [_complete_site(site, len(groups), width) for site in sites]}


def _complete_site(site: Any, groups: int, width: object) -> Any:
    """Read ``shared_width: r`` as the first r neurons, and give the others to the private lanes."""
    if not isinstance(site, dict):
        return site
    site = dict(site)
    if "shared" not in site and type(site.get("shared_width")) is int:
        site["shared"] = list(range(site.pop("shared_width")))
    hidden, shared = site.get("hidden"), site.get("shared")
    if "private" in site or type(hidden) is not int or not isinstance(shared, list):
        return site
    taken = {neuron for neuron in shared if isinstance(neuron, int)}
    others = [neuron for neuron in range(hidden) if neuron not in taken]
    step = len(others) // groups
    constant = [others[group * step : (group + 1) * step] for group in range(groups)]
    return site | {"private": [others] * groups if width == "preserve" else constant}


def _faults(plan: SharingPlan) -> Iterator[str]:
    """Everything in which a plan contradicts itself, one line per fault, each naming the field."""
    grouped = Counter(language for group in plan.groups for language in group)
    for language in sorted(set(plan.languages) | set(grouped)):
        if plan.languages.count(language) != 1:
            yield f"languages: '{language}' is listed {plan.languages.count(language)} times"
        if grouped[language] != 1:
            yield f"groups: '{language}' is in {grouped[language]} groups, must be in one"
    if not all(plan.groups):
        yield "groups: a group is empty"
    if plan.sites and len(plan.groups) < 2 and plan.width != "added":
        yield f"groups: {len(plan.groups)} group(s), but sites are split only between two or more"
    if plan.width == "added" and plan.init != "neurons":
        yield f"init: width added keeps every neuron, so it needs init neurons, found {plan.init}"
    if not plan.sites and len(plan.groups) != 1:
        yield f"sites: none, but there are {len(plan.groups)} groups; a uniform model has one"
    if plan.fallback is not None and plan.fallback not in plan.languages:
        yield f"fallback: '{plan.fallback}' is not a language of the plan"
    shares = plan.energy_shares
    if len(shares) != len(plan.groups):
        yield f"energy_shares: {len(shares)} values for {len(plan.groups)} groups"
    elif not all(0 <= share <= 1 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        yield f"energy_shares: must be at least 0 and sum to 1, found {', '.join(map(str, shares))}"
    for name, count in Counter(site.name for site in plan.sites).items():
        if count > 1:
            yield f"sites: '{name}' is listed {count} times"
    for index, site in enumerate(plan.sites):
        yield from (f"sites.{index}.{fault}" for fault in _site_faults(site, len(plan.groups), plan.width))


def _site_faults(site: SitePlan, groups: int, width: Width) -> Iterator[str]:
    lanes = {"shared": site.shared} | {f"private.{group}": lane for group, lane in enumerate(site.private)}
    for field_name, lane in lanes.items():
        outside = [neuron for neuron in lane if not 0 <= neuron < site.hidden]
        if outside and (width != "added" or field_name == "shared"):
            yield f"{field_name}: neuron {outside[0]} is not in 0..{site.hidden - 1}"
        if not lane:
            yield f"{field_name}: empty; every lane needs a neuron"
        if any(left >= right for left, right in pairwise(lane)):
            yield f"{field_name}: must be ascending, each neuron once"
        if field_name == "shared" and (outside or not lane):
            return  # what follows from it need not be told
    if len(site.private) != groups:
        yield f"private: {len(site.private)} lanes for {groups} groups"
        return
    for group, lane in enumerate(site.private):
        both = set(lane) & set(site.shared)
        if both:
            yield f"private.{group}: neuron {min(both)} is in the shared lane as well"
    others = site.hidden - len(site.shared)
    widths = [len(lane) for lane in site.private]
    if width == "added" and others:
        yield f"shared: width added shares all {site.hidden} neurons, found {len(site.shared)}"
    if width == "added" and any(lane != tuple(range(site.hidden, site.hidden + len(lane))) for lane in site.private):
        yield f"private: width added numbers new neurons from {site.hidden} on"
    if width == "preserve" and any(private != others for private in widths):
        yield f"private: width preserve needs all {others} other neurons in every lane, found {widths}"
    if width == "constant" and any(private * groups != others for private in widths):
        yield f"private: width constant needs {others} / {groups} neurons in every lane, found {widths}"
    if width == "constant" and len({neuron for lane in site.private for neuron in lane}) != sum(widths):
        yield "private: width constant gives a neuron to one lane only"


def _describe(problem: Mapping[str, Any]) -> str:
    name = ".".join(map(str, problem["loc"])) or "plan"
    if problem["type"] == "missing":
        return f"{name}: required, but missing"
    if problem["type"] == "unexpected_keyword_argument":
        return f"{name}: unknown field"
    message = problem["msg"]
    return f"{name}: {message[0].lower()}{message[1:]} (found {problem['input']!r:.60})"


def _finite(value: Any) -> Any:
    """``value`` with NaN and infinity, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
