"""Every rule and pre-aggregation there is: parameters with their ranges, needs and sources.

A table and nothing else; ``registry`` checks a configuration against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from matl_coordinator.core.robust.centres import centered_clipping, geometric_median
from matl_coordinator.core.robust.coordinatewise import coordinate_median, meamed, trimmed_mean
from matl_coordinator.core.robust.distances import bulyan, krum, mda, mda_most_n, multi_krum
from matl_coordinator.core.robust.gram import Float64Array, Needs
from matl_coordinator.core.robust.matl import matl
from matl_coordinator.core.robust.means import clipped_weighted_mean, weighted_mean
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.preaggregation import arc, bucketing, clip_to_median_norm, nnm
from matl_coordinator.core.robust.rooted import fltrust, zeno_plus_plus
from matl_coordinator.core.robust.similarity import foolsgold
from matl_coordinator.core.robust.spectral import caf, dnc, smea, smea_most_n

Values = Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number a rule takes, with its inclusive range; an ``int`` default wants an int.

    Without a default it is f, and takes the study's number of Byzantine hospitals.
    """

    default: int | float | None
    minimum: int | float
    maximum: int | float

    @property
    def is_whole(self) -> bool:
        """Whether only integers are accepted."""
        return not isinstance(self.default, float)

    def describe(self) -> str:
        """The range, as an operator reads it."""
        kind = "a whole number" if self.is_whole else "a number"
        default = "the study's Byzantine hospitals" if self.default is None else self.default
        return f"{kind} from {self.minimum} to {self.maximum}, {default} unless set"


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """One rule and what may be set on it."""

    function: Callable[..., Plan]
    least_n: Callable[[Values], int]
    """Fewest updates with which the rule holds what it promises."""
    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    needs: Callable[[Values], Needs] = lambda _: Needs()
    most_n: Callable[[Values], int] | None = None
    """Most updates it can handle; None without bound."""
    distance_based: Callable[[Values], bool] = lambda _: False
    """Whether it trusts what lies near to others, which privacy noise reverses so that hostile
    updates get more weight than their number; see ``dominance``."""
    coordinatewise: bool = False
    """Whether its second pass sorts coordinates, for which ``compiled`` is loaded."""


@dataclass(frozen=True, slots=True)
class PreAggregationEntry:
    """One pre-aggregation and what may be set on it."""

    function: Callable[..., Float64Array]
    least_n: Callable[[Values], int]
    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    rows_for: Callable[[Values, int], int] = lambda _, rows: rows
    """Fewest updates that leave so many rows for the rule."""
    keeps_rows: bool = True
    """Whether there is one mixed row for each update, which goes on as its hospital's."""
    distance_based: bool = False


def _always(_: Values) -> bool:
    return True


def _any_n(_: Values) -> int:
    return 1


def _above_2f(values: Values) -> int:
    return 2 * int(values["f"]) + 1


def _above_2f_plus_2(values: Values) -> int:
    return 2 * int(values["f"]) + 3


_F = Parameter(None, 0, 10_000)
_ONLY_F = MappingProxyType({"f": _F})
_KRUM = MappingProxyType({"f": _F, "extra_neighbours": Parameter(0, 0, 1)})
_CLIP = MappingProxyType({"factor": Parameter(1.5, 0.1, 100.0)})
_STEP = Parameter(1.0, 1e-9, 1e9)

_BLANCHARD = "Blanchard et al., NeurIPS 2017"
_EL_MHAMDI = "El Mhamdi et al., ICML 2018"
_SUN = "Sun et al., arXiv 1911.07963"
_YIN = "Yin et al., ICML 2018"

RULES: Mapping[str, RuleEntry] = MappingProxyType(
    {
        "weighted_mean": RuleEntry(weighted_mean, _any_n, "McMahan et al., AISTATS 2017"),
        "clipped_weighted_mean": RuleEntry(clipped_weighted_mean, _any_n, _SUN, _CLIP),
        "matl": RuleEntry(
            matl,
            _any_n,
            "this project",
            {
                "clip": Parameter(1.5, 0.1, 100.0),
                "steps": Parameter(5, 1, 1000),
                "tau": Parameter(2.0, 0.1, 100.0),
            },
        ),
        "coordinate_median": RuleEntry(
            coordinate_median,
            _above_2f,
            _YIN,
            _ONLY_F,
            distance_based=_always,
            coordinatewise=True,
        ),
        "trimmed_mean": RuleEntry(
            trimmed_mean,
            _above_2f,
            _YIN,
            _ONLY_F,
            distance_based=_always,
            coordinatewise=True,
        ),
        "meamed": RuleEntry(
            meamed,
            _above_2f,
            "Xie et al., arXiv 1802.10116",
            _ONLY_F,
            distance_based=_always,
            coordinatewise=True,
        ),
        "bulyan": RuleEntry(
            bulyan,
            lambda p: 4 * int(p["f"]) + 3,
            _EL_MHAMDI,
            _ONLY_F,
            distance_based=_always,
            coordinatewise=True,
        ),
        "krum": RuleEntry(krum, _above_2f_plus_2, _BLANCHARD, _KRUM, distance_based=_always),
        "multi_krum": RuleEntry(
            multi_krum, _above_2f_plus_2, _BLANCHARD, _KRUM, distance_based=_always
        ),
        "mda": RuleEntry(
            mda,
            _above_2f,
            _EL_MHAMDI,
            _ONLY_F,
            most_n=lambda p: mda_most_n(int(p["f"])),
            distance_based=_always,
        ),
        "geometric_median": RuleEntry(
            geometric_median,
            _above_2f,
            "Pillutla et al., IEEE TSP 2022",
            {
                "f": _F,
                "steps": Parameter(100, 1, 10_000),
                "smoothing": Parameter(1e-6, 1e-12, 1.0),
            },
            distance_based=_always,
        ),
        "centered_clipping": RuleEntry(
            centered_clipping,
            _any_n,
            "Karimireddy et al., ICML 2021",
            {"tau": Parameter(0.0, 0.0, 1e9), "steps": Parameter(1, 1, 1000)},
            needs=lambda _: Needs(previous=True),
            # A radius that follows the distances is above the noise; a fixed one may be below.
            distance_based=lambda p: p["tau"] > 0.0,
        ),
        "smea": RuleEntry(
            smea,
            _above_2f,
            "Allouah et al., ICML 2023",
            _ONLY_F,
            most_n=lambda p: smea_most_n(int(p["f"])),
            distance_based=_always,
        ),
        "caf": RuleEntry(
            caf, _above_2f, "Allouah et al., ICML 2025", _ONLY_F, distance_based=_always
        ),
        "dnc": RuleEntry(
            dnc,
            _above_2f,
            "Shejwalkar & Houmansadr, NDSS 2021",
            {
                "f": _F,
                "iterations": Parameter(1, 1, 64),
                "filter_factor": Parameter(1.0, 0.1, 10.0),
            },
            needs=lambda p: Needs(subsets=int(p["iterations"])),
            distance_based=_always,
        ),
        "fltrust": RuleEntry(
            fltrust,
            _any_n,
            "Cao et al., NDSS 2021",
            {"step": _STEP},
            needs=lambda _: Needs(root=True),
        ),
        "zeno_plus_plus": RuleEntry(
            zeno_plus_plus,
            _any_n,
            "Xie et al., ICML 2020",
            {
                "rho": Parameter(0.05, 0.0, 1.0),
                "epsilon": Parameter(0.0, 0.0, 1.0),
                "step": _STEP,
            },
            needs=lambda _: Needs(root=True),
        ),
        "foolsgold": RuleEntry(
            foolsgold,
            _any_n,
            "Fung et al., RAID 2020",
            {"confidence": Parameter(1.0, 0.01, 100.0)},
            needs=lambda _: Needs(history=True),
        ),
    }
)
PRE_AGGREGATIONS: Mapping[str, PreAggregationEntry] = MappingProxyType(
    {
        "clip_to_median_norm": PreAggregationEntry(clip_to_median_norm, _any_n, _SUN, _CLIP),
        "arc": PreAggregationEntry(
            arc, lambda p: int(p["f"]) + 1, "Allouah et al., arXiv 2405.14432", _ONLY_F
        ),
        "nnm": PreAggregationEntry(
            nnm, _above_2f, "Allouah et al., AISTATS 2023", _ONLY_F, distance_based=True
        ),
        "bucketing": PreAggregationEntry(
            bucketing,
            _any_n,
            "Karimireddy et al., ICLR 2022",
            {"size": Parameter(2, 1, 1000), "seed": Parameter(0, 0, 2**31 - 1)},
            rows_for=lambda p, rows: (rows - 1) * int(p["size"]) + 1,
            keeps_rows=False,
        ),
    }
)
DEFAULT_RULE = "matl"
