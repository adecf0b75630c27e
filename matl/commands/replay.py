"""``matl audit replay``: a round's model made again, and that it was put on record."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from matl.log.place import Recorded, put_on_record
from matl.log.verification import opened_entries
from matl.terminal import Json, console, print_json, printable, table, verdict_in_one_line
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.identity.key_places import load_wrapping_key
from matl_coordinator.config import Config, load_config
from matl_coordinator.replay import Step, replay_round
from matl_coordinator.service.story import is_told
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader
from matl_coordinator.upkeep import record


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
    changes nothing there but that the run itself is logged: who, which round, and whether it came
    out the same. With a database that may only be read it cannot be, and the report says so.

    Exit status: 0 the same; 1 a difference; 2 wrong options, or what it takes is not there.
    """
    steps: list[Step] = []
    with verdict_in_one_line():
        config = load_config(coordinator_config)
        try:
            _replay(config, number, steps)
        except IntegrityError:
            recorded = _put_on_record(config, number, steps, is_same=False)
            typer.echo(f"On record: {printable(recorded.said)}", err=True)
            raise
        recorded = _put_on_record(config, number, steps, is_same=True)
    if as_json:
        same = [asdict(step) for step in steps]
        print_json({"same": same, "recorded": recorded.index, "record": recorded.said})
        return
    rows = [*((each.what, each.found) for each in steps), ("On record", recorded.said)]
    console().print(table(("The same", "Found"), rows))
    typer.echo(f"Round {number} comes out as the log says.")


def _replay(config: Config, number: int, steps: list[Step]) -> None:
    """Add what came out the same to ``steps``, until something does not."""
    engine = create_database_engine(config.database_url)
    try:
        reader = LogReader(engine)
        keys = reader.data_keys(load_wrapping_key(config.log_encryption_key))
        entries = opened_entries(
            reader.pages(),
            keys,
            wanted=lambda leaf: is_told(leaf.event, leaf.round, number),
            on_damage=lambda why: typer.echo(f"matl: passed over: {printable(why)}", err=True),
        )
        with console().status(f"replaying round {number}") as status:

            def done(step: Step) -> None:
                steps.append(step)
                status.update(f"{step.what}: the same")

            asyncio.run(replay_round(config, entries, number, on_step=done))
    except InvalidInputError as error:
        # Nothing came out differently: what it takes is not there.
        raise ConfigurationError(f"round {number} cannot be replayed: {error}") from error
    finally:
        engine.dispose()


def _put_on_record(
    config: Config, number: int, steps: Sequence[Step], *, is_same: bool
) -> Recorded:
    """Tells what came out the same, and so what did not; nothing of an error's text."""
    return put_on_record(
        lambda: (
            record(
                config,
                "round_replayed",
                round=number,
                result="same" if is_same else "different",
                same=[step.what for step in steps],
                model=steps[-1].found if is_same else None,
            ).index
        )
    )
