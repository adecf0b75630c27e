"""A federation some of whose hospitals attack; every hospital and the coordinator is a process.

The honest ones are real participants with a scripted training worker, and so are the
attackers, but for what ``malicious`` exchanges. Nothing here judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from matl_common.identity.development import (
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.ids import NodeId
from tests.postgres import free_port
from tests.system.federation import (
    COORDINATOR,
    FEDERATION,
    OPERATOR,
    PATIENTS,
    Event,
    Federation,
    Material,
    Scalar,
    logged_events,
    prepare_material,
    write_images,
)
from tests.system.processes import Daemon
from tests.system.story import of, wait_for_the_end

HONEST = tuple(NodeId(f"honest_{letter}") for letter in "abcde")
ATTACKERS = tuple(NodeId(f"attacker_{letter}") for letter in "abcd")
SCRIPTED = "tests.system.scripted_worker"
NOISY = "tests.attacks.noisy_worker"


@dataclass(frozen=True)
class Villain:
    """How one attacker goes about it.

    Attributes:
        conduct: see ``malicious``.
        demonstrates: an attack of the demonstration's hostile hospital, which takes the place
            of ``malicious`` and trains for real.
        trains_as: whose updates it begins with; its own unless told.
        noise: times the promised noise, in a study with privacy.
        declares: how many patients it calls its own; as many as were enrolled unless told.
    """

    conduct: str = ""
    demonstrates: str = ""
    trains_as: NodeId | None = None
    noise: float = 1.0
    declares: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A study that has ended."""

    federation: Federation
    events: list[Event]
    outputs: Mapping[NodeId, Daemon]
    statuses: Mapping[NodeId, int]

    def weights(self, number: int) -> dict[str, float]:
        """What each hospital counted for in a round."""
        (entry,) = of(self.events, "round_weighted", round=number)
        weights = entry.get("weights")
        assert isinstance(weights, dict), entry
        return weights

    def scored(self, number: int) -> Event:
        """What the log says of the judgement of a round."""
        (entry,) = of(self.events, "round_scored", round=number)
        return entry

    def standing(self, number: int, node: NodeId) -> Mapping[str, object]:
        """What the log says of a hospital's trust after a round."""
        trust = self.scored(number)["trust"]
        assert isinstance(trust, dict)
        facts = trust[node]
        assert isinstance(facts, dict)
        return facts

    def trust(self, number: int, node: NodeId) -> float:
        """A hospital's trust after a round."""
        value = self.standing(number, node)["trust"]
        assert isinstance(value, float)
        return value

    def closed(self, number: int) -> tuple[set[str], dict[str, str]]:
        """Who was admitted in a round, and who excluded, with the reason."""
        (entry,) = of(self.events, "collection_closed", round=number)
        admitted, excluded = entry["admitted"], entry["excluded"]
        assert isinstance(admitted, dict)
        assert isinstance(excluded, dict)
        return set(admitted), excluded

    def refusals(self, node: NodeId, number: int | None = None) -> list[str]:
        """The codes of a hospital's refused updates, in order."""
        facts: dict[str, object] = {"node": node}
        if number is not None:
            facts["round"] = number
        return [str(each["code"]) for each in of(self.events, "update_refused", **facts)]

    def released(self) -> list[object]:
        """The rounds that gave a model."""
        return [each["round"] for each in of(self.events, "model_released")]


def prepare_arena_material(folder: Path) -> Material:
    """Images for the holdout set and, since a participant looks, for every hospital."""
    material = prepare_material(folder)
    for seed, node in enumerate((*HONEST, *ATTACKERS), start=100):
        write_images(material.images / node, per_class=1, seed=seed)
    return material


def fight(
    folder: Path,
    material: Material,
    villains: Mapping[NodeId, Villain],
    *,
    honest: int = 5,
    patients: int = PATIENTS,
    study: Mapping[str, Scalar],
    rounds: Mapping[str, Scalar] | None = None,
) -> Outcome:
    """Run a whole study of honest hospitals and attackers, and read its log."""
    heroes = HONEST[:honest]
    hospitals = (*heroes, *villains)
    federation = _found(folder, material, hospitals, patients, study=study, rounds=rounds or {})
    is_private = "epsilon" in study
    with ExitStack() as running:
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        daemons = {
            node: running.enter_context(
                _start(federation, node, villains.get(node), patients, is_private=is_private)
            )
            for node in hospitals
        }
        wait_for_the_end(federation)
        statuses = {node: daemon.wait() for node, daemon in daemons.items()}
        statuses[COORDINATOR] = coordinator.drain()
    outputs = {COORDINATOR: coordinator, **daemons}
    return Outcome(federation, logged_events(federation), outputs, statuses)


def _found(
    folder: Path,
    material: Material,
    hospitals: tuple[NodeId, ...],
    patients: int,
    *,
    study: Mapping[str, Scalar],
    rounds: Mapping[str, Scalar],
) -> Federation:
    wanted = DevelopmentFederation(
        federation=FEDERATION,
        coordinator=COORDINATOR,
        participants={node: Enrolment(patients) for node in hospitals},
        operators=(OPERATOR,),
    )
    return Federation(
        folder=folder,
        keys=create_development_keys(folder / "keys", wanted, now=datetime.now(UTC)),
        hospitals=hospitals,
        images=material.images,
        direction=material.direction,
        port=free_port(),
        metrics_port=free_port(),
        database="",
        study=study,
        # All are there when a round opens; it may end without some.
        rounds={"quorum": 3, **rounds},
    )


def _start(
    federation: Federation,
    node: NodeId,
    villain: Villain | None,
    patients: int,
    *,
    is_private: bool,
) -> Daemon:
    villain = villain or Villain()
    declares = patients if villain.declares is None else villain.declares
    worker = ["-m", NOISY if is_private else SCRIPTED]
    worker += [villain.trains_as or node, str(federation.control(node)), str(federation.direction)]
    if is_private:
        worker.append(str(villain.noise))
    config = _write_config(federation, node, declares)
    if villain.demonstrates:
        argv = ("--config", str(config), "--attack", villain.demonstrates)
        return Daemon("-m", "matl.demo.hostile", *argv)
    if villain.conduct:
        return Daemon("-m", "tests.attacks.malicious", str(config), villain.conduct, *worker)
    return Daemon("-m", "tests.attacks.loyal", str(config), *worker)


def _write_config(federation: Federation, node: NodeId, patients: int) -> Path:
    config = federation.participant_config(node, address="", changes={})
    told, declared = f"declared_patients = {PATIENTS}", f"declared_patients = {patients}"
    text = config.read_text()
    assert told in text
    config.write_text(text.replace(told, declared))
    return config
