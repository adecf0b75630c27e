"""A target is called met where the runs show it, and missed as surely as they do."""

from collections.abc import Sequence

import pytest

from benchmarks.results.page.verdicts import (
    Decided,
    Verdict,
    is_surely_over,
    seeds_beyond,
    verdict_on_attacks,
    verdict_on_gap,
)
from tests.benchmarks.made_page import cell, line, page, spread


def test_a_gap_whose_interval_reaches_across_its_target_is_not_decided() -> None:
    def said(mean: float, half_width: float | None, runs: int = 5) -> Verdict:
        return verdict_on_gap({"mean": mean, "half_width": half_width, "runs": runs}, 0.4)

    assert said(0.2, 0.1).decided is Decided.MET
    assert said(0.2, 0.1, runs=4) == Verdict(Decided.TOO_FEW, "within the target on 4 seeds")
    assert said(0.3, 0.2).decided is Decided.WITHIN
    assert said(0.5, 0.2).decided is Decided.BEYOND
    assert said(0.7, 0.2).decided is Decided.MISSED
    assert "settles nothing" in said(0.2, None, runs=1).words


def test_the_gap_of_the_recipe_for_accuracy_stands_beside_its_target() -> None:
    name = "matl_vs_centralised_gap_points_eps_inf_fundus_recipe_for_accuracy"
    text = page(summary={name: {"mean": 2.25, "half_width": 0.5, "runs": 5}})
    row = "| fundus | for accuracy | no noise (ε = ∞) | 2.25 ± 0.50 | 0.4 | **missed** | 5 |"
    assert row in text


@pytest.mark.parametrize(
    ("seeds", "attacks", "asked", "said"),
    [
        (5, ("nan", "alie"), 2, "met"),
        (5, ("nan",), 2, "within the target on 5 seeds, under 1 of 2 attacks"),
        (1, ("nan", "alie"), 2, "within the target on 1 seed, under 2 of 2 attacks"),
        (5, ("nan", "alie"), None, "within the target on 5 seeds, under 2 attacks"),
    ],
)
def test_met_is_said_of_five_seeds_and_all_attacks_asked_for(
    seeds: int, attacks: Sequence[str], asked: int | None, said: str
) -> None:
    found = [cell(attack, 0.5, seeds=seeds) for attack in attacks]
    assert verdict_on_attacks(found, 1.0, asked=asked).words == said


def test_an_attack_beyond_the_target_is_named_in_the_table_and_where_it_breaks() -> None:
    attacks = [cell("within_classes", 1.6), cell("scaled_10", 0.2), cell("alie", 3.0)]
    text = page(attacks, asked_attacks=["within_classes", "scaled_10", "alie"])
    assert "**missed** under alie (3.0 ± 0.1), within_classes (1.6 ± 0.1)" in text
    assert "`alie` 3.0 ± 0.1, `within_classes` 1.6 ± 0.1" in line(text, "- **MATL beyond")
    assert "scaled_10" not in line(text, "- **MATL beyond")
    calm = page([cell("alie", 0.9)])
    assert "No attack that was run cost more than 1 point" in line(calm, "- **MATL beyond")


def test_an_interval_that_reaches_across_decides_nothing() -> None:
    wide = cell("alie", 0.9) | {"below_oracle_points": spread([0.9] * 5, 0.4)}
    assert verdict_on_attacks([wide], 1.0, asked=1) == Verdict(
        Decided.WITHIN, f"{Decided.WITHIN}; the interval reaches across under alie (0.9 ± 0.4)"
    )
    over = cell("nan", 1.1) | {"below_oracle_points": spread([1.1] * 5, 0.4)}
    by_mean = "by the mean under nan (1.1 ± 0.4)"
    assert verdict_on_attacks([wide, over], 1.0, asked=2) == Verdict(
        Decided.BEYOND, f"not decided: beyond the target {by_mean}"
    )
    sure = cell("ipm_2", 3.0)
    assert verdict_on_attacks([over, sure], 1.0, asked=2) == Verdict(
        Decided.MISSED, f"**missed** under ipm_2 (3.0 ± 0.1); {by_mean}"
    )
    lone = cell("nan", 3.0, seeds=1)
    assert verdict_on_attacks([lone], 1.0, asked=1).decided is Decided.BEYOND


def test_the_worst_of_many_attacks_is_judged_by_a_wider_interval() -> None:
    one = cell("alie", 2.5) | {"below_oracle_points": spread([2.5] * 5, 1.3)}
    assert is_surely_over(one, 1.0, of=1)
    # t(4) at 0.025 / 2 is 3.495, at 0.025 itself 2.776.
    assert 2.5 - 1.3 * 3.495 / 2.776 < 1.0
    assert not is_surely_over(one, 1.0, of=2)
    calm = cell("nan", 0.1)
    assert verdict_on_attacks([one], 1.0, asked=1).decided is Decided.MISSED
    assert verdict_on_attacks([one, calm], 1.0, asked=2).decided is Decided.BEYOND


def test_a_verdict_names_the_worst_and_counts_the_others() -> None:
    found = [cell(f"attack_{number}", float(number)) for number in range(2, 8)]
    words = verdict_on_attacks(found, 1.0, asked=6).words
    assert words.endswith(
        "attack_7 (7.0 ± 0.1), attack_6 (6.0 ± 0.1), attack_5 (5.0 ± 0.1) and 3 more"
    )


def test_single_runs_beyond_the_target_are_counted() -> None:
    found = [cell("alie", 0.9), cell("nan", 0.1)]
    found[0]["gaps"] = {"below_oracle_points": [-4.0, -4.0, 0.5, 1.5, 15.2]}
    assert seeds_beyond(found, 1.0) == "2 of 10, 15.2 (alie)"


def test_the_summary_counts_verdicts_and_names_the_worst() -> None:
    gap = "matl_vs_centralised_gap_points_eps_"
    summary = {
        f"{gap}{name}": {"mean": mean, "half_width": 0.1, "runs": 5}
        for name, mean in (("1_fundus", 0.5), ("inf_fundus", 0.39), ("1_fashion", 2.0))
    }
    found = [cell("nan", 0.5), cell("alie", 1.05), cell("ipm_2", 3.0)]
    found += [
        cell(attack, gap, arm=arm)
        for attack in ("nan", "alie", "ipm_2")
        for arm, gap in (("mean", 70.0), ("krum", 60.0), ("median", 20.0), ("fltrust", 4.0))
    ]
    found += [cell("nan", 1.0, arm="bulyan")]
    attacks = ["none", "nan", "alie", "ipm_2"]
    text = page(found, summary=summary, asked_attacks=attacks[1:])
    (_, short) = text.split("## In short")
    (short, _) = short.split("## Table 1")
    assert "MATL is 0.39 to 2.00 points below" in short
    assert "over 3 settings of data, recipe and ε." in short
    assert f"Targets: 1 met, 1 {Decided.WITHIN}, 1 **missed**." in short
    ours, theirs = (
        "3.0 ± 0.1 (ipm_2) | 4.0 ± 0.1 (nan)",
        "median 20.0 ± 0.1 (nan) | 70.0 ± 0.1 (nan)",
    )
    row = line(short, "| 9 of 20 |")
    assert row.endswith(f"| 5 | {ours} | {theirs} | 10 of 15, 3.0 (ipm_2) |")
    assert "| table 2, as many as claimed | 1 | 0 | 0 | 0 | 1 | 0 |" in short
    assert "kept under 1 of these 3 attacks" in short
    assert "worst is 3.0 ± 0.1 (`ipm_2`, 9 of 20, α = 0.5, ε = 1, 5 seeds)" in short


def test_the_summary_says_how_matl_stands_beside_fedavg_by_size() -> None:
    gap = "matl_vs_centralised_gap_points_eps_1_fashion"
    own = cell("label_complement", 0.1, below_fedavg_points=spread([2.15] * 5, 1.29))
    summary = {gap: {"mean": 0.5, "half_width": 0.1, "runs": 5}}
    text = page([own], name="tutorial-fashion", summary=summary)
    assert "Fashion-MNIST: 2.15 ± 1.29 (α = 0.5, ε = 1)." in text


def test_a_page_without_runs_has_no_summary() -> None:
    assert "In short" not in page()
