"""``matl audit``: read, verify, prove and export the transparency log.

Three places to read from: the coordinator, as an operator; its database, on its machine; a
bundle that was exported, anywhere, without either. Nothing here decides what is sound:
``matl.log.verification`` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from matl.commands.proof import check, prove
from matl.commands.replay import replay
from matl.log.bundle import POLICY, export_bundle
from matl.log.place import (
    Bundle,
    Database,
    Index,
    LogKeyFile,
    Place,
    PolicyFile,
    log_place,
    read_note,
)
from matl.log.sources import CoordinatorSource, LogSource
from matl.log.told import told
from matl.log.verification import AuditReport, verify_log
from matl.terminal import (
    EXIT_FAILED,
    Json,
    console,
    print_json,
    printable,
    printable_json,
    progress,
    table,
    verdict_in_one_line,
)
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError, MatlError
from matl_common.ids import Digest
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.verification import LogDamagedError, StoredLeaf
from matl_coordinator.breakglass import decrypt_entries
from matl_coordinator.config import load_config
from matl_coordinator.service.readings import Verification

# Entries looked through at once for some that are wanted.
_WINDOW: Final = 500

audit_app = typer.Typer(
    no_args_is_help=True,
    help="Read, verify, prove and export the log of everything that happened.",
    rich_markup_mode="markdown",
    epilog="Exit status of every command: 0 done, and what was looked at is sound; 1 the log or "
    "proof is bad; 2 wrong options, or it cannot be reached or read. `evidence` and `retention` "
    "have others as well.",
)
audit_app.command()(prove)
audit_app.command()(check)


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
    """Show the newest entries, or the newest that `--event` and `--node` fit, oldest first.

    From the database, with `--coordinator-config`, only what their leaves tell: what was said is
    read through the coordinator, or with `matl audit decrypt`, which is logged. With --json each
    line is one entry in canonical JSON. An operator's reading is logged. An entry that somebody
    changed is shown as `damaged`, whatever was asked for.

    Exit status: 0 shown; 1 what is there is no log, or an entry of it is damaged; 2 wrong options,
    or nobody answers.
    """

    def is_wanted(facts: dict[str, Any]) -> bool:
        return "damaged" in facts or all(
            not wanted or facts.get(name) == wanted
            for name, wanted in (("event", event), ("node", node))
        )

    shown: list[dict[str, Any]] = []
    with verdict_in_one_line(), log_place(context, coordinator_config) as place:
        end = place.source.size()
        window = max(limit, _WINDOW) if event or node else limit
        while end > 0 and len(shown) < limit:
            start = max(0, end - window)
            pages = place.source.pages(start=start, end=end)
            rows = [told(each, _say(place)) for page in pages for each in page]
            shown = [*filter(is_wanted, rows), *shown][-limit:]
            end = start
    if as_json:
        for facts in shown:
            typer.echo(json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    else:
        console().print(table(("Entry", "At", "Event", "Facts"), map(_row, shown)))
    _exit_if_damaged(shown)


@audit_app.command()
def show(
    context: typer.Context,
    index: Index,
    *,
    coordinator_config: Database = None,
    bundle: Bundle = None,
    as_json: Json = False,
) -> None:
    """Show one entry with the leaf that commits to it; only the leaf from database or bundle.

    Exit status: 0 shown; 1 what is there is no log, or the entry is damaged; 2 wrong options, no
    such entry, or nobody answers.
    """
    with verdict_in_one_line(), log_place(context, coordinator_config, bundle) as place:
        stored = _entry(place.source, index)
        facts = told(stored, _say(place))
        is_leaf = stored.leaf is not None and "damaged" not in facts
        leaf = json.loads(stored.leaf or b"") if is_leaf else None
    found = {"entry": facts, "leaf": leaf, "leaf_hash": stored.hash.hex()}
    if as_json:
        print_json(found)
    else:
        typer.echo(printable_json(found))
    _exit_if_damaged([facts])


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
    allow_unread_orders: Annotated[
        bool,
        typer.Option(
            "--allow-unread-orders",
            help="Take a log of which entries are gone, although without the data keys nothing "
            "tells whether their months were dropped by order.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Go over the whole log: every leaf, every hash of the tree, every signed checkpoint.

    On the coordinator's machine, `--coordinator-config` knows the database, the keys, the witnesses
    and the last checkpoint that was signed, and every entry is decrypted and compared as well. With
    a bundle, or from the coordinator, give the log's key or, better, a policy: a log that says
    itself who may sign it proves nothing.

    The run itself is logged: who, how many entries, their root, and whether they are sound. From a
    bundle, or with a database that may only be read, it cannot be, and the report says so.

    Exit status: 0 sound; 1 damaged, and the first bad entry is named; 2 wrong options, the log
    cannot be reached, or entries are gone and it takes data keys to tell by whose order.
    """
    with (
        verdict_in_one_line(),
        log_place(
            context, coordinator_config, bundle, log_key, policy, with_keys=not sealed
        ) as place,
    ):
        believed = place.require_believed()
        kept = place.anchor()
        believed = replace(
            believed,
            notes=[
                *(() if kept is None else (kept,)),
                *(read_note(path) for path in checkpoint or ()),
            ],
            unread_orders=allow_unread_orders,
        )
        size = place.source.size()
        try:
            with _entries_bar("verifying", size) as advance:
                report = verify_log(place.source, believed, on_progress=advance)
        except (IntegrityError, InvalidInputError) as error:
            if place.record is not None:
                recorded = place.put_on_record(_damage(error, size))
                typer.echo(f"On record: {printable(recorded.said)}", err=True)
            raise
        tally = report.tally
        recorded = place.put_on_record(Verification(tally.size, Digest(tally.root.hex())))
    if as_json:
        facts = asdict(report) | {"tally": asdict(tally) | {"root": tally.root.hex()}}
        print_json(facts | {"recorded": recorded.index, "record": recorded.said})
        return
    console().print(table(None, [*_report_rows(report), ("On record", recorded.said)]))


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

    Entries stay encrypted: the bundle shows that nothing was changed, not what was said. What was
    dropped of the log since the folder was last written is deleted from it.

    Exit status: 0 written; 1 the log is damaged; 2 wrong options, or it cannot be read or written.
    """
    with verdict_in_one_line(), log_place(context, coordinator_config) as place:
        believed = place.require_believed()
        assert believed.policy is not None, "a coordinator's configuration gives a policy"
        with _entries_bar("exporting", place.source.size()) as advance:
            size = export_bundle(place.source, folder, policy=believed.policy, on_progress=advance)
    typer.echo(
        f"{folder} holds {size} entries; check it with: matl audit verify --bundle {folder} "
        f"--policy {folder / POLICY}"
    )


audit_app.command()(replay)


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
    it runs, `matl audit tail` and `show` read through it. Prints an entry a line, as JSON; one that
    is not what its leaf commits to is named, and the rest is shown.

    Exit status: 0 shown; 1 an entry is damaged; 2 wrong options, no such
    entries, or the coordinator is running.
    """
    with verdict_in_one_line():
        config = load_config(coordinator_config)
        damaged: list[dict[str, Any]] = []
        for logged in decrypt_entries(config, first=first, last=last, reason=reason):
            said: dict[str, Any] = {"index": logged.index, "erased": True}
            if logged.damage is not None:
                said = {"index": logged.index, "damaged": logged.damage.value}
                damaged.append(said)
            elif logged.data is not None:
                said = {"index": logged.index, **parse_entry(logged.data)}
            typer.echo(json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    _exit_if_damaged(damaged)


def _entry(source: LogSource, index: int) -> StoredLeaf:
    if index < source.size():
        for page in source.pages(start=index, end=index + 1):
            for stored in page:
                if stored.index == index:
                    return stored
    raise ConfigurationError(f"there is no entry {index} in the log")


def _say(place: Place) -> Callable[[int], bytes]:
    """What entries say, where a coordinator tells it."""
    return place.source.entry if isinstance(place.source, CoordinatorSource) else lambda _: b""


def _exit_if_damaged(shown: Iterable[Mapping[str, Any]]) -> None:
    """What can be shown was; end with what cannot."""
    damaged = [facts["index"] for facts in shown if "damaged" in facts]
    if damaged:
        typer.echo(
            f"matl: entry {damaged[0]} is damaged, and {len(damaged) - 1} more of those shown; "
            "verify the log: matl audit verify",
            err=True,
        )
        raise typer.Exit(EXIT_FAILED)


def _damage(error: MatlError, size: int) -> Verification:
    if isinstance(error, LogDamagedError):
        return Verification(size, first=error.first, last=error.last)
    return Verification(size)


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    rest = dict(facts)
    first = (str(rest.pop(name, "")) for name in ("index", "at", "event"))
    rest.pop("v", None)
    return (*first, " ".join(f"{name}={value}" for name, value in rest.items()))


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
    if tally.dropped and report.opened is not None:
        orders = "by orders on record, each after the years it names; their hashes are kept"
        rows.append(("Dropped", f"{tally.dropped} entries, {orders}"))
    elif tally.dropped:
        rows.append(("Not here", f"{tally.dropped} entries; hashes alone were gone over"))
    if report.opened is None:
        rows.append(("Decrypted", "none: the payloads agree with their leaves, unread"))
    else:
        rows.append(("Decrypted", f"{report.opened} entries, all as their leaves commit"))
    if report.reigns:
        starts = "1 start" if report.reigns == 1 else f"{report.reigns} starts"
        rows.append(("Written", f"in {starts} of a coordinator, never by two at once"))
    rows += [("Warning", each) for each in report.warnings]
    return rows


@contextmanager
def _entries_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Takes how many entries are done more."""
    with progress() as bars:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.advance(task, done)
