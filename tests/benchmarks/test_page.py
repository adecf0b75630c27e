"""The evidence page says of made-up cells what they say, and no more."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import evidence_results
from benchmarks.results.figures import BREAKS_PLOT, draw
from benchmarks.results.page.cells import waited
from benchmarks.results.page.curves import at_target, attacked, curves_of
from benchmarks.results.page.tutorial import TEST_IMAGES
from benchmarks.utility.sources import FUNDUS_TEST
from matl.simulation.study import read_study
from tests.benchmarks.made_page import Cell, cell, exclusions, line, page, page_of

ROOT = Path(__file__).parents[2]


def test_a_page_of_nothing_says_so() -> None:
    text = page()
    assert "Nothing yet." in text
    assert "Expected, not measured." in text


def test_splits_that_were_asked_for_and_not_run_are_named_one_by_one() -> None:
    asked = [(20, 9, "dirichlet-0.5"), (20, 9, "iid"), (20, 9, "dirichlet-0.1"), (20, 2, "iid")]
    text = page([cell("alie", 0.1)], asked_federations=asked, asked_attacks=["alie"])
    assert line(text, "Asked for and not run") == (
        "Asked for and not run yet: 9 of 20, iid (robust-n20-eps1); "
        "9 of 20, α = 0.1 (robust-n20-eps1)."
    )


def test_a_rule_that_was_run_under_fewer_attacks_says_under_how_many() -> None:
    found = [cell("alie", 0.1), cell("nan", 0.2), cell("alie", 9.0, arm="krum")]
    row = line(page(found), "| α = 0.5 | 9 of 20 | 2 | 5 |")
    assert row.endswith("| 0.2 ± 0.1 (nan) | 9.0 ± 0.1 (alie, of 1 attack) |")


def test_what_a_rule_loses_without_an_attacker_is_not_called_broken_by_one() -> None:
    found = [
        cell("none", 10.9, arm="krum"),
        cell("alie", 12.0, arm="krum"),
        cell("none", 0.1, arm="median"),
        cell("alie", 12.0, arm="median"),
    ]
    text = page(found)
    assert "| α = 0.5 | none |  | 5 | 10.9 ± 0.1 | 0.1 ± 0.1 |" in text
    worst = "12.0 ± 0.1 (alie)"
    assert f"| α = 0.5 | 9 of 20 | 1 | 5 | {worst} | **{worst}** |" in text
    broken, rest = line(text, "- **Rules without trust").split("Not broken by what was run")
    assert "median 12.0" in broken
    assert "krum" not in broken
    assert "the rule's own price: krum 10.9" in rest


HELD: dict[str, Any] = {
    "longest_honest_exclusion_rounds": [20.0, 20.0],
    "held_rounds": [20.0, 20.0],
    "rounds": [20.0, 20.0],
    "accuracy_percent": [10.0, 10.0],
    "hostile_excluded": [1.0, 1.0],
}


def test_held_rounds_are_shown_and_count_as_waiting() -> None:
    held = cell("replacement", 70.0, seeds=2, **HELD)
    assert waited(held) == 20.0
    assert waited(cell("alie", 0.1, seeds=2, longest_honest_exclusion_rounds=[1.0, 3.0])) == 3.0
    text = page([held, cell("replacement", 5.0, seeds=2, arm="mean", backdoor_success=[0.5, 0.5])])
    verdict = "**missed** under replacement (70.0 ± 0.1) | 2 of 2, 70.0 (replacement) |"
    assert f"{verdict} 100.0 %, few seeds | 100.0 % | 0.0 %, few seeds |" in text
    assert "| 9 of 20 | ε = 1 | 2 | **missed** under replacement (20) |" in text
    assert line(text, "| α = 0.5 | 9 of 20 | 1 of 1 |").endswith(
        "| 20 (replacement) | 20 (replacement) |"
    )
    assert "none released / 10.0 ± 0.1, 20 held" in text
    pairs = "1 of 1 pairs of federation and attack"
    most = f"{pairs}, at most 20 rounds (`replacement`, 9 of 20, α = 0.5, ε = 1)"
    assert f"than it claims in {most}; with more" in line(text, "- **Held rounds")
    waits = line(text, "- **Honest hospitals that wait")
    assert f"ε = 1: in {most}. On other seeds and images: not run. With more" in waits
    calm = page([cell("alie", 0.1), cell("nan", 0.1, hostile=12)])
    nowhere = "in 0 of 1 pairs of federation and attack"
    in_none = f"claims {nowhere}; with more of them {nowhere}."
    assert in_none in line(calm, "- **Held rounds")


def test_detection_is_a_number_of_runs_and_the_slowest_and_no_mean_of_those_that_detected() -> None:
    found = []
    for attack, rounds in (("alie", [2.0, 9.0, None]), ("nan", [1.0, None, None])):
        found += [
            cell(attack, 0.1, seeds=3, detected_in_round=rounds),
            cell(attack, 40.0, seeds=3, arm="mean"),
        ]
    assert "| 3 of 6, 9 (alie) |" in line(page(found), "| α = 0.5 | 9 of 20 | 2 of 2 |")


@pytest.mark.parametrize(
    ("number", "said"), [(18.0, "| 1 of 1, 18 (alie) |"), (19.0, "| 0 of 1 |")]
)
def test_silence_in_the_last_rounds_alone_is_not_called_detection(number: float, said: str) -> None:
    ours = cell("alie", 0.1, seeds=1, detected_in_round=[number], rounds=[20.0])
    text = page([ours, cell("alie", 40.0, seeds=1, arm="mean")])
    assert said in line(text, "| α = 0.5 | 9 of 20 | 1 of 1 |")


def test_false_exclusions_are_all_rounds_without_weight_and_not_the_end_alone() -> None:
    text = page([cell("alie", 0.1, honest_weightless=[0.2] * 5)])
    row = line(exclusions(text), "| α = 0.5 | 9 of 20 |")
    assert row.endswith("| 20.0 % | 0.0 % |  | 0 % | 0 | 0 |")


def test_the_worst_of_all_attacks_stands_beside_the_mean_of_those_that_harm() -> None:
    taken: dict[str, Any] = {"hostile_weight": [0.97] * 5, "honest_excluded": [1.0] * 5}
    own = [cell("scaled_10", -0.9, **taken), cell("alie", 0.1, hostile_weight=[0.0] * 5)]
    theirs = [cell("scaled_10", -1.0, arm="mean"), cell("alie", 40.0, arm="mean")]
    row = line(exclusions(page([*own, *theirs])), "| α = 0.5 | 9 of 20 |")
    assert "| 1 of 2 |  | 0.0 % |" in row
    assert "| 50.0 % | 97 % (scaled_10) | 100 % (scaled_10) |" in row


def test_an_attack_has_a_row_of_its_own_where_as_many_are_hostile_as_claimed() -> None:
    rounds: dict[str, Any] = {
        "detected_in_round": [4.0, None, 2.0, None, 9.0],
        "hostile_excluded": [0.8] * 5,
    }
    found = cell("alie", 0.3, held_rounds=[0.0, 3.0, 1.0, 0.0, 0.0], **rounds)
    found["gaps"] = {"below_oracle_points": [0.1, 0.2, 0.3, 0.4, 0.5]}
    text = page([found, cell("nan", 0.1, hostile=8)])
    assert "| alie | 0.3 ± 0.1 | 0.5 | 80 % | 3 of 5, 4 |  | 0 % | 0 | 0 to 3 |" in text
    assert "| nan | 0.1" not in text


def test_delta_is_that_of_every_study() -> None:
    named = {
        study.privacy.delta
        for name in evidence_results.ORDER
        for study in read_study(ROOT / evidence_results.STUDIES / f"{name}.toml").studies
    }
    assert named == {1e-5}
    assert "with δ = 1e-05 (" in page([cell("alie", 0.1)])


def test_what_becomes_of_a_minority_hospital_is_expected_until_it_is_measured() -> None:
    assert "Expected, not measured." in page([cell("alie", 0.1)])
    found = [
        cell("none", 0.1, suspect_trust=[trust] * 5, suspect_accuracy_percent=own)
        | {"holdout_sites": sites}
        for trust, own, sites in (
            (0.9, [97.0, 97.5, 97.0, 97.0, 97.5], [0, 1, 2, 3, 4]),
            (0.2, [97.5, 97.0, 97.0, 97.0, 97.5], [0, 1, 2, 3]),
        )
    ]
    text = page(found, name="minority")
    said = line(text, "- **The holdout set's bias")
    assert "ε = 1: 0.00 ± 0.44. No loss was found with this camera" in said
    found[1]["measurements"]["suspect_accuracy_percent"] = [90.0, 91.0, 90.0, 91.0, 90.0]
    said = line(page(found, name="minority"), "- **The holdout set's bias")
    assert "ε = 1: 6.80 ± 0.71. That hospital pays." in said
    assert "[measured](#a-minority-hospital)" in text
    assert "| with E's patients | ε = 1 | MATL, MODE1 | 0.90 ± 0.10 |" in text
    assert "| without E's patients | ε = 1 | MATL, MODE1 | 0.20 ± 0.10 |" in text


def test_other_implementations_stand_beside_matl_of_the_same_code_only() -> None:
    def shown(code: str) -> str:
        theirs = [cell("alie", 7.0, arm="flwr krum")]
        return page_of(
            {
                "robust-n20": {"code": "a", "cells": [cell("alie", 0.3)]},
                "peers": {"code": code, "cells": theirs},
            }
        )

    assert "| hostile | attack | seeds | matl | flwr krum |" in shown("a")
    assert "All studies name the same code." in shown("a")
    assert "| hostile | attack | seeds | flwr krum |" in shown("b")
    assert "not all known to be of the same code" in shown("b")


def test_other_seeds_stand_beside_the_same_attacks_of_table_2() -> None:
    def study(*cells: Cell) -> dict[str, Any]:
        return {"asked_attacks": ["alie", "nan"], "cells": cells}

    worse = [cell("alie", 1.6, longest_honest_exclusion_rounds=[3.0] * 5), cell("nan", 0.4)]
    before = [cell("alie", 0.2), cell("nan", 0.6), cell("mimic", 9.0)]

    def shown(code: str, *cells: Cell) -> str:
        studies = {
            "robust-n20-eps1": {**study(*before), "code": "a"},
            "unseen-n20-eps1": {**study(*cells), "code": code},
            "unseen-fundus": study(),
        }
        return page_of(studies)

    text = shown("a", *worse)
    start = "| 9 of 20 | ε = 1 | α = 0.5 | 2 of 2 | 5 | 1 | 0.40 |"
    missed = "**missed** under alie (1.6 ± 0.1) | 5 of 10, 1.6 (alie)"
    assert line(text, start).endswith(
        f"| 0.40 | 1.00 | 0.6 ± 0.1 (nan) | 1.6 ± 0.1 (alie) | {missed} | 0 | 3 (alie) |"
    )
    assert "`alie` 1.6" in line(text, "- **The same on [other seeds")
    pairs = "in 1 of 2 pairs of federation and attack"
    waits = f"On other seeds and images: ε = 1: {pairs}, at most 3 rounds (`alie`, 9 of"
    assert waits in line(text, "- **Honest hospitals that wait")
    assert "`mimic` 9.0" in line(text, "- **MATL beyond")
    assert "1.6" not in line(text, "- **MATL beyond")
    # Of other code, or under an attack that table 2 has not: nothing stands beside it.
    alone = shown("b", *worse)
    assert f"| 1 |  | 1.00 |  | 1.6 ± 0.1 (alie) | {missed} |  | 3 (alie) |" in alone
    more = shown("a", *worse, cell("sybil", 3.0, seeds=6), cell("mimic", -7.0))
    start = "| 9 of 20 | ε = 1 | α = 0.5 | 4 of 2 | 5 to 6 | 1 |"
    # An attack that does good makes up for no harm.
    assert "| 3.27 | 0.67 | 9.0 ± 0.1 (mimic) | 3.0 ± 0.1 (sybil) |" in line(more, start)


def test_other_images_have_their_own_verdicts_and_tables() -> None:
    on_sites: dict[str, Any] = {"mix": "sites", "members": 5, "hostile": 2, "data": "fundus"}
    found = [
        cell("replacement", 5.1, **on_sites),
        cell("replacement", 12.0, arm="mean", **on_sites),
    ]
    text = page(found, name="unseen-fundus-eps1", asked_attacks=["replacement"])
    assert "### Other images" in text
    assert "### Other seeds" not in text
    assert "| 1 of 1 | 5 | 1 | **missed** under replacement (5.1 ± 0.1) |" in text
    assert "| 1 | 5 | 5.1 ± 0.1 (replacement) | 12.0 ± 0.1 (replacement) |" in text
    assert "## Table 2" not in text


def test_the_recipes_and_test_images_that_the_page_names_are_those_of_the_studies() -> None:
    words = {
        "tutorial-fundus": "{rounds} rounds of {steps} steps, learning rate {learning_rate:g}, "
        "{dimensions} dimensions",
        "tutorial-fashion": "{rounds} rounds of {steps} steps, learning rate {learning_rate:g}, "
        "{dimensions} dimensions",
    }
    text = " ".join(page().split())
    for name, said in words.items():
        (training,) = {
            study.training
            for study in read_study(ROOT / evidence_results.STUDIES / f"{name}.toml").studies
        }
        assert said.format_map(training.model_dump()) in text
    assert TEST_IMAGES["fundus"] == FUNDUS_TEST


def test_fltrust_stands_beside_matl_where_all_attacks_asked_for_were_run() -> None:
    own = [cell("sign_flip_5", 2.0), cell("alie", 7.0)]
    theirs = [cell("sign_flip_5", 3.0, arm="fltrust"), cell("alie", 1.0, arm="fltrust")]
    text = page([*own, *theirs], asked_attacks=["sign_flip_5", "alie"])
    said = line(text, "- **FLTrust")
    kind = "20 hospitals, fashion: MATL loses less in"
    assert f"{kind} 0, FLTrust in 1, and in 0" in said
    better = [cell("sign_flip_5", 7.1, arm="fltrust"), theirs[1]]
    said = line(page([*own, *better], asked_attacks=["sign_flip_5", "alie"]), "- **FLTrust")
    assert f"{kind} 1, FLTrust in 0, and in 0" in said
    alike = [cell("sign_flip_5", 7.1, arm="fltrust"), theirs[1]]
    alike[0]["gaps"] = {"below_oracle_points": [6.0, 8.0, 6.0, 8.0, 7.5]}
    said = line(page([*own, *alike], asked_attacks=["sign_flip_5", "alie"]), "- **FLTrust")
    assert f"{kind} 0, FLTrust in 0, and in 1" in said
    assert "images/evidence_breaks.png" in text
    few = [cell("sign_flip_5", 3.0, arm="fltrust", seeds=2), theirs[1]]
    for fewer in ([*own, theirs[0]], own, theirs, [*own, *few]):
        part = page(fewer, asked_attacks=["sign_flip_5", "alie"])
        assert "Not run yet under all attacks" in line(part, "- **FLTrust")
    # A form that does not say what was asked for.
    assert "Not run yet under all attacks" in line(page([*own, *theirs]), "- **FLTrust")


def test_the_curves_are_drawn_of_rules_that_met_every_attack(tmp_path: Path) -> None:
    calm = [cell("none", 0.0), cell("none", 0.1, arm="mean")]
    cells = [*calm, cell("alie", 1.0), cell("alie", 60.0, arm="mean")]
    study = {"cells": cells, "asked_attacks": ["alie"]}
    curves = curves_of({"robust-n20-eps1": study})["robust-n20-eps1"]
    worst = [
        (p.hostile, *((p.worst(arm) or {}).get("mean") for arm in ("matl", "mean"))) for p in curves
    ]
    assert worst == [(0, 0.0, 0.1), (9, 1.0, 60.0)]
    assert curves[0].worst("krum") is None
    noise_free = [{**each, "epsilon": "inf"} for each in cells]
    oracle = cell("alie", 0.0, arm="oracle")
    both = {"robust-n20-eps1": {**study, "cells": [*cells, oracle]}}
    both["robust-n20"] = {**study, "cells": noise_free}
    assert [(each.hostile, each.epsilon, len(each.cells)) for each in attacked(both, [*both])] == [
        (0, "1", 2),
        (9, "1", 2),
        (0, "inf", 2),
        (9, "inf", 2),
    ]
    assert [each.epsilon for each in at_target(both)] == ["1", "inf"]
    elsewhere = [{**each, "mix": "iid"} for each in cells]
    weaker = [{**each, "hostile": 4} for each in cells]
    assert at_target({"robust-n20": {**study, "cells": [*elsewhere, *weaker]}}) == []
    without_calm = {**study, "cells": cells[1:], "asked_attacks": ["alie"]}
    assert len(curves_of({"robust-n20-eps1": without_calm})["robust-n20-eps1"]) == 2
    draw({"studies": {"robust-n20-eps1": study}}, tmp_path)
    assert (tmp_path / BREAKS_PLOT).stat().st_size > 0
    more = {**study, "asked_attacks": ["alie", "mimic"]}
    (only,) = curves_of({"robust-n20-eps1": more})["robust-n20-eps1"]
    assert only.hostile == 0
    # A rule that is still being run keeps none out that is whole.
    begun = {**more, "cells": [*cells, cell("mimic", 2.0)]}
    (_, last) = curves_of({"robust-n20-eps1": begun})["robust-n20-eps1"]
    assert (last.worst("matl") or {})["mean"] == 2.0
    assert last.worst("mean") is None
    (tmp_path / BREAKS_PLOT).unlink()
    draw({"studies": {"robust-n20-eps1": more}}, tmp_path)
    assert not (tmp_path / BREAKS_PLOT).exists()


def test_an_attack_is_not_called_harmless_where_fedavg_was_not_run_under_it() -> None:
    out: dict[str, Any] = {"hostile_excluded": [1.0] * 5, "hostile_weight": [0.0] * 5}
    own = [cell("alie", 0.1, **out), cell("nan", 0.2, **out)]
    start = "| α = 0.5 | 9 of 20 | "
    others = ["0.0 %", "0.0 %", "0 %", "0 %", "0", "0 |"]

    def row(*theirs: Cell) -> str:
        return line(exclusions(page([*own, *theirs])), start).removeprefix(start)

    assert row() == " | ".join(["", "", "", "", *others])
    harmless = cell("nan", 0.9, arm="mean")
    assert row(harmless) == " | ".join(["0 of 1", "", "", "", *others])
    harmful = cell("alie", 1.0, arm="mean")
    found = row(harmless, harmful)
    assert found == " | ".join(["1 of 2", "100.0 %", "0.0 %", "0 of 5", *others])


def test_mode0_is_held_to_its_claim_too() -> None:
    few: dict[str, Any] = {"arm": "matl-mode0", "hostile": 3}
    text = page([cell("size_lie", 16.7, **few), cell("nan", 0.3, **few)])
    said = line(text, "- **MODE0 within its claim")
    assert said.endswith("more than 1: `size_lie` 16.7 ± 0.1 (3 of 20, α = 0.5, ε = 1).")
    beyond = page([cell("size_lie", 16.7, arm="matl-mode0", hostile=4)])
    assert line(beyond, "- **MODE0 within its claim").endswith("Not run yet.")


def test_what_class_mixes_are_worth_stands_beside_table_2() -> None:
    text = page([cell("leaked_root", 5.8)], name="mixless-n20-eps1", asked_attacks=["leaked_root"])
    assert "\n## Without class mixes\n" in text
    row = line(text, "| 9 of 20 | ε = 1 | α = 0.5 |")
    assert "**missed** under leaked_root (5.8 ± 0.1)" in row
    assert "Without class mixes" not in page([cell("leaked_root", 5.8)]).split("## Table 2")[0]


def test_attacks_that_were_not_run_are_named() -> None:
    said = " ".join(page([cell("alie", 0.1), cell("nan", 0.1)]).split())
    assert "of `matl.attacks` not run here are " in said
    names = said.split("not run here are ")[1].split(", and")[0]
    assert "`sign_flip_5`" in names
    assert "`alie`" not in names
    assert "`one_nan`" not in names


def test_a_change_of_code_that_runs_are_older_than_is_told_with_what_was_checked() -> None:
    change: dict[str, Any] = {
        "from": "a",
        "to": "b",
        "date": "2026-11-30T08:00:00+00:00",
        "why": "a log line",
    }
    change |= {"runs_made_again": 24, "seed": 7}
    text = page([cell("alie", 0.1)], carried_over=[change])
    said = line(text, "- 2026-11-30, `a` → `b`: a log line")
    assert "24 runs drawn (seed 7) and made again gave the same figures, so that" in said
    assert said.endswith("with 95 % confidence at most 12 % of all would not) All studies.")
    assert "Every run is of the code that its study names." in page([cell("alie", 0.1)])


def test_what_honest_hospitals_pay_for_a_recipe_chosen_for_accuracy_is_said() -> None:
    own = cell("label_complement", 0.3, honest_excluded=[0.25] * 5)
    text = page([own, cell("label_complement", 0.0, arm="oracle")], name="tuned-fundus-eps1")
    assert "at worst 25 % of them are excluded at the end (fashion, ε = 1)" in text
    calm = page([cell("label_complement", 0.3)], name="tuned-fundus-eps1")
    assert "at the price of honest hospitals" not in calm
