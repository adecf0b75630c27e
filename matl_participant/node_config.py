"""The configuration of a machine that trains together with a participant's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from matl_common.configuration import FilePath, Seconds, Section, labels_beside, load
from matl_common.logs import LogStyle
from matl_common.worker import Message
from matl_participant.config import Nodes


class NodeData(Section):
    """This machine's copy or mount of the hospital's images and labels."""

    images: FilePath
    labels: FilePath | None = None
    """CSV; ``labels_deidentified.csv`` in the images' folder or beside it if unset."""

    @property
    def labels_file(self) -> Path:
        return self.labels if self.labels is not None else labels_beside(self.images)


class NodeTraining(Section):
    """What this machine's part of a training job may use."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    device_memory_bytes: int | None = Field(default=None, ge=1 << 20)
    workers: int = Field(default=2, ge=1, le=64)
    """Processor threads, of all processes together."""
    processes: int | None = Field(default=None, ge=1, le=64)
    """Of this machine; one for each GPU, or one, if unset."""
    physical_batch: int = Field(default=8, ge=1, le=4096)
    """Images that pass through the network together, in each process."""
    stall_seconds: Seconds = 600.0
    weights_file: FilePath | None = None


class RankedNodes(Nodes):
    """As the participant's, and which of them this is."""

    rank: int = Field(ge=1, le=63)
    """The participant's own machine is 0."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.rank >= self.count:
            raise ValueError("rank must be below count: ranks are 0 to count - 1")
        return self


class NodeConfig(Section):
    """The whole configuration of a node that follows."""

    state_dir: FilePath
    """For the files of one share at a time."""
    data: NodeData
    training: NodeTraining = NodeTraining()
    nodes: RankedNodes
    logs: LogStyle = "auto"

    @property
    def order(self) -> Message:
        """What this node's processes are started with."""
        training, weights = self.training, self.training.weights_file
        return {
            "job": "follow",
            "data_dir": str(self.data.images),
            "labels_csv": str(self.data.labels_file),
            "weights_file": str(weights) if weights else None,
            "resources": {
                "device": training.device,
                "device_memory_bytes": training.device_memory_bytes,
                "workers": training.workers,
                "processes": training.processes,
                "physical_batch": training.physical_batch,
                "stall_seconds": training.stall_seconds,
                "nodes": self.nodes.seat(self.nodes.rank),
            },
        }


def load_node_config(path: Path) -> NodeConfig:
    """Read the file.

    Raises:
        ConfigurationError: as ``load``.
    """
    return load(NodeConfig, path, overrides={})
