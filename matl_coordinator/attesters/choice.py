"""The attester that the configuration names."""

from __future__ import annotations

from datetime import datetime

from matl_common.attestation.evidence import Evidence
from matl_common.attestation.simulated import Simulation, simulate
from matl_coordinator.attesters.sev_guest import SevGuestAttester
from matl_coordinator.attesters.tsm import TsmAttester
from matl_coordinator.config import Attestation
from matl_coordinator.ports import Attester


class SimulatedAttester:
    """SIMULATED: signs whatever it is asked to, and proves nothing."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def attest(self, report_data: bytes) -> Evidence:
        """A report by software."""
        return self._simulation.evidence(report_data)


def make_attester(settings: Attestation, *, now: datetime) -> Attester:
    """Make it; nothing is asked of the hardware yet."""
    match settings.attester:
        case "sev-guest":
            return SevGuestAttester(settings.endorsements)
        case "configfs-tsm":
            return TsmAttester(settings.endorsements)
        case "SIMULATED":
            return SimulatedAttester(simulate(now))
