"""What the daemon asks of its training worker, as the JSON that goes down the pipe.

The worker parses it again, strictly. Nothing here starts a process or reads data.
"""

from pathlib import Path

from matl_common.ids import Digest
from matl_common.protocol import StudyPlan
from matl_common.worker import Message
from matl_participant.config import Config

LOST = "ProcessLostError"
"""The type of a training worker's error after which the same job may be asked for again."""


def prepare_request(config: Config, plan: StudyPlan, *, cache: Path, phi: Path) -> Message:
    """Check the data set, look for identifiers in it and, for ``head``, compute its features."""
    return {
        "job": "prepare",
        "recipe": plan.training.recipe.value,
        "data": _data(config, plan, cache=cache),
        "resources": _resources(config),
        "phi": _phi(config, phi),
    }


def train_request(
    config: Config,
    plan: StudyPlan,
    *,
    cache: Path,
    model: Path,
    model_digest: Digest,
    out: Path,
    steps: int,
    dataset_digest: Digest,
    evaluations: int = 0,
) -> Message:
    """Train ``steps`` steps from ``model`` and write the update to ``out``.

    With ``evaluations``, also count what ``model`` gets right, with the plan's noise.
    """
    training, privacy = plan.training, plan.privacy
    evaluation = privacy.evaluation if evaluations else None
    return {
        "job": "train",
        "recipe": training.recipe.value,
        "model_path": str(model),
        "model_digest": model_digest,
        "out_path": str(out),
        "steps": steps,
        "learning_rate": training.learning_rate,
        "noise": privacy.noise.value,
        "noise_multiplier": privacy.noise_multiplier,
        "evaluation_noise_multiplier": evaluation.noise_multiplier if evaluation else None,
        "max_grad_norm": privacy.max_grad_norm,
        "sample_rate": privacy.sample_rate,
        "declared_patients": config.data.declared_patients,
        "images_per_patient": config.data.images_per_patient or 1,
        "dataset_digest": dataset_digest,
        "data": _data(config, plan, cache=cache),
        "resources": _resources(config),
    }


def _data(config: Config, plan: StudyPlan, *, cache: Path) -> Message:
    weights = config.training.weights_file
    return {
        "data_dir": str(config.data.images),
        "labels_csv": str(config.data.labels_file),
        "on_bad_image": config.data.on_bad_image,
        "image_size": plan.training.image_size,
        "backbone": plan.training.backbone,
        "views": plan.training.views,
        "weights_file": str(weights) if weights else None,
        "weights_digest": plan.training.backbone_digest,
        "cache_dir": str(cache),
        "cache_max_bytes": config.training.cache_bytes,
    }


def _phi(config: Config, folder: Path) -> Message | None:
    if config.data.phi_scan == "off":
        return None
    return {"policy": config.data.phi_scan, "ocr": config.data.phi_ocr, "folder": str(folder)}


def _resources(config: Config) -> Message:
    training = config.training
    return {
        "device": training.device,
        "device_memory_bytes": training.device_memory_bytes,
        "workers": training.workers,
        "processes": training.processes,
        "stall_seconds": training.stall_seconds,
        "physical_batch": training.physical_batch,
        "nodes": config.nodes.seat(0) if config.nodes else None,
    }
