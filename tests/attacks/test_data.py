"""Attacks on training sets and on what a hospital says of itself."""

import subprocess
import sys

import numpy as np
import pytest

from matl.attacks import ATTACKS, AttackError, Profile, Samples, with_trigger
from matl.attacks.labels import backdoor

CLASSES = 5


def samples(m: int = 1000, *, channels: bool = False) -> Samples:
    draws = np.random.default_rng(0)
    shape = (m, 8, 8, 3) if channels else (m, 8, 8)
    images = draws.integers(0, 200, shape, dtype=np.uint8)
    return Samples(images, draws.integers(CLASSES, size=m), CLASSES)


def poisoned(name: str, given: Samples) -> Samples:
    poison = ATTACKS[name].poison
    assert poison is not None
    return poison(given, np.random.default_rng(1))


@pytest.mark.parametrize("name", [name for name, entry in ATTACKS.items() if entry.poison])
def test_what_was_given_stays_as_it_was(name: str) -> None:
    given = samples()
    images, labels = given.images.copy(), given.labels.copy()
    after = poisoned(name, given)
    assert np.array_equal(given.images, images)
    assert np.array_equal(given.labels, labels)
    assert not np.array_equal(after.labels, labels)
    assert after.labels.min() >= 0
    assert after.labels.max() < CLASSES
    assert after.labels.dtype == labels.dtype


def test_complement_and_shift_are_their_formulas_and_leave_images_alone() -> None:
    given = samples()
    for name, formula in (
        ("label_complement", CLASSES - 1 - given.labels),
        ("label_shift", (given.labels + 1) % CLASSES),
    ):
        after = poisoned(name, given)
        assert np.array_equal(after.labels, formula)
        assert after.images is given.images


def test_random_labels_say_nothing_about_the_images() -> None:
    given = samples(20_000)
    after = poisoned("label_random", given)
    agreement = float(np.mean(after.labels == given.labels))
    assert agreement == pytest.approx(1 / CLASSES, abs=0.02)


@pytest.mark.parametrize("channels", [False, True])
def test_the_backdoor_marks_half_of_the_images_with_four_pixels(*, channels: bool) -> None:
    given = samples(channels=channels)
    after = poisoned("backdoor", given)
    changed = (after.images != given.images).reshape(len(given.labels), 8, 8, -1).any(axis=3)
    places = changed.any(axis=0)
    assert places[-2:, -2:].all()
    assert places.sum() == 4
    marked = changed.any(axis=(1, 2))
    assert marked.sum() == len(marked) / 2
    assert (after.labels[marked] == 0).all()
    assert np.array_equal(after.labels[~marked], given.labels[~marked])
    assert (after.images[marked][:, -2:, -2:] == given.images.max()).all()


def test_the_trigger_can_be_put_on_test_images() -> None:
    images = samples().images
    stamped = with_trigger(images, brightest=255)
    assert (stamped[:, -2:, -2:] == 255).all()
    assert np.array_equal(stamped[:, :-2], images[:, :-2])
    assert np.array_equal(stamped[:, :, :-2], images[:, :, :-2])


def test_a_backdoor_to_no_class_is_refused() -> None:
    for target in (-1, CLASSES):
        with pytest.raises(AttackError):
            backdoor(samples(), np.random.default_rng(0), target=target)


def test_a_size_lie_is_a_hundred_times_the_patients() -> None:
    claim = ATTACKS["size_lie"].claim
    assert claim is not None
    assert claim(Profile(70, (0.5, 0.5))) == Profile(7000, (0.5, 0.5))


def test_a_false_label_mix_is_largest_where_the_true_one_is_smallest() -> None:
    claim = ATTACKS["false_histogram"].claim
    assert claim is not None
    told = claim(Profile(70, (0.7, 0.2, 0.1, 0.0, 0.0)))
    assert told.patients == 70
    assert told.label_shares == pytest.approx((0.075, 0.2, 0.225, 0.25, 0.25))
    for shares in (None, (1.0,)):
        with pytest.raises(AttackError):
            claim(Profile(70, shares))


def test_importing_the_attacks_loads_numpy_and_no_framework() -> None:
    code = (
        "import sys, matl.attacks; print(sorted({'torch', 'grpc', 'scipy', 'pandas',"
        " 'matl_coordinator', 'matl_participant'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
