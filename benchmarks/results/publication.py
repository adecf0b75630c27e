"""``docs/results/evidence.json``: what is in it, and what may take the place of what.

A study is published with the code and features that its runs came of, the command that makes
them and the date of the newest. Nothing here runs a study.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from benchmarks.results.gather import FIGURES, Run, cells_of
from matl.machine import machine
from matl.simulation.campaign import fingerprint
from matl.simulation.study import NO_ATTACK, ArmName, Study
from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_common.validation import problems_in

Studies = Mapping[str, Mapping[str, Any]]


class _Cell(BaseModel):
    arm: str
    seeds: list[int]


class _Study(BaseModel):
    finished_runs: int
    cells: list[_Cell]


class _Published(BaseModel):
    """As much of the file as is relied upon before anything is compared."""

    studies: dict[str, _Study]


TABLE_1: Final = {"fundus": "tutorial-fundus", "fashion": "tutorial-fashion"}


def published_study(
    runs: Sequence[Run],
    *,
    asked: Sequence[Study],
    asked_runs: int,
    command: str,
    newest: str,
    features: Path | None,
    data: str,
    carried_over: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """One study's finished runs, with where they come from.

    Args:
        runs: the finished ones.
        asked: the studies that its file asks for.
        asked_runs: as many as there are when all are finished.
        command: makes these runs, and those that are missing.
        newest: when runs were last added to them, ISO 8601.
        features: the file of features that enters, if there is one.
        data: names the images, where they are in no file of features.
        carried_over: the changes of code that some of them are older than, as ``carried`` notes.
    """
    return {
        "asked_runs": asked_runs,
        "finished_runs": len(runs),
        "asked_attacks": list(
            dict.fromkeys(s.hostile.attack for s in asked if s.hostile.attack != NO_ATTACK)
        ),
        "asked_federations": list(
            dict.fromkeys((s.members, s.hostile_count, s.mix_name) for s in asked)
        ),
        "command": command,
        "newest_run": newest,
        "code": fingerprint(),
        "fingerprint": fingerprint(features),
        "fingerprint_without_trust": fingerprint(features, keeps_trust=False),
        "data": data,
        "carried_over": list(carried_over),
        "figures": list(FIGURES),
        "cells": cells_of(runs),
    }


def read_published(path: Path) -> dict[str, Any]:
    """What ``evidence.json`` says; no studies where there is none.

    Raises:
        ConfigurationError: it is not what ``make evidence`` writes.
    """
    if not path.exists():
        return {"studies": {}}
    text = path.read_text(encoding="utf-8")
    try:
        _Published.model_validate_json(text)
    except ValidationError as error:
        raise ConfigurationError(
            f"{path} is not what make evidence writes: {problems_in(error, whole='the file')}; "
            f"git checkout {path}"
        ) from None
    found: dict[str, Any] = json.loads(text)
    return found


def carried(
    published: Mapping[str, Any], features: Mapping[str, Path | None], record: Mapping[str, Any]
) -> dict[str, Any]:
    """The same figures, said to be of the code that is here: for a change that moves none.

    Args:
        published: as ``read_published`` gives it.
        features: by study, the file of features that enters, if there is one.
        record: why, and which runs were made again to see; it is kept with every study.

    Raises:
        ConfigurationError: a study is published of whose features nothing is said.
    """
    here = fingerprint()
    studies = {}
    for name, study in published["studies"].items():
        if name not in features:
            raise ConfigurationError(f"{name} is published, and its features are not here")
        studies[name] = dict(study)
        if study.get("code") != here:
            file = features[name]
            entry = {"from": study.get("code", ""), "to": here, **record}
            studies[name] |= {
                "code": here,
                "fingerprint": fingerprint(file),
                "fingerprint_without_trust": fingerprint(file, keeps_trust=False),
                "carried_over": [*study.get("carried_over", []), entry],
            }
    return {**published, "studies": studies}


def merged(published: Studies, found: Studies, *, order: Sequence[str]) -> dict[str, Any]:
    """What is finished here in place of what was published, study by study.

    A study of which nothing is finished here stays as it was published.

    Raises:
        ConfigurationError: a run that is published is not finished here.
    """
    lost = []
    for name, study in found.items():
        before = _runs(published.get(name, {"cells": []}))
        if gone := before - _runs(study):
            arms = sorted({arm for _, arm, _ in gone})
            lost.append(f"{name} ({len(gone)} of {len(before)}: {', '.join(arms)})")
    if lost:
        raise ConfigurationError(
            f"published runs are not finished here: {'; '.join(lost)}. Nothing was written. Finish "
            "them; or take over those that this same code has published, with --continue; or "
            "publish what is here, and nothing else, with --replace"
        )
    whole = {**published, **found}
    return {name: whole[name] for name in sorted(whole, key=_place(order))}


def _runs(study: Mapping[str, Any]) -> set[tuple[str, str, int]]:
    return {
        (cell.get("study", ""), cell["arm"], seed)
        for cell in study["cells"]
        for seed in cell["seeds"]
    }


def _place(order: Sequence[str]) -> Any:
    return lambda name: (order.index(name) if name in order else len(order), name)


def gaps_of(cells: Sequence[Mapping[str, Any]], *, skewed: bool) -> dict[str, Any]:
    """Points that MATL is below centralised training with hospital E mislabelled, by ε.

    ``skewed`` takes the split whose classes are not spread evenly, which Fashion-MNIST has.
    """
    return {
        f"matl_vs_centralised_gap_points_eps_{cell['epsilon']}": cell["below_centralised_points"]
        for cell in cells
        if (cell["arm"], cell["attack"]) == (ArmName.MATL, "label_complement")
        and (cell["mix"] not in {"sites", "iid"}) is skewed
        and "below_centralised_points" in cell
    }


def summary_of(studies: Studies) -> dict[str, Any]:
    """The keys that carry a target: table 1 with E mislabelled, by both recipes."""
    summary: dict[str, Any] = {}
    for data, name in TABLE_1.items():
        cells = studies.get(name, {}).get("cells", [])
        for skewed, suffix in ((False, ""), (True, "_skewed")):
            gaps = gaps_of(cells, skewed=skewed)
            summary |= {f"{key}_{data}{suffix}": gap for key, gap in gaps.items()}
        for epsilon in ("1", "inf"):
            cells = studies.get(f"tuned-{data}-{_in_name(epsilon)}", {}).get("cells", [])
            gaps = gaps_of(cells, skewed=False)
            summary |= {f"{key}_{data}_recipe_for_accuracy": gap for key, gap in gaps.items()}
    for epsilon in ("inf", "1"):
        gap = summary.get(f"matl_vs_centralised_gap_points_eps_{epsilon}_fundus")
        if gap is not None:
            summary[f"matl_vs_centralised_gap_points_eps_{epsilon}"] = gap["mean"]
    return summary


def _in_name(epsilon: str) -> str:
    return "inf" if epsilon == "inf" else f"eps{epsilon}"


def document(studies: Studies, command: str) -> dict[str, Any]:
    """``evidence.json`` as a value."""
    return {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": command,
        "simulated": True,
        "summary": summary_of(studies),
        "studies": dict(studies),
    }


def text_of(found: Mapping[str, Any]) -> str:
    """As JSON with one cell a line, so that a change of one is a change of one line."""
    blocks = []
    for name, study in found["studies"].items():
        cells = ",\n".join(f"    {_line(cell)}" for cell in study["cells"])
        facts = "".join(
            f"   {_line(key)}: {_line(value)},\n" for key, value in study.items() if key != "cells"
        )
        blocks.append(f'  {_line(name)}: {{\n{facts}   "cells": [\n{cells}\n   ]\n  }}')
    head = {key: value for key, value in found.items() if key != "studies"}
    lines = [json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)[:-2] + ","]
    lines += [' "studies": {', ",\n".join(blocks), " }", "}"]
    return "\n".join(lines) + "\n"


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
