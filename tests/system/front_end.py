"""A front end of a federation of real processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.request import urlopen

from matl_common.ids import NodeId
from tests.front_ends import enrol_front_end
from tests.postgres import free_port
from tests.system.federation import COORDINATOR, FEDERATION, Federation, Scalar, toml_text
from tests.system.processes import Daemon


@dataclass
class FrontEnd:
    """One front end of a federation."""

    federation: Federation
    name: NodeId
    leaders: str
    """Addresses of the coordinator."""
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.keys = enrol_front_end(self.federation.folder / "keys", self.name)

    def start(self) -> Daemon:
        """Run it; the coordinator has made the spool."""
        path = self.federation.folder / f"{self.name}.toml"
        path.write_text(toml_text(self._table()))
        return Daemon("-m", "matl_coordinator.daemon", "ingest", "-c", str(path))

    def metric(self, name: str) -> float:
        """A metric's value as Prometheus would scrape it."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        values = [line.split()[1] for line in lines if line.startswith(f"matl_front_end_{name} ")]
        return float(values[0])

    def _table(self) -> dict[str, Scalar | dict[str, Scalar]]:
        shown = self.federation.keys[COORDINATOR].tls
        return {
            "spool": str(self.federation.coordinator_state / "spool"),
            "models": str(self.federation.coordinator_state / "models"),
            "federation": {"id": FEDERATION, "coordinator": COORDINATOR},
            "listen": {
                "address": f"127.0.0.1:{self.port}",
                "metrics": f"127.0.0.1:{self.metrics_port}",
            },
            "identity": {
                "tls_key": str(shown.private_key),
                "tls_certificate": str(shown.certificate_chain),
                "participant_authority": str(shown.trusted_authority),
            },
            "leader": {
                "address": self.leaders,
                "tls_key": str(self.keys.tls.private_key),
                "tls_certificate": str(self.keys.tls.certificate_chain),
                "coordinator_authority": str(self.keys.tls.trusted_authority),
                "poll_seconds": 0.2,
            },
        }
