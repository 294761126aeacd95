"""A plan for people: figures and one HTML page that needs nothing else, from sketches alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from jinja2 import Environment, StrictUndefined

from gdps_ds.analysis.halves import conflict_ratio, groups_agree, plans_over_halves
from gdps_ds.analysis.planner import fold_weights, make_plan, measure_sites
from gdps_ds.analysis.similarity import SiteSimilarity
from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config import PlanConfig
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.plan_pictures import (
    Picture,
    conflict_picture,
    grouping_picture,
    language_order,
    similarity_pictures,
    split_pictures,
)
from gdps_ds.reporting.style import number

Rule = Literal["ours", "paper"]
REPORT = "report.html"
DOTS_PER_INCH = 160


@dataclass(frozen=True)
class Analysis:
    """What the sketches say: every site's figures, and by each rule the plan and those of both halves of the folds."""

    measured: dict[str, SiteSimilarity]
    plans: dict[Rule, SharingPlan]
    halves: dict[Rule, tuple[SharingPlan, ...]]


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A part of the report, shown in the order of its fields."""

    title: str
    text: tuple[str, ...] = ()
    summary: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def analyse(sketches: Sketches, settings: PlanConfig, rules: Sequence[Rule], hidden: Mapping[str, int]) -> Analysis:
    """Plan by each of ``rules``, from all folds and from either half of them.

    A run keeps neuron sketches of the sites it splits only (``mine.neurons: chosen``); where another rule or half
    chooses another site, its groups and widths are planned all the same, but its lanes are the first neurons and so
    its ``init`` is ``svd``, which does not ask which neurons they are.

    Raises:
        ValueError: the sketches cannot be planned by; says why.
    """
    complete = all(site.neurons is not None for site in sketches.sites.values())
    known = settings if complete else settings.model_copy(update={"init": "svd"})
    by_rule = {rule: known.model_copy(update={"rule": rule}) for rule in rules}
    plans = {rule: make_plan(sketches, chosen, hidden) for rule, chosen in by_rule.items()}
    return Analysis(
        measure_sites(sketches, fold_weights(sketches, settings.bootstrap)),
        {rule: _with_init(plan, sketches, settings) for rule, plan in plans.items()},
        {rule: plans_over_halves(sketches, chosen, hidden) for rule, chosen in by_rule.items()},
    )


def hidden_widths(sketches: Sketches, hidden: int | None = None) -> dict[str, int]:
    """Hidden neurons of every site: those of its neuron sketch, else ``hidden``, else those of all other sites.

    Raises:
        ValueError: the sketches do not tell, and ``hidden`` is None.
    """
    known = {name: site.neurons.shape[2] for name, site in sketches.sites.items() if site.neurons is not None}
    widths = set(known.values())
    other = hidden if hidden is not None else widths.pop() if len(widths) == 1 else None
    if other is None and len(known) < len(sketches.sites):
        raise ValueError("the sketches do not tell how many hidden neurons every site has (--hidden)")
    return {name: known.get(name, other or 0) for name in sketches.sites}


def write_report(analysis: Analysis, folder: Path, name: str, applied: SharingPlan | None = None) -> Path:
    """Write ``report.html``, the figures as PNG and SVG, and each rule's plan as JSON; the path of the report.

    Args:
        analysis: of :func:`analyse`.
        folder: is made where it does not exist.
        name: of the run, for the title.
        applied: the plan that the run applied, if there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for rule, plan in analysis.plans.items():
        plan.save(folder / f"plan-{rule}.json")
    sections = report_sections(analysis, applied)
    images = {}
    for picture in (picture for section in sections for picture in section.pictures):
        png = image_bytes(picture, "png")
        (folder / f"{picture.name}.png").write_bytes(png)
        (folder / f"{picture.name}.svg").write_bytes(image_bytes(picture, "svg"))
        # Bytes 16 to 19 of a PNG are its width; a CSS pixel gets two of the image's.
        width = int.from_bytes(png[16:20], "big") // 2
        images[picture.name] = {"data": f"data:image/png;base64,{base64.b64encode(png).decode()}", "width": width}
    template = files("gdps_ds.reporting").joinpath("plan_report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html = environment.from_string(template).render(title=f"Sharing plan of {name}", sections=sections, images=images)
    path = folder / REPORT
    path.write_text(html, encoding="utf-8")
    return path


def image_bytes(picture: Picture, kind: Literal["png", "svg"]) -> bytes:
    """The figure as a file, the same bytes each time."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": picture.name}):
        picture.figure.savefig(buffer, format=kind, dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    return buffer.getvalue()


def report_sections(analysis: Analysis, applied: SharingPlan | None = None) -> list[Section]:
    """The report from top to bottom."""
    plan = next(iter(analysis.plans.values()))
    order = language_order(plan, analysis.measured)
    trees = [grouping_picture(rule, each) for rule, each in analysis.plans.items()]
    rho = (
        "rho is the cosine of two languages' gradients, corrected for noise: 1 pulls alike, 0 is unrelated, below 0 conflicts."
    )
    splits = [
        Section(f"Split of {site.name} (rule {rule})", pictures=tuple(split_pictures(rule, each, site, order)))
        for rule, each in analysis.plans.items()
        for site in each.sites
    ]
    return [
        Section("", (_applied(analysis, applied),) if applied else (), plan.summary()),
        Section("The rules side by side", tables=(rules_table(analysis.plans),)),
        Section("Over halves of the data", _halves_note(analysis), tables=(halves_table(analysis),)),
        Section("Where languages conflict", pictures=(conflict_picture(plan),), tables=(sites_table(plan),)),
        Section("Which languages form groups", tables=_candidates(plan), pictures=tuple(tree for tree in trees if tree)),
        Section(
            "Similarity of the languages at every site",
            (rho,),
            pictures=tuple(similarity_pictures(analysis.measured, plan.languages, order)),
        ),
        *splits,
        Section("Behind these figures", tables=_provenance(plan)),
    ]


def rules_table(plans: Mapping[Rule, SharingPlan]) -> Table:
    """What each rule decides, and the figures it decides by."""
    rows = [
        ("decision", *("split" if plan.sites else "stays uniform" for plan in plans.values())),
        ("groups", *(_groups(plan) for plan in plans.values())),
        ("sites", *(_lines([site.name for site in plan.sites]) for plan in plans.values())),
        ("shared neurons", *(_widths(plan) for plan in plans.values())),
        ("delta at the site", *(_capacities(plan, "delta") for plan in plans.values())),
        ("rho between groups at the site", *(_capacities(plan, "common_share") for plan in plans.values())),
        ("conflict left in the shared lane", *(_conflict_left(plan) for plan in plans.values())),
        ("why", *(plan.reason for plan in plans.values())),
        ("digest", *(plan.digest[:12] for plan in plans.values())),
    ]
    return Table(("", *(f"rule {rule}" for rule in plans)), tuple(rows))


def halves_table(analysis: Analysis) -> Table:
    """The plans of both halves beside the plan of all folds."""
    rows = []
    for rule, halves in analysis.halves.items():
        whole = analysis.plans[rule]
        rows.append(
            (
                f"{rule}: all folds",
                _groups(whole),
                _lines([site.name for site in whole.sites]),
                _widths(whole),
                "",
                _ratios(whole, whole),
            )
        )
        for name, half in zip(("even folds", "odd folds"), halves, strict=False):
            sites = _lines([site.name for site in half.sites])
            agree = number(groups_agree(whole, half))
            rows.append((f"{rule}: {name}", _groups(half), sites, _widths(half), agree, _ratios(whole, half)))
    head = (
        "",
        "groups",
        "sites",
        "shared neurons",
        "groups agree (adjusted Rand)",
        "conflict left in the shared lane, of a random one's",
    )
    return Table(head, tuple(rows))


def sites_table(plan: SharingPlan) -> Table:
    """Every candidate in model order, with the figures of both rules."""
    figures = ("site", "conflict [95 %]", "told from 0", "energy share", "conflict × share [95 %]", "delta", "mean purity")
    head = figures + tuple(f"self {language} [95 %]" for language in plan.languages)
    rows = []
    for name, site in plan.evidence["sites"].items():
        selves = [{end: site["self"][end][index] for end in site["self"]} for index in range(len(plan.languages))]
        rows.append(
            (
                name,
                with_interval(site["conflict"]),
                "yes" if site["significant"] else "no",
                number(site["energy_share"]),
                with_interval(site["weighted_conflict"]),
                number(site["delta"]),
                number(float(np.mean(np.array(site["purity"], dtype=np.float64)))),
                *(with_interval(each) for each in selves),
            )
        )
    return Table(head, tuple(rows))


def with_interval(figure: Mapping[str, Any]) -> str:
    """Value and interval; an end of None is unbounded."""
    low, high = (number(figure[end]) if figure[end] is not None else "unbounded" for end in ("low", "high"))
    return "n/a" if figure["value"] is None else f"{number(figure['value'])} [{low}, {high}]"


def _with_init(plan: SharingPlan, sketches: Sketches, settings: PlanConfig) -> SharingPlan:
    """The plan with the initialisation that the settings ask for, where its lanes are known."""
    known = all(sketches.sites[site.name].neurons is not None for site in plan.sites)
    return replace(plan, init=settings.init) if known else plan


def _candidates(plan: SharingPlan) -> tuple[Table, ...]:
    """The groupings that were weighed against each other, where the number of groups was open."""
    considered = plan.evidence["grouping"].get("candidates")
    if not considered:
        return ()
    rows = []
    for candidate in considered:
        labels = np.array(candidate["labels"])
        groups = [" ".join(np.array(plan.languages)[labels == group]) for group in range(labels.max() + 1)]
        stability = f"{candidate['stability']:.1%}"
        rows.append((str(len(groups)), " | ".join(groups), number(candidate["silhouette"]), stability))
    return (Table(("groups considered", "languages", "silhouette", "replicates that agree"), tuple(rows)),)


def _provenance(plan: SharingPlan) -> tuple[Table, ...]:
    provenance = plan.provenance
    data = [
        (language, f"{provenance['utterances'][language]:.0f}", f"{provenance['tokens'][language]:.0f}")
        for language in plan.languages
    ]
    settings = [*provenance["settings"].items(), ("seed", provenance["seed"]), *provenance["versions"].items()]
    return (
        Table(("language", "utterances mined", "target tokens"), tuple(data)),
        Table(("setting or version", ""), tuple((str(name), str(value)) for name, value in settings)),
    )


def _applied(analysis: Analysis, applied: SharingPlan) -> str:
    same = [rule for rule, plan in analysis.plans.items() if plan.digest == applied.digest]
    verdict = f"the plan of rule {same[0]} below" if same else "not a plan below: settings, versions or the file differ"
    return f"The run applied plan {applied.digest[:12]}, which is {verdict}."


def _halves_note(analysis: Analysis) -> tuple[str, ...]:
    if not any(analysis.halves.values()):
        return ("There are too few folds, or too few utterances in them, to plan by half of the data.",)
    return ("Each half of the folds planned as if nothing else had been mined: how much hangs on which utterances were seen.",)


def _groups(plan: SharingPlan) -> str:
    return " | ".join(" ".join(group) for group in plan.groups)


def _lines(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _widths(plan: SharingPlan) -> str:
    widths = [f"{len(site.shared)} of {site.hidden} ({len(site.shared) / site.hidden:.1%})" for site in plan.sites]
    return _lines(widths) if plan.sites else "all"


def _capacities(plan: SharingPlan, key: str) -> str:
    found = [plan.evidence["splits"][site.name]["capacity"][key] for site in plan.sites]
    return ", ".join(with_interval(each) if isinstance(each, dict) else number(each) for each in found) or "n/a"


def _conflict_left(plan: SharingPlan) -> str:
    neurons = [plan.evidence["splits"][site.name].get("neurons") for site in plan.sites]
    texts = [
        f"{number(each['conflict_left'])} (random lane: {number(each['conflict_left_by_random_lane'])})"
        if each
        else "n/a, no neuron sketch of this site"
        for each in neurons
    ]
    return ", ".join(texts) or "n/a"


def _ratios(whole: SharingPlan, plan: SharingPlan) -> str:
    """How good the lanes of ``plan`` are, judged by the conflict of the neurons over all folds."""
    ratios = []
    for site in plan.sites:
        neurons = whole.evidence["splits"].get(site.name, {}).get("neurons")
        if neurons:
            ratios.append(f"{conflict_ratio(neurons['conflict'], site.shared):.0%}")
    return ", ".join(ratios) or "n/a"
