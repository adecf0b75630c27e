"""What the processes of several machines settle before any of them looks at data.

The first node alone knows what is to be done. The others learn it over the link, with the
model, and do it on their own copies of data and weights. gloo and nccl neither encrypt nor
authenticate, so all of them first prove that they know the hospital's token: that keeps out
who merely reaches the link, and not who can change what passes over it.
"""

import hmac
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from matl_common.errors import MatlError
from matl_common.vision.requests import ImageSource
from matl_participant.training.group import ProcessGroup
from matl_participant.training.link import read_token
from matl_participant.training.requests import (
    FollowRequest,
    Shared,
    TrainRequest,
    parse_shared,
)

MODEL_FILE = "model.safetensors"


class NodeRefusedError(MatlError):
    """A process of the group does not know the token."""


def settled(mine: Shared | FollowRequest, group: ProcessGroup, *, folder: Path) -> Shared:
    """What to do, for this process: the first node's request, on this node's own files.

    Args:
        mine: what this process was started with: the request, or to follow.
        group: all processes of all nodes.
        folder: where a node that follows keeps the model.

    Raises:
        NodeRefusedError: somebody does not know the token.
        ProcessesDisagreeError: the nodes run different versions.
        ProcessLostError: another process is gone.
    """
    nodes = mine.resources.nodes
    if nodes is None:
        assert not isinstance(mine, FollowRequest)  # which parse_order has seen to
        return mine
    prove(group, read_token(nodes.token_file))
    group.check_agreed(
        _versions().ljust(64)[:64],
        otherwise="the nodes run different versions of matl or PyTorch; install the same on all",
    )
    told = group.first_makes(lambda: _bytes(_told(mine)), kind=np.uint8)
    request = parse_shared(json.loads(told.tobytes()))
    model = b""
    if isinstance(request, TrainRequest):
        made = group.first_makes(lambda: _bytes(_model(mine)), kind=np.uint8)
        model = made.tobytes()
    if not isinstance(mine, FollowRequest):
        return mine
    return _followed(request, mine, model=model, folder=folder)


def prove(group: ProcessGroup, token: bytes) -> None:
    """Show all others that this process knows the token, and see that they do.

    Raises:
        NodeRefusedError: one does not.
    """
    nonces = b"".join(group.tell_all(os.urandom(32)))

    def proof(rank: int) -> bytes:
        return hmac.digest(token, b"matl node proof %d " % rank + nonces, "sha256")

    given = group.tell_all(proof(group.rank))
    if not all(hmac.compare_digest(each, proof(rank)) for rank, each in enumerate(given)):
        raise NodeRefusedError(
            "a node does not know the token of the others; copy the file that nodes.token names "
            "to all of them, and see who else reaches the link between them"
        )


def _versions() -> bytes:
    try:
        ours = version("matl")
    except PackageNotFoundError:
        ours = "source"
    return f"{ours} {torch.__version__}".encode()


def _told(mine: Shared | FollowRequest) -> bytes:
    return json.dumps(mine.model_dump(mode="json")).encode()


def _model(mine: Shared | FollowRequest) -> bytes:
    assert isinstance(mine, TrainRequest)  # the first node's own request
    return mine.model_path.read_bytes()


def _bytes(content: bytes) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    return np.frombuffer(content, dtype=np.uint8).copy()


def _followed(request: Shared, mine: FollowRequest, *, model: bytes, folder: Path) -> Shared:
    data = ImageSource.model_validate(
        request.data.model_dump()
        | {
            "data_dir": mine.data_dir,
            "labels_csv": mine.labels_csv,
            "weights_file": mine.weights_file,
        }
    )
    changes = {"data": data, "resources": mine.resources}
    if isinstance(request, TrainRequest):
        path = folder / f"{os.getpid()}-{MODEL_FILE}"
        path.write_bytes(model)
        return request.model_copy(update=changes | {"model_path": path})
    return request.model_copy(update=changes)
