"""Part 5 of the tutorial: the four plots, of a history wherever it is kept.

Finds the history; ``plots.py`` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from matl.client import MATLClient
from matl.history import (
    CLINICAL_THRESHOLD,
    History,
    TutorialHistory,
    history_of,
    relation_of,
)
from matl.privacy import DifferentialPrivacy
from matl_common.errors import ConfigurationError

DEFAULT_FILE = "medical_fl_results.png"


def plot_medical_fl_results(
    history: Mapping[str, Any] | TutorialHistory | History | MATLClient | Path | str,
    path: Path | str = DEFAULT_FILE,
    *,
    title: str = "A federated study, round by round",
    note: str = "",
    references: Mapping[str, list[float]] | None = None,
    clinical_threshold: float = 100 * CLINICAL_THRESHOLD,
    privacy: DifferentialPrivacy | None = None,
    report: Callable[[str], object] = print,
) -> Path:
    """Draw accuracy, trust, privacy budget and contributions into one PNG, and print a summary.

    No window opens. The threshold of 92 % is the tutorial's; what accuracy a clinic needs, and
    whether accuracy is what it needs, is for its own people to say.

    Args:
        history: what ``train_federated_medical_ai`` returned, or a dictionary like the tutorial's;
            or the folder of an embedded study, or a coordinator's ``state_dir``; or a client, for
            the study that it is connected to.
        path: replaced where it exists.
        title: what was studied.
        note: what a reader must know of the data.
        references: accuracy in per cent of other ways to train on the same data, by name, a value
            for each round: centralised training, or plain averaging.
        clinical_threshold: accuracy in per cent to compare with.
        privacy: what was promised, for a dictionary that does not say it, like that of the
            tutorial's own loop. Without it the budget is the most that was ever left, and the
            warning is at half of it.
        report: told the summary, a line at a time.

    Returns:
        The PNG's path.

    Raises:
        ConfigurationError: matplotlib is not installed, or there is no such study, or no released
            round.
    """
    try:
        from matl.plots import draw_results
    except ModuleNotFoundError as error:
        raise ConfigurationError("plots need matplotlib: pip install 'matl[report]'") from error
    found = read_history(history, privacy=privacy)
    drawn = replace(
        found,
        references={
            name: [value / 100.0 for value in values] for name, values in (references or {}).items()
        }
        or found.references,
        clinical_threshold=clinical_threshold / 100.0,
    )
    for name, values in drawn.references.items():
        if len(values) != len(drawn.rounds):
            raise ConfigurationError(
                f"references[{name!r}] has {len(values)} values for {len(drawn.rounds)} rounds"
            )
    target = Path(path)
    draw_results(drawn, target, title=title, note=note)
    for line in summary_of(drawn):
        report(line)
    return target


def read_history(
    source: Mapping[str, Any] | TutorialHistory | History | MATLClient | Path | str,
    *,
    privacy: DifferentialPrivacy | None = None,
) -> History:
    """The history of a study, wherever it is kept.

    Args:
        source: as for ``plot_medical_fl_results``.
        privacy: what was promised, where a dictionary does not say it.

    Raises:
        ConfigurationError: there is none, or it has no released round.
        OperationsError: a coordinator does not answer or refuses.
    """
    match source:
        case History():
            return source
        case MATLClient():
            return history_of(source.history())
        case Path() | str():
            from matl.sdk.told import told_by_folder

            return history_of(told_by_folder(Path(source)))
        case _:
            return history_of(source, privacy=privacy)


def summary_of(history: History) -> Iterator[str]:
    """The last round in words, as Part 5 prints it: accuracy, trust, budget.

    Compliance is not in it: nothing that is drawn here has looked at that.
    """
    from matl.plots import verdict

    accuracy, threshold = history.accuracy[-1], history.clinical_threshold
    if math.isfinite(accuracy):
        met = "met" if accuracy >= threshold else "not met"
        yield f"Final model accuracy: {100 * accuracy:.2f} %"
        yield f"Threshold of {100 * threshold:g} %: {met}"
    else:
        yield "Final model accuracy: not measured"
    for name, values in history.trust.items():
        score = values[-1]
        told = f"{score:.3f}, {verdict(score)[0]}" if math.isfinite(score) else "no score"
        yield f"Trust in {name}: {told}"
    left = [values[-1] for values in history.epsilon_remaining.values()]
    least = min(left or history.least_epsilon_remaining[-1:], default=math.nan)
    if math.isinf(history.epsilon_budget):
        yield "Privacy budget: ε = ∞, which promises no privacy"
    elif math.isnan(least):
        yield "Privacy budget: only the hospitals' own ledgers know what is left"
    else:
        relation = relation_of(history.delta)
        yield f"Privacy budget left: ε = {least:.2f} of {history.epsilon_budget:g} ({relation})"
