# ruff: noqa: E501  # The page's own lines.
"""Table 2: attackers against rules."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from benchmarks.results.page.cells import (
    by_seed,
    claimed,
    figures,
    gap_of,
    harms,
    lost_without_attackers,
    mean_percent,
    of_kind,
    seed_counts,
    share,
    span,
    where,
    with_gap,
)
from benchmarks.results.page.curves import TARGET_MIX, curves_of
from benchmarks.results.page.markdown import (
    Cell,
    counted,
    epsilon_words,
    mix_words,
    percent,
    shown,
    table,
)
from benchmarks.results.page.targets import (
    AUTHORS_OUT,
    HONEST_OUT,
    TARGET_60,
    TARGET_CLAIMED,
    targets_table,
    waiting_table,
)
from benchmarks.results.page.verdicts import MOST_ROUNDS
from matl.attacks import ATTACKS
from matl.attacks.registry import Room
from matl.simulation.study import NO_ATTACK, ArmName

BROKEN_POINTS: Final = 5.0
_SILENT_ROUNDS: Final = 3
UPDATES_ALONE: Final = (
    ArmName.MEDIAN,
    ArmName.TRIMMED_MEAN,
    ArmName.KRUM,
    ArmName.MULTI_KRUM,
    ArmName.BULYAN,
    ArmName.NNM_GM,
)
"""Robust rules that have nothing but the updates."""


def attackers(studies: Mapping[str, Any]) -> str:
    """Targets, and two tables for each size of federation and ε."""
    robust = of_kind(studies, "robust")
    cells = [cell for study in robust.values() for cell in study["cells"]]
    if not cells:
        return ""
    text = f"""
## Table 2: attackers

Targets for MATL (MODE1): at most {TARGET_CLAIMED:.0f} point below the honest hospitals alone at 45 % on every attack, at
most {TARGET_60:.0f} at 60 %; of the hospitals behind attacks that cost FedAvg a point or more, at least {100 * AUTHORS_OUT:.0f} % excluded
at the end, and at most {100 * HONEST_OUT:.0f} % of the honest ones (both the mean over attacks). *All attacks* has those too that harm nobody, whose
authors may stay. *Met* is said of all attacks asked for and
of at least five seeds, and where every attack's interval is within the target. *Missed* is said where some attack's interval is beyond it,
widened for as many attacks as were run (Bonferroni): the worst of many is bad by chance too. A worst attack's own "±" is not widened.
*Runs beyond the target* counts single runs, attack by attack and seed by seed.

{targets_table(robust)}

No honest hospital is to be without a say for more than {MOST_ROUNDS:.0f} rounds in a row at α = 0.5. In a held round nobody has a say: it counts as
waiting. The longest of any seed:

{waiting_table(robust)}

Fashion-MNIST's pixels; twenty hospitals of 2,000 to 3,000 patients, or five of the tutorial's sizes. Without noise a
small network, 20 local steps a round for 30 rounds; at ε = 1 the `head` recipe, 20 rounds. A seed draws who has which
training images, sizes, holdout set, who is hostile, and noise; the 10,000 test images are always the same. MATL and
FLTrust have a holdout set of 500 clean images with all classes alike; MATL also knows every hospital's
class mix as it was enrolled ([without them](#without-class-mixes)); the other rules have the updates alone. Baselines are
rules without trust, f as claimed for MODE1 or the most they accept, however few are hostile: with two of twenty values left, or one
of five, the trimmed mean is the median while all are admitted. MODE0 claims a fifth of the hospitals less one, and is shown beyond its claim
too. Attacks on noise itself are run where there is noise; {_not_attacked(cells)}

*Points*: accuracy below the honest hospitals alone, without an attacker (*none*), which is what the rule itself costs, and
under the worst of the attacks that were run. A rule that was not run under all of a row's attacks shows how many it was.
**Bold**: more than {BROKEN_POINTS:.0f} points beyond what the rule loses without an attacker. *Authors* of attacks and their
weight: over the attacks that cost FedAvg a point or more; weight over rounds that were not held. *Honest without weight* is
the share of honest hospitals' rounds in which they counted for nothing, over all attacks, held rounds too: the false
exclusions. *All out* counts from the first released round from which on no author of the attack has any weight, for at least the last {_SILENT_ROUNDS}
rounds; quarantine is not asked for, and the rounds before an author turns (`sleeper`: {ATTACKS["sleeper"].about}) count too.

![Points below the honest hospitals alone, attack by rule](images/evidence_attacks.png)
"""
    if any(each.hostile for panels in curves_of(studies).values() for each in panels):
        text += """
The worst attack on each rule as more hospitals turn hostile, where all attacks asked for were run; dotted: as many as
MODE1 claims to stand.

![The worst attack on each rule by the number of hostile hospitals](images/evidence_breaks.png)
"""
    for members in sorted({cell["members"] for cell in cells}, reverse=True):
        for epsilon in ("1", "inf"):
            if own := where(cells, members=members, epsilon=epsilon):
                text += (
                    f"\n### {members} hospitals, {epsilon_words(epsilon)}\n\n{worst_table(own)}\n"
                )
                text += f"\n{exclusion_table(own)}\n"
                text += f"\n{attack_table(own)}\n"
    return text


def _not_attacked(cells: Sequence[Cell]) -> str:
    """Those of the registry that no cell has."""
    run = {c["attack"] for c in cells}
    left = [name for name in ATTACKS if name not in run]
    refused = [name for name in left if ATTACKS[name].room is Room.PROTOCOL]
    others = ", ".join(f"`{name}`" for name in left if name not in refused)
    return f"of `matl.attacks` not run here are {others or 'none'}, and {counted(len(refused), 'kind')} of contents that admission refuses as it does `nan`."


def worst_table(cells: Sequence[Cell]) -> str:
    """Points below the honest hospitals alone: each rule's own price, and its worst attack."""
    arms = [arm for arm in dict.fromkeys(c["arm"] for c in cells) if arm != ArmName.ORACLE]
    rows = []
    for mix in dict.fromkeys(c["mix"] for c in cells):
        calm = where(cells, mix=mix, attack=NO_ATTACK)
        if calm:
            losses = [_loss(where(calm, arm=arm)) for arm in arms]
            rows.append([mix_words(mix), "none", "", seed_counts(calm), *losses])
        for hostile in sorted({c["hostile"] for c in cells if c["attack"] != NO_ATTACK}):
            own = where(cells, mix=mix, hostile=hostile)
            if own:
                attacks = len({c["attack"] for c in own})
                worst = [_worst(cells, where(own, arm=arm), attacks) for arm in arms]
                row = [mix_words(mix), share(own[0]), str(attacks), seed_counts(own)]
                rows.append(row + worst)
    return table(["classes", "hostile", "attacks", "seeds", *arms], rows)


def _loss(cells: Sequence[Cell]) -> str:
    known = with_gap(cells)
    return shown(known[0], "below_oracle_points", 1) if known else ""


def _worst(cells: Sequence[Cell], own: Sequence[Cell], attacks: int) -> str:
    text = worst_words(own, attacks=attacks)
    return f"**{text}**" if text and is_broken(cells, worst_of(own)) else text


def worst_of(cells: Sequence[Cell]) -> Cell:
    """The cell that lost most to its attack, of those of which that is known."""
    return max(with_gap(cells), key=gap_of)


def worst_words(cells: Sequence[Cell], *, attacks: int) -> str:
    """What the worst of these attacks cost, and that fewer were run than ``attacks``."""
    known = with_gap(cells)
    if not known:
        return ""
    worst = worst_of(known)
    fewer = "" if len(known) == attacks else f", of {counted(len(known), 'attack')}"
    return f"{shown(worst, 'below_oracle_points', 1)} ({worst['attack']}{fewer})"


def best_on_updates_alone(cells: Sequence[Cell], *, attacks: int) -> str:
    """The rule that its own worst attack costs least, of those run under all attacks."""
    of_each = [where(cells, arm=arm) for arm in UPDATES_ALONE]
    whole = [own for own in of_each if len(own) == attacks]
    if not whole:
        return ""
    best = min(whole, key=lambda own: gap_of(worst_of(own)))
    return f"{best[0]['arm']} {worst_words(best, attacks=attacks)}"


def is_broken(cells: Sequence[Cell], cell: Cell) -> bool:
    """Whether an attack costs a rule more than it loses without one; not where that is unknown."""
    calm = lost_without_attackers(cells, cell)
    return calm is not None and gap_of(cell) - calm > BROKEN_POINTS


def exclusion_table(cells: Sequence[Cell]) -> str:
    """Whom MATL left without a say: authors of attacks, and honest hospitals."""
    ours = where(cells, arm=ArmName.MATL)
    rows = []
    for mix, hostile in sorted({(c["mix"], c["hostile"]) for c in ours}):
        own = where(ours, mix=mix, hostile=hostile)
        found = [(c, harms(cells, c)) for c in own if hostile]
        known = [c for c, harmed in found if harmed is not None]
        harmful = [c for c, harmed in found if harmed]
        rows.append(
            [
                mix_words(mix),
                share(own[0]),
                f"{len(harmful)} of {len(known)}" if known else "",
                mean_percent(harmful, "hostile_excluded"),
                mean_percent(harmful, "hostile_weight"),
                _detected(harmful),
                mean_percent(own, "honest_weightless"),
                mean_percent(own, "honest_excluded"),
                worst_percent(own, "hostile_weight") if hostile else "",
                worst_percent(own, "honest_excluded"),
                most(own, "longest_honest_exclusion_rounds"),
                most(own, "held_rounds"),
            ]
        )
    header = ["classes", "hostile", "attacks that harm the mean", "excluded of their authors"]
    header += ["attackers' weight", "all authors out, runs and slowest round"]
    header += ["honest without weight", "honest excluded at the end"]
    header += ["attackers' weight, worst of all attacks", "honest excluded at the end, worst"]
    header += ["longest honest exclusion, rounds", "rounds held, most"]
    return "MATL (MODE1):\n\n" + table(header, rows)


def attack_table(cells: Sequence[Cell]) -> str:
    """Attack by attack, what MATL did where as many are hostile as it claims to stand."""
    ours = [
        c
        for c in with_gap(where(cells, arm=ArmName.MATL, mix=TARGET_MIX))
        if c["hostile"] == claimed(c["members"])
    ]
    if not ours:
        return ""
    rows = [
        [
            c["attack"],
            shown(c, "below_oracle_points", 1),
            f"{max(figures(c, 'below_oracle_points')):.1f}",
            percent(c, "hostile_excluded"),
            _all_out(c),
            percent(c, "hostile_weight"),
            percent(c, "honest_excluded"),
            span(c, "longest_honest_exclusion_rounds"),
            span(c, "held_rounds"),
        ]
        for c in ours
    ]
    header = ["attack", "points below", "worst seed", "authors excluded"]
    header += ["all out: runs, median round", "attackers' weight", "honest excluded"]
    header += ["longest honest exclusion, rounds", "rounds held"]
    place = f"{share(ours[0])}, {mix_words(TARGET_MIX)}"
    return f"MATL (MODE1) attack by attack, {place}:\n\n{table(header, rows)}"


def _rounds_to_silence(cell: Cell) -> list[float]:
    """From which round on every attacker was out for good, of each run in which they were.

    What is only seen of the last rounds is not called for good.
    """
    found = by_seed(cell, "detected_in_round")
    last = by_seed(cell, "rounds")
    return [
        number
        for seed, number in found.items()
        if seed not in last or number + _SILENT_ROUNDS - 1 <= last[seed]
    ]


def _all_out(cell: Cell) -> str:
    """Of how many runs every attacker was out for good, and from which round on."""
    rounds = _rounds_to_silence(cell)
    runs = f"{len(rounds)} of {len(cell['seeds'])}"
    return f"{runs}, {median(rounds):.0f}" if rounds else runs


def _detected(harmful: Sequence[Cell]) -> str:
    """In how many runs every author was out for good, and from which round on at the latest."""
    if not harmful:
        return ""
    found = [(number, c["attack"]) for c in harmful for number in _rounds_to_silence(c)]
    whole = f"{len(found)} of {sum(len(c['seeds']) for c in harmful)}"
    if not found:
        return whole
    slowest, attack = max(found, key=lambda each: each[0])
    return f"{whole}, {slowest:.0f} ({attack})"


def worst_percent(cells: Sequence[Cell], name: str) -> str:
    """Of the attack under which the mean over seeds is largest; just 0 where it is that."""
    known = [c for c in cells if name in c]
    if not known:
        return ""
    worst = max(known, key=lambda c: c[name]["mean"])
    return f"{percent(worst, name)} ({worst['attack']})" if worst[name]["mean"] else "0 %"


def most(cells: Sequence[Cell], name: str) -> str:
    """The largest over cells and seeds, and under which attack; just 0 where it is that."""
    known = [c for c in cells if figures(c, name)]
    if not known:
        return ""
    worst = max(known, key=lambda c: max(figures(c, name)))
    value = max(figures(worst, name))
    return f"{value:.0f} ({worst['attack']})" if value else "0"
