"""Names of a federation's log and of its witnesses, as keys and checkpoints bear them."""

from matl_common.ids import FederationId, NodeId


def log_origin(federation: FederationId) -> str:
    """The log's name."""
    return f"{federation}.matl.internal/log"


def witness_name(federation: FederationId, node_id: NodeId) -> str:
    """The name of the key that a hospital cosigns with."""
    return f"{federation}.matl.internal/witness/{node_id}"
