"""A hospital's privacy ledger: damage is told from what a crash leaves."""

from __future__ import annotations

import json

from matl_common.errors import InvalidInputError
from matl_common.ids import RoundId, digest_of
from matl_participant.core.account import Abandoned, Entry, Planned, Reserved
from matl_participant.core.journal import GENESIS, format_line, replay
from tests.fuzz.samples import NOW, TERMS
from tests.fuzz.target import Target

FORGED = b"forged\n"


def _story() -> bytes:
    plan = digest_of(b"plan")
    entries: list[Entry] = [
        Planned(
            at=NOW,
            federation_id="dr-study",
            study_id="study-1",
            dataset="retina",
            plan_digest=plan,
            dataset_digest=digest_of(b"data"),
            privacy=TERMS,
            steps_per_round=4,
            software="matl 0.1.0",
        ),
        Reserved(at=NOW, round_id=RoundId(1), steps=4, base_model=digest_of(b"m"), evaluations=1),
        Abandoned(at=NOW, round_id=RoundId(1), reason="the round closed"),
    ]
    head, data = GENESIS, b""
    for sequence, entry in enumerate(entries):
        line, head = format_line(entry, sequence=sequence, previous=head)
        data += line
    return data


def _bodies() -> bytes:
    return b"\n".join(
        json.dumps({key: json.loads(line)["line"][key] for key in ("kind", "entry")}).encode()
        for line in _story().splitlines()
    )


def _sealed(bodies: bytes) -> bytes:
    """Lines whose chain and hashes are right, whatever their entries say."""
    previous, data = GENESIS, b""
    for sequence, body in enumerate(bodies.split(b"\n")):
        try:
            line = dict(json.loads(body), sequence=sequence, previous=previous)
            text = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            canonical = text.encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidInputError("not even JSON") from error
        previous = digest_of(canonical)
        data += b'{"line":%b,"sha256":"%b"}\n' % (canonical, previous.encode())
    return data


def _run(data: bytes) -> None:
    if data.startswith(FORGED):
        data = _sealed(data.removeprefix(FORGED))
    journal = replay(data)
    assert 0 <= journal.sound_bytes <= len(data)
    # What is sound stays sound by itself.
    sound = data[: journal.sound_bytes]
    assert replay(sound).head == journal.head


TARGET = Target(run=_run, seeds=[_story(), _story()[:-20], FORGED + _bodies()])
