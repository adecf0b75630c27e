"""Part 5 of the tutorial: the four plots, of a history wherever it is kept.

Finds the history; ``plots.py`` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matl.client import MATLClient
from matl.history import CLINICAL_THRESHOLD, History, TutorialHistory, history_of
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
) -> Path:
    """Draw accuracy, trust, privacy budget and contributions into one PNG.

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
    found = read_history(history)
    drawn = History(
        rounds=found.rounds,
        accuracy=found.accuracy,
        trust=found.trust,
        epsilon_remaining=found.epsilon_remaining,
        epsilon_budget=found.epsilon_budget,
        epsilon_warning=found.epsilon_warning,
        references={
            name: [value / 100.0 for value in values] for name, values in (references or {}).items()
        }
        or found.references,
        clinical_threshold=clinical_threshold / 100.0,
        least_epsilon_remaining=found.least_epsilon_remaining,
        delta=found.delta,
    )
    for name, values in drawn.references.items():
        if len(values) != len(drawn.rounds):
            raise ConfigurationError(
                f"references[{name!r}] has {len(values)} values for {len(drawn.rounds)} rounds"
            )
    target = Path(path)
    draw_results(drawn, target, title=title, note=note)
    return target


def read_history(
    source: Mapping[str, Any] | TutorialHistory | History | MATLClient | Path | str,
) -> History:
    """The history of a study, wherever it is kept.

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
            return history_of(source)
