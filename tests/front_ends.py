"""Enrolling front ends in a test's federation, as an operator does."""

from datetime import UTC, datetime
from pathlib import Path

from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.enrolling import make_answer, make_request, parse_answer, parse_request
from matl_common.identity.federation_folder import Facts, FederationFolder
from matl_common.identity.installing import install
from matl_common.identity.node_folder import NodeFolder, keys_in, make_missing_keys
from matl_common.ids import NodeId


def enrol_front_end(keys: Path, name: NodeId) -> NodeFolder:
    """Make a front end's keys in a federation's folder, and put it on the allow-list."""
    federation, mine, now = FederationFolder(keys), NodeFolder(keys / name), datetime.now(UTC)
    spiffe_id = SpiffeId(federation.federation, Role.FRONT_END, name)
    make_missing_keys(mine, Role.FRONT_END)
    request = parse_request(make_request(spiffe_id, keys_in(mine, spiffe_id)))
    answer = federation.approve(request, Facts(), now=now)
    install(mine, parse_answer(make_answer(answer)), now=now)
    return mine
