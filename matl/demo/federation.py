"""The federation's files: who has which folder, whose keys, and one TOML per daemon.

    demo.json                   the study that this folder is about
    data/<set>/                 photographs and labels, kept from run to run
    keys/                       development keys of every node
    <node>/<role>.toml          configuration of one daemon
    <node>/state/               what the daemon must not lose
    <node>/daemon.log
    previous/                   the study before this one, with its ledgers

Writes and moves files; starts nothing.
"""

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from matl.demo.fundus.image_set import IMAGES_FOLDER, LABEL_COLUMNS, LABELS_FILE
from matl.demo.hospitals import HOLDOUT, PUBLIC, HospitalSpec, plan_hospital
from matl.demo.study import (
    COORDINATOR,
    DATASET,
    FEDERATION,
    OPERATOR,
    RECIPE,
    STUDY_ID,
    SUSPECT,
    Attack,
    Settings,
    declared_patients,
)
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.development import (
    MARKER,
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import NodeId

SETTINGS_FILE: Final = "demo.json"
SUMMARY_FILE: Final = "summary.json"
PLOT_FILE: Final = "medical_fl_results.png"
LOG_FILE: Final = "log.jsonl"
# Long enough for the largest hospital to extract its features on a slow machine.
_COLLECT_SECONDS: Final = 600.0
_POLL_SECONDS: Final = 10
# A study of minutes, of which every release should be witnessed.
_WITNESS_SECONDS: Final = 1.0
_RESULTS: Final = (SETTINGS_FILE, SUMMARY_FILE, PLOT_FILE, LOG_FILE)

COORDINATOR_NAME: Final = SpiffeId(FEDERATION, Role.COORDINATOR, COORDINATOR)

Scalar = str | int | float | bool
Table = Mapping[str, Mapping[str, Scalar] | Scalar]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one demonstration lies. ``data`` may be elsewhere."""

    out: Path
    data: Path

    @property
    def keys(self) -> Path:
        return self.out / "keys"

    @property
    def previous(self) -> Path:
        return self.out / "previous"

    @property
    def models(self) -> Path:
        """The coordinator's models, by digest."""
        return self.state(COORDINATOR) / "models"

    @property
    def true_labels(self) -> Path:
        """Hospital E's labels as they should have been."""
        return self.out / "reference" / f"{SUSPECT}_{LABELS_FILE}"

    @property
    def reference_cache(self) -> Path:
        """Features of the test images."""
        return self.out / "reference" / "features"

    def state(self, node: NodeId) -> Path:
        return self.out / node / "state"

    def feature_cache(self, node: NodeId) -> Path:
        return self.state(node) / ("features" if node == COORDINATOR else "cache")

    def config(self, node: NodeId) -> Path:
        role = Role.COORDINATOR if node == COORDINATOR else Role.PARTICIPANT
        return self.out / node / f"{role.value}.toml"

    def log(self, node: NodeId) -> Path:
        return self.out / node / "daemon.log"

    def images(self, name: str) -> Path:
        return self.data / name / IMAGES_FOLDER

    def labels(self, name: str) -> Path:
        return self.data / name / LABELS_FILE

    def node_keys(self, node: NodeId) -> NodeFolder:
        return NodeFolder(self.keys / node)


def settle(layout: Layout, settings: Settings, *, now: datetime) -> bool:
    """Make keys and decide what to do with a study that is here already.

    One with the same settings that has no summary yet is taken up where it stopped; any
    other is moved to ``previous``, and its features are kept.

    Returns:
        Whether an unfinished study goes on.

    Raises:
        ConfigurationError: the folder holds something that is not a demonstration's.
    """
    wanted = _wanted_keys(settings)
    if _is_unfinished(layout, settings) and _keys_fit(layout, wanted, now=now):
        return True
    _refuse_foreign(layout)
    if (layout.out / SETTINGS_FILE).exists():
        _move_to_previous(layout, settings)
    if not _keys_fit(layout, wanted, now=now):
        _remove_keys(layout)
        create_development_keys(layout.keys, wanted, now=now)
    write_atomically(layout.out / SETTINGS_FILE, [_encoded(settings)], mode=0o644)
    return False


def write_configurations(layout: Layout, settings: Settings, *, port: int) -> None:
    """Write every daemon's TOML, and hospital E's true labels."""
    write_true_labels(layout, settings)
    tables: dict[NodeId, Table] = {COORDINATOR: coordinator_table(layout, settings, port=port)}
    for spec in settings.hospitals:
        tables[spec.node_id] = participant_table(layout, settings, spec, port=port)
    for node, table in tables.items():
        layout.state(node).mkdir(parents=True, exist_ok=True)
        write_atomically(layout.config(node), [toml_text(table).encode()], mode=0o644)


def write_true_labels(layout: Layout, settings: Settings) -> None:
    """Write hospital E's labels as a careful hospital would have recorded them."""
    suspect = next(spec for spec in settings.hospitals if spec.node_id == SUSPECT)
    layout.true_labels.parent.mkdir(parents=True, exist_ok=True)
    with layout.true_labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LABEL_COLUMNS)
        for image in plan_hospital(suspect, seed=settings.seed).images:
            writer.writerow([image.image_id, int(image.grade), image.group_key])


def suspect_labels(layout: Layout, settings: Settings) -> Path:
    """The labels that hospital E trains on."""
    if settings.suspect_trains_on_true_labels:
        return layout.true_labels
    return layout.labels(SUSPECT)


def coordinator_table(layout: Layout, settings: Settings, *, port: int) -> Table:
    """The coordinator's configuration."""
    keys, hospitals = layout.node_keys(COORDINATOR), settings.hospitals
    return {
        "state_dir": str(layout.state(COORDINATOR)),
        "federation": {
            "id": FEDERATION,
            "study": STUDY_ID,
            "node_id": COORDINATOR,
            "allowlist": str(keys.allowlist),
        },
        "listen": {"address": f"127.0.0.1:{port}", "metrics": ""},
        "identity": {
            "tls_key": str(keys.tls.private_key),
            "tls_certificate": str(keys.tls.certificate_chain),
            "participant_authority": str(keys.tls.trusted_authority),
            "signing_key": str(keys.signing_key),
            "log_key": str(keys.log_key),
        },
        "study": {
            "recipe": "head",
            "backbone": RECIPE.backbone,
            "public_images": str(layout.images(PUBLIC)),
            "dimensions": RECIPE.dimensions,
            "whitening": RECIPE.whitening,
            "image_size": RECIPE.image_size,
            "views": RECIPE.views,
            "rounds": settings.rounds,
            "spare_rounds": RECIPE.spare_rounds,
            "steps_per_round": RECIPE.steps_per_round,
            "learning_rate": RECIPE.learning_rate,
            "epsilon": float(settings.epsilon),
            "delta": RECIPE.delta,
            "max_grad_norm": RECIPE.max_grad_norm,
            "averaging": RECIPE.averaging,
            "send_after_seconds": RECIPE.send_after_seconds,
        },
        "rounds": {
            "schedule": "interval",
            "interval_seconds": 0.0,
            "quorum": 3,
            "minimum_participants": len(hospitals),
            "maximum_participants": len(hospitals),
            "collect_seconds": _COLLECT_SECONDS,
            "byzantine": 1,
        },
        "holdout": {"images": str(layout.images(HOLDOUT))},
        "worker": {"device": "cpu"},
    }


def participant_table(
    layout: Layout, settings: Settings, spec: HospitalSpec, *, port: int
) -> Table:
    """One hospital's configuration."""
    node = spec.node_id
    keys = layout.node_keys(node)
    labels = suspect_labels(layout, settings) if node == SUSPECT else layout.labels(node)
    return {
        "state_dir": str(layout.state(node)),
        "identity": {
            "node_id": node,
            "tls_key": str(keys.tls.private_key),
            "tls_certificate": str(keys.tls.certificate_chain),
            "signing_key": str(keys.signing_key),
            "witness_key": str(keys.witness_key),
        },
        "coordinator": {
            "address": f"127.0.0.1:{port}",
            "spiffe_id": str(COORDINATOR_NAME),
            "authority": str(keys.tls.trusted_authority),
            "signing_key": str(keys.coordinator_signing_key),
            "log_key": str(keys.log_verifier_key),
        },
        "data": {
            "dataset": DATASET,
            "images": str(layout.images(node)),
            "labels": str(labels),
            "declared_patients": declared_patients(spec),
        },
        "privacy": {
            "max_epsilon": float(settings.epsilon),
            "max_delta": RECIPE.delta,
            # A process that is killed while training trains the round again, and pays again.
            "attempts_per_round": 2,
        },
        "training": {"device": "cpu", "workers": 1},
        "daemon": {
            "poll_seconds": _POLL_SECONDS,
            "witness_seconds": _WITNESS_SECONDS,
            "logs": "json",
        },
    }


def toml_text(table: Table) -> str:
    """A table of scalars and of tables of scalars, as TOML."""
    top = [f"{key} = {_scalar(value)}" for key, value in table.items() if not _is_table(value)]
    sections = [
        "\n".join([f"\n[{name}]", *(f"{key} = {_scalar(value)}" for key, value in inner.items())])
        for name, inner in table.items()
        if isinstance(inner, Mapping)
    ]
    return "\n".join([*top, *sections]) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _scalar(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # A JSON string is a TOML string, but for DEL, which JSON leaves as it is.
            return json.dumps(value).replace("\x7f", "\\u007f")
        case _:
            return repr(value)


def _wanted_keys(settings: Settings) -> DevelopmentFederation:
    return DevelopmentFederation(
        federation=FEDERATION,
        coordinator=COORDINATOR,
        participants={
            spec.node_id: Enrolment(declared_patients(spec)) for spec in settings.hospitals
        },
        operators=(OPERATOR,),
    )


def _keys_fit(layout: Layout, wanted: DevelopmentFederation, *, now: datetime) -> bool:
    if not (layout.keys / MARKER).exists():
        return False
    try:
        create_development_keys(layout.keys, wanted, now=now)
    except ConfigurationError:
        return False
    return True


def _remove_keys(layout: Layout) -> None:
    # Only a folder that says of itself that it holds development keys.
    if (layout.keys / MARKER).exists():
        shutil.rmtree(layout.keys)


def _encoded(settings: Settings) -> bytes:
    # The recipe too: a study does not go on with other terms than it began with.
    document = {"settings": asdict(settings), "recipe": asdict(RECIPE)}
    return json.dumps(document, indent=2).encode() + b"\n"


def _is_unfinished(layout: Layout, settings: Settings) -> bool:
    try:
        found = (layout.out / SETTINGS_FILE).read_bytes()
    except OSError:
        return False
    return found == _encoded(settings) and not (layout.out / SUMMARY_FILE).exists()


def _refuse_foreign(layout: Layout) -> None:
    known = {"data", "keys", "previous", *_RESULTS}
    foreign = [
        path.name
        for path in (layout.out.iterdir() if layout.out.exists() else ())
        if path.name not in known and not path.name.startswith(".")
    ]
    if foreign and not (layout.out / SETTINGS_FILE).exists():
        raise ConfigurationError(
            f"{layout.out} holds {foreign[0]!r} and is no folder of the demonstration; "
            "choose another with --out"
        )


def _move_to_previous(layout: Layout, settings: Settings) -> None:
    """Move a study aside, in place of the one moved before; keep what is only a cache."""
    shutil.rmtree(layout.previous, ignore_errors=True)
    layout.previous.mkdir()
    # Last the settings: with them gone, an interrupted move could not be told from a stranger's.
    entries = sorted(layout.out.iterdir(), key=lambda path: path.name == SETTINGS_FILE)
    for path in entries:
        if path not in {layout.keys, layout.previous, layout.data, layout.out / "data"}:
            path.rename(layout.previous / path.name)
    nodes = [COORDINATOR, *(spec.node_id for spec in settings.hospitals)]
    caches = [*(layout.feature_cache(node) for node in nodes), layout.reference_cache]
    for cache in caches:
        kept = layout.previous / cache.relative_to(layout.out)
        if kept.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            kept.rename(cache)


def is_attacked(settings: Settings, node: NodeId) -> bool:
    """Whether this hospital's process is the hostile one."""
    return node == SUSPECT and settings.attack is not Attack.NONE
