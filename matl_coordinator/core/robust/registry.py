"""The rules a configuration may name, with the range of every parameter.

A configuration is checked here once, at start; a rule obtained from here needs no
further checks of its parameters. Nothing is looked up by attribute or import path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from matl_common.errors import ConfigurationError
from matl_coordinator.core.robust.gram import Gram
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.rules import (
    Rule,
    clipped_weighted_mean,
    coordinate_median,
    trimmed_mean,
    weighted_mean,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number a rule takes, with its inclusive range; an ``int`` default wants an int."""

    default: int | float
    minimum: int | float
    maximum: int | float

    def describe(self) -> str:
        """The range, as an operator reads it."""
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{kind} from {self.minimum} to {self.maximum}, {self.default} unless set"


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """One rule and what may be set on it."""

    function: Callable[..., Plan]
    parameters: Mapping[str, Parameter]


RULES: Mapping[str, RuleEntry] = MappingProxyType(
    {
        "weighted_mean": RuleEntry(weighted_mean, {}),
        "clipped_weighted_mean": RuleEntry(
            clipped_weighted_mean, {"factor": Parameter(1.5, 0.1, 100.0)}
        ),
        "coordinate_median": RuleEntry(coordinate_median, {}),
        "trimmed_mean": RuleEntry(trimmed_mean, {"f": Parameter(1, 0, 10_000)}),
    }
)
DEFAULT_RULE = "clipped_weighted_mean"


def make_rule(name: str, parameters: Mapping[str, int | float]) -> Rule:
    """The rule of this name with these parameters; those not given take their default.

    Raises:
        ConfigurationError: unknown rule or parameter, or a value out of range; the
            message lists what is valid.
    """
    entry = RULES.get(name)
    if entry is None:
        raise ConfigurationError(
            f"{name[:80]!r} is not an aggregation rule; choose one of {', '.join(RULES)}"
        )
    values = {key: parameter.default for key, parameter in entry.parameters.items()}
    for key, value in parameters.items():
        if key not in entry.parameters:
            valid = ", ".join(entry.parameters) or "none"
            raise ConfigurationError(
                f"rule {name} has no parameter {key[:80]!r}; it takes: {valid}"
            )
        values[key] = _checked(name, key, value, entry.parameters[key])
    rule: Callable[[Gram], Plan] = partial(entry.function, **values)
    return rule


def _checked(name: str, key: str, value: int | float, parameter: Parameter) -> int | float:
    # ``type``, not ``isinstance``: True would pass for 1.
    allowed = (int,) if isinstance(parameter.default, int) else (int, float)
    if (
        type(value) not in allowed
        or not math.isfinite(value)
        or not parameter.minimum <= value <= parameter.maximum
    ):
        raise ConfigurationError(
            f"{key} = {value!r} is out of range for rule {name}; use {parameter.describe()}"
        )
    return value
