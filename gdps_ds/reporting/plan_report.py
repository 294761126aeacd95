"""A plan for people: figures and one HTML page that needs nothing else, from sketches alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gdps_ds.analysis import clustering
from gdps_ds.analysis.planner import fold_weights, make_plan, measure_sites
from gdps_ds.analysis.similarity import SiteSimilarity
from gdps_ds.analysis.sketch import Sketches
from gdps_ds.analysis.stability import Agreement, agreement, conflict_ratio, halves_of, rho_by_site
from gdps_ds.config import PlanConfig
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.page import Section, Table, write_page
from gdps_ds.reporting.plan_pictures import (
    conflict_picture,
    grouping_picture,
    language_order,
    similarity_pictures,
    split_pictures,
)
from gdps_ds.reporting.style import number

Rule = Literal["ours", "paper"]


@dataclass(frozen=True)
class Analysis:
    """What the sketches say: every site's figures, and by each rule the plan, those of both halves of the folds (none where
    there is too little data), and how well these two agree."""

    measured: dict[str, SiteSimilarity]
    plans: dict[Rule, SharingPlan]
    halves: dict[Rule, tuple[SharingPlan, ...]]
    halves_agree: dict[Rule, Agreement]


def analyse(sketches: Sketches, settings: PlanConfig, rules: Sequence[Rule]) -> Analysis:
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
    whole, *parts = [
        (part, measure_sites(part, fold_weights(part, settings.bootstrap))) for part in (sketches, *halves_of(sketches))
    ]
    halves = {rule: tuple(make_plan(part, chosen, found) for part, found in parts) for rule, chosen in by_rule.items()}
    rhos = [rho_by_site(found) for _, found in parts]
    return Analysis(
        whole[1],
        {rule: _with_init(make_plan(sketches, chosen, whole[1]), sketches, settings) for rule, chosen in by_rule.items()},
        halves,
        {rule: agreement(pair, rhos) for rule, pair in halves.items() if pair},
    )


def write_report(analysis: Analysis, folder: Path, name: str, applied: SharingPlan | None = None) -> Path:
    """Write ``report.html``, its figures as PNG and SVG, and each rule's plan as JSON; the path of the report.

    Args:
        analysis: of :func:`analyse`.
        folder: is made where it does not exist.
        name: of the run, for the title.
        applied: the plan that the run applied, if there is one.
    """
    path = folder / "report.html"
    write_page(path, f"Sharing plan of {name}", report_sections(analysis, applied))
    for rule, plan in analysis.plans.items():
        plan.save(folder / f"plan-{rule}.json")
    return path


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
        _halves_section(analysis),
        Section("Where languages conflict", pictures=(conflict_picture(plan),), tables=(sites_table(plan),)),
        Section(
            "Which languages form groups",
            tables=(*_candidates(plan), *_methods(analysis.plans)),
            pictures=tuple(tree for tree in trees if tree),
        ),
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
        for name, plan in zip(("all folds", "even folds", "odd folds"), (whole, *halves), strict=False):
            rows.append((f"{rule}: {name}", *plan_row(plan), _ratios(whole, plan)))
    head = ("", "groups", "sites", "shared neurons", "conflict left in the shared lane, of a random one's")
    return Table(head, tuple(rows))


def plan_row(plan: SharingPlan) -> tuple[str, str, str]:
    """Groups, sites and shared neurons."""
    return _groups(plan), _lines([site.name for site in plan.sites]), _widths(plan)


def agreement_table(found: Mapping[str, Agreement]) -> Table:
    """How well plans agree, a row each."""
    head = ("", "groups (adjusted Rand)", "same sites", "ranking of sites (Spearman)", "rho (mean |difference|)")
    rows = [
        (name, number(each.groups), f"{each.sites:.0%}", number(each.ranking), number(each.rho)) for name, each in found.items()
    ]
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
        stability = f"{candidate['stability']:.1%}"
        rows.append((str(labels.max() + 1), _labelled(labels, plan.languages), number(candidate["silhouette"]), stability))
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


def _halves_section(analysis: Analysis) -> Section:
    title = "Over halves of the data"
    if not analysis.halves_agree:
        return Section(title, ("There are too few folds, or too few utterances in them, to plan by half of the data.",))
    note = "Each half of the folds planned as if nothing else had been mined: how much hangs on which utterances were seen."
    agree = {f"{rule}: even against odd folds": each for rule, each in analysis.halves_agree.items()}
    return Section(title, (note,), tables=(halves_table(analysis), agreement_table(agree)))


def _methods(plans: Mapping[Rule, SharingPlan]) -> tuple[Table, ...]:
    """As many groups by every method of clustering, where a rule looked for groups."""
    found = {rule: plan for rule, plan in plans.items() if "by_method" in plan.evidence["grouping"]}
    if not found:
        return ()
    rows = []
    for method, name in clustering.NAMES.items():
        labels = [np.array(plan.evidence["grouping"]["by_method"][method]) for plan in found.values()]
        grouped = [_labelled(each, plan.languages) for each, plan in zip(labels, found.values(), strict=True)]
        rows.append((name, *grouped))
    heads = (f"{rule}, on {plan.evidence['grouping']['measure']}" for rule, plan in found.items())
    return (Table(("method", *heads), tuple(rows)),)


def _groups(plan: SharingPlan) -> str:
    return " | ".join(" ".join(group) for group in plan.groups)


def _labelled(labels: clustering.Labels, languages: tuple[str, ...]) -> str:
    return " | ".join(" ".join(group) for group in clustering.members(labels, languages))


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
