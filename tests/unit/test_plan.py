from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gdps_ds.plan import PlanError, SharingPlan, SitePlan

SITE = "speech_encoder.encoder.layers.1.ffn2"
LANGUAGES = ("aeb", "bem", "est", "gle")
RANGE = "shared_width: must be an integer from 1 to {}, as the block has {} hidden neurons (found {})"


def written() -> dict[str, Any]:
    """The least that a person has to write."""
    return {
        "languages": list(LANGUAGES),
        "groups": [["bem"], ["aeb", "est", "gle"]],
        "sites": [{"name": SITE, "hidden": 8, "shared_width": 4}],
    }


def read(**changes: object) -> SharingPlan:
    return SharingPlan.from_json(json.dumps(written() | changes))


def faults_of(**changes: object) -> str:
    with pytest.raises(PlanError) as caught:
        read(**changes)
    return "\n".join(caught.value.faults)


def test_hand_written_plan_gets_first_neurons_shared_and_copies_of_the_others() -> None:
    plan = read()
    assert plan.sites == (SitePlan(SITE, 8, (0, 1, 2, 3), ((4, 5, 6, 7), (4, 5, 6, 7))),)
    assert (plan.width, plan.init, plan.energy_shares) == ("preserve", "neurons", (0.5, 0.5))
    assert not plan.is_uniform


def test_hand_written_constant_width_splits_the_others_evenly() -> None:
    assert read(width="constant").sites[0].private == ((4, 5), (6, 7))


def test_width_added_shares_everything_and_numbers_new_neurons_from_there() -> None:
    everybody, site = [list(LANGUAGES)], {"name": SITE, "hidden": 4, "shared_width": 4, "private": [[4, 5]]}
    assert not read(width="added", groups=everybody, sites=[site]).is_uniform
    found = faults_of(width="added", init="svd", groups=everybody, sites=[site | {"shared_width": 3, "private": [[5, 6]]}])
    assert "init: width added keeps every neuron, so it needs init neurons, found svd" in found
    assert "sites.0.shared: width added shares all 4 neurons, found 3" in found
    assert "sites.0.private: width added numbers new neurons from 4 on" in found


def test_hand_written_shared_neurons_leave_the_others_private() -> None:
    plan = read(sites=[{"name": SITE, "hidden": 6, "shared": [1, 4, 5]}])
    assert plan.sites[0].private == ((0, 2, 3), (0, 2, 3))


def test_json_round_trip_keeps_everything(tmp_path: Path) -> None:
    plan = read(
        energy_shares=[0.25, 0.75], reason='one "reason"\n[two', evidence={"rho": [[1.0, None]]}, provenance={"seed": 1}
    )
    plan.save(tmp_path / "plan.json")
    again = SharingPlan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.digest == plan.digest


def test_json_has_null_for_nan_and_a_line_for_a_list() -> None:
    plan = SharingPlan(("aeb",), (("aeb",),), (), evidence={"rho": [[1.0, float("nan")], [float("-inf"), 1.0]]})
    text = plan.to_json()
    assert "[1.0, null]" in text and "[null, 1.0]" in text
    assert SharingPlan.from_json(text).evidence == {"rho": [[1.0, None], [None, 1.0]]}


def test_digest_follows_decisions_only() -> None:
    plan = read()
    assert read(reason="because", evidence={"a": 1}, provenance={"seed": 2}).digest == plan.digest
    changed = [
        {"width": "constant"},
        {"init": "svd"},
        {"energy_shares": [0.4, 0.6]},
        {"groups": [["aeb"], ["bem", "est", "gle"]]},
        {"sites": [{"name": SITE, "hidden": 8, "shared_width": 5}]},
    ]
    digests = {read(**change).digest for change in changed}
    assert len(digests | {plan.digest}) == len(changed) + 1
    assert len(plan.digest) == 32


def test_group_of() -> None:
    plan = read()
    assert [plan.group_of(language) for language in LANGUAGES] == [1, 0, 1, 1]
    with pytest.raises(KeyError, match="'que' is in no group"):
        plan.group_of("que")


def test_summary_names_groups_sites_and_reasons() -> None:
    text = read(reason="sites: by hand\ngroups: by hand").summary()
    for part in ("group 0: bem (50.0%", SITE, "4 of 8 neurons shared (50.0%)", "width preserve", "groups: by hand"):
        assert part in text
    uniform = SharingPlan(LANGUAGES, (LANGUAGES,), (), reason="no conflict")
    assert uniform.is_uniform
    assert "stays uniform" in uniform.summary() and "no conflict" in uniform.summary()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "plan: 1 fault.*not valid JSON"),
        ("[1]", "must be an object"),
        ('{"groups": [["aeb"]], "sites": []}', "languages: required, but missing"),
    ],
)
def test_what_is_no_plan(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=f"(?s){message}"):
        SharingPlan.from_json(text)


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(PlanError, match=r"mine\.json: 3 fault"):
        SharingPlan.load(tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sties": []}, "sties: unknown field"),
        ({"width": "narrow"}, "width: input should be 'preserve', 'constant' or 'added' (found 'narrow')"),
        ({"sites": [{"name": SITE, "hidden": 8, "shared": [0, True]}]}, "sites.0.shared.1: input should be a valid integer"),
        (
            {"sites": [{"name": SITE, "hidden": "8", "shared_width": 2}]},
            "sites.0.hidden: must be the number of hidden",
        ),
        (
            {"sites": [{"name": SITE, "hidden": 8, "shared": [0], "shared_width": 1}]},
            "sites.0.shared_width: shared names the",
        ),
        ({"sites": [{"name": SITE, "hidden": 8}]}, "sites.0.shared: required, but missing"),
        ({"groups": [["bem"], ["aeb", "est"]]}, "groups: 'gle' is in 0 groups"),
        ({"groups": [["bem", "aeb"], ["aeb", "est", "gle"]]}, "groups: 'aeb' is in 2 groups"),
        ({"groups": [["bem"], list(LANGUAGES[2:]), ["aeb", "que"]]}, "languages: 'que' is listed 0 times"),
        ({"groups": [[], list(LANGUAGES)]}, "groups: a group is empty"),
        ({"groups": [list(LANGUAGES)]}, "groups: 1 group(s), but sites are split only between two or more"),
        ({"sites": []}, "sites: none, but there are 2 groups"),
        ({"sites": written()["sites"] * 2}, f"sites: '{SITE}' is listed 2 times"),
        ({"energy_shares": [1.0]}, "energy_shares: 1 values for 2 groups"),
        ({"energy_shares": [0.5, 0.6]}, "energy_shares: must be at least 0 and sum to 1"),
        ({"sites": [{"name": SITE, "hidden": 8, "shared": []}]}, "sites.0.shared: empty"),
        ({"sites": [{"name": SITE, "hidden": 8, "shared": list(range(8))}]}, "sites.0.private.0: empty"),
        ({"sites": [{"name": SITE, "hidden": 8, "shared": list(range(9))}]}, "sites.0.shared: neuron 8 is not in 0..7"),
        ({"sites": [{"name": SITE, "hidden": 8, "shared": [0, 1, 2]}], "width": "constant"}, "needs 5 / 2 neurons"),
        ({"sites": [{"name": SITE, "hidden": 4, "shared": [1, 0]}]}, "sites.0.shared: must be ascending"),
        (
            {"sites": [{"name": SITE, "hidden": 4, "shared": [0, 1], "private": [[1, 2], [2, 3]]}]},
            "sites.0.private.0: neuron 1 is in the shared lane as well",
        ),
        (
            {"sites": [{"name": SITE, "hidden": 4, "shared": [0, 1], "private": [[2, 3], [3]]}]},
            "sites.0.private: width preserve needs all 2 other neurons in every lane, found [2, 1]",
        ),
        (
            {"sites": [{"name": SITE, "hidden": 6, "shared": [0, 1], "private": [[2, 3], [3, 4]]}], "width": "constant"},
            "sites.0.private: width constant gives a neuron to one lane only",
        ),
        ({"sites": [{"name": SITE, "hidden": 4, "shared": [0, 1], "private": [[2, 3]]}]}, "private: 1 lanes for 2 groups"),
    ],
)
def test_faults_name_the_field(changes: dict[str, object], fault: str) -> None:
    assert fault in faults_of(**changes)


@pytest.mark.parametrize(
    ("site", "fault"),
    [
        *(({"hidden": 128, "shared_width": width}, RANGE.format(127, 128, width)) for width in (500, 128, 0, -4)),
        *(({"hidden": 8, "shared_width": width}, RANGE.format(7, 8, repr(width))) for width in (0.5, "4", True, None)),
        ({"hidden": 8, "shared_width": 4, "shared": [0, 1]}, "shared_width: shared names the neurons already; give one"),
        ({"hidden": 0, "shared_width": 4}, "hidden: must be the number of hidden neurons, 2 or more (found 0)"),
        ({"hidden": "128", "shared_width": 4}, "hidden: must be the number of hidden neurons, 2 or more (found '128')"),
        ({"hidden": 8, "shared": []}, "shared: empty; every lane needs a neuron"),
        ({"hidden": 8, "shared": list(range(20))}, "shared: neuron 8 is not in 0..7"),
        ({"hidden": 8, "shared": [-1, 3]}, "shared: neuron -1 is not in 0..7"),
    ],
)
@pytest.mark.parametrize("width", ["preserve", "constant"])
def test_a_wrong_number_gives_one_message_which_names_it(site: dict[str, object], fault: str, width: str) -> None:
    if width == "constant":
        fault = fault.replace("to 127", "to 126").replace("to 7", "to 6")
    [found] = faults_of(width=width, sites=[{"name": SITE} | site]).splitlines()
    assert found.startswith(f"sites.0.{fault}")


def test_neurons_that_groups_cannot_share_equally_are_told_by_their_width() -> None:
    found = faults_of(width="constant", sites=[{"name": SITE, "hidden": 8, "shared_width": 3}])
    assert found == "sites.0.shared_width: leaves 5 of 8 neurons, which 2 groups cannot share equally (width: constant)"


def test_wrong_numbers_of_all_sites_are_told_at_once() -> None:
    sites = [{"name": SITE, "hidden": 8, "shared_width": shared} for shared in (9, 4, 0)]
    assert [line.partition(":")[0] for line in faults_of(sites=sites).splitlines()] == [
        "sites.0.shared_width",
        "sites.2.shared_width",
    ]


def test_all_faults_are_listed_at_once() -> None:
    assert faults_of(groups=[["bem"], []], energy_shares=[0.5, 0.6]).count("\n") >= 3


def test_validate_against_the_model_lists_every_fault() -> None:
    plan = read(sites=[{"name": SITE, "hidden": 8, "shared_width": 4}, {"name": "decoder.ffn", "hidden": 8, "shared_width": 4}])
    plan.validate({SITE: 8, "decoder.ffn": 8}, ("gle", "est", "bem", "aeb"))
    with pytest.raises(PlanError) as caught:
        plan.validate({SITE: 16}, ("aeb", "bem"))
    assert caught.value.faults == (
        "languages: aeb, bem, est, gle, but data.languages has aeb, bem",
        f"sites.0.hidden: 8, but '{SITE}' has 16",
        "sites.1.name: the model has no feed-forward block 'decoder.ffn'",
    )
