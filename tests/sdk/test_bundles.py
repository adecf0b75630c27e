"""Whatever the files of an exported bundle hold, who verifies it is told so in one way."""

from __future__ import annotations

import shutil
from contextlib import closing, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matl.log.bundle import BundleSource, export_bundle
from matl.log.sources import DatabaseSource
from matl.log.verification import Believed, verify_log
from matl_common.errors import IntegrityError, MatlError
from matl_common.tlog.checkpoint import Checkpoint, log_key, open_checkpoint, sign_checkpoint
from matl_common.tlog.policy import NO_QUORUM, Policy
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader
from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG, some_entries

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = log_key(LOG["log_origin"], SIGNER.public_key())
FILES = (
    "checkpoint",
    "tile/entries/000.p/3",
    "tile/0/000.p/3",
    "matl/payloads/0",
    "matl/checkpoints/3",
    "matl/policy",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    url = f"sqlite:///{folder / 'log.db'}"
    with closing(SqlStore.connect(url, **LOG)) as store:
        store.load()
        store.commit([], some_entries("a", "b", "c"))
        head = store.log_head()
        checkpoint = Checkpoint(KEY.name, head.size, bytes.fromhex(head.root))
        store.put_checkpoint(head.size, sign_checkpoint(checkpoint, KEY, SIGNER).note.encode())
    source = DatabaseSource(LogReader(create_database_engine(url)))
    export_bundle(source, folder / "sound", policy=Policy((KEY,), {}, (), NO_QUORUM))
    verify_log(BundleSource(folder / "sound"), Believed(KEY))
    return folder / "sound"


@pytest.mark.hostile
@pytest.mark.parametrize("checkpoints", ["all", "none", "no folder"])
def test_a_bundle_that_the_log_did_not_sign_is_refused_whatever_it_lacks(
    sound: Path, tmp_path: Path, checkpoints: str
) -> None:
    bundle = shutil.copytree(sound, tmp_path / "bundle")
    signed = open_checkpoint((bundle / "checkpoint").read_bytes(), [KEY])
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"F")
    forger = log_key(KEY.name, stranger.public_key())
    forged = sign_checkpoint(signed.checkpoint, forger, stranger).note.encode()
    (bundle / "checkpoint").write_bytes(forged)
    if checkpoints == "none":
        (bundle / "matl/checkpoints/3").unlink()
    if checkpoints == "no folder":
        shutil.rmtree(bundle / "matl/checkpoints")
    with pytest.raises(IntegrityError):
        verify_log(BundleSource(bundle), Believed(KEY))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(FILES), data=st.data())
def test_any_bytes_in_any_file_of_a_bundle_give_a_domain_error_and_no_other(
    sound: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    bundle = tmp_path / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(sound, bundle)
    whole = (bundle / name).read_bytes()
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    (bundle / name).write_bytes(whole[:begin] + data.draw(st.binary(max_size=40)) + whole[end:])
    with suppress(MatlError):
        verify_log(BundleSource(bundle), Believed(KEY))


def test_what_others_put_into_a_bundle_is_no_checkpoint_and_none_at_all_is_named(
    sound: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(sound, bundle)
    (bundle / "matl/checkpoints/.DS_Store").write_bytes(b"mine")
    assert verify_log(BundleSource(bundle), Believed(KEY)).tally.checkpoints == 1
    shutil.rmtree(bundle / "matl/checkpoints")
    with pytest.raises(IntegrityError, match="lacks matl/checkpoints"):
        verify_log(BundleSource(bundle), Believed(KEY))
