"""A witness that is killed when it is about to sign, as a power cut would.

python -m tests.participant.dying_witness <participant.toml>
"""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from matl_participant.connection import RenewingChannel
from matl_participant.config import load_config
from matl_participant.daemon import witness_of
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports


class Dying:
    """Holds no key and signs nothing."""

    def sign(self, data: bytes, /) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


async def main() -> None:
    """Witness with the real daemon's parts, but for the key."""
    config = load_config(Path(sys.argv[1]), environment={})
    async with RenewingChannel(
        config.coordinator.address, config.tls, config.coordinator.name, reports=Reports(Metrics())
    ) as channel:
        witness = witness_of(config, channel, Reports(Metrics()))
        assert witness is not None
        witness.keys = replace(witness.keys, signer=Dying())  # type: ignore[arg-type]
        await witness.run(may_speak=lambda: True)


if __name__ == "__main__":
    asyncio.run(main())
