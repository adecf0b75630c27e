# ruff: noqa: E501  # The page's own lines.
"""Table 2 on other seeds and on other images than the defence was chosen on."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from benchmarks.results.page.attackers import (
    exclusion_table,
    most,
    targeted,
    targets_table,
    worst_table,
    worst_words,
)
from benchmarks.results.page.cells import (
    cells_of_study,
    federation,
    gap_of,
    share,
    where,
    with_gap,
)
from benchmarks.results.page.curves import TARGET_MIX
from benchmarks.results.page.markdown import Cell, epsilon_words, number, table
from benchmarks.results.page.verdicts import verdict_on_attacks
from matl.simulation.study import ArmName

_SEEDS: Final = {
    "unseen-n20-eps1": "robust-n20-eps1",
    "unseen-n20": "robust-n20",
    "unseen-n5-eps1": "robust-n5-eps1",
    "unseen-n5": "robust-n5",
}
"""With other seeds, and the studies of table 2 that they repeat."""
_IMAGES: Final = ("unseen-fundus-eps1", "unseen-fundus")


def unseen(studies: Mapping[str, Any]) -> str:
    """Both tables; empty where nothing was run."""
    parts = [part for part in (_other_seeds(studies), _other_images(studies)) if part]
    if not parts:
        return ""
    head = """
## Other seeds and other images

The constants of trust and weights were chosen on digits, and on Fashion-MNIST with the seeds of table 2 (each in its
[decision](adr/); how far a round's step is taken, in [0013](adr/0013-reach.md), on table 1's photographs too), so that table 2 is
optimistic by as much as that gives. Nothing was chosen on what follows: other seeds, and attackers among the
photographs."""
    return "\n\n".join(part.strip() for part in (head, *parts))


def _other_seeds(studies: Mapping[str, Any]) -> str:
    rows = [
        row
        for name, seen in _SEEDS.items()
        if name in studies
        for row in _beside(studies, name, seen)
    ]
    if not rows:
        return ""
    header = ["hostile", "ε", "seeds", "target, points", "mean of the attacks, table 2", "here"]
    header += ["worst, table 2", "here", "verdict here", "longest wait, table 2", "here"]
    return f"""
### Other seeds

α = 0.5, everything as in table 2 but for the seeds, and so another draw of who has which images, of sizes, of the holdout
set, of who is hostile, and of noise. Points below the honest hospitals alone: the mean is over the attacks that were run on
both; empty where table 2's are of other code. The longest that an honest hospital was without a say, in rounds, held ones too.

{table(header, rows)}
"""


def _beside(studies: Mapping[str, Any], name: str, seen: str) -> list[list[str]]:
    """Rows of a study beside those of table 2, where these are of the same code."""
    is_same = studies[name].get("code") == studies.get(seen, {}).get("code")
    before = where(cells_of_study(studies, seen), arm=ArmName.MATL, mix=TARGET_MIX)
    rows = []
    for own, target, asked in targeted({name: studies[name]}):
        there = {c["attack"]: c for c in with_gap(where(before, **federation(own[0])))}
        both = [c for c in own if is_same and c["attack"] in there]
        same = [there[c["attack"]] for c in both]
        rows.append(
            [
                share(own[0]),
                epsilon_words(own[0]["epsilon"]),
                ", ".join(map(str, sorted({seed for c in own for seed in c["seeds"]}))),
                f"{target:.0f}",
                *(_mean(found) for found in (same, both or own)),
                *(worst_words(found, attacks=len(found)) for found in (same, own)),
                verdict_on_attacks(own, target, asked=asked),
                *(most(found, "longest_honest_exclusion_rounds") for found in (same, own)),
            ]
        )
    return rows


def _mean(cells: Sequence[Cell]) -> str:
    return number(fmean(map(gap_of, cells)), 2) if cells else ""


def _other_images(studies: Mapping[str, Any]) -> str:
    found = {name: studies[name] for name in _IMAGES if cells_of_study(studies, name)}
    if not found:
        return ""
    text = f"""
### Other images: fundus photographs

Table 2's attackers among five hospitals of the tutorial's sizes with a camera each, and a mix of grades each (table 1's
photographs and recipe: a linear head on features, 6 rounds of 4 steps). Six rounds are few for trust, which
begins anew in every study.

{targets_table(found)}
"""
    for study in found.values():
        cells = study["cells"]
        text += f"\n#### {epsilon_words(cells[0]['epsilon'])}\n\n{worst_table(cells)}\n\n{exclusion_table(cells)}\n"
    return text
