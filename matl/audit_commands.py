"""``matl audit``: read, verify, prove and export the transparency log.

Three places to read from: the coordinator, as an operator; its database, on its machine; a
bundle that was exported, anywhere, without either. Nothing here decides what is sound:
``matl.log_verification`` does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from matl.connection import connected
from matl.log_place import Place, log_place, read_file
from matl.log_sources import (
    POLICY,
    CoordinatorSource,
    LogSource,
    export_bundle,
)
from matl.log_verification import AuditReport, opened_entries, verify_log
from matl.terminal import console, errors_in_one_line, print_json, printable, table
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.key_places import load_wrapping_key
from matl_common.tlog.checkpoint import open_checkpoint, parse_checkpoint
from matl_common.tlog.disclosure import Disclosure, encode_disclosure, parse_disclosure
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.leaf import Leaf, check_disclosure, parse_leaf
from matl_common.tlog.merkle import inclusion_proof, leaf_hash, verify_inclusion
from matl_common.tlog.note import parse_note
from matl_common.tlog.policy import NO_QUORUM, parse_policy
from matl_common.tlog.proof import FILE_SUFFIX, TlogProof, encode_proof, parse_proof, verify_proof
from matl_common.tlog.verification import StoredLeaf
from matl_coordinator.breakglass import decrypt_entries
from matl_coordinator.config import load_config
from matl_coordinator.replay import replay_round
from matl_coordinator.service.story import is_told
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader

_PUBLIC: Final = 0o644

audit_app = typer.Typer(
    no_args_is_help=True,
    help="Read, verify, prove and export the log of everything that happened.",
    rich_markup_mode="markdown",
)

Database = Annotated[
    Path | None,
    typer.Option(
        "--coordinator-config",
        help="The coordinator's TOML file: read its database instead of asking it.",
    ),
]
Bundle = Annotated[
    Path | None, typer.Option("--bundle", help="A folder that `matl audit export` wrote.")
]
LogKeyFile = Annotated[
    Path | None,
    typer.Option("--log-key", help="File with the log's verifier key (log.vkey), from enrolment."),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="tlog-policy of the log's and the witnesses' keys."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Index = Annotated[int, typer.Argument(min=0, help="The entry's number in the log.")]


@audit_app.command()
def tail(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option("-n", min=1, max=500, help="How many.")] = 50,
    event: Annotated[str, typer.Option(help="Only events of this name.")] = "",
    node: Annotated[str, typer.Option(help="Only events about this node.")] = "",
    coordinator_config: Database = None,
    as_json: Json = False,
) -> None:
    """Show the newest entries, oldest first.

    From the database, with `--coordinator-config`, only what their leaves tell: what was said is
    read through the coordinator, or with `matl audit decrypt`, which is logged. With --json each
    line is one entry in canonical JSON.
    """
    with errors_in_one_line(), log_place(context, coordinator_config) as place:
        size = place.source.size()
        pages = place.source.pages(start=max(0, size - limit), end=size)
        rows = [_told(each, place) for page in pages for each in page]
    shown = [
        facts
        for facts in rows
        if (not event or facts.get("event") == event) and (not node or facts.get("node") == node)
    ]
    if as_json:
        for facts in shown:
            typer.echo(json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
        return
    console().print(table(("Entry", "At", "Event", "Facts"), map(_row, shown)))


@audit_app.command()
def show(
    context: typer.Context,
    index: Index,
    *,
    coordinator_config: Database = None,
    bundle: Bundle = None,
    as_json: Json = False,
) -> None:
    """Show one entry with the leaf that commits to it; only the leaf from database or bundle."""
    with errors_in_one_line(), log_place(context, coordinator_config, bundle) as place:
        stored = _entry(place.source, index)
        facts = _told(stored, place)
        leaf = None if stored.leaf is None else json.loads(stored.leaf)
    found = {"entry": facts, "leaf": leaf, "leaf_hash": stored.hash.hex()}
    if as_json:
        print_json(found)
    else:
        typer.echo(printable_json(found))


@audit_app.command()
def verify(
    context: typer.Context,
    *,
    coordinator_config: Database = None,
    bundle: Bundle = None,
    log_key: LogKeyFile = None,
    policy: PolicyFile = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="A further signed checkpoint, such as the one that a hospital keeps in its "
            "state_dir; may be given several times."
        ),
    ] = None,
    sealed: Annotated[
        bool,
        typer.Option("--sealed", help="Do not decrypt entries, even where the key is at hand."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Go over the whole log: every leaf, every hash of the tree, every signed checkpoint.

    On the coordinator's machine, `--coordinator-config` knows the database, the keys and the
    witnesses, and every entry is decrypted and compared as well. With a bundle, or from the
    coordinator, give the log's key or, better, a policy: a log that says itself who may sign it
    proves nothing.

    Exit status: 0 sound; 1 damaged, and the first bad entry is named; 2 wrong options.
    """
    with (
        errors_in_one_line(),
        log_place(
            context, coordinator_config, bundle, log_key, policy, with_keys=not sealed
        ) as place,
    ):
        notes = [read_file(path) for path in checkpoint or ()]
        believed = replace(place.require_believed(), notes=notes)
        with _progress("verifying", place.source.size()) as advance:
            report = verify_log(place.source, believed, on_progress=advance)
    if as_json:
        tally = asdict(report.tally) | {"root": report.tally.root.hex()}
        print_json(asdict(report) | {"tally": tally})
        return
    console().print(table(None, _report_rows(report)))


@audit_app.command()
def prove(
    context: typer.Context,
    index: Index,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the entry and its proof.")
    ] = Path(),
    coordinator_config: Database = None,
    reason: Annotated[
        str, typer.Option(help="With --coordinator-config, which breaks the glass: why.")
    ] = "",
) -> None:
    """Write an entry with a proof that the log has it: for a court, an auditor, or a patient.

    Writes `<index>.entry.json` with the leaf, the salt and what was said, and `<index>.tlog-proof`
    (C2SP tlog-proof). Whoever has both and the log's policy checks them offline, years later:
    `matl audit check`. Asks the coordinator; with `--coordinator-config`, while it is stopped, the
    database, and logs with your `--reason` that the entry was read.
    """
    with errors_in_one_line():
        if coordinator_config is None:
            entry, proof = _proof_from_coordinator(context, index)
        else:
            entry, proof = _proof_from_database(context, coordinator_config, index, reason=reason)
        try:
            paths = out / f"{index}.entry.json", out / f"{index}{FILE_SUFFIX}"
            write_atomically(paths[0], [encode_disclosure(entry)])
            write_atomically(paths[1], [encode_proof(proof)], mode=_PUBLIC)
        except OSError as error:
            raise ConfigurationError(f"cannot write to {out}: {error.strerror}") from error
    typer.echo(f"Wrote {paths[0]} and {paths[1]}.")


@audit_app.command()
def check(
    entry: Annotated[Path, typer.Argument(help="The `.entry.json` file.")],
    proof: Annotated[Path, typer.Argument(help="The `.tlog-proof` file.")],
    *,
    policy: Annotated[
        Path, typer.Option(help="tlog-policy of whom you believe; a bundle holds the log's.")
    ],
    as_json: Json = False,
) -> None:
    """Check offline that an entry is in a log that a quorum of its witnesses has seen."""
    with errors_in_one_line():
        try:
            shown = parse_disclosure(read_file(entry))
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{entry} is not an entry that `matl audit prove` wrote"
            ) from error
        leaf = parse_leaf(shown.leaf)
        believed = parse_policy(read_file(policy))
        signed = verify_proof(parse_proof(read_file(proof)), leaf_hash(shown.leaf), believed)
        check_disclosure(leaf, salt=shown.salt, plaintext=shown.entry)
    facts = {
        "log": leaf.origin,
        "index": leaf.index,
        "checkpoint_size": signed.checkpoint.size,
        "quorum": believed.quorum != NO_QUORUM,
        "entry": parse_entry(shown.entry),
    }
    if as_json:
        print_json(facts)
        return
    seen = "a quorum of its witnesses has seen it" if facts["quorum"] else "nobody witnesses it"
    typer.echo(
        f"Entry {leaf.index} of {leaf.origin} is what the log says, under a checkpoint of "
        f"{signed.checkpoint.size} entries; {seen}."
    )
    typer.echo(printable_json(parse_entry(shown.entry)))


@audit_app.command()
def export(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Where to; a bundle there is brought up to date.")],
    *,
    coordinator_config: Annotated[
        Path, typer.Option(help="The coordinator's TOML file; its database is read.")
    ] = Path("coordinator.toml"),
) -> None:
    """Write the log as a bundle of C2SP tlog-tiles, which anyone can verify and others' tools read.

    Entries stay encrypted: the bundle shows that nothing was changed, not what was said.
    """
    with errors_in_one_line(), log_place(context, coordinator_config) as place:
        believed = place.require_believed()
        assert believed.policy is not None, "a coordinator's configuration gives a policy"
        with _progress("exporting", place.source.size()) as advance:
            size = export_bundle(place.source, folder, policy=believed.policy, on_progress=advance)
    typer.echo(
        f"{folder} holds {size} entries; check it with: matl audit verify --bundle {folder} "
        f"--policy {folder / POLICY}"
    )


@audit_app.command()
def replay(
    number: Annotated[int, typer.Argument(min=1, metavar="ROUND", help="The round's number.")],
    *,
    coordinator_config: Annotated[
        Path, typer.Option(help="The TOML file of the coordinator whose round it is.")
    ] = Path("coordinator.toml"),
    as_json: Json = False,
) -> None:
    """Make a round's model again, from its log entries and the updates that are still spooled.

    Every signature, every hash and the model itself must come out as the log says; the first
    difference ends it. Runs on the coordinator's machine, beside the daemon if you like, and
    changes nothing there. Exit status: 0 the same; 1 a difference, or it cannot be done.
    """
    with errors_in_one_line():
        config = load_config(coordinator_config)
        engine = create_database_engine(config.database_url)
        try:
            reader = LogReader(engine)
            keys = reader.data_keys(load_wrapping_key(config.log_encryption_key))
            entries = opened_entries(
                reader.pages(), keys, wanted=lambda leaf: is_told(leaf.event, leaf.round, number)
            )
            with console().status(f"replaying round {number}") as status:
                steps = asyncio.run(
                    replay_round(
                        config,
                        entries,
                        number,
                        on_step=lambda step: status.update(f"{step.what}: the same"),
                    )
                )
        finally:
            engine.dispose()
    if as_json:
        print_json([asdict(step) for step in steps])
        return
    console().print(table(("The same", "Found"), ((each.what, each.found) for each in steps)))
    typer.echo(f"Round {number} comes out as the log says.")


@audit_app.command()
def decrypt(
    *,
    first: Annotated[int, typer.Option("--from", min=0, help="The first entry wanted.")],
    last: Annotated[int, typer.Option("--to", min=0, help="The last one.")],
    reason: Annotated[str, typer.Option(help="Why; the log keeps it for good.")],
    coordinator_config: Annotated[
        Path, typer.Option(help="The stopped coordinator's TOML file.")
    ] = Path("coordinator.toml"),
) -> None:
    """Break glass: read entries while the coordinator is down. That you did is logged first.

    Needs the coordinator's database and its log-encryption key, and the coordinator stopped; while
    it runs, `matl audit tail` and `show` read through it. Prints an entry a line, as JSON.
    """
    with errors_in_one_line():
        config = load_config(coordinator_config)
        for logged in decrypt_entries(config, first=first, last=last, reason=reason):
            said: dict[str, Any] = {"index": logged.index, "erased": True}
            if logged.data is not None:
                said = {"index": logged.index, **parse_entry(logged.data)}
            typer.echo(json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def _proof_from_coordinator(context: typer.Context, index: int) -> tuple[Disclosure, TlogProof]:
    with connected(context) as client:
        note = parse_note(client.audit.checkpoint().note)
        size = parse_checkpoint(note.text).size
        if index >= size:
            raise InvalidInputError(
                f"the newest checkpoint is of {size} entries; entry {index} is not under it yet"
            )
        found = client.audit.inclusion(index, size=size)
    return Disclosure(found.leaf, found.salt, found.entry), TlogProof(index, found.path, note)


def _proof_from_database(
    context: typer.Context, coordinator_config: Path, index: int, *, reason: str
) -> tuple[Disclosure, TlogProof]:
    config = load_config(coordinator_config)
    with log_place(context, coordinator_config) as place:
        believed, notes = place.require_believed(), place.source.notes()
        size = _size_of(notes[-1]) if notes else 0
        if index >= size:
            raise InvalidInputError(
                f"the newest checkpoint is of {size} entries; entry {index} is not under it yet"
            )
        signed = open_checkpoint(notes[-1], [believed.log])
        found = list(decrypt_entries(config, first=index, last=index, reason=reason))
        if not found or found[0].data is None or found[0].salt is None:
            raise InvalidInputError(f"entry {index} was dropped, or its key erased")
        leaf, salt, data = found[0].leaf, found[0].salt, found[0].data
        path = inclusion_proof(index, size, place.source.node)
    verify_inclusion(
        index=index, size=size, leaf=leaf_hash(leaf), proof=path, root=signed.checkpoint.root
    )
    return Disclosure(leaf, salt, data), TlogProof(index, tuple(path), signed.note)


def _size_of(note: bytes) -> int:
    return parse_checkpoint(parse_note(note).text).size


def _entry(source: LogSource, index: int) -> StoredLeaf:
    for page in source.pages(start=index, end=index + 1):
        for stored in page:
            if stored.index == index:
                return stored
    raise InvalidInputError(f"the log has no entry {index}")


def _told(stored: StoredLeaf, place: Place) -> dict[str, Any]:
    """What an entry says, where a coordinator tells it; else what its leaf does."""
    if stored.leaf is None or stored.payload is None:
        return {"index": stored.index, "dropped": True}
    said = b""
    if isinstance(place.source, CoordinatorSource):
        said = place.source.entry(stored.index)
    if not said:
        return {"index": stored.index, **_leaf_facts(parse_leaf(stored.leaf)), "sealed": True}
    return {"index": stored.index, **parse_entry(said)}


def _leaf_facts(leaf: Leaf) -> dict[str, Any]:
    facts = {"at": leaf.at, "event": leaf.event, "node": leaf.node, "round": leaf.round}
    return {name: fact for name, fact in facts.items() if fact is not None}


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    rest = dict(facts)
    first = (str(rest.pop(name, "")) for name in ("index", "at", "event"))
    rest.pop("v", None)
    return (*first, " ".join(f"{name}={value}" for name, value in rest.items()))


def printable_json(value: object) -> str:
    """Indented JSON whose text cannot steer the terminal."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(map(printable, lines))


def _report_rows(report: AuditReport) -> list[tuple[str, str]]:
    tally = report.tally
    rows = [
        ("Sound", f"{tally.size} entries, root {tally.root.hex()}"),
        (
            "Checkpoints",
            f"{tally.checkpoints} agree; the newest is of {report.signed_size} entries",
        ),
        ("Witnessed", f"{report.witnessed_size} entries by a quorum of hospitals"),
    ]
    if tally.dropped:
        rows.append(("Dropped", f"{tally.dropped} entries after their retention; hashes are kept"))
    if report.opened is None:
        rows.append(("Decrypted", "none: the payloads agree with their leaves, unread"))
    else:
        rows.append(("Decrypted", f"{report.opened} entries, all as their leaves commit"))
    rows += [("Warning", each) for each in report.warnings]
    return rows


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
