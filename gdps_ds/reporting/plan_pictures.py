"""Which figures a plan's report shows, and what a reader sees in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list

from gdps_ds.analysis import clustering
from gdps_ds.analysis.similarity import SiteSimilarity
from gdps_ds.plan import SharingPlan, SitePlan
from gdps_ds.reporting import figures
from gdps_ds.reporting.page import Picture
from gdps_ds.reporting.style import group_name


def similarity_pictures(
    measured: Mapping[str, SiteSimilarity], languages: Sequence[str], order: Sequence[int]
) -> list[Picture]:
    """One map a site, all with the same colours and the same ``order`` of languages; none for a single language."""
    if len(languages) < 2:
        return []
    lowest = [np.nanmin(site.rho.value, initial=0.0) for site in measured.values()]
    pictures = []
    for name, site in measured.items():
        rho, low, high = (ends[np.ix_(order, order)] for ends in (site.rho.value, site.rho.low, site.rho.high))
        map_ = figures.similarity_map(name, [languages[index] for index in order], rho, low, high, float(min(lowest)))
        caption = f"{name}: rho of every pair below the diagonal, its 95 % interval above"
        pictures.append(Picture(f"similarity-{name}", map_, caption))
    return pictures


def grouping_picture(rule: str, plan: SharingPlan) -> Picture | None:
    """The tree that the rule cuts; None where it grew none (k-means, groups that were given, nothing left to group)."""
    grouping = plan.evidence["grouping"]
    if "linkage" not in grouping:
        return None
    distance = "1 − rho" if grouping["measure"] == "rho" else "1 − cos of mean gradients"
    labels = [plan.group_of(language) for language in plan.languages]
    title = f"{rule}: {len(plan.groups)} groups" if len(plan.groups) > 1 else f"{rule}: one group"
    tree = figures.language_tree(
        np.array(grouping["linkage"]), plan.languages, labels, distance, str(grouping["method"]), title
    )
    return Picture(f"tree-{rule}", tree, f"Rule {rule}: what merges far left is alike; a colour is a group.")


def conflict_picture(plan: SharingPlan) -> Picture:
    chosen = [site.name for site in plan.sites]
    caption = "Conflict of every candidate, and the same weighted by its share of the gradient energy, with 95 % intervals."
    return Picture("conflict", figures.conflict_by_layer(plan.evidence["sites"], chosen), caption)


def split_pictures(rule: str, plan: SharingPlan, site: SitePlan, order: Sequence[int]) -> Iterator[Picture]:
    """How wide the shared lane of a split site is, what the languages have in common there, and which neurons it takes."""
    evidence: dict[str, Any] = plan.evidence["splits"][site.name]
    where = f"{rule}-{site.name}"
    languages = [plan.languages[index] for index in order]
    labels = [plan.group_of(language) for language in languages]
    yield Picture(
        f"capacity-{where}", figures.capacity_decision(evidence["capacity"], site.hidden), "From divergence to shared width."
    )
    shares = figures.energy_shares(evidence["energies"]["shares"], plan.groups, _group_shares(plan, evidence))
    yield Picture(f"shares-{where}", shares, "Shares pi of the joint energy; those of a group scale its lane under init: svd.")
    components = figures.component_energies(evidence["energies"]["energies"], languages)
    yield Picture(f"components-{where}", components, "Which joint singular components each language's gradients lie on.")
    if "neurons" not in evidence:
        return
    between = figures.canonical_correlations(evidence["cca_languages"], languages, labels, "languages")
    yield Picture(f"cca-languages-{where}", between, "Ridge CCA of the languages' gradients: how many directions two share.")
    names = ["+".join(group) for group in plan.groups]
    groups = figures.canonical_correlations(evidence["cca_groups"], names, range(len(names)), "groups")
    yield Picture(f"cca-groups-{where}", groups, "Ridge CCA of the groups' gradients.")
    yield Picture(
        f"neurons-{where}", _neurons(plan, site, evidence), "Hidden neurons: which the groups fight over, and their lanes."
    )


def language_order(plan: SharingPlan, measured: Mapping[str, SiteSimilarity]) -> list[int]:
    """Languages in the order of the plan's tree; without one, of the tree of the site it shows; else as they come."""
    linkage = plan.evidence["grouping"].get("linkage")
    rho = measured[next(iter(plan.evidence["similarity"]))].rho.value
    if linkage is None and len(rho) > 1 and np.isfinite(rho).all():
        linkage = clustering.tree(clustering.distances(rho), "average")
    return list(range(len(rho))) if linkage is None else [int(leaf) for leaf in leaves_list(np.array(linkage))]


def _group_shares(plan: SharingPlan, evidence: Mapping[str, Any]) -> list[float]:
    """A group's share at this site; ``plan.energy_shares`` is their mean over the sites."""
    return [sum(evidence["energies"]["shares"][language] for language in group) for group in plan.groups]


def _neurons(plan: SharingPlan, site: SitePlan, evidence: Mapping[str, Any]) -> Figure:
    lanes, names = [site.shared, *site.private], ["shared", *(group_name(group) for group in plan.groups)]
    if plan.width == "preserve":
        lanes, names = [site.shared, site.private[0]], ["shared", "private, a copy a group"]
    neurons = evidence["neurons"]
    return figures.neuron_map(np.array(neurons["conflict"]), np.array(neurons["energies"]), lanes, names)
