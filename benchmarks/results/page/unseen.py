# ruff: noqa: E501  # The page's own lines.
"""Table 2 on other seeds and on other images than the defence was chosen on."""

from collections.abc import Mapping
from typing import Any, Final

from benchmarks.results.page.attackers import exclusion_table, worst_table
from benchmarks.results.page.beside import BESIDE, beside_table
from benchmarks.results.page.cells import cells_of_study
from benchmarks.results.page.markdown import epsilon_words
from benchmarks.results.page.targets import targets_table
from matl.attacks import ATTACKS

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
    found = beside_table(studies, "unseen")
    if not found:
        return ""
    return f"""
### Other seeds

α = 0.5, everything as in table 2 but for the seeds, and so another draw of who has which images, of sizes, of the holdout
set, of who is hostile, and of noise. {BESIDE}

{found}
"""


def _other_images(studies: Mapping[str, Any]) -> str:
    found = {name: studies[name] for name in _IMAGES if cells_of_study(studies, name)}
    if not found:
        return ""
    text = f"""
### Other images: fundus photographs

Table 2's attackers among five hospitals of the tutorial's sizes with a camera each, and a mix of grades each (table 1's
photographs and recipe: a linear head on features, 6 rounds of 4 steps). Six rounds are few for trust, which
begins anew in every study, and few for who drifts by the round's number: `slow_reversal_5`, {ATTACKS["slow_reversal_5"].about}, gets
no further here than 0.3 of it.

{targets_table(found)}
"""
    for study in found.values():
        cells = study["cells"]
        text += f"\n#### {epsilon_words(cells[0]['epsilon'])}\n\n{worst_table(cells)}\n\n{exclusion_table(cells)}\n"
    return text
