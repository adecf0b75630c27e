"""The four plots: a readable PNG from any history, saying what it is about."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matl.history import History
from matl.plots import draw_results, verdict
from matl_coordinator.core.trust_record import DEFAULT_POLICY, TrustState, state_of

NAMES = [f"Hospital {letter}" for letter in "ABCDE"]
HISTORY = History(
    rounds=[1, 2, 3],
    accuracy=[0.5, 0.7, 0.9],
    trust={name: [0.6, 0.65, 0.9 - 0.15 * i] for i, name in enumerate(NAMES)},
    epsilon_remaining={name: [0.6, 0.3, 0.1] for name in NAMES},
    epsilon_budget=1.0,
    epsilon_warning=0.684,
    references={"Pooled": [0.6, 0.8, 0.95], "Plain": [0.4, 0.5, 0.6]},
)


def drawn(
    history: History, folder: Path, *, title: str = "A study", note: str = "A note"
) -> Image.Image:
    path = folder / "plots.png"
    draw_results(history, path, title=title, note=note)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def differing_quarters(one: Image.Image, other: Image.Image) -> set[str]:
    """Which of the four plots (or the heading) differ between two drawings."""
    a, b = np.asarray(one), np.asarray(other)
    height, width = a.shape[:2]
    top, middle = round(0.09 * height), round(0.54 * height)
    parts = {
        "heading": np.s_[:top, :],
        "accuracy": np.s_[top:middle, : width // 2],
        "trust": np.s_[top:middle, width // 2 :],
        "budget": np.s_[middle:, : width // 2],
        "contributions": np.s_[middle:, width // 2 :],
    }
    return {name for name, part in parts.items() if not np.array_equal(a[part], b[part])}


def test_the_picture_is_large_enough_to_print(tmp_path: Path) -> None:
    image = drawn(HISTORY, tmp_path)
    assert image.width >= 2000
    assert image.height >= 1500


def test_the_note_on_the_images_is_on_the_picture(tmp_path: Path) -> None:
    with_note = drawn(HISTORY, tmp_path, note="Semi-synthetic images")
    assert differing_quarters(with_note, drawn(HISTORY, tmp_path, note="")) == {"heading"}


@pytest.mark.parametrize(
    ("change", "plots"),
    [
        ({"accuracy": [0.5, 0.6, 0.7]}, {"accuracy"}),
        ({"references": {"Pooled": [0.1, 0.1, 0.1], "Plain": [0.4, 0.5, 0.6]}}, {"accuracy"}),
        ({"trust": {**HISTORY.trust, "Hospital E": [0.6, 0.4, 0.1]}}, {"trust", "contributions"}),
        ({"epsilon_warning": 0.5}, {"budget"}),
        ({"delta": 1e-5}, {"budget"}),
        (
            {"epsilon_remaining": {**HISTORY.epsilon_remaining, "Hospital C": [0.5, 0.2, 0.0]}},
            {"budget"},
        ),
    ],
)
def test_each_figure_moves_its_own_plot(
    tmp_path: Path, change: dict[str, object], plots: set[str]
) -> None:
    changed = replace(HISTORY, **change)  # type: ignore[arg-type]  # parametrised
    assert differing_quarters(drawn(HISTORY, tmp_path), drawn(changed, tmp_path)) == plots


@pytest.mark.parametrize(
    ("trust", "colour"), [(0.7, (42, 157, 92)), (0.69, (232, 144, 26)), (0.39, (209, 54, 47))]
)
def test_a_contribution_has_the_colour_of_its_trust(
    tmp_path: Path, trust: float, colour: tuple[int, int, int]
) -> None:
    one = replace(HISTORY, trust={"Hospital A": [0.5, 0.5, trust]}, epsilon_remaining={})
    pixels = np.asarray(drawn(one, tmp_path))
    height, width = pixels.shape[:2]
    bars = pixels[round(0.6 * height) :, width // 2 :]
    counts = {
        each: int((bars == each).all(axis=2).sum())
        for each in ((42, 157, 92), (232, 144, 26), (209, 54, 47))
    }
    assert max(counts, key=counts.__getitem__) == colour


def test_a_study_of_one_round_can_be_drawn(tmp_path: Path) -> None:
    one = History([1], [0.5], {"Hospital A": [0.6]}, {"Hospital A": [0.4]}, 1.0, 0.68)
    assert drawn(one, tmp_path).width >= 2000


def test_a_study_without_privacy_says_so_instead_of_plotting_infinity(tmp_path: Path) -> None:
    without = replace(HISTORY, epsilon_budget=float("inf"), epsilon_remaining={})
    assert differing_quarters(drawn(HISTORY, tmp_path), drawn(without, tmp_path)) == {"budget"}


@pytest.mark.parametrize("trust", [0.0, 0.39, 0.4, 0.69, 0.7, 1.0])
def test_a_bar_says_of_a_score_what_the_coordinator_made_of_it(trust: float) -> None:
    words = {
        TrustState.TRUSTED: "trusted",
        TrustState.MARGINAL: "marginal",
        TrustState.QUARANTINED: "excluded",
    }
    assert verdict(trust)[0] == words[state_of(trust, DEFAULT_POLICY)]
