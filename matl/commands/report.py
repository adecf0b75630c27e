"""``matl report``: a whole study in one file, made from its log and verified while it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from matl.connection import Invocation, opened_client, read_connection
from matl.log.bundle import BundleSource
from matl.log.place import (
    LogKeyFile,
    PolicyFile,
    believed_from,
    configured,
    with_data_keys,
)
from matl.log.sources import CoordinatorSource, DatabaseSource
from matl.log.verification import Believed
from matl.report.document import Document, sealed_document, study_document
from matl.report.evidence import (
    Evidence,
    evidence_from_bundle,
    evidence_from_coordinator,
    evidence_from_database,
)
from matl.report.study import read_study
from matl.terminal import console, verdict_in_one_line
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError
from matl_common.tlog.tiles import CHECKPOINT_PATH
from matl_coordinator.breakglass import decrypt_entries
from matl_coordinator.config import load_config
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader

_CONFIG: Final = Path("coordinator.toml")


def report(
    context: typer.Context,
    study: Annotated[
        str,
        typer.Argument(
            help="The coordinator's host:port, asked as an operator; or a folder: of a stopped "
            "coordinator, with its coordinator.toml, or one that `matl audit export` wrote."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    pdf: Annotated[bool, typer.Option("--pdf", help="Write a PDF beside it as well.")] = False,
    log_key: LogKeyFile = None,
    policy: PolicyFile = None,
    reason: Annotated[
        str, typer.Option(help="With a coordinator's folder, which breaks the glass: why.")
    ] = "",
) -> None:
    """Write a study's report: curves, trust, budget, what was detected, releases with their proofs.

    Everything in it comes from the transparency log, which is gone over whole while the report is
    made, as by `matl audit verify`; a log that is not sound gives no report. The file needs nothing
    else, holds no patient data and no address, and prints. From an exported log, whose entries are
    encrypted, it tells what the leaves tell.

    Exit status: 0 written; 1 the log is damaged, or tells of no study, and nothing is written; 2
    wrong options, or it cannot be reached or read.
    """
    with verdict_in_one_line():
        if out.suffix.lower() == ".pdf":
            raise ConfigurationError("--out names the HTML file; --pdf writes a PDF beside it")
        html_of, pdf_of = _typesetters()
        said = believed_from(log_key, policy)
        now = utc_now()
        with console().status("going over the log") as status:

            def progress(_: int) -> None:
                status.update("going over the log, entry by entry")

            evidence, is_open = _evidence(context, study, said, reason, progress)
        document = (
            study_document(read_study(evidence.entries), evidence, made_at=now)
            if is_open
            else sealed_document(evidence, made_at=now)
        )
        written = [(out, html_of(document).encode())]
        if pdf:
            written.append((out.with_suffix(".pdf"), pdf_of(document, now)))
        for path, content in written:
            try:
                write_atomically(path, [content])
            except OSError as error:
                raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    size, root = evidence.audit.tally.size, evidence.audit.tally.root.hex()
    names = " and ".join(str(path) for path, _ in written)
    typer.echo(f"Wrote {names}: {size} log entries are sound, root {root}.")


def _typesetters() -> tuple[Callable[[Document], str], Callable[[Document, datetime], bytes]]:
    try:
        from matl.report.html import report_html
        from matl.report.pdf import report_pdf
    except ImportError as error:
        raise ConfigurationError(
            "a report needs the extra 'report': pip install 'matl[report]'"
        ) from error
    return report_html, lambda document, now: report_pdf(document, made_at=now)


def _evidence(
    context: typer.Context,
    study: str,
    said: Believed | None,
    reason: str,
    on_progress: Callable[[int], None],
) -> tuple[Evidence, bool]:
    """The log, gone over, and whether what its entries say was read."""
    place = Path(study)
    if not place.exists():
        if ":" not in study:
            raise ConfigurationError(f"no such folder: {study}; a coordinator is named host:port")
        with _operator_at(context, study, said) as (source, believed):
            return evidence_from_coordinator(source, believed, on_progress=on_progress), True
    if (place / CHECKPOINT_PATH).is_file():
        return (
            evidence_from_bundle(BundleSource(place), _required(said), on_progress=on_progress),
            False,
        )
    return _from_folder(_config_in(place), said, reason, on_progress), True


@contextmanager
def _operator_at(
    context: typer.Context, address: str, said: Believed | None
) -> Iterator[tuple[CoordinatorSource, Believed]]:
    invocation: Invocation = context.obj
    asked = replace(invocation, flags=replace(invocation.flags, address=address))
    wanted = read_connection(asked.config, asked.flags)
    believed = said or (None if wanted.log_key is None else believed_from(wanted.log_key, None))
    context.obj = asked
    with opened_client(context) as client:
        yield CoordinatorSource(client.audit), _required(believed)


def _required(said: Believed | None) -> Believed:
    if said is None:
        raise ConfigurationError(
            "give the log's key with --log-key or --policy, or log_key in operator.toml: a log "
            "that says itself who may sign it proves nothing"
        )
    return said


def _config_in(place: Path) -> Path:
    """A coordinator's configuration: the file itself, in the folder, or one folder down."""
    tries = (place, place / _CONFIG, place / "coordinator" / _CONFIG)
    found = next((each for each in tries if each.is_file()), None)
    if found is None:
        raise ConfigurationError(
            f"{place} is neither an exported log nor has it a {_CONFIG}; name one, or the "
            "coordinator's host:port"
        )
    return found


def _from_folder(
    path: Path, said: Believed | None, reason: str, on_progress: Callable[[int], None]
) -> Evidence:
    if not reason.strip():
        raise ConfigurationError(
            "say with --reason why the stopped coordinator's entries are read: the log keeps it "
            "for good; or ask the running coordinator by its host:port"
        )
    config = load_config(path)
    engine = create_database_engine(config.database_url)
    try:
        reader = LogReader(engine)
        believed = with_data_keys(said or configured(config), config, reader)
        return evidence_from_database(
            DatabaseSource(reader),
            believed,
            lambda size: decrypt_entries(config, first=0, last=size - 1, reason=reason),
            on_progress=on_progress,
        )
    finally:
        engine.dispose()
