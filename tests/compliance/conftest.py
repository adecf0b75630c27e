"""One live federation for the whole suite."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from matl.cli import app
from matl.compliance.audit import audit
from matl.compliance.catalogue import CONTROLS
from matl.compliance.control import Control
from matl.compliance.probes.audit_controls import REVIEW_EVENT
from matl.compliance.report import Report
from matl_coordinator.config import load_config
from matl_coordinator.upkeep import record
from tests.compliance.live import (
    IDLE_SECONDS,
    NO_SOCKETS,
    UNDIALLED,
    Live,
    operator_text,
    registry_text,
    site_of,
)
from tests.compliance.sabotage import lock_lines
from tests.postgres import fresh_database
from tests.store.roles import WRITER, prepare, url_of
from tests.system.federation import found_federation, logged_events, prepare_material
from tests.system.story import of, start_hospitals, wait_for_the_end


@pytest.fixture(scope="session")
def live(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Yield a federation that has ended a study of one round, and whose coordinator goes on."""
    folder = tmp_path_factory.mktemp("compliance")
    material = prepare_material(tmp_path_factory.mktemp("material"))
    with fresh_database(postgres_url) as admin, ExitStack() as running:
        prepare(admin)
        federation = replace(
            found_federation(folder, material, database=url_of(admin, WRITER), study={"rounds": 1}),
            sections={"limits": {"idle_seconds": IDLE_SECONDS}},
        )
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        start_hospitals(federation, running)
        wait_for_the_end(federation)
        coordinator.wait_for("model_published", round=1)
        file = federation.coordinator_config
        (folder / "backups").mkdir()
        backup = ["backup", str(folder / "backups" / "newest"), "-c", str(file), "--json"]
        done = CliRunner().invoke(app, backup)
        assert done.exit_code == 0, done.output
        (folder / "operator.toml").write_text(operator_text(federation))
        (folder / "safeguards.toml").write_text(registry_text(folder, admin))
        (folder / "lock.txt").write_text("\n".join(lock_lines()))
        (folder / "proc" / "net").mkdir(parents=True)
        (folder / "proc" / "net" / "tcp").write_text(NO_SOCKETS)

        def probed(controls: tuple[Control, ...]) -> Report:
            with site_of(federation, folder) as site:
                return audit(site, controls=controls)

        before_reviews = probed(UNDIALLED)
        config = load_config(file)
        record(config, "entries_decrypted", first=0, last=0, reason="a drill of the suite")
        after_drill = probed(UNDIALLED)
        record(config, REVIEW_EVENT, entries=10, said="the suite's own")
        (released,) = of(logged_events(federation), "model_released")
        yield Live(
            federation=federation,
            admin_url=admin,
            folder=folder,
            released_model=str(released["model"]),
            before_reviews=before_reviews,
            after_drill=after_drill,
            sound=probed(CONTROLS),
        )
