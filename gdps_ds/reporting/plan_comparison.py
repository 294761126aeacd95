"""Plans of several runs side by side: what stays and what changes with the training seed, the data or the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from gdps_ds.analysis.stability import agreement, mean_agreement, rho_by_site
from gdps_ds.reporting.page import Section, Table, write_page
from gdps_ds.reporting.plan_report import Analysis, agreement_table, plan_row, with_interval
from gdps_ds.reporting.style import number

COMPARED = 10
"""Most languages whose pairs are listed one by one."""


def write_comparison(runs: Mapping[str, Analysis], folder: Path) -> Path:
    """Write ``comparison.html``; the path of it.

    Args:
        runs: name -> its analysis; the same rules, languages and candidate sites in all.
        folder: is made where it does not exist.

    Raises:
        ValueError: languages or sites differ; names the run.
    """
    path = folder / "comparison.html"
    _require_alike(runs)
    write_page(path, f"Sharing plans of {len(runs)} runs", comparison_sections(runs))
    return path


def comparison_sections(runs: Mapping[str, Analysis]) -> list[Section]:
    """The page from top to bottom."""
    note = "Means over all pairs of runs, and over the runs, of which each planned by even and by odd folds alone."
    return [
        Section("What each run decides", tables=(plans_table(runs),)),
        Section("How well they agree", (note,), tables=(runs_agree_table(runs),)),
        Section("Conflict × share of the gradient energy [95 %]", tables=(sites_table(runs),)),
        *_rho_section(runs),
    ]


def plans_table(runs: Mapping[str, Analysis]) -> Table:
    """A row for each run and rule."""
    rules = next(iter(runs.values())).plans
    rows = [(f"{rule}: {name}", *plan_row(analysis.plans[rule])) for rule in rules for name, analysis in runs.items()]
    return Table(("", "groups", "sites", "shared neurons"), tuple(rows))


def runs_agree_table(runs: Mapping[str, Analysis]) -> Table:
    """Agreement of the runs with each other and, as the share of chance in it, of either half of a run's data."""
    rhos = [rho_by_site(analysis.measured) for analysis in runs.values()]
    found = {}
    for rule in next(iter(runs.values())).plans:
        found[f"{rule}: between runs"] = agreement([analysis.plans[rule] for analysis in runs.values()], rhos)
        halves = [analysis.halves_agree[rule] for analysis in runs.values() if rule in analysis.halves_agree]
        if halves:
            found[f"{rule}: between halves of a run"] = mean_agreement(halves)
    return agreement_table(found)


def sites_table(runs: Mapping[str, Analysis]) -> Table:
    """Weighted conflict of every candidate, a column each run."""
    figures = [next(iter(analysis.plans.values())).evidence["sites"] for analysis in runs.values()]
    rows = [(name, *(with_interval(each[name]["weighted_conflict"]) for each in figures)) for name in figures[0]]
    return Table(("site", *runs), tuple(rows))


def _rho_section(runs: Mapping[str, Analysis]) -> list[Section]:
    """rho of every pair of languages at the site that most plans show, a column each run."""
    plans = [next(iter(analysis.plans.values())) for analysis in runs.values()]
    languages = plans[0].languages
    if not 2 <= len(languages) <= COMPARED:
        return []
    site = Counter(name for plan in plans for name in plan.evidence["similarity"]).most_common(1)[0][0]
    rows = []
    for first, second in combinations(range(len(languages)), 2):
        found = [analysis.measured[site].rho for analysis in runs.values()]
        ends = [(number(float(end[first, second])) for end in (rho.value, rho.low, rho.high)) for rho in found]
        cells = (f"{value} [{low}, {high}]" for value, low, high in ends)
        rows.append((f"{languages[first]} {languages[second]}", *cells))
    return [Section(f"rho at {site} [95 %]", tables=(Table(("languages", *runs), tuple(rows)),))]


def _require_alike(runs: Mapping[str, Analysis]) -> None:
    (first, reference), *others = runs.items()
    for name, analysis in others:
        for what, own, its in (
            ("languages", _languages(reference), _languages(analysis)),
            ("sites", tuple(reference.measured), tuple(analysis.measured)),
        ):
            if own != its:
                raise ValueError(
                    f"runs to compare must have the same {what}: {first} has {', '.join(own)}; {name} {', '.join(its)}"
                )


def _languages(analysis: Analysis) -> tuple[str, ...]:
    return next(iter(analysis.plans.values())).languages
