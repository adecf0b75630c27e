"""The coordinator's configuration: one TOML file, read once, every key checked.

The only module of the coordinator that takes settings from the environment. Relative paths
are relative to the file they stand in.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from matl_common.configuration import (
    Address,
    FederationName,
    FilePath,
    KeyReference,
    NodeName,
    Seconds,
    Section,
    load,
)
from matl_common.errors import ConfigurationError
from matl_common.identity.key_places import KeyPlace
from matl_common.identity.tls import TlsPlace, tls_place
from matl_common.ids import Digest, NodeId, digest_of
from matl_common.logs import LogStyle
from matl_common.modes import MATLMode
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import Recipe
from matl_common.validation import problems_in
from matl_coordinator.aggregation.ray_executor import LOCAL_CLUSTER
from matl_coordinator.aggregation.stored import SharedPlace
from matl_coordinator.core.retention import DEFAULT_YEARS, Compliance, check_years
from matl_coordinator.core.robust.registry import DEFAULT_RULE, Aggregator, Choice, make_aggregator
from matl_coordinator.core.rounds import RoundRules
from matl_coordinator.core.trust_record import DEFAULT_POLICY, TrustPolicy
from matl_coordinator.schedule import ByCalendar, ByHand, EveryInterval, Schedule

NOT_ROBUST = frozenset({"weighted_mean", "clipped_weighted_mean", "foolsgold"})
"""Rules that need the trust of a holdout set behind their weights."""

_SECRET_PARAMETERS = frozenset({"password", "sslpassword", "oauth_client_secret"})
"""What libpq takes from a URL's query, and nobody may read from it."""

_ENVIRONMENT = {
    "MATL_NODE_ID": ("federation", "node_id"),
    "MATL_PRIVATE_KEY": ("identity", "tls_key"),
}


class Federation(Section):
    """Who takes part in what."""

    id: FederationName
    study: NodeName
    node_id: NodeName
    """This coordinator's name, as in its certificate."""
    allowlist: FilePath


class Listen(Section):
    """Where the coordinator can be reached."""

    address: Address = "0.0.0.0:8470"
    metrics: Address = "127.0.0.1:9470"
    """Where Prometheus scrapes, and /healthy answers; empty for nowhere."""
    logs: LogStyle = "auto"
    """``console`` for people, ``json`` for machines; ``auto`` looks for a terminal."""


class Identity(Section):
    """The coordinator's own keys, and whom it lets in."""

    tls_key: KeyReference
    tls_certificate: FilePath
    participant_authority: FilePath
    signing_key: KeyReference
    log_key: KeyReference
    """Ed25519; signs the log's checkpoints and nothing else."""

    @property
    def tls(self) -> TlsPlace:
        return tls_place(self.tls_key, self.tls_certificate, self.participant_authority)


class Study(Section):
    """What is trained. Fixed once the study has begun."""

    recipe: Annotated[Recipe, Field(strict=False)] = Recipe.HEAD
    backbone: str = "resnet50"
    """``head``: a public backbone. ``full``: a network."""
    weights_file: FilePath | None = None
    """The backbone's weights, where they are not where the backbone's package keeps them."""
    public_images: FilePath | None = None
    """``head``: folder of public images that the projection is fitted to."""
    public_labels: FilePath | None = None
    dimensions: int = Field(default=64, ge=1, le=4096)
    whitening: float = Field(default=0.5, ge=0.0, le=1.0)
    public_steps: int = Field(default=0, ge=0, le=10_000)
    """``head``: gradient steps on the public images and their labels before the first round. 0
    begins with a head of zeros, which needs no labels that deserve trust."""
    image_size: int = Field(default=224, ge=16, le=1024)
    views: int = Field(default=2, ge=1, le=8)
    rounds: int = Field(default=50, ge=1, le=10_000)
    spare_rounds: int = Field(default=2, ge=0, le=100)
    """Rounds beyond ``rounds`` that the budget has room for, in case some are aborted."""
    steps_per_round: int = Field(default=3, ge=1, le=10_000)
    learning_rate: float = Field(default=1.0, gt=0.0, le=1e6)
    epsilon: float = Field(default=1.0, gt=0.0)
    """Over the whole study; ``inf`` promises no privacy and adds no noise."""
    delta: float = Field(default=1e-5, gt=0.0, lt=1.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1e6)
    noise: Annotated[Noise, Field(strict=False)] = Noise.GAUSSIAN
    """``discrete-gaussian`` hardens ``head`` against attacks on floating-point noise."""
    send_after_seconds: Annotated[float, Field(ge=0.0, le=30 * 86400.0)] = 300.0
    """How long after it began to train a hospital sends its update, so that the time does not
    tell of its data; longer than training takes anywhere. 0 sends at once."""
    sample_rate: float = Field(default=1.0, gt=0.0, le=1.0)
    batch_size: int = Field(default=32, ge=1, le=1 << 20)
    averaging: Literal["none", "second-half"] = "none"
    """Which rounds' own models the released ones are means of. Pays where steps are so long that
    noise outweighs what the mean lags behind."""
    evaluation: Literal["none", "noised-count"] = "none"
    """``head``: each round hospitals tell, with noise, how many of their patients the round's base
    model gets right."""
    evaluation_share: float = Field(default=0.05, gt=0.0, le=0.5)
    """Of the budget, for all evaluations together; training has the rest."""

    @model_validator(mode="after")
    def _check(self) -> Study:
        if self.recipe is Recipe.HEAD:
            if self.public_images is None:
                raise ValueError("recipe 'head' needs public_images, a folder of public images")
            if self.sample_rate != 1.0:
                raise ValueError("recipe 'head' uses every patient at every step; sample_rate = 1")
        if self.noise is not Noise.GAUSSIAN and not (
            self.recipe is Recipe.HEAD and self.is_private
        ):
            raise ValueError(f"noise '{self.noise}' needs recipe 'head' and a finite epsilon")
        if self.evaluates and not (self.recipe is Recipe.HEAD and self.is_private):
            raise ValueError(
                f"evaluation '{self.evaluation}' needs recipe 'head' and a finite epsilon: the "
                "budget of 'full' has no exact share for it, and without noise it would tell how "
                "many patients there are"
            )
        return self

    @property
    def is_private(self) -> bool:
        return math.isfinite(self.epsilon)

    @property
    def evaluates(self) -> bool:
        return self.evaluation != "none"

    @property
    def max_rounds(self) -> int:
        """That the budget has room for."""
        return self.rounds + self.spare_rounds

    @property
    def max_steps(self) -> int:
        return self.steps_per_round * self.max_rounds

    @property
    def average_from(self) -> int:
        """The first release, counted from 1, that averages; 0 for none."""
        return self.rounds // 2 + 1 if self.averaging == "second-half" else 0


class PreAggregation(Section):
    """A step before the rule, by name."""

    name: str
    parameters: dict[str, int | float] = Field(default_factory=dict)


class Rounds(Section):
    """When rounds open, whom they wait for, and how updates become a model."""

    schedule: Literal["interval", "calendar", "manual"] = "interval"
    interval_seconds: Annotated[float, Field(ge=0, le=366 * 86400)] = 3600.0
    calendar: str = ""
    """A cron expression in UTC, for schedule = "calendar"."""
    quorum: int = Field(default=3, ge=1)
    minimum_participants: int = Field(default=3, ge=1)
    maximum_participants: int = Field(default=1000, ge=1)
    collect_seconds: Seconds = 3600.0
    present_seconds: Seconds = 120.0
    """A hospital counts as present this long after it was last heard from."""
    rule: str = DEFAULT_RULE
    rule_parameters: dict[str, int | float] = Field(default_factory=dict)
    pre_aggregation: tuple[PreAggregation, ...] = Field(default=(), strict=False, max_length=4)
    """Applied to the updates before the rule, first to last."""
    byzantine: int = Field(default=1, ge=0)
    """f: how many hospitals may be hostile; together they hold at most half of the weight."""
    keep_spooled: int = Field(default=2, ge=0)
    """Rounds whose updates stay on disk after they end."""

    @model_validator(mode="after")
    def _check(self) -> Rounds:
        if self.quorum > self.maximum_participants:
            raise ValueError("quorum is above maximum_participants")
        if self.minimum_participants > self.maximum_participants:
            raise ValueError("minimum_participants is above maximum_participants")
        try:
            _ = self.aggregator, self.opening
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def aggregator(self) -> Aggregator:
        """The rule with what goes before it, every parameter checked."""
        return make_aggregator(
            Choice(self.rule, self.rule_parameters),
            [Choice(each.name, each.parameters) for each in self.pre_aggregation],
            f=self.byzantine,
        )

    @property
    def fixed_below_byzantine(self) -> tuple[tuple[str, int | float], ...]:
        """Stages whose own ``f`` is set, and below ``byzantine``: their names and ``f``."""
        stages = (
            (f"rounds.rule {self.rule}", self.rule_parameters),
            *(
                (f"rounds.pre_aggregation {each.name}", each.parameters)
                for each in self.pre_aggregation
            ),
        )
        return tuple(
            (name, parameters["f"])
            for name, parameters in stages
            if parameters.get("f", self.byzantine) < self.byzantine
        )

    @property
    def opening(self) -> Schedule:
        match self.schedule:
            case "interval":
                return EveryInterval(timedelta(seconds=self.interval_seconds))
            case "calendar":
                return ByCalendar(self.calendar)
            case "manual":
                return ByHand()

    @property
    def rules(self) -> RoundRules:
        return RoundRules(
            quorum=self.quorum,
            minimum_participants=self.minimum_participants,
            maximum_participants=self.maximum_participants,
            collect_for=timedelta(seconds=self.collect_seconds),
        )


class Trust(Section):
    """What an operator may set on the trust rule; the other constants are the rule's own."""

    composite: Literal["root-test", "matl-paper"] = DEFAULT_POLICY.composite
    """What trust follows: the test against the holdout set, or the score of MATL's paper."""
    trusted_from: float = Field(default=DEFAULT_POLICY.trusted_from, ge=0.65, le=0.95)
    """Trust from which a hospital counts as trusted."""
    excluded_below: float = Field(default=DEFAULT_POLICY.excluded_below, ge=0.2, le=0.5)
    """Trust below which it is quarantined: its updates weigh nothing."""
    harm_z: float = Field(default=DEFAULT_POLICY.harm_z, ge=-10.0, le=-1.5)
    """Standard errors against the holdout set from which a single round does harm."""
    accumulated_harm_z: float = Field(default=DEFAULT_POLICY.accumulated_harm_z, ge=-10.0, le=-1.5)
    """... and from which all rounds together do."""
    readmit_after: int = Field(default=DEFAULT_POLICY.readmit_after, ge=1, le=100)
    """Good rounds in a row that end a first quarantine; doubled for the second."""
    operator_from: int = Field(default=DEFAULT_POLICY.operator_from, ge=1, le=100)
    """The quarantine from which only an operator releases."""
    minimum_strength: float = Field(default=DEFAULT_POLICY.minimum_strength, ge=0.1, le=1000.0)
    """Combined trust below which a round is held."""
    minimum_support: float = Field(default=DEFAULT_POLICY.minimum_support, ge=0.1, le=1.0)
    """Share, of the patients enrolled outside the f largest hospitals, that trusted updates must
    stand for; a round below it is held."""
    cartel_alarm_share: float = Field(default=1.0 / 3.0, gt=0.0, le=1.0)
    """Weight that nearly identical updates would together have had, above which to alarm."""

    @property
    def policy(self) -> TrustPolicy:
        """The constants of the rule with what is set here."""
        return replace(DEFAULT_POLICY, **self.model_dump(exclude={"cartel_alarm_share"}))


class Holdout(Section):
    """De-identified images with correct labels that the coordinator may look at."""

    images: FilePath
    labels: FilePath | None = None
    """CSV with image_id and dr_level; ``labels_deidentified.csv`` beside the images if unset."""


class Log(Section):
    """How the transparency log keeps what it says."""

    encryption_key: KeyReference | None = None
    """Wraps the monthly keys that entries are encrypted with: a ``pkcs11:`` URI, or a file of 32
    bytes in base64. Made as ``log-encryption.key`` in ``state_dir`` if unset. Back it up apart
    from the database."""
    retention_years: int = Field(default=DEFAULT_YEARS, ge=0, le=100)
    """How old a month of entries must be before an operator can drop it."""
    compliance: Annotated[Compliance, Field(strict=False)] = Compliance.HIPAA
    """``hipaa``: at least six years. ``none``: as few as one likes."""

    @model_validator(mode="after")
    def _check(self) -> Log:
        try:
            check_years(self.retention_years, self.compliance)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self


class Attestation(Section):
    """What this coordinator shows hospitals of the machine it runs on (MODE2)."""

    attester: Literal["sev-guest", "configfs-tsm", "SIMULATED"]
    """Where evidence comes from. ``SIMULATED`` is software and proves nothing."""
    policy: FilePath
    """What this coordinator's own evidence must satisfy before it starts; see attestation.md."""
    endorsements: FilePath | None = None
    """AMD: VCEK or VLEK, ASK and ARK in PEM, where the host hands out none. Intel: the
    collateral as JSON, which expires about monthly. Read anew for every answer."""

    @property
    def is_genuine(self) -> bool:
        """Whether hardware attests, so that it matters where the TLS key is."""
        return self.attester != "SIMULATED"


class Worker(Section):
    """The process that scores and evaluates."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_bytes: int = Field(default=8 << 30, ge=256 << 20)
    timeout_seconds: Seconds = 3600.0
    keep_warm_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    attempts: int = Field(default=5, ge=1, le=100)
    """Failed attempts at one job after which its round is aborted."""
    aggregation_threads: int = Field(default=2, ge=1, le=256)


class Aggregation(Section):
    """Who does the passes over updates, where this machine is too small for them."""

    executor: Literal["local", "ray"] = "local"
    """``local``: ``worker.aggregation_threads`` threads of the coordinator."""
    ray_address: str = LOCAL_CLUSTER
    """Of a cluster that this machine is in, ``host:port``; ``local`` for one of its own."""
    ray_workers: int = Field(default=2, ge=1, le=4096)
    """Tasks that the cluster works on at once."""
    stall_seconds: Seconds = 600.0
    """The cluster counts as lost once no task came back for so long; this machine goes on."""
    store: str = ""
    """Where workers read updates: ``file:///folder``, also NFS, or ``s3://bucket/prefix``."""
    store_endpoint: str = ""
    """Of an S3-compatible service other than Amazon's. Credentials are the environment's."""

    @model_validator(mode="after")
    def _check(self) -> Aggregation:
        try:
            place = self.place
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        if place is None and (self.executor == "ray" or self.store_endpoint):
            raise ValueError(
                "aggregation.store says nothing: workers elsewhere need a place to read updates, "
                "such as s3://bucket/prefix"
            )
        return self

    @property
    def place(self) -> SharedPlace | None:
        """The shared store, if there is one."""
        return SharedPlace(self.store, self.store_endpoint) if self.store else None


class Limits(Section):
    """Bounds on what the coordinator holds, and on what others can make it hold."""

    spool_bytes: int = Field(default=64 << 30, ge=1 << 20)
    keep_models: int | None = Field(default=None, ge=1)
    """Released rounds whose models stay on disk once they are published; all if unset. Their proofs
    always stay, and so does what a replay of spooled rounds needs."""
    idle_seconds: Seconds = 60.0
    """A call from which nothing comes for this long is cut; an upload can be resumed. A chunk may
    be on its way besides, for as long as the slowest link takes (``wire.chunks``)."""
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 10.0


class Standby(Section):
    """Two daemons with one database and one ``state_dir``: one leads, the other waits to."""

    name: NodeName
    """This daemon's; the other has another."""
    poll_seconds: Seconds = 1.0
    """How often the lock is asked for, or confirmed."""
    lease_seconds: Annotated[float, Field(ge=1.0, le=3600.0)] = 10.0
    """How long the lock outlives its holder, and a leader its last confirmation."""

    @model_validator(mode="after")
    def _check(self) -> Standby:
        if self.lease_seconds < 3 * self.poll_seconds:
            raise ValueError(
                f"standby.lease_seconds = {self.lease_seconds:g} leaves no room for a confirmation "
                f"that gets lost; three times poll_seconds = {self.poll_seconds:g} at least"
            )
        return self


class Config(Section):
    """The whole configuration of a coordinator."""

    state_dir: FilePath
    database: str = ""
    """SQLAlchemy URL; an SQLite file in ``state_dir`` if unset."""
    federation: Federation
    listen: Listen = Listen()
    identity: Identity
    study: Study
    rounds: Rounds = Rounds()
    trust: Trust = Trust()
    holdout: Holdout | None = None
    """Without one the coordinator compares hospitals with one another only."""
    attestation: Attestation | None = None
    """With it the coordinator is attested, and does not start unless its evidence verifies."""
    log: Log = Log()
    worker: Worker = Worker()
    aggregation: Aggregation = Aggregation()
    limits: Limits = Limits()
    standby: Standby | None = None
    """With it, this daemon leads only while no other one does."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.database:
            try:
                asked = make_url(self.database).query
            except ArgumentError as error:
                raise ValueError("database is not a URL such as postgresql://host/name") from error
            secret = sorted(key for key in asked if key.lower() in _SECRET_PARAMETERS)
            if secret:
                raise ValueError(
                    f"database has {', '.join(secret)} behind the question mark, where it would be "
                    "shown; a password stands before the host, or in a file that passfile names"
                )
        if self.standby is not None and not self.is_on_postgres:
            raise ValueError(
                "[standby] needs PostgreSQL, which two daemons can share: set database to "
                "postgresql://…, or leave [standby] out"
            )
        if self.rounds.collect_seconds <= self.study.send_after_seconds:
            raise ValueError(
                f"rounds.collect_seconds = {self.rounds.collect_seconds:g} ends before any update "
                f"may be sent (study.send_after_seconds = {self.study.send_after_seconds:g}); "
                "collect for at least twice as long"
            )
        self._check_attestation()
        if self.holdout is None:
            self._check_peer_rule()
        elif self.study.public_steps and self.holdout.images == self.study.public_images:
            # Trust compares updates with the holdout set's gradient, which has vanished where
            # the model has learnt that set already.
            raise ValueError(
                "with study.public_steps the first model learns study.public_images, which "
                "therefore cannot be holdout.images too; give the holdout set images of its own"
            )
        return self

    def _check_attestation(self) -> None:
        if self.attestation is None:
            return
        if self.holdout is None:
            raise ValueError(
                "[attestation] is about a coordinator that scores on a holdout set (MODE2); set "
                "holdout.images"
            )
        if not self.attestation.is_genuine and self.log.compliance is Compliance.HIPAA:
            raise ValueError(
                "attestation.attester SIMULATED proves nothing, and log.compliance is hipaa; use "
                'a real attester, or say compliance = "none"'
            )

    def _check_peer_rule(self) -> None:
        rule = self.rounds.rule
        if self.trust.composite == "matl-paper":
            raise ValueError(
                "trust.composite matl-paper rests on a holdout set; set holdout.images"
            )
        if self.rounds.aggregator.needs.root:
            raise ValueError(f"rounds.rule {rule} compares with a holdout set; set holdout.images")
        if rule in NOT_ROBUST:
            raise ValueError(
                f"without a holdout set, rounds.rule {rule} protects from nobody; set "
                'holdout.images, or a robust rule: rule = "geometric_median" with '
                'pre_aggregation name = "nnm", for example'
            )
        for name, f in self.rounds.fixed_below_byzantine:
            raise ValueError(
                f"without a holdout set, {name} must withstand all of rounds.byzantine = "
                f"{self.rounds.byzantine} hospitals, and its f is {f}; leave f out, or set "
                "holdout.images"
            )

    @property
    def node_id(self) -> NodeId:
        return NodeId(self.federation.node_id)

    @property
    def mode(self) -> MATLMode:
        """What updates are judged by, and where."""
        if self.holdout is None:
            return MATLMode.MODE0
        return MATLMode.MODE1 if self.attestation is None else MATLMode.MODE2

    @property
    def digest(self) -> Digest:
        """SHA-256 of what decides about rounds and models; attestation binds it.

        Where the state lies, who listens where and what a worker may use do not count.
        """
        whole = dict.fromkeys(("federation", "study", "rounds", "trust", "holdout"), True)
        # Not where keys are kept, which may be a token's address.
        kept = {"retention_years", "compliance"}
        said = self.model_dump(mode="json", include={**whole, "log": kept})
        return digest_of(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())

    @property
    def daemon(self) -> str:
        """Which of the two this is; empty for a coordinator without a standby."""
        return self.standby.name if self.standby is not None else ""

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.state_dir / 'coordinator.db'}"

    @property
    def is_on_postgres(self) -> bool:
        return make_url(self.database_url).get_backend_name() == "postgresql"

    @property
    def log_encryption_key(self) -> KeyPlace:
        return self.log.encryption_key or self.state_dir / "log-encryption.key"

    def printable(self) -> dict[str, Any]:
        """The effective configuration with the database's password masked."""
        shown = self.model_dump(mode="json")
        shown["database"] = make_url(self.database_url).render_as_string(hide_password=True)
        return shown


def with_database(config: Config, url: str) -> Config:
    """The same with another database.

    Raises:
        ConfigurationError: it is no URL, or not one for this coordinator.
    """
    try:
        return Config.model_validate(config.model_dump() | {"database": url})
    except ValidationError as error:
        raise ConfigurationError(f"--audit-db: {problems_in(error, whole='database')}") from None


def load_config(path: Path, *, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the file, then ``MATL_NODE_ID`` and ``MATL_PRIVATE_KEY`` over it.

    Raises:
        ConfigurationError: unreadable, not TOML, an unknown key, or a value out of range;
            the message names the key and never the value.
    """
    overrides = {target: environment.get(name) for name, target in _ENVIRONMENT.items()}
    return load(Config, path, overrides=overrides)
