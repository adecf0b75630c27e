"""A study file: which federation is simulated, who attacks it, and who aggregates.

A TOML file is one ``Study``, or a grid of them: every combination of the values listed under
``[grid]``. Reads the file; runs nothing.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, groupby, product
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from matl.attacks import ATTACKS, Room
from matl.simulation.datasets import DataSet
from matl_common.configuration import Section
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId
from matl_common.modes import MATLMode
from matl_common.validation import problems_in
from matl_coordinator.core.claim import claimed_tolerance

NO_ATTACK: Final = "none"
"""Every hospital is honest: whom does the rule exclude then?"""
TUTORIAL_PATIENTS: Final = (10_000, 5_000, 3_000, 2_000, 1_000)
_MOST_CELLS: Final = 100_000

EXAMPLE: Final = """\
# matl simulate study.toml
# Five hospitals of the tutorial's sizes; the smallest has all its labels the wrong way round.

arms = ["oracle", "matl", "mean", "fedavg-equal"]   # who aggregates, on the same updates
seeds = 5                                # splits, noise and attackers are drawn anew for each

[data]
set = "digits"                           # or "fashion", or "features.safetensors"

[hospitals]
patients = [10000, 5000, 3000, 2000, 1000]
alpha = 0.5                              # Dirichlet class mix; inf (the default) is iid

[training]
recipe = "head"                          # or "network": a small one, without privacy
rounds = 20
steps = 2
learning_rate = 24.0

[privacy]
epsilon = 1.0                            # over the whole study; inf (the default) adds no noise

[hostile]
attack = "label_complement"              # any of matl.attacks; "none" for no attacker
hospitals = ["hospital_e"]               # or count = 1, or share = 0.2: drawn with the seed

# Every combination of such lists is run. Keys are those of the tables above.
# [grid]
# "privacy.epsilon" = [1.0, inf]
# "hostile.attack" = ["none", "label_complement"]
"""


class ArmName(StrEnum):
    """Who aggregates."""

    ORACLE = "oracle"
    """Knows who is hostile: the others' mean by capped enrolled sizes."""
    CENTRALISED = "centralised"
    """All patients in one place, with their true labels and without noise: what no hospital may
    do, and the best that the recipe can."""
    MATL = "matl"
    """The product as it is configured by default, with a holdout set (MODE1)."""
    MATL_PEERS = "matl-mode0"
    """The same without one: updates are compared with one another only (MODE0)."""
    MEAN = "mean"
    """Every admitted update, by enrolled size: FedAvg."""
    MEAN_EQUAL = "fedavg-equal"
    """Every admitted update, all alike, as in the tutorial."""
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed-mean"
    KRUM = "krum"
    MULTI_KRUM = "multi-krum"
    BULYAN = "bulyan"
    NNM_GM = "nnm+gm"
    FLTRUST = "fltrust"


DEFAULT_ARMS: Final = (ArmName.ORACLE, ArmName.MATL, ArmName.MEAN)


class Mix(StrEnum):
    """How the classes are spread over the hospitals."""

    IID = "iid"
    DIRICHLET = "dirichlet"
    SITES = "sites"
    """Every hospital has the rows of its own site, drawn anew with replacement for each seed."""


class Data(Section):
    """What the hospitals own."""

    set: str = DataSet.DIGITS
    """``digits``, ``fashion``, or a file of features beside the study."""
    holdout_images: int = Field(default=500, ge=50, le=100_000)
    """The coordinator's, in equal numbers of each class; half are the reference."""
    public_images: int = Field(default=0, ge=0, le=1_000_000)
    """That the head's projection is fitted to; 0 for the set's own number."""
    holdout_sites: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """Sites, from 0, whose patients the holdout set is taken from, in place of the set's own. Some
    patients of every site are then kept for measuring each site's accuracy by itself."""


class Hospitals(Section):
    """How many hospitals there are, how large, and how alike."""

    count: int = Field(default=5, ge=2, le=2000)
    patients: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """As enrolled, hospital by hospital, in place of ``count``."""
    between: Annotated[tuple[int, int], Field(strict=False)] = (2000, 3000)
    """Where only ``count`` is given: each size is drawn from this range."""
    alpha: float = Field(default=math.inf, gt=0.0)
    """Of the Dirichlet distribution of each hospital's class mix; ``inf`` for all alike."""
    by_site: bool = False
    """Each hospital owns the rows of its own site, where the data set tells sites apart."""

    @model_validator(mode="after")
    def _check(self) -> Hospitals:
        if self.patients and min(self.patients) < 1:
            raise ValueError("patients must all be above 0")
        if not 10 <= self.between[0] <= self.between[1]:
            raise ValueError("between must be two sizes of at least 10, the smaller first")
        if self.by_site and math.isfinite(self.alpha):
            raise ValueError("by_site gives every hospital its own mix; leave alpha out")
        return self


class Training(Section):
    """What every hospital does in a round."""

    recipe: Literal["head", "network"] = "network"
    """``network``: pixels, 32 rectified units, classes. ``head``: the product's recipe."""
    rounds: int = Field(default=30, ge=1, le=10_000)
    steps: int = Field(default=20, ge=1, le=10_000)
    learning_rate: float = Field(default=0.2, gt=0.0, le=1e6)
    max_grad_norm: float = Field(default=0.0, ge=0.0, le=1e6)
    """0 for the recipe's own: 1 for the head, 10 for the network, where it is a limit of length."""
    batch: int = Field(default=32, ge=1, le=100_000)
    """Of the network."""
    dimensions: int = Field(default=48, ge=1, le=4096)
    whitening: float = Field(default=0.5, ge=0.0, le=1.0)
    averaging: Literal["none", "second-half"] = "none"
    """Whether the mean of the second half's models is what counts in the end."""

    @property
    def longest_gradient(self) -> float:
        return self.max_grad_norm or (1.0 if self.recipe == "head" else 10.0)

    @property
    def average_from(self) -> int:
        """As in the study plan; 0 where the last model counts."""
        return self.rounds // 2 + 1 if self.averaging == "second-half" else 0


class Privacy(Section):
    """Patient-level, add or remove one, over the whole study."""

    epsilon: float = Field(default=math.inf, gt=0.0)
    delta: float = Field(default=1e-5, gt=0.0, lt=1.0)


class Coordinator(Section):
    """What the coordinators of the arms are told."""

    byzantine: int = Field(default=-1, ge=-1)
    """f; -1 for the most that the mode claims, 45 % with a holdout set."""
    rule: str = ""
    """Of the arms ``matl`` and ``matl-mode0``; empty for the default."""
    class_mixes: bool = Field(default=True, exclude_if=bool)
    """Every hospital is enrolled with its ``label_histogram``; false for none, as where they are
    not known. Left out of keys unless it is false: studies from before it was asked keep theirs."""


class Hostile(Section):
    """Who attacks, and how."""

    attack: str = NO_ATTACK
    hospitals: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """By name: from hospital_a on, of more than 26 hospitals from hospital_00 on."""
    count: int = Field(default=0, ge=0)
    share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of the hospitals, rounded to a whole number of them."""

    @model_validator(mode="after")
    def _check(self) -> Hostile:
        if self.attack != NO_ATTACK and self.attack not in ATTACKS:
            raise ValueError(f"attack must be {NO_ATTACK} or one of {', '.join(ATTACKS)}")
        if len(set(self.hospitals)) < len(self.hospitals):
            raise ValueError("hospitals has a name twice")
        if sum(map(bool, (self.hospitals, self.count, self.share))) > 1:
            raise ValueError("say who is hostile by one of hospitals, count and share")
        return self


class Study(Section):
    """One federation, under one attack."""

    data: Data = Data()
    hospitals: Hospitals = Hospitals()
    training: Training = Training()
    privacy: Privacy = Privacy()
    coordinator: Coordinator = Coordinator()
    hostile: Hostile = Hostile()

    @model_validator(mode="after")
    def _check(self) -> Study:
        if self.is_private and self.training.recipe != "head":
            raise ValueError("a finite privacy.epsilon needs training.recipe 'head'")
        if self.byzantine * 2 >= self.members and self.coordinator.byzantine >= 0:
            raise ValueError(f"coordinator.byzantine must be below half of {self.members}")
        if unknown := set(self.hostile.hospitals) - set(self.nodes):
            raise ValueError(f"hostile.hospitals: no {', '.join(sorted(unknown))} in this study")
        if self.hostile_count >= self.members:
            raise ValueError("at least one hospital must be honest")
        if self.hostile.attack != NO_ATTACK and not self.hostile_count:
            raise ValueError(
                f"attack {self.hostile.attack} without a hospital: give hostile.count, "
                "hostile.hospitals, or a hostile.share that is a hospital at least"
            )
        if self.data.holdout_sites and not self.hospitals.by_site:
            raise ValueError("data.holdout_sites needs hospitals.by_site")
        if unknown_sites := set(self.data.holdout_sites) - set(range(self.members)):
            raise ValueError(
                f"data.holdout_sites: no site {sorted(unknown_sites)[0]} in this study"
            )
        attack = ATTACKS.get(self.hostile.attack)
        if attack is not None and attack.room is Room.PRIVATE and not self.is_private:
            raise ValueError(f"attack {self.hostile.attack} is on privacy noise: give an epsilon")
        return self

    @property
    def members(self) -> int:
        return len(self.hospitals.patients) or self.hospitals.count

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """Names in order."""
        if self.members <= 26:
            return tuple(NodeId(f"hospital_{chr(ord('a') + i)}") for i in range(self.members))
        return tuple(
            NodeId(f"hospital_{i:0{len(str(self.members - 1))}d}") for i in range(self.members)
        )

    @property
    def is_private(self) -> bool:
        return math.isfinite(self.privacy.epsilon)

    @property
    def byzantine(self) -> int:
        """f as the coordinator is told."""
        if self.coordinator.byzantine >= 0:
            return self.coordinator.byzantine
        return claimed_tolerance(MATLMode.MODE1, self.members).f

    @property
    def hostile_count(self) -> int:
        if self.hostile.hospitals:
            return len(self.hostile.hospitals)
        return self.hostile.count or round(self.hostile.share * self.members)

    @property
    def mix(self) -> Mix:
        if self.hospitals.by_site:
            return Mix.SITES
        return Mix.IID if math.isinf(self.hospitals.alpha) else Mix.DIRICHLET

    @property
    def mix_name(self) -> str:
        """As in ``dirichlet-0.5``."""
        return f"{self.mix}-{self.hospitals.alpha:g}" if self.mix is Mix.DIRICHLET else self.mix

    @property
    def setting(self) -> str:
        """Data, hospitals, classes and privacy, for people who watch."""
        epsilon = f"ε={self.privacy.epsilon:g}" if self.is_private else "no DP"
        who = f"n{self.members}f{self.hostile_count}"
        return f"{self.data.set} {who} {self.mix_name} {epsilon}"

    @property
    def settled(self) -> Study:
        """The same study, with nobody named as hostile where nobody attacks."""
        if self.hostile.attack != NO_ATTACK:
            return self
        return self.model_copy(update={"hostile": Hostile()})

    def key(self) -> str:
        """The same for equal studies, in every version of Python."""
        return json.dumps(self.plain(), sort_keys=True)

    def plain(self) -> dict[str, dict[str, Any]]:
        """As JSON, in which infinity is a word."""
        table: dict[str, dict[str, Any]] = json.loads(self.model_dump_json())
        return table


@dataclass(frozen=True, slots=True)
class StudyFile:
    """What one file asks for."""

    name: str
    folder: Path
    """What names of feature files are relative to."""
    rows: tuple[tuple[Study, ...], ...]
    """Studies that differ in the grid's last key alone, such as the attack, stand together."""
    arms: tuple[ArmName, ...]
    seeds: tuple[int, ...]

    @property
    def studies(self) -> tuple[Study, ...]:
        """Every study once, in the grid's order."""
        return tuple(chain.from_iterable(self.rows))


_Arm = Annotated[ArmName, Field(strict=False)]


class _File(Section):
    """The keys of a file that say what is done with its study."""

    arms: Annotated[tuple[_Arm, ...], Field(strict=False, min_length=1)] = DEFAULT_ARMS
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (0, 1, 2)

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, value: object) -> object:
        """A number of seeds stands for the first so many."""
        if type(value) is not int:
            return value
        if value < 1:
            raise ValueError("give at least one seed")
        return list(range(value))

    @model_validator(mode="after")
    def _check(self) -> _File:
        if min(self.seeds) < 0:
            raise ValueError("seeds must not be below 0")
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.arms)) < len(self.arms):
            raise ValueError("every seed and every arm counts once; leave out what is there twice")
        return self


def read_study(path: Path) -> StudyFile:
    """Read a study file.

    Raises:
        ConfigurationError: it is missing, no TOML, or asks for what cannot be; the message names
            every key that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    return parse_study(text, name=path.stem, folder=path.parent)


def parse_study(text: str, *, name: str, folder: Path = Path()) -> StudyFile:
    """The study file with this text.

    Raises:
        ConfigurationError: as ``read_study``.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"study {name} is not TOML: {error}") from None
    grid = table.pop("grid", {})
    ways = {key: table.pop(key) for key in ("arms", "seeds") if key in table}
    try:
        asked = _File.model_validate(ways)
        studies: dict[Study, int] = {}
        for number, chosen in enumerate(_combinations(grid)):
            studies.setdefault(Study.model_validate(_merged(table, chosen)).settled, number)
    except ValidationError as error:
        raise ConfigurationError(f"study {name}: {problems_in(error, whole='study')}") from None
    except _GridError as error:
        raise ConfigurationError(f"study {name}: [grid] {error}") from None
    wide = len(next(reversed(grid.values()), [None]))
    rows = groupby(studies, lambda study: studies[study] // wide)
    return StudyFile(name, folder, tuple(tuple(row) for _, row in rows), asked.arms, asked.seeds)


class _GridError(ConfigurationError):
    """A grid whose keys or values are none."""


def _combinations(grid: object) -> list[dict[str, object]]:
    if not isinstance(grid, Mapping) or not all(
        isinstance(each, list) and each for each in grid.values()
    ):
        raise _GridError('must hold lists, as in "privacy.epsilon" = [1.0, inf]')
    if math.prod(len(each) for each in grid.values()) > _MOST_CELLS:
        raise _GridError(f"has more than {_MOST_CELLS} combinations")
    return [dict(zip(grid, chosen, strict=True)) for chosen in product(*grid.values())]


def _merged(table: Mapping[str, Any], chosen: Mapping[str, object]) -> dict[str, Any]:
    whole = {key: dict(each) if isinstance(each, Mapping) else each for key, each in table.items()}
    for dotted, value in chosen.items():
        section, _, key = dotted.partition(".")
        whole.setdefault(section, {})
        if not key or not isinstance(whole[section], dict):
            raise _GridError(f"{dotted!r}: name a key of a table, as in hostile.attack")
        whole[section][key] = value
    return whole
