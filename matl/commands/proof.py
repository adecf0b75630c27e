"""``matl audit prove`` and ``check``: one entry shown to somebody who has neither log nor key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from matl.log.place import (
    Database,
    Index,
    LogKeyFile,
    Place,
    PolicyFile,
    load_policy_file,
    log_place,
    read_file,
)
from matl.log.proofs import (
    check_entry,
    cosigners_told,
    proof_from_coordinator,
    proof_from_database,
)
from matl.log.sources import CoordinatorSource
from matl.log.verification import Believed
from matl.terminal import Json, print_json, printable, printable_json, verdict_in_one_line
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.tlog.disclosure import Disclosure, encode_disclosure, parse_disclosure
from matl_common.tlog.proof import FILE_SUFFIX, TlogProof, encode_proof, parse_proof
from matl_common.tlog.submission import shown_in
from matl_coordinator.config import load_config

_PUBLIC: Final = 0o644


def prove(
    context: typer.Context,
    index: Index,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the entry and its proof.")
    ] = Path(),
    coordinator_config: Database = None,
    log_key: LogKeyFile = None,
    policy: PolicyFile = None,
    reason: Annotated[
        str, typer.Option(help="With --coordinator-config, which breaks the glass: why.")
    ] = "",
) -> None:
    """Write an entry with a proof that the log has it: for a court, an auditor, or a patient.

    Writes `<index>.entry.json` with the leaf, the salt and what was said, and `<index>.tlog-proof`
    (C2SP tlog-proof), once both are verified: from the coordinator with the key that you give, with
    a policy also for its quorum, which must have cosigned a checkpoint over the entry. Says who
    has. Whoever has both and the log's policy checks them offline, years later: `matl audit check`.
    Asks the coordinator; with `--coordinator-config`, while it is stopped, the database, and logs
    with your `--reason` that the entry was read.

    Exit status: 0 written; 1 what was found is no proof, and nothing is written; 2 wrong options,
    nobody answers, or the entry is not under a checkpoint yet or cannot be read any more.
    """
    with verdict_in_one_line():
        with log_place(context, coordinator_config, None, log_key, policy) as place:
            if coordinator_config is None:
                entry, proof = _from_coordinator(place, index)
            else:
                config = load_config(coordinator_config)
                entry, proof = proof_from_database(
                    place.source,
                    config,
                    index,
                    place.require_believed(),
                    reason=reason,
                    insists=policy is not None,
                )
            told = cosigners_told(proof, place.require_believed())
        paths = out / f"{index}.entry.json", out / f"{index}{FILE_SUFFIX}"
        try:
            write_atomically(paths[0], [encode_disclosure(entry)])
            write_atomically(paths[1], [encode_proof(proof)], mode=_PUBLIC)
        except OSError as error:
            raise ConfigurationError(f"cannot write to {out}: {error.strerror}") from error
    typer.echo(f"Wrote {paths[0]} and {paths[1]}; {printable(told)}.")


def check(
    entry: Annotated[
        Path,
        typer.Argument(
            metavar="[ENTRY] PROOF",
            help="The `.entry.json` file and its `.tlog-proof`; or a hospital's `.tlog-proof` "
            "alone, which holds both.",
        ),
    ],
    proof: Annotated[Path | None, typer.Argument(metavar="", show_default=False)] = None,
    *,
    policy: Annotated[
        Path, typer.Option(help="tlog-policy of whom you believe; a bundle holds the log's.")
    ],
    as_json: Json = False,
) -> None:
    """Check offline that an entry is in a log that a quorum of its witnesses has seen.

    Takes what `matl audit prove` and the coordinator's `released` folder hold, or alone the proof
    that a hospital keeps of its update in `studies/<study>/proofs`.

    Exit status: 0 it is; 1 the proof or the entry is bad; 2 wrong options or an unreadable file.
    """
    with verdict_in_one_line():
        shown, tlog_proof = _shown(entry, proof)
        believed = load_policy_file(policy)
        found = check_entry(shown, tlog_proof, Believed(believed.logs[0], believed))
    origin, size = found.signed.checkpoint.origin, found.signed.checkpoint.size
    facts: dict[str, Any] = {
        "log": origin,
        "index": found.index,
        "checkpoint_size": size,
        "quorum": found.has_quorum,
        "entry": found.facts,
    }
    if as_json:
        print_json(facts)
        return
    seen = "a quorum of its witnesses has seen it" if found.has_quorum else "nobody witnesses it"
    typer.echo(
        f"Entry {found.index} of {origin} is what the log says, under a checkpoint of {size} "
        f"entries; {seen}."
    )
    typer.echo(printable_json(found.facts))


def _from_coordinator(place: Place, index: int) -> tuple[Disclosure, TlogProof]:
    assert isinstance(place.source, CoordinatorSource), "what is no database and no bundle"
    return proof_from_coordinator(place.source, index, place.require_believed())


def _shown(first: Path, second: Path | None) -> tuple[Disclosure, TlogProof]:
    """An entry and its proof, out of two files or out of one that holds both."""
    if second is None:
        proof = parse_proof(read_file(first))
        try:
            shown = shown_in(proof)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{first} is not a proof that holds its entry; give the .entry.json file as well"
            ) from error
        return Disclosure(shown.leaf, shown.salt, shown.entry), proof
    try:
        entry = parse_disclosure(read_file(first))
    except InvalidInputError as error:
        raise InvalidInputError(f"{first} is not an entry that `matl audit prove` wrote") from error
    return entry, parse_proof(read_file(second))
