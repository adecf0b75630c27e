"""The aggregator that a configuration names.

A configuration is checked here once, at start; an aggregator obtained from here needs no
further checks of its parameters. Nothing is looked up by attribute or import path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from types import MappingProxyType
from typing import TypeVar

from matl_common.errors import ConfigurationError
from matl_coordinator.core.robust.catalogue import (
    DEFAULT_RULE,
    PRE_AGGREGATIONS,
    RULES,
    Parameter,
    Values,
)
from matl_coordinator.core.robust.gram import Gram, Needs
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.rules import PreAggregation, Rule, compose

__all__ = [
    "DEFAULT_RULE",
    "PRE_AGGREGATIONS",
    "RULES",
    "Aggregator",
    "Choice",
    "make_aggregator",
]

_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class Choice:
    """A rule or pre-aggregation by name, and those parameters that are set."""

    name: str
    parameters: Values = field(default_factory=dict)

    def describe(self) -> str:
        """As in ``krum(f=2)``."""
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.parameters.items())})"


@dataclass(frozen=True, slots=True)
class Aggregator:
    """A checked rule with its pre-aggregations, in the order they are applied."""

    rule: Choice
    """With the value of every parameter."""
    pre: tuple[Choice, ...]
    needs: Needs
    least_n: int
    """Fewest updates that every stage accepts."""
    most_n: int | None
    """Most updates whose subsets can be searched; None without bound."""
    distance_based: bool
    """Whether privacy noise can turn it in favour of hostile updates; see ``dominance``."""
    coordinatewise: bool
    """Whether ``compiled_loops`` should be called once before the first round."""
    _function: Rule
    _before: tuple[PreAggregation, ...]
    asked: tuple[Choice, tuple[Choice, ...]]
    """The rule and its pre-aggregations with those parameters that were set."""

    def __call__(self, gram: Gram) -> Plan:
        """The plan for these updates.

        Raises:
            AggregationError: too few or too many updates, or a value that is not finite.
        """
        whole = reduce(
            lambda rule, pre: partial(compose, pre=pre, rule=rule),
            reversed(self._before),
            self._function,
        )
        return whole(gram)

    def with_f(self, f: int) -> Aggregator:
        """The same stages for another number of Byzantine hospitals, as when trust has
        excluded some of them; an ``f`` that was set stays.

        Raises:
            ConfigurationError: ``f`` is out of range.
        """
        rule, pre = self.asked
        return make_aggregator(rule, pre, f=f)

    def describe(self) -> str:
        """All stages in order, as an operator reads them."""
        return " then ".join(choice.describe() for choice in (*self.pre, self.rule))


def make_aggregator(rule: Choice, pre: Sequence[Choice] = (), *, f: int) -> Aggregator:
    """The aggregator a configuration names; parameters not set take their default.

    Args:
        rule: the rule.
        pre: what is applied to the updates before it, first to last.
        f: how many hospitals the study takes to be Byzantine.

    Raises:
        ConfigurationError: unknown name or parameter, or a value out of range; the
            message lists what is valid.
    """
    entry = _entry(rule.name, RULES, kind="an aggregation rule")
    values = _values(rule, entry.parameters, f=f)
    least, most = entry.least_n(values), entry.most_n(values) if entry.most_n else None
    chosen: list[Choice] = []
    functions: list[PreAggregation] = []
    distance_based = entry.distance_based(values)
    for choice in reversed(pre):
        stage = _entry(choice.name, PRE_AGGREGATIONS, kind="a pre-aggregation")
        settings = _values(choice, stage.parameters, f=f)
        if entry.needs(values).history and not stage.keeps_rows:
            raise ConfigurationError(
                f"{rule.name} looks at what each hospital did before, which {choice.name} mixes "
                "up; leave one of them out"
            )
        least = max(stage.least_n(settings), stage.rows_for(settings, least))
        # Updates up to the next size would still leave no more rows than that.
        most = None if most is None else stage.rows_for(settings, most + 1) - 1
        distance_based = distance_based or stage.distance_based
        chosen.insert(0, Choice(choice.name, settings))
        functions.insert(0, partial(stage.function, **settings))
    if most is not None and most < least:
        raise ConfigurationError(
            f"{rule.name} needs at least {least} updates here and can search the subsets of at "
            f"most {most}; use a smaller f or another rule"
        )
    return Aggregator(
        rule=Choice(rule.name, values),
        pre=tuple(chosen),
        needs=entry.needs(values),
        least_n=least,
        most_n=most,
        distance_based=distance_based,
        coordinatewise=entry.coordinatewise,
        _function=partial(entry.function, **values),
        _before=tuple(functions),
        asked=(rule, tuple(pre)),
    )


def _entry(name: str, entries: Mapping[str, _Entry], *, kind: str) -> _Entry:
    entry = entries.get(name)
    if entry is None:
        raise ConfigurationError(f"{name[:80]!r} is not {kind}; choose one of {', '.join(entries)}")
    return entry


def _values(choice: Choice, parameters: Mapping[str, Parameter], *, f: int) -> Values:
    for key in choice.parameters:
        if key not in parameters:
            valid = ", ".join(parameters) or "none"
            raise ConfigurationError(
                f"{choice.name} has no parameter {key[:80]!r}; it takes: {valid}"
            )
    return MappingProxyType(
        {
            key: _checked(
                choice.name,
                key,
                choice.parameters.get(key, f if parameter.default is None else parameter.default),
                parameter,
            )
            for key, parameter in parameters.items()
        }
    )


def _checked(name: str, key: str, value: int | float, parameter: Parameter) -> int | float:
    # ``type``, not ``isinstance``: True would pass for 1.
    allowed = (int,) if parameter.is_whole else (int, float)
    if (
        type(value) not in allowed
        or not math.isfinite(value)
        or not parameter.minimum <= value <= parameter.maximum
    ):
        raise ConfigurationError(
            f"{key} = {value!r} is out of range for {name}; use {parameter.describe()}"
        )
    return value
