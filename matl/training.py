"""Federated training of a caller's network on callers' data sets: Part 4 of the tutorial.

Every patient's gradient is clipped before it is summed, the sum is noised, and nothing else of a
hospital's data goes any further (DP-SGD with full batches; Abadi et al., CCS 2016). Needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from matl.client import MATLClient
from matl.history import TutorialHistory
from matl.sdk.holdout import tensor_scorer
from matl.sdk.hospital import AlreadySubmittedError
from matl.sdk.network import batches_of, blocks_of, load_trainable, schema_of
from matl.sdk.study import EmbeddedStudy, without_holdout
from matl.sdk.terms import Mechanism
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.ids import NodeId
from matl_common.tensors import Float32Vector
from matl_participant.ledger import BudgetExhaustedError
from matl_participant.training.clipping.clipper import Clipper
from matl_participant.training.clipping.recording import UnsupportedLayerError
from matl_participant.training.noising import noised_sum

if TYPE_CHECKING:
    from matl.sdk.hospital import Sent
    from matl_common.protocol import RoundStart
    from matl_coordinator.core.rounds import Round
    from matl_coordinator.ports import Scorer
    from matl_coordinator.store.models import FileModelStore

CLASSES = 5
"""Grades of diabetic retinopathy, 0 to 4."""
_LEAST_DECLARED = 10


@dataclass(frozen=True, slots=True)
class _Training:
    """What one round does with one hospital's patients; all of it public."""

    steps: int
    learning_rate: float
    noise_multiplier: float
    clip_norm: float
    patients: int
    images_per_patient: int
    batch: int


def train_federated_medical_ai(
    hospital_datasets: Sequence[Any] | Mapping[str, Any],
    matl_client: MATLClient,
    num_rounds: int = 50,
    local_epochs: int = 3,
    *,
    model: Callable[[], nn.Module] | None = None,
    test_loader: Iterable[Any] | None = None,
    learning_rate: float = 1.0,
    images_per_patient: int = 1,
    physical_batch: int = 32,
    report: Callable[[str], object] = print,
) -> tuple[nn.Module | None, TutorialHistory]:
    """Train one network on the data of several hospitals, each of which keeps its own.

    Embedded, all of it happens in this process: the hospitals' ledgers, training with noise,
    admission, trust, aggregation, log. A second call with the same client goes on with the
    study. With a coordinator's address the hospitals' own daemons train on what is in their own
    folders; this call then watches their study until ``num_rounds`` more rounds are released,
    takes no data set, and returns no network.

    Args:
        hospital_datasets: one for each hospital, in the order of ``allowed_nodes`` or by name.
            ``dataset[i]`` is ``(image, label)``: a float tensor as the network takes it, and a
            whole number from 0. One row is one patient, unless ``images_per_patient`` says more.
        matl_client: with the promise, the hospitals and the folder.
        num_rounds: rounds of the whole study. Noise is calibrated for them, once.
        local_epochs: passes over all patients in each round; each is one noised step.
        model: makes the network, the same at every call. It may have Conv2d, Linear and
            GroupNorm layers with trainable parameters, in float32; what has
            ``requires_grad=False`` is frozen and public. A public EfficientNet-Lite0 under a
            linear layer of five classes unless given, for which see ``matl[demo]``.
        test_loader: batches ``(images, labels)`` that nobody trains on, de-identified. Accuracy is
            measured on it; without one on the client's ``holdout``, and else not at all.
        learning_rate: on the mean gradient; plain gradient descent.
        images_per_patient: k, the most rows that can belong to one patient. Each row is then
            clipped to C/k, so that k of them move the sum by no more than C.
        physical_batch: rows that go through the network at once; changes memory, not results.
        report: told one line for every round.

    Returns:
        The newest released network, and the history: ``rounds`` (numbers from 1), ``accuracy`` (in
        per cent; NaN where none was measured), ``trust_scores`` (0 to 1, a list of all hospitals
        for each round, after it), ``privacy_budget`` (ε left to the hospital that has least),
        ``hospitals`` (their names, in the order of the scores) and ``epsilon_remaining`` (ε left
        to each, in that order, for each round).

    Raises:
        ConfigurationError: an argument cannot be, or a data set has other items.
        StudyMismatchError: the client's folder holds a study that began with other terms.
        BudgetExhaustedError: no hospital's ledger allows a further round. One that has spent its
            budget, because attempts were interrupted, stays away, which is reported.
        TooFewUpdatesError: fewer updates were admitted than a round takes.
        RoundHeldError: no model could be made of a round's updates.
    """
    if matl_client.is_connected:
        if len(hospital_datasets):
            raise ConfigurationError(
                "with a coordinator's address each hospital's own daemon trains on its own folder, "
                "and no data set passes through this process: give hospital_datasets=()"
            )
        return None, matl_client.watch(num_rounds, report=report)
    if images_per_patient < 1 or physical_batch < 1:
        raise ConfigurationError("images_per_patient and physical_batch are 1 or more")
    if not (math.isfinite(learning_rate) and learning_rate > 0.0):
        raise ConfigurationError(f"learning_rate={learning_rate}: give a number above 0")
    datasets = _by_hospital(hospital_datasets, matl_client)
    network = (model or default_model)()
    make = partial(deepcopy, network)
    declared = _declared(datasets, matl_client, images_per_patient=images_per_patient)
    study = _study(
        matl_client,
        network,
        declared,
        rounds=num_rounds,
        steps=local_epochs,
        learning_rate=learning_rate,
        images_per_patient=images_per_patient,
    )
    terms = study.terms
    trainings = {
        node: _Training(
            steps=terms.steps_per_round,
            learning_rate=terms.learning_rate,
            noise_multiplier=terms.noise_multiplier,
            clip_norm=terms.clip_norm,
            patients=declared[node],
            images_per_patient=images_per_patient,
            batch=physical_batch,
        )
        for node in datasets
    }
    while study.coordinator.state().rounds_released < num_rounds:
        base = study.parameters(study.newest_model)
        exhausted: list[BudgetExhaustedError] = []
        for node, dataset in datasets.items():
            local = make()
            load_trainable(local, base)
            try:
                sent = study.take_part(node, partial(_update, local, dataset, trainings[node]))
            except AlreadySubmittedError:
                # In an earlier call, which ended in the middle of this round.
                continue
            except BudgetExhaustedError as error:
                # As a hospital's daemon: it stays away, and the others go on.
                exhausted.append(error)
                report(str(error))
                continue
            _note_submission(matl_client, node, sent)
        if len(exhausted) == len(datasets):
            raise exhausted[0]
        rnd = study.finish_round()
        load_trainable(network, study.parameters(study.newest_model))
        if test_loader is not None:
            accuracy = evaluate_medical_model(network, test_loader)
            matl_client.embedded.note_accuracy(accuracy)
        _note_round(matl_client, rnd, report)
    load_trainable(network, study.parameters(study.newest_model))
    return network.eval(), matl_client.history()


def _study(
    client: MATLClient,
    network: nn.Module,
    patients: Mapping[NodeId, int],
    *,
    rounds: int,
    steps: int,
    learning_rate: float,
    images_per_patient: int,
) -> EmbeddedStudy:
    holdout = client.holdout
    scorer: Callable[[FileModelStore], Scorer] = without_holdout
    if holdout is not None:
        classes = _classes_of(network, holdout)
        scorer = tensor_scorer(
            partial(deepcopy, network),
            holdout,
            classes=classes,
            steps=steps,
            learning_rate=learning_rate,
            max_grad_norm=(
                math.inf
                if client.privacy is None
                else client.privacy.clip_norm / images_per_patient
            ),
        )
    return client.embedded.begin(
        Mechanism.PATIENTS,
        patients=patients,
        rounds=rounds,
        steps_per_round=steps,
        learning_rate=learning_rate,
        mode=client.mode,
        schema=schema_of(network),
        first_model=lambda: blocks_of(network),
        scorer=scorer,
    )


def _update(
    network: nn.Module, dataset: Any, training: _Training, _start: RoundStart
) -> Float32Vector:
    """Train on all patients and return the flat float32 difference of the parameters."""
    try:
        clipper = Clipper(network.train())
    except UnsupportedLayerError as error:
        raise ConfigurationError(
            f"{error}. opacus.validators.ModuleValidator.fix(network) puts GroupNorm in the place "
            "of BatchNorm, and each.requires_grad_(False) freezes a parameter"
        ) from error
    base = np.concatenate(
        [each.detach().numpy().ravel() for each in network.parameters() if each.requires_grad]
    )
    parameters = base.astype(np.float64)
    for _ in range(training.steps):
        total = torch.zeros(clipper.size)
        for images, labels in batches_of(dataset, batch=training.batch, name="dataset"):
            clipper.add_clipped(
                total,
                images,
                labels,
                max_grad_norm=training.clip_norm / training.images_per_patient,
            )
        noised = noised_sum(
            total.double().numpy(),
            noise_multiplier=training.noise_multiplier,
            max_grad_norm=training.clip_norm,
        )
        # The declared number, which is public, and never the true one.
        parameters -= training.learning_rate / training.patients * noised
        load_trainable(network, parameters)
    update: Float32Vector = (parameters - base).astype(np.float32)
    return update


def _note_submission(client: MATLClient, node: NodeId, sent: Sent) -> None:
    client.audit_log(
        event="update_submitted",
        node=node,
        round=sent.round_id,
        trust_score=sent.trust,
        refused=sent.refused or "",
    )


def _note_round(client: MATLClient, rnd: Round, report: Callable[[str], object]) -> None:
    history = client.history()
    accuracy, left = history["accuracy"][-1], history["privacy_budget"][-1]
    client.audit_checkpoint(rnd.round_id, accuracy, dict(history))
    trust = ", ".join(
        f"{name} {score:.2f}"
        for name, score in zip(history["hospitals"], history["trust_scores"][-1], strict=True)
    )
    measured = "" if math.isnan(accuracy) else f"accuracy {accuracy:.1f} %; "
    budget = "no privacy" if math.isinf(left) else f"ε left {left:.2f}"
    report(f"Round {rnd.round_id}: {measured}trust {trust}; {budget}")


def _by_hospital(
    datasets: Sequence[Any] | Mapping[str, Any], client: MATLClient
) -> dict[NodeId, Any]:
    if isinstance(datasets, Mapping):
        named = {client.hospital(name): each for name, each in datasets.items()}
    else:
        if len(datasets) > len(client.allowed_nodes):
            raise ConfigurationError(
                f"{len(datasets)} data sets for {len(client.allowed_nodes)} allowed_nodes; name "
                "every hospital in allowed_nodes= of MATLClient"
            )
        named = dict(zip(map(client.hospital, client.allowed_nodes), datasets, strict=False))
    if not named:
        raise ConfigurationError("hospital_datasets is empty; give a data set for every hospital")
    for node, each in named.items():
        if len(each) == 0:
            raise ConfigurationError(f"the data set of {node} is empty; leave that hospital out")
    return named


def _declared(
    datasets: Mapping[NodeId, Any], client: MATLClient, *, images_per_patient: int
) -> dict[NodeId, int]:
    """Patients as they are declared: as enrolled, else rounded to tens.

    The exact number would tell whether somebody is among them.
    """
    found = {}
    for node, each in datasets.items():
        patients = client.enrolled_patients.get(node)
        counted = len(each) / images_per_patient
        found[node] = patients or max(_LEAST_DECLARED, 10 * round(counted / 10))
    return found


def _classes_of(network: nn.Module, holdout: Any) -> int:
    """How many classes a network tells apart: the width of what it says of one image."""
    images, _ = next(batches_of(holdout, batch=1, name="holdout"))
    with torch.inference_mode():
        logits = deepcopy(network).eval()(images)
    if logits.ndim != 2:
        raise ConfigurationError(
            f"model= gives an output of shape {tuple(logits.shape)}; a batch of n images gives "
            "(n, classes)"
        )
    return int(logits.shape[1])


def default_model() -> nn.Module:
    """A public EfficientNet-Lite0, frozen, under a linear layer of five classes that are all zero.

    The few parameters are the point: noise grows with the square root of their number, and a
    whole ResNet-50 at ε = 1 is noise alone (docs/privacy.md). It takes images of shape
    ``(n, 3, 224, 224)``, normalised as for ImageNet.

    Raises:
        BackboneError: its public weights are not on this machine.
    """
    from matl_common.vision.backbones import load_backbone

    backbone = load_backbone("efficientnet_lite0")
    head = nn.Linear(backbone.feature_dim, CLASSES)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(backbone.module, head)


def evaluate_medical_model(model: nn.Module, test_loader: Iterable[Any]) -> float:
    """Accuracy in per cent on batches ``(images, labels)`` that nobody trains on.

    Accuracy on data of real patients that are not de-identified is itself a release.

    Raises:
        InvalidInputError: there is not one image.
    """
    was_training = model.training
    model.eval()
    correct = total = 0
    with torch.inference_mode():
        for images, labels in test_loader:
            correct += int((model(images).argmax(dim=1) == labels).sum())
            total += len(labels)
    model.train(was_training)
    if total == 0:
        raise InvalidInputError("test_loader gives no images; accuracy of none is not defined")
    return 100.0 * correct / total
