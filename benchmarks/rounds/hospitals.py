"""Hospitals that do everything but train.

    python -m benchmarks.rounds.hospitals <participant.toml> ...

One configuration: the daemon itself, with the stand-in as its training worker. Several: as many
hospitals on one event loop, each with its own connection, ledger and files.
"""

import asyncio
import os
import random
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from benchmarks.rounds.stand_in import StandIn, StandInProcess
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import parse_public_key
from matl_common.logs import configure_logs
from matl_common.memory import bound_memory
from matl_participant.client import FederationClient
from matl_participant.config import Config, load_config
from matl_participant.connection import RenewingChannel
from matl_participant.daemon import participate, witness_of
from matl_participant.engine import Outcome, Participant
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports

_APART_SECONDS: Final = 0.05


async def together(configs: list[Config]) -> list[Outcome]:
    """Take part as every one of these hospitals, until the study ends or SIGTERM comes."""
    stand_in, loop = StandIn(), asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        hospitals = [await _hospital(each, stack, stand_in) for each in configs]

        def drain() -> None:
            for each in hospitals:
                each.drain()

        loop.add_signal_handler(signal.SIGTERM, drain)
        return await asyncio.gather(
            *(_run(each, after=number * _APART_SECONDS) for number, each in enumerate(hospitals))
        )


async def _run(hospital: Participant, *, after: float) -> Outcome:
    # Handshakes of hundreds in one instant would time out, which is another matter.
    await asyncio.sleep(after)
    return await hospital.run()


async def _hospital(config: Config, stack: AsyncExitStack, stand_in: StandIn) -> Participant:
    reports = Reports(Metrics())
    address, name = config.coordinator.address, config.coordinator.name
    channel = await stack.enter_async_context(
        RenewingChannel(address, config.tls, name, reports=reports)
    )
    return Participant(
        config=config,
        client=FederationClient(
            channel,
            node_id=config.node_id,
            federation_id=name.federation,
            coordinator_key=parse_public_key(config.coordinator.signing_key.read_bytes()),
        ),
        worker=StandInProcess(config.node_id, stand_in),
        signer=load_p256_key(config.identity.signing_key),
        reports=reports,
        version="benchmark",
        chance=random.SystemRandom().random,
        witness=witness_of(config, channel, reports),
    )


def main() -> None:
    """Take part until the study ends or a signal comes."""
    configs = [load_config(Path(each)) for each in sys.argv[1:]]
    configure_logs("json")
    os.umask(0o077)
    bound_memory()
    if len(configs) == 1:
        worker = (sys.executable, "-m", "benchmarks.rounds.stand_in", configs[0].node_id)
        outcomes = [asyncio.run(participate(configs[0], worker_argv=worker))]
    else:
        outcomes = asyncio.run(together(configs))
    sys.exit(3 if Outcome.HALTED in outcomes else 0)


if __name__ == "__main__":
    main()
