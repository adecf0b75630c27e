"""A target is called met where the runs show it, and missed as surely as they do."""

from collections.abc import Sequence

import pytest

from benchmarks.results.page.verdicts import verdict_on_attacks, verdict_on_gap
from tests.benchmarks.made_page import cell, line, page, spread


def test_a_gap_whose_interval_reaches_across_its_target_is_not_called_met() -> None:
    def said(mean: float, half_width: float | None, runs: int = 5) -> str:
        return verdict_on_gap({"mean": mean, "half_width": half_width, "runs": runs}, 0.4)

    assert said(0.2, 0.1) == "met"
    assert said(0.2, 0.1, runs=4) == "within the target on 4 seeds"
    assert said(0.3, 0.2) == "met by the mean, and the interval reaches across the target"
    assert said(0.5, 0.2).startswith("**missed** by the mean, though")
    assert said(0.7, 0.2) == "**missed**"
    assert "settles nothing" in said(0.2, None, runs=1)


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
    assert verdict_on_attacks(found, 1.0, asked=asked) == said


def test_an_attack_beyond_the_target_is_named_in_the_table_and_where_it_breaks() -> None:
    attacks = [cell("within_classes", 1.6), cell("scaled_10", 0.2), cell("alie", 3.0)]
    text = page(attacks, asked_attacks=["within_classes", "scaled_10", "alie"])
    assert "**missed** under alie (3.0 ± 0.1), within_classes (1.6 ± 0.1)" in text
    assert "`alie` 3.0, `within_classes` 1.6" in line(text, "- **MATL beyond")
    assert "scaled_10" not in line(text, "- **MATL beyond")
    calm = page([cell("alie", 0.9)])
    assert "No attack that was run cost more than 1 point" in line(calm, "- **MATL beyond")


def test_an_interval_that_reaches_across_is_no_met_target_either() -> None:
    wide = cell("alie", 0.9) | {"below_oracle_points": spread([0.9] * 5, 0.4)}
    assert verdict_on_attacks([wide], 1.0, asked=1) == (
        "met by the mean; the interval reaches across under alie (0.9 ± 0.4)"
    )
    over = cell("nan", 1.1) | {"below_oracle_points": spread([1.1] * 5, 0.4)}
    across = "by the mean, though the interval reaches across, under nan (1.1 ± 0.4)"
    assert verdict_on_attacks([wide, over], 1.0, asked=2) == f"**missed** {across}"
    sure = cell("ipm_2", 3.0)
    assert verdict_on_attacks([over, sure], 1.0, asked=2) == (
        f"**missed** under ipm_2 (3.0 ± 0.1); {across}"
    )
    lone = cell("nan", 3.0, seeds=1)
    assert "though the interval" in verdict_on_attacks([lone], 1.0, asked=1)


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
    assert "Targets met: 1 of 3; within, though not surely: 1; missed: 1." in short
    ours, theirs = (
        "3.0 ± 0.1 (ipm_2) | 4.0 ± 0.1 (nan)",
        "median 20.0 ± 0.1 (nan) | 70.0 ± 0.1 (nan)",
    )
    row = line(short, "| 9 of 20 |")
    assert row.endswith(f"| 5 | {ours} | {theirs} | 2 of 3, 1 surely |")
    assert "is kept under 1 of 3 attacks" in short
    assert "the worst is 3.0 ± 0.1 (`ipm_2`, 9 of 20, α = 0.5, ε = 1, 5 seeds)" in short


def test_a_page_without_runs_has_no_summary() -> None:
    assert "In short" not in page()
