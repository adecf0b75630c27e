"""``matl ledger``: what a hospital's privacy ledgers say, and whether they can be believed.

Reads files on this machine and nothing else; no coordinator is asked, and nothing is
changed, so it may run beside the daemon.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from matl.terminal import (
    EXIT_FAILED,
    Json,
    console,
    errors_in_one_line,
    print_json,
    printable,
    table,
)
from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_participant.config import load_config
from matl_participant.core.spending import (
    DatasetLimit,
    Summary,
    dataset_statement,
    projected_end,
    record,
    statement,
    summarise,
)
from matl_participant.files import StateFolder
from matl_participant.ledger import read_accounts
from matl_participant.verification import Verdict, verify_ledgers

DEFAULT_CONFIG: Final = Path("participant.toml")
_HALF: Final = "half of the budget is spent"

ledger_app = typer.Typer(
    no_args_is_help=True, help="Show and verify this hospital's privacy ledgers."
)

StateDirectory = Annotated[
    Path | None,
    typer.Option("--state-dir", help="The participant's state_dir. Default: the configuration's."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The participant's TOML file, which also knows the data set's limit. Default: "
        "participant.toml, if it exists.",
    ),
]


@dataclass(frozen=True, slots=True)
class _Place:
    state: StateFolder
    limit: DatasetLimit | None


@ledger_app.command()
def show(
    *, state_dir: StateDirectory = None, config: ConfigFile = None, as_json: Json = False
) -> None:
    """Show what every study has cost this hospital's patients, and what is left.

    The share of the budget is of Σ 1/σ², or of steps: ε itself is not linear. Warns from
    half of the budget on. The projected end is when the budget would be spent at the
    mean pace so far.
    """
    with errors_in_one_line():
        place = _place(state_dir, config)
        read = read_accounts(place.state.ledger, limit=place.limit)
        now = utc_now()
        summaries = [summarise(*each) for each in read]
        ends = [
            projected_end(account, rounds=summary.rounds_left, now=now)
            for (account, _), summary in zip(read, summaries, strict=True)
        ]
    if as_json:
        print_json([_told(*each) for each in zip(summaries, ends, strict=True)])
        return
    if not summaries:
        typer.echo("No study has a privacy ledger here.")
        return
    columns = ("Study", "Data set", "Noise", "Spent", "Projected end", "Remark")
    rows = (_row(*each) for each in zip(summaries, ends, strict=True))
    console().print(table(columns, rows))
    # Once for each data set: every study of one tells the same.
    for line in dict.fromkeys(map(dataset_statement, summaries)):
        typer.echo(f"Together: {printable(line)}")


@ledger_app.command()
def verify(
    *, state_dir: StateDirectory = None, config: ConfigFile = None, as_json: Json = False
) -> None:
    """Check the chain and every entry of each ledger, and that none is an older copy.

    Exit status: 0 all sound; 1 a ledger cannot be relied upon, and the first broken line
    and what to do are printed; 2 wrong options or configuration.
    """
    with errors_in_one_line():
        verdicts = verify_ledgers(_place(state_dir, config).state)
    if as_json:
        print_json([asdict(each) | {"is_sound": each.problem is None} for each in verdicts])
    else:
        _print_verdicts(verdicts)
    if any(each.problem for each in verdicts):
        raise typer.Exit(EXIT_FAILED)


def _told(summary: Summary, end: datetime | None) -> dict[str, Any]:
    return record(summary) | {"projected_end": end, "is_half_spent": summary.is_half_spent}


def _row(summary: Summary, end: datetime | None) -> tuple[str, ...]:
    remarks = [f"halted: {summary.halted}"] if summary.halted else []
    if summary.is_half_spent and not summary.halted:
        remarks.append(_HALF)
    return (
        summary.study_id,
        summary.dataset,
        summary.noise.value,
        statement(summary),
        end.isoformat(" ", "minutes") if end else "",
        "; ".join(remarks),
    )


def _print_verdicts(verdicts: tuple[Verdict, ...]) -> None:
    if not verdicts:
        typer.echo("No study has a privacy ledger here.")
        return
    rows = (
        (
            each.study_id or "unknown",
            "sound" if each.problem is None else "NOT SOUND",
            str(each.entries),
            each.head[:12],
            each.file,
            each.problem or each.note,
        )
        for each in verdicts
    )
    columns = ("Study", "Ledger", "Entries", "Head", "File", "What to do")
    console().print(table(columns, rows))


def _place(state_dir: Path | None, config: Path | None) -> _Place:
    """Where the ledgers are, and the data set's limit where a configuration is at hand.

    Raises:
        ConfigurationError: nothing says where, or it is not there.
    """
    path = config or DEFAULT_CONFIG
    limit = None
    if config is not None or (state_dir is None and path.exists()):
        loaded = load_config(path)
        limit = loaded.privacy.dataset_limit
        state_dir = state_dir or loaded.state_dir
    if state_dir is None:
        raise ConfigurationError(f"there is no {path} here; give --state-dir or --config")
    if not state_dir.is_dir():
        raise ConfigurationError(f"{state_dir} is not a state directory; check --state-dir")
    return _Place(StateFolder(state_dir), limit)
