"""When a front end says that hospitals are better off at another."""

import asyncio
from urllib.error import HTTPError
from urllib.request import urlopen

from matl_common.scrapes import HEALTH_PATH
from matl_coordinator.ingest.metrics import LEADERLESS_SECONDS, FrontEndMetrics
from tests.haproxy import DEPLOYED
from tests.postgres import free_port


async def test_a_front_end_that_lost_its_leader_is_unhealthy_after_a_while_until_it_is_back() -> (
    None
):
    now, port = [0.0], free_port()
    metrics = FrontEndMetrics(methods=[], clock=lambda: now[0])
    metrics.serve(f"127.0.0.1:{port}")

    async def health() -> int:
        def ask() -> int:
            try:
                with urlopen(f"http://127.0.0.1:{port}{HEALTH_PATH}", timeout=30) as found:
                    status: int = found.status
                    return status
            except HTTPError as refused:
                return refused.code

        return await asyncio.to_thread(ask)

    try:
        assert await health() == 200
        now[0] = LEADERLESS_SECONDS
        # It never reached one.
        assert await health() == 503
        metrics.leader_reachable(reachable=True)
        assert await health() == 200
        metrics.leader_reachable(reachable=False)
        now[0] += LEADERLESS_SECONDS - 1
        metrics.leader_reachable(reachable=False)
        assert await health() == 200
        now[0] += 1
        assert await health() == 503
        metrics.leader_reachable(reachable=True)
        assert await health() == 200
    finally:
        metrics.close()


def test_haproxy_asks_that_and_cuts_the_connections_of_an_unhealthy_front_end() -> None:
    text = DEPLOYED.read_text("utf-8")
    assert f"option httpchk GET {HEALTH_PATH}\n" in text
    assert "on-marked-down shutdown-sessions\n" in text
