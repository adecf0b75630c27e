# ruff: noqa: E501  # The page's own lines.
"""``docs/evidence.md``, made from ``docs/results/evidence.json`` and from nothing else."""

from collections.abc import Mapping
from typing import Any

from benchmarks.results.page.attackers import attackers
from benchmarks.results.page.breaks import breaks
from benchmarks.results.page.in_short import in_short
from benchmarks.results.page.minority import minority
from benchmarks.results.page.mixless import mixless
from benchmarks.results.page.others import others
from benchmarks.results.page.runs import what_was_run
from benchmarks.results.page.together import together
from benchmarks.results.page.triggers import triggers
from benchmarks.results.page.tuned import tuned
from benchmarks.results.page.tutorial import tutorial
from benchmarks.results.page.unseen import unseen
from benchmarks.results.page.worst_off import worst_off
from matl.simulation.study import Privacy


def evidence_page(found: Mapping[str, Any]) -> str:
    """The whole page, Markdown."""
    studies = found["studies"]
    parts = [
        _head(found),
        in_short(studies, found["summary"]),
        tutorial(studies, found["summary"]),
        tuned(studies),
        attackers(studies),
        worst_off(studies),
        triggers(studies),
        others(studies),
        mixless(studies),
        unseen(studies),
        together(studies),
        minority(studies),
        breaks(studies),
        what_was_run(found),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    return f"""
# The evidence: accuracy, attackers and privacy, measured

Made by `make evidence` from [results/evidence.json](results/evidence.json); no result on this page was typed. Every
row is simulated ([how](simulation.md)): training and attackers are the simulation's, every decision is the
coordinator's own code. {machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gb"]:.0f} GB, {found["date"][:10]}. "±" is the 95 % interval over seeds (Student's t); an accuracy or a loss of points without it has one seed. Rounds are from the
fewest to the most of any seed. ε is for one patient more or less at one hospital, over a whole study, with δ = {Privacy().delta:g} ([privacy.md](privacy.md)).
A run that is not finished is missing here, not estimated: see [what was run](#what-was-run).

The fundus photographs are semi-synthetic: 21,000 patients of five hospitals, each with its own camera and mix of
grades, as features of a public EfficientNet-Lite0. They say nothing about patients.
"""
