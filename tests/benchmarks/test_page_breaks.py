"""What the page says of takeovers, triggers, single hospitals and the price of noise."""

from typing import Any

from benchmarks.results.page.together import together
from tests.benchmarks.made_page import Cell, cell, line, page


def test_a_takeover_is_counted_run_by_run_and_not_by_the_mean() -> None:
    weights: dict[str, Any] = {
        "hostile_weight": [0.1, 0.97, 0.1, 0.1, 0.51],
        "honest_excluded": [0.0, 0.5, 0.0, 0.0, 0.0],
    }
    found = [cell("scaled_10", -0.9, **weights), cell("alie", 0.1, hostile_weight=[0.0] * 5)]
    beyond = cell("alie", 0.1, hostile=12, hostile_weight=[0.5] * 5)
    said = line(page([*found, beyond]), "- **More than half hostile")
    assert "claims to stand: in table 2, 2 of 10 runs, at worst 97 %, with 50 % of the" in said
    assert "(`scaled_10`, 9 of 20, α = 0.5, ε = 1, seed 1). With more: in table 2, 0 of 5" in said
    mixless = line(page(found, name="mixless-n20-eps1"), "- **More than half hostile")
    assert "claims to stand: without class mixes, 2 of 10 runs" in mixless
    assert "With more: not run" in mixless
    unknown = line(page([cell("alie", 0.1)]), "- **More than half hostile")
    assert "Who held the weight was not measured." in unknown


def test_rules_that_resist_a_trigger_that_matl_does_not_are_named() -> None:
    def one(arm: str, success: float, attack: str = "replacement") -> Cell:
        return cell(attack, 0.1, arm=arm, backdoor_success=[success] * 5)

    found = [one("matl", 0.9), one("median", 0.1), one("krum", 0.8)]
    calm = [one("matl", 0.4, "backdoor"), one("median", 0.9, "backdoor")]
    text = page([*found, *calm])
    for start in ("- **Triggers", "**What one hospital loses"):
        said = line(text, start)
        assert "in 1 of 2 pairs of federation and trigger" in said
        assert "Of these 1, the model learned it under median in 0 of 1, krum in 1 of 1." in said
    assert "learned" not in line(page(calm), "- **Triggers")


def test_what_the_worst_off_hospital_loses_is_judged_by_itself() -> None:
    def one(attack: str, arm: str, worst: float, gap: float = 0.1) -> Cell:
        return cell(attack, gap, arm=arm, worst_silo_percent=[worst, worst + 0.1] * 2 + [worst]) | {
            "study": attack
        }

    found = [one("alie", "oracle", 70.0, 0.0), one("alie", "matl", 60.0)]
    found += [one("nan", "oracle", 70.0, 0.0), one("nan", "matl", 71.0)]
    found += [one("alie", "fltrust", 65.0), one("nan", "fltrust", 70.0), cell("ipm_2", 0.1)]
    text = page(found, asked_attacks=["alie", "nan"])
    row = line(text, "| table 2 | 9 of 20 | ε = 1 | α = 0.5 | 5 |")
    assert "| **missed** under alie (10.0 ± 0.0) | 5 of 10, 10.0 (alie) |" in row
    assert row.endswith("| 10.0 ± 0.0 (alie) | 5.0 ± 0.0 (alie) |  |  |")
    for start in ("- **One hospital pays", "**What one hospital loses"):
        said = line(text, start)
        assert "claimed: 1 **missed**; at worst 10.0 ± 0.0 (`alie`, 9 of 20" in said
    others = page(found, name="unseen-n20-eps1")
    assert "| other seeds | 9 of 20 |" in others
    assert "Not run yet." in line(others, "- **One hospital pays")
    assert "### The worst-off hospital" not in page([cell("alie", 0.1)])


def test_the_price_of_noise_is_taken_under_one_recipe_and_the_same_attacks() -> None:
    def studies(name: str, epsilon: str, lower: float) -> dict[str, Any]:
        cells = [
            cell(attack, 0.1, arm=arm, epsilon=epsilon, accuracy_percent=accuracy)
            for attack, arm, accuracy in (
                ("alie", "oracle", [80.0 - lower] * 5),
                ("alie", "matl", [79.0 - 2.0 * lower] * 5),
                ("alie", "mean", [50.0 - lower] * 5),
                *([("budget_spend", "matl", [10.0] * 5)] if epsilon == "1" else []),
            )
        ]
        return {name: {"asked_runs": 9, "finished_runs": 9, "cells": cells}}

    both = studies("head-n20", "inf", 0.0) | studies("robust-n20-eps1", "1", 2.0)
    row = line(together(both), "| Fashion-MNIST | α = 0.5 | 9 of 20 | 1 | 5 |")
    assert "| 80.0 ± 0.1 | 78.0 ± 0.1 | 2.0 ± 0.0 |" in row
    assert "| 79.0 ± 0.1 (alie) | 75.0 ± 0.1 (alie) | 4.0 ± 0.0 |" in row
    assert row.endswith("| 50.0 ± 0.1 (alie) | 48.0 ± 0.1 (alie) |")
    assert "price of ε" not in together(studies("robust-n20-eps1", "1", 2.0))


def test_what_trust_makes_of_a_trigger_is_what_the_cells_say_with_noise_and_without() -> None:
    def one(epsilon: str, success: float, excluded: float) -> Cell:
        figures: dict[str, Any] = {
            "backdoor_success": [success] * 5,
            "hostile_excluded": [excluded] * 5,
        }
        return cell("backdoor", 0.1, epsilon=epsilon, **figures)

    text = page([one("1", 0.03, 1.0), one("inf", 0.9, 0.0)])
    said = line(text, "- **Triggers")
    without, with_noise = said.split("At ε = 1")
    assert "took 90 %" in without
    assert "0 % of the trigger's authors" in without
    assert "took 3 %" in with_noise
    assert "100 % of the trigger's authors" in with_noise
    assert "| backdoor | ε = 1 | 9 of 20 | α = 0.5 | 5 | 3 % / 79.9 ± 0.1 |" in text
    assert "nothing was run" in line(page([cell("alie", 0.1)]), "- **Triggers")
