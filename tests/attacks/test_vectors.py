"""Every attack on updates has the property that defines it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from matl.attacks import (
    ATTACKS,
    AttackEntry,
    AttackError,
    Honest,
    Room,
    Rows,
    Vector,
    as_trained,
    attacks_in,
)
from matl.attacks.published import alie_z, gaussian, line_search, mimic, replacement, sign_flip
from matl.attacks.temporal import on_off, sleeper, slow_drift
from tests.attacks.knowledge import D, F, H, cosine, crafted, known

# What holds of every attack.


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gives_a_row_for_each_attacker_and_changes_nothing_it_was_given(
    name: str,
) -> None:
    honest = known()
    before = honest.updates.copy(), honest.own.copy()
    rows = crafted(name, honest)
    assert rows.shape[0] == F
    assert rows.dtype == np.float64
    wrong_length = {"too_long", "too_short", "truncated"}
    assert (rows.shape[1] == D) == (name not in wrong_length)
    rows[:] = 99.0
    assert np.array_equal(honest.updates, before[0])
    assert np.array_equal(honest.own, before[1])


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_a_function_of_what_is_known_and_of_the_draws(name: str) -> None:
    honest = known()
    np.testing.assert_array_equal(crafted(name, honest), crafted(name, honest))


@pytest.mark.parametrize("name", ATTACKS)
def test_only_an_attack_of_the_protocol_room_sends_what_is_not_finite_or_of_wrong_length(
    name: str,
) -> None:
    rows = crafted(name, known())
    malformed = rows.shape[1] != D or not np.isfinite(rows).all()
    extreme = {"largest", "subnormal", "minus_zero"}
    assert malformed == (ATTACKS[name].room is Room.PROTOCOL and name not in extreme)


@pytest.mark.parametrize("name", ATTACKS)
def test_one_attacker_against_two_hospitals_of_one_coordinate_sends_one_row(name: str) -> None:
    honest = Honest(
        updates=np.array([[1.0], [2.0]]),
        own=np.array([[1.5]]),
        noise_std=np.array([0.1]),
        root=np.array([1.0]),
        class_gradients=np.array([[1.0], [-0.5]]),
        class_training=np.array([2.0]),
        aggregate=lambda rows: rows.mean(axis=0),
    )
    if name.startswith("held_cosine"):
        # There is no direction beside the mean on a line.
        with pytest.raises(AttackError, match="no direction"):
            crafted(name, honest)
    else:
        rows = crafted(name, honest)
        assert rows.shape[0] == 1
        assert rows.size


@pytest.mark.parametrize(
    ("name", "entry"), [(n, e) for n, e in ATTACKS.items() if e.needs], ids=lambda v: str(v)[:30]
)
def test_an_attack_that_is_not_given_what_it_needs_says_what(name: str, entry: AttackEntry) -> None:
    if name == "noise_free_ipm":
        # It leaves the noise out, and so does not look at how much there would be.
        poor = Honest(np.ones((3, 4)), np.ones((2, 4)))
        assert crafted(name, poor).shape == (2, 4)
        return
    for missing in entry.needs:
        rest: Any = {each.value: getattr(known(), each.value) for each in entry.needs - {missing}}
        given = Honest(known().updates, known().own, **rest)
        with pytest.raises(AttackError, match=missing.value):
            crafted(name, given)


def test_attacks_that_need_nothing_more_need_nothing_more() -> None:
    plain = Honest(known().updates, known().own)
    for name, entry in ATTACKS.items():
        if not entry.needs:
            crafted(name, plain)


def test_the_registry_has_every_room_and_every_entry_names_its_source() -> None:
    assert {entry.room for entry in ATTACKS.values()} == set(Room)
    assert all(entry.about and entry.source for entry in ATTACKS.values())
    assert set(attacks_in(Room.SIZES, Room.SYBIL)) == {"size_lie", "sybil", "sybil_quiet"}
    # An attack acts somewhere.
    for entry in ATTACKS.values():
        assert entry.craft is not as_trained or entry.poison or entry.claim


@pytest.mark.parametrize(
    "field",
    [
        {"own": np.ones((2, 5))},
        {"own": np.ones((0, 4))},
        {"updates": np.ones(4)},
        {"previous": np.ones(5)},
        {"signals": np.ones((2, 4))},
        {"noise_std": np.ones(3)},
        {"root": np.ones((1, 4))},
        {"round": 0},
    ],
    ids=lambda field: next(iter(field)),
)
def test_knowledge_that_does_not_fit_together_is_refused(field: dict[str, object]) -> None:
    sound: dict[str, object] = {"updates": np.ones((3, 4)), "own": np.ones((2, 4))}
    Honest(**sound)  # type: ignore[arg-type]  # the fields of one case each
    with pytest.raises(AttackError):
        Honest(**{**sound, **field})  # type: ignore[arg-type]  # the fields of one case each


def test_float32_knowledge_is_taken_and_kept_as_float64() -> None:
    honest = Honest.without_data(np.ones((3, 4), dtype=np.float32), f=2)
    assert honest.updates.dtype == honest.own.dtype == np.float64
    assert (honest.h, honest.f, honest.n, honest.d) == (3, 2, 5, 4)


# Protocol.


def test_protocol_attacks_are_what_their_names_say_in_float32() -> None:
    honest = known()
    sent = {name: crafted(name, honest).astype(np.float32) for name in attacks_in(Room.PROTOCOL)}
    assert np.isnan(sent["nan"]).all()
    assert (np.isnan(sent["one_nan"]).sum(axis=1) == 1).all()
    assert np.isposinf(sent["plus_infinity"]).all()
    assert np.isneginf(sent["minus_infinity"]).all()
    assert np.isinf(sent["cancelling_infinities"]).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(sent["cancelling_infinities"].sum(axis=1)).all()
    with np.errstate(over="ignore", under="ignore"):
        assert np.isfinite(sent["largest"]).all()
        assert np.isinf(sent["largest"] ** 2).all()
        assert (sent["subnormal"] > 0).all()
        assert (sent["subnormal"] ** 2 == 0).all()
    assert np.signbit(sent["minus_zero"]).all()
    assert not sent["minus_zero"].any()
    assert sent["too_long"].shape[1] == D + 1
    assert sent["too_short"].shape[1] == D - 1
    assert sent["truncated"].shape[1] == D // 2


# Published.


def test_a_sign_flip_is_the_attackers_own_update_turned_round() -> None:
    honest = known()
    np.testing.assert_array_equal(crafted("sign_flip_1", honest), -honest.own)
    np.testing.assert_array_equal(crafted("sign_flip_5", honest), -5.0 * honest.own)


def test_gaussian_rows_are_ten_times_as_long_as_the_mean_and_independent() -> None:
    honest = known()
    rows = crafted("gaussian", honest)
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(lengths, 10.0 * np.linalg.norm(honest.mean))
    assert abs(cosine(rows[0], rows[1])) < 6.0 / math.sqrt(D)


@pytest.mark.parametrize(
    ("n", "f", "quantile"),
    [
        # (n − f − k)/(n − f) with k = ⌊n/2 + 1⌋ − f, by hand.
        (20, 9, 9 / 11),
        (5, 2, 2 / 3),
        (50, 24, 24 / 26),
        (10, 1, 4 / 9),
        # More than half: none is needed, and one is counted.
        (20, 12, 7 / 8),
    ],
)
def test_alie_goes_as_far_as_the_papers_formula(n: int, f: int, quantile: float) -> None:
    z = alie_z(n, f)
    assert (1.0 + math.erf(z / math.sqrt(2.0))) / 2.0 == pytest.approx(quantile, abs=1e-12)


def test_alie_needs_two_honest_hospitals_and_an_attacker() -> None:
    for n, f in ((3, 2), (3, 0), (2, 2)):
        with pytest.raises(AttackError):
            alie_z(n, f)


def test_alie_moves_every_coordinate_by_z_deviations_below_the_mean() -> None:
    honest = known()
    row = crafted("alie", honest)[0]
    moved = (honest.updates.mean(axis=0) - row) / honest.updates.std(axis=0, ddof=1)
    np.testing.assert_allclose(moved, alie_z(20, 9))


def test_ipm_points_against_the_mean() -> None:
    honest = known()
    for tau in (0.1, 2.0):
        row = crafted(f"ipm_{tau:g}", honest)[0]
        assert cosine(row, honest.mean) == pytest.approx(-1.0)
        assert np.linalg.norm(row) == pytest.approx(tau * np.linalg.norm(honest.mean))


def trimmed_mean(rows: Rows) -> Vector:
    return np.asarray(np.sort(rows, axis=0)[F : len(rows) - F].mean(axis=0))


def median(rows: Rows) -> Vector:
    return np.asarray(np.median(rows, axis=0))


def clipped_mean(rows: Rows) -> Vector:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bound = np.median(lengths)
    return np.asarray((rows * np.minimum(1.0, bound / np.maximum(lengths, bound))).mean(axis=0))


def medoid(rows: Rows) -> Vector:
    """Krum's cousin: a rule by distance that a large factor does not fool."""
    distances = np.linalg.norm(rows[:, None] - rows[None, :], axis=2)
    return np.asarray(rows[np.argmin(np.median(distances, axis=1))])


@pytest.mark.parametrize("rule", [trimmed_mean, median, clipped_mean, medoid])
def test_an_optimal_attack_does_at_least_the_harm_of_the_plain_one(
    rule: Callable[[Rows], Vector],
) -> None:
    known_rule = known(private=False)
    honest = Honest(known_rule.updates, known_rule.own, aggregate=rule)

    def harm(rows: Rows) -> float:
        return float(np.linalg.norm(rule(np.concatenate([honest.updates, rows])) - honest.mean))

    slack = 1.0 - 1e-12
    for tau in ("0.1", "2"):
        assert harm(crafted("optimal_ipm", honest)) >= slack * harm(crafted(f"ipm_{tau}", honest))
    if rule is not medoid:
        # A rule that drops far rows at once leaves the search no slope to follow.
        assert harm(crafted("optimal_alie", honest)) >= slack * harm(crafted("alie", honest))


def test_the_line_search_looks_twenty_times_expands_and_contracts() -> None:
    asked: list[float] = []

    def damage(factor: float) -> float:
        asked.append(factor)
        return -abs(factor - 33.0)

    best = line_search(damage)
    # 0, 10, 30, 70 is worse; then steps of 40 · 0.8^k from the best so far.
    assert asked[:6] == pytest.approx([0.0, 10.0, 30.0, 70.0, 62.0, 55.6])
    assert len(asked) == 20
    assert best == min(asked, key=lambda factor: abs(factor - 33.0))
    # What does no more damage is not taken.
    assert line_search(lambda factor: 1.0) == 0.0
    # Contraction found a better one than expansion had.
    assert abs(best - 33.0) < 3.0


def diameters(honest: Honest) -> Rows:
    apart = honest.updates[:, None] - honest.updates[None, :]
    return np.asarray(np.linalg.norm(apart, axis=2))


@pytest.mark.parametrize("seed", range(5))
def test_min_max_is_at_the_boundary_of_what_two_honest_updates_are_apart(seed: int) -> None:
    honest = known(seed=seed)
    row = crafted("min_max", honest)[0]
    farthest = np.linalg.norm(honest.updates - row, axis=1).max()
    assert farthest == pytest.approx(diameters(honest).max(), rel=1e-9)
    assert cosine(row - honest.mean, honest.updates.std(axis=0)) == pytest.approx(-1.0)
    beyond = row + 1e-3 * (row - honest.mean)
    assert np.linalg.norm(honest.updates - beyond, axis=1).max() > diameters(honest).max()


@pytest.mark.parametrize("seed", range(5))
def test_min_sum_is_at_the_boundary_of_the_largest_honest_sum_of_squares(seed: int) -> None:
    honest = known(seed=seed)
    row = crafted("min_sum", honest)[0]
    total = float(np.sum((honest.updates - row) ** 2))
    assert total == pytest.approx((diameters(honest) ** 2).sum(axis=1).max(), rel=1e-9)
    assert cosine(row - honest.mean, honest.updates.std(axis=0)) == pytest.approx(-1.0)


def test_mimic_copies_the_hospital_that_stands_out_from_the_others() -> None:
    draws = np.random.default_rng(0)
    signals = draws.normal(0.0, 0.1, (H, 50))
    signals[4] += 3.0
    noise = draws.normal(0.0, 5.0, (H, 50))
    honest = Honest(signals + noise, signals[:F], signals=signals)
    np.testing.assert_array_equal(crafted("mimic", honest)[0], honest.updates[4])


def test_mimic_equals_an_honest_row() -> None:
    honest = known()
    shown = crafted("mimic", honest)
    assert (shown == shown[0]).all()
    assert (honest.updates == shown[0]).all(axis=1).any()
    draws = np.random.default_rng(0)
    np.testing.assert_array_equal(mimic(honest, draws, victim=3)[0], honest.updates[3])
    for victim in (-1, H):
        with pytest.raises(AttackError):
            mimic(honest, draws, victim=victim)


def test_one_replacement_makes_the_plain_mean_the_attackers_model() -> None:
    draws = np.random.default_rng(0)
    honest = Honest(np.zeros((H, D)), draws.standard_normal((1, D)))
    rows = np.concatenate([honest.updates, replacement(honest, draws)])
    np.testing.assert_allclose(rows.mean(axis=0), honest.own[0])
    rows = np.concatenate([honest.updates, replacement(honest, draws, server_rate=0.5)])
    np.testing.assert_allclose(0.5 * rows.mean(axis=0), honest.own[0])


# Sybils and free riders.


def test_sybils_are_near_clones_and_no_copies() -> None:
    honest = known()
    for name, like in (("sybil", -honest.own[0]), ("sybil_quiet", honest.own[0])):
        rows = crafted(name, honest)
        away = np.linalg.norm(rows - like, axis=1) / np.linalg.norm(like)
        np.testing.assert_allclose(away, 1e-3)
        assert len(np.unique(rows, axis=0)) == F
        assert min(cosine(rows[0], row) for row in rows) > 0.99999


def test_free_riders_send_what_costs_no_training() -> None:
    honest = known()
    other_training = Honest(
        honest.updates,
        honest.own + 1.0,
        previous=honest.previous,
        noise_std=honest.noise_std,
    )
    for name in attacks_in(Room.FREE_RIDER):
        np.testing.assert_array_equal(crafted(name, honest), crafted(name, other_training))
    assert not crafted("free_rider_zero", honest).any()
    assert honest.previous is not None
    np.testing.assert_array_equal(crafted("free_rider_last", honest)[4], honest.previous)
    assert not crafted("free_rider_last", Honest(honest.updates, honest.own)).any()


def test_a_free_riders_noise_has_the_promised_size_or_the_honest_length() -> None:
    honest = known()
    assert honest.noise_std is not None
    spread = crafted("free_rider_noise", honest).std(axis=1) / honest.noise_std
    np.testing.assert_allclose(spread, 1.0, atol=6.0 / math.sqrt(2.0 * D))
    plain = known(private=False)
    lengths = np.linalg.norm(crafted("free_rider_noise", plain), axis=1)
    np.testing.assert_allclose(lengths, np.median(np.linalg.norm(plain.updates, axis=1)))


# Time.


def test_a_sleeper_is_honest_until_it_wakes_and_ever_after_not() -> None:
    for number in range(1, 30):
        honest = known(round=number)
        rows = sleeper(honest, np.random.default_rng(0), wakes=12)
        np.testing.assert_array_equal(rows, honest.own if number < 12 else -3.0 * honest.own)


def test_on_off_changes_every_five_rounds_and_starts_honest() -> None:
    attacks = []
    for number in range(1, 21):
        honest = known(round=number)
        rows = on_off(honest, np.random.default_rng(0), attack=partial(sign_flip, factor=3.0))
        attacks.append(not np.array_equal(rows, honest.own))
        np.testing.assert_array_equal(crafted("on_off", honest), rows)
    assert attacks == ([False] * 5 + [True] * 5) * 2


def test_slow_drift_moves_further_in_one_direction_every_round() -> None:
    direction = np.arange(D, dtype=np.float64)
    for number in (1, 7, 50):
        honest = known(round=number)
        moved = slow_drift(honest, np.random.default_rng(0), direction=direction) - honest.own
        share = np.linalg.norm(moved, axis=1) / np.linalg.norm(honest.own, axis=1)
        np.testing.assert_allclose(share, 0.02 * number)
        assert cosine(moved[0], direction) == pytest.approx(1.0)
    first, later = (
        crafted("slow_drift", known(seed=seed, round=seed), seed=seed)
        - known(seed=seed, round=seed).own
        for seed in (1, 9)
    )
    assert cosine(first[0], later[3]) == pytest.approx(1.0)


def test_slow_reversal_gives_up_all_progress_in_the_end() -> None:
    aligned = Honest(np.ones((H, D)), np.ones((F, D)), round=50)
    np.testing.assert_allclose(crafted("slow_reversal", aligned), 0.0, atol=1e-12)


def test_gaussian_factor_is_a_parameter() -> None:
    honest = known()
    rows = gaussian(honest, np.random.default_rng(0), factor=2.0)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 2 * np.linalg.norm(honest.mean))
