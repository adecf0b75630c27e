"""A coordinator that is started again and again alarms neither itself nor who looks at its log."""

from __future__ import annotations

from pathlib import Path

from matl_common.identity.keys import load_ed25519_private_key
from matl_common.ids import NodeId
from matl_common.tlog.checkpoint import Checkpoint, verify_checkpoint
from matl_common.tlog.cosignature import cosign
from matl_common.tlog.witness import Verdict, decide
from tests.coordinator.harness import Running, make_site, running
from tests.logs import an_entry
from tests.sdk.test_audit_commands import HOSPITALS, LOG_KEY_FILE, Place, config_file

RESTARTS = 100
STAGES = 25


async def witness(coordinator: Running, kept: dict[NodeId, Checkpoint]) -> None:
    """Every hospital decides by the checkpoint that it kept, and cosigns."""
    checkpoints = coordinator.use_cases.checkpoints
    for node in map(NodeId, sorted(HOSPITALS)):
        last = kept.get(node)
        old_size = 0 if last is None else last.size
        told = await checkpoints.to_cosign(old_size=old_size)
        new = verify_checkpoint(told.witnessed.note, checkpoints.policy.logs).checkpoint
        decision = decide(last, old_size=old_size, proof=told.proof, new=new)
        assert decision.verdict is Verdict.ACCEPTED, decision
        kept[node] = new
        key = coordinator.site.allowed(node).witness_key
        assert key is not None
        signer = load_ed25519_private_key(coordinator.site.nodes[node].witness_key)
        line = cosign(new, key, signer, unix_seconds=1_800_000_000).encode()
        await checkpoints.cosign(node, size=new.size, line=line)


async def test_nothing_false_alarms_in_a_hundred_clean_restarts(tmp_path: Path) -> None:
    site = make_site(tmp_path, sizes=HOSPITALS, byzantine=1)
    place = Place(site, config_file(site), site.config.database_url)
    (site.config.state_dir / "log-encryption.key").write_bytes(LOG_KEY_FILE)
    kept: dict[NodeId, Checkpoint] = {}
    for number in range(1, RESTARTS + 1):
        async with running(site) as coordinator:
            # Raises where the log is not what this coordinator signed last.
            await coordinator.use_cases.checkpoints.resume()
            coordinator.store.commit([], [an_entry("happened", number=number)] * (number % 7))
            await witness(coordinator, kept)
        if number % STAGES == 0:
            found = place.verify()
            assert found.exit_code == 0, found.output
    # Each start tells at least who is enrolled.
    assert min(each.size for each in kept.values()) > RESTARTS
