"""The dashboard and the report of a live federation, one of whose hospitals is hostile."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import base64
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page
from typer.testing import CliRunner, Result

from matl.cli import app
from matl.dashboard.alerts import alerts_of
from matl.dashboard.board import board_of
from matl.dashboard.command import app as monitor_app
from matl.dashboard.node_board import node_board_of
from matl.dashboard.node_snapshot import read_node
from matl.dashboard.snapshot import Proof, Snapshot
from matl.dashboard.watching import Watcher
from matl.log.verification import Believed
from matl.operations import Round
from matl_common.identity.keys import load_verifier_key
from matl_participant.config import load_config
from tests.dashboard.browser import CHROMIUM, chromium, log_in, serving_page
from tests.postgres import free_port
from tests.system.federation import (
    COORDINATOR_NAME,
    HOSPITALS,
    OPERATOR,
    Federation,
    Material,
    found_federation,
    toml_text,
)
from tests.system.processes import Daemon, until

pytestmark = [pytest.mark.system, pytest.mark.certificates]
HOSTILE, SLOW = HOSPITALS[2], HOSPITALS[1]
in_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs the system's Chromium: apt-get install chromium"
)


@dataclass(frozen=True)
class Scene:
    """A federation in whose third round one hospital still trains."""

    federation: Federation
    coordinator: Daemon
    operator_toml: Path

    @property
    def log_key(self) -> Path:
        return self.federation.keys[OPERATOR].log_verifier_key

    @contextmanager
    def watcher(self) -> Iterator[Watcher]:
        believed = Believed(load_verifier_key(self.log_key))
        connect = self.federation.operator
        with closing(Watcher(connect, believed, clock=lambda: datetime.now(UTC))) as watcher:
            yield watcher

    def look(self) -> Snapshot:
        with self.watcher() as watcher:
            return watcher.look()

    def matl(self, *arguments: str | Path) -> Result:
        return CliRunner().invoke(app, ["-c", str(self.operator_toml), *map(str, arguments)])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Scene]:
    """Yield a study of which two models are released and a round is under way."""
    folder = tmp_path_factory.mktemp("dashboard")
    federation = found_federation(folder, material, study={"rounds": 6})
    backwards = folder / "backwards.f32"
    backwards.write_bytes((-6 * np.fromfile(material.direction, dtype="<f4")).tobytes())
    with ExitStack() as stack:
        coordinator = stack.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        for node in HOSPITALS:
            mine = replace(federation, direction=backwards) if node == HOSTILE else federation
            stack.enter_context(mine.start_scripted(node))
        with federation.operator() as operator:
            until(lambda: operator.status().rounds_released >= 2, what="two releases")
            federation.control(SLOW).write_text("wait")
            until(
                lambda: "admitted" in _statuses(operator.status().current_round),
                what="a round in which one is done and one is not",
            )
        yield Scene(federation, coordinator, _operator_toml(federation))


def _statuses(rnd: Round | None) -> set[str]:
    parts = {each.node_id: each.status for each in (() if rnd is None else rnd.contributions)}
    return set(parts.values()) if parts.get(SLOW) == "invited" else set()


def _operator_toml(federation: Federation) -> Path:
    mine = federation.keys[OPERATOR]
    table = {
        "address": federation.address,
        "coordinator": str(COORDINATOR_NAME),
        "key": str(mine.tls.private_key),
        "certificate": str(mine.tls.certificate_chain),
        "authority": str(mine.tls.trusted_authority),
        "log_key": str(mine.log_verifier_key),
    }
    path = federation.folder / "operator.toml"
    path.write_text(toml_text({"operator": table}))
    return path


def test_a_snapshot_tells_the_round_the_trust_and_the_log_as_they_are(scene: Scene) -> None:
    found = scene.look()
    board = board_of(found)
    assert board.round is not None
    uploads = {each.node: each for each in board.round.uploads}
    assert uploads[SLOW].status == "invited"
    rows = {each.node: each for each in board.trust}
    assert rows[HOSTILE].trust < rows[HOSPITALS[0]].trust
    # Every round's reason came over the wire.
    assert {each.node for each in board.trust_steps if each.why} == set(HOSPITALS)
    assert board.accuracy[0].points[0][0] == 1
    assert found.log.problem == ""
    assert {each.proof for each in found.entries} <= {Proof.PROVEN, Proof.PENDING}
    assert any(HOSTILE in each.title for each in alerts_of(found))


def test_a_watcher_asks_the_log_only_for_what_is_new(scene: Scene) -> None:
    with scene.watcher() as watcher:
        first = watcher.look()
        assert watcher.look() is first
        assert watcher.last is first


def test_the_terminal_shows_the_federation_and_a_hospital_beside_it(scene: Scene) -> None:
    node = HOSPITALS[0]
    config = scene.federation.folder / f"{node}.toml"
    arguments = ["--watch", "--once", "-c", str(scene.operator_toml)]
    found = CliRunner().invoke(monitor_app, [*arguments, "--participant-config", str(config)])
    assert found.exit_code == 0, found.output
    for word in (*HOSPITALS, "Trust", "Privacy budget", "proven", f"This hospital: {node}"):
        assert word in found.stdout
    assert "image_0" not in found.stdout


def test_a_hospital_sees_its_ledger_its_receipts_and_that_they_are_proven(scene: Scene) -> None:
    config = load_config(scene.federation.folder / f"{HOSPITALS[0]}.toml", environment={})

    def proven() -> bool:
        found = read_node(config, now=datetime.now(UTC))
        return any(each.proof is Proof.PROVEN for each in found.receipts)

    until(proven, what="a receipt is proven")
    found = read_node(config, now=datetime.now(UTC))
    board = node_board_of(found)
    assert [each.problem for each in found.verdicts] == [None]
    assert found.budgets[0].summary.rounds_acknowledged == len(found.receipts)
    assert dict(board.data)["Header of the labels"] == "image_id, dr_level: all are allowed"
    assert "daemon.metrics is not set" in board.tiles[0].note


def test_a_receipt_whose_proof_was_changed_does_not_hold(scene: Scene) -> None:
    config = load_config(scene.federation.folder / f"{HOSPITALS[0]}.toml", environment={})
    (proof, *_) = sorted(config.state_dir.glob("studies/*/proofs/*.tlog-proof"))
    kept = proof.read_bytes()
    lines = kept.splitlines(keepends=True)
    # Below the index come the hashes of the path.
    at = next(number for number, line in enumerate(lines) if line.startswith(b"index")) + 1
    lines[at] = base64.b64encode(bytes(32)) + b"\n"
    try:
        proof.write_bytes(b"".join(lines))
        board = node_board_of(read_node(config, now=datetime.now(UTC)))
    finally:
        proof.write_bytes(kept)
    assert any("does not hold" in each.title for each in board.alerts)


def test_neither_or_both_views_are_refused() -> None:
    for arguments in ([], ["--dashboard", "--watch"], ["--dashboard", "--once"]):
        found = CliRunner().invoke(monitor_app, arguments)
        assert found.exit_code == 2
        assert "say --dashboard or --watch" in found.output


@in_chromium
@pytest.mark.browser
def test_the_page_is_used_by_keyboard_alone_and_asks_no_other_host(scene: Scene) -> None:
    with serving_page("-c", scene.operator_toml) as served, chromium() as visit:
        page = visit.page
        page.goto(served.url)
        _try_token(page, "guess")
        page.get_by_text("That is not the token").wait_for()
        # Before the door, nothing of the study is sent.
        assert "hospital_" not in page.content()
        used = served.tokens[-1]
        log_in(page, served)
        # What comes last on the page, and what was there before it.
        page.get_by_role("table", name="Newest log entries").wait_for()
        page.get_by_label("One-time token").wait_for(state="detached")
        shown = page.locator("body").inner_text()
        for word in (*HOSPITALS, "proven", "Alerts", "Trust over rounds"):
            assert word in shown
        assert page.get_by_role("progressbar", name=f"{SLOW} has uploaded").count() == 1
        assert "Last:" in (page.locator("img.chart").first.get_attribute("alt") or "")
        for secret in ("image_0", str(scene.federation.folder), "PRIVATE"):
            assert secret not in page.content()
        _tab_to(page, "Trust round by round")
        page.keyboard.press("Enter")
        page.get_by_role("table", name="Trust round by round").wait_for()
        _tab_to(page, "Sign out")
        page.keyboard.press("Enter")
        page.get_by_text("Signed in.").wait_for(state="detached")
        # A token works once.
        _try_token(page, used)
        page.get_by_text("That is not the token").wait_for()
        assert visit.hosts <= {"127.0.0.1", "data"}


@in_chromium
@pytest.mark.browser
def test_a_page_that_nobody_uses_closes(scene: Scene) -> None:
    idle = ("--idle-minutes", "0.05", "--every", "0.5")
    with serving_page("-c", scene.operator_toml, *idle) as served, chromium() as visit:
        log_in(visit.page, served)
        visit.page.get_by_text("The session has ended").wait_for()
        assert "hospital_" not in visit.page.content()


def _try_token(page: Page, token: str) -> None:
    field = page.get_by_label("One-time token")
    field.fill(token)
    field.press("Enter")


def _tab_to(page: Page, name: str) -> None:
    """Press Tab until what has the focus, and is not the page itself, says this."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "[document.activeElement.tagName, document.activeElement.innerText]"
        )
        if focused[0] in {"BUTTON", "SUMMARY"} and name in focused[1]:
            return
    raise AssertionError(f"Tab does not reach {name}")


def test_a_report_is_one_file_that_holds_the_study_and_its_verified_proofs(
    scene: Scene, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    made = scene.matl("report", scene.federation.address, "-o", out, "--pdf")
    assert made.exit_code == 0, made.output
    text = out.read_text("utf-8")
    assert out.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")
    # Namespaces name nothing that is loaded.
    asked = re.findall(r"(?:src|href)=\"([^#\"]*)\"|url\(|@import|<script", text)
    assert asked == []
    for word in (*HOSPITALS, "Released models", "holds under the checkpoint", "excluded by its"):
        assert word in text
    for secret in ("image_0", str(scene.federation.folder), "127.0.0.1"):
        assert secret not in text
    root = re.search(r"root ([0-9a-f]{64})", made.output.replace("\n", " "))
    assert root is not None
    assert root[1] in text


def test_a_report_needs_to_be_told_whose_signature_counts(scene: Scene, tmp_path: Path) -> None:
    table = scene.operator_toml.read_text()
    unkeyed = tmp_path / "operator.toml"
    unkeyed.write_text("\n".join(line for line in table.splitlines() if "log_key" not in line))
    address, out = scene.federation.address, str(tmp_path / "r.html")
    found = CliRunner().invoke(app, ["-c", str(unkeyed), "report", address, "-o", out])
    assert found.exit_code == 2
    assert "--log-key" in found.output


def test_whom_nobody_answers_gets_the_last_board_or_the_reason(scene: Scene) -> None:
    table = scene.operator_toml.read_text()
    away = scene.federation.folder / "away.toml"
    away.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_port()}", table))
    found = CliRunner().invoke(monitor_app, ["--watch", "--once", "-c", str(away)])
    assert found.exit_code == 1
    assert "cannot be reached" in found.output


def test_a_stopped_coordinators_folder_and_an_exported_log_give_reports(
    scene: Scene, tmp_path: Path
) -> None:
    """Last, because it ends the coordinator, as a power cut would."""
    scene.coordinator.kill()
    config = scene.federation.coordinator_config
    out = tmp_path / "report.html"
    unexplained = scene.matl("report", config, "-o", out)
    assert unexplained.exit_code == 2
    assert "--reason" in unexplained.output
    made = scene.matl("report", config, "-o", out, "--reason", "end of the study")
    assert made.exit_code == 0, made.output
    assert "excluded by its trust" in out.read_text("utf-8")
    bundle = tmp_path / "bundle"
    exported = scene.matl("audit", "export", bundle, "--coordinator-config", config)
    assert exported.exit_code == 0, exported.output
    policy = bundle / "matl" / "policy"
    sealed = scene.matl("report", bundle, "-o", out, "--policy", policy)
    assert sealed.exit_code == 0, sealed.output
    text = out.read_text("utf-8")
    assert "are encrypted" in text
    assert "excluded by its trust" not in text
    # A log that is not sound gives no report.
    (tile, *_) = sorted((bundle / "tile" / "entries").rglob("*.p/*"))
    data = bytearray(tile.read_bytes())
    data[len(data) // 2] ^= 1
    tile.write_bytes(bytes(data))
    out.unlink()
    damaged = scene.matl("report", bundle, "-o", out, "--policy", policy)
    assert damaged.exit_code == 1, damaged.output
    assert not out.exists()
