# ruff: noqa: E501  # The page's own lines.
"""Other implementations' rules on the same federations."""

from collections.abc import Mapping
from typing import Any

from benchmarks.results.page.cells import cells_of_study, seed_counts, share, where
from benchmarks.results.page.markdown import mix_words, shown, table
from matl.simulation.study import NO_ATTACK, ArmName


def others(studies: Mapping[str, Any]) -> str:
    """Flower's and ByzFL's rules, and MATL where it was run by the same code."""
    cells = cells_of_study(studies, "peers")
    theirs = [cell for cell in cells if cell["arm"] != ArmName.ORACLE]
    if not theirs:
        return ""
    mix = theirs[0]["mix"]
    ours = where(cells_of_study(studies, "robust-n20"), arm=ArmName.MATL, mix=mix)
    if _code(studies, "peers") != _code(studies, "robust-n20"):
        ours = []
    arms = [*dict.fromkeys(cell["arm"] for cell in [*ours, *theirs])]
    attacks = {cell["attack"] for cell in theirs if cell["attack"] != NO_ATTACK}
    rows = []
    for hostile, attack in dict.fromkeys((c["hostile"], c["attack"]) for c in theirs):
        own = where(theirs, hostile=hostile, attack=attack)
        row = [share(own[0]), attack, seed_counts(own)]
        for arm in arms:
            found = where([*own, *ours], hostile=hostile, attack=attack, arm=arm)
            row.append(shown(found[0], "below_oracle_points", 1) if found else "")
        rows.append(row)
    return f"""
### Other implementations

Flower's own aggregation functions (flwr 1.41.0, in an interpreter of its own) and ByzFL's aggregators (0.0.11) on the
same hospitals and attackers, without noise, {mix_words(mix)}: points below the honest hospitals alone. f is 45 %
of the hospitals, or the most a rule's proof accepts. *None* is what a rule loses without an attacker. Empty: not run. A
sample: {len(attacks)} of table 2's attacks, one split, no noise. The rules of table 2 are the product's own, which the tests
hold to ByzFL's (`tests/peers/test_byzfl.py`).

{table(["hostile", "attack", "seeds", *arms], rows)}
"""


def _code(studies: Mapping[str, Any], name: str) -> object:
    return studies.get(name, {}).get("code")
