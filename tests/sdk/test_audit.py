"""The audit logger of the tutorial is the real log."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matl.audit import AuditLogger
from matl_common.durable import FolderInUseError
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.tlog.checkpoint import open_checkpoint
from matl_common.tlog.note import parse_verifier_key
from matl_coordinator.service.story import together


def test_what_is_logged_comes_back_newest_first_and_survives_a_restart(tmp_path: Path) -> None:
    with AuditLogger(folder=tmp_path / "log") as logger:
        for number in range(3):
            facts = {"hospital": "hospital_b", "round": number, "trust_score": 0.5}
            assert logger.audit_log("gradient_submission", **facts) == number
    with AuditLogger(folder=tmp_path / "log") as logger:
        assert logger.is_active()
        recent = logger.get_recent(limit=2)
    assert [each["round"] for each in recent] == [2, 1]
    assert recent[0]["event"] == "gradient_submission"
    assert recent[0]["trust_score"] == 0.5


def test_a_checkpoint_is_a_signed_note_over_all_that_was_logged(tmp_path: Path) -> None:
    with AuditLogger(folder=tmp_path / "log") as logger:
        logger.audit_log("study_began")
        note = logger.audit_checkpoint(1, 0.9, {"accuracy": [0.8, 0.9]})
        key = parse_verifier_key(logger.verifier_key)
    checkpoint = open_checkpoint(note.encode(), [key]).checkpoint
    assert (checkpoint.size, checkpoint.origin) == (2, "research.matl.internal/log")


def test_a_history_longer_than_an_entry_is_logged_whole_in_parts(tmp_path: Path) -> None:
    # As long as the study: 40 hospitals, and every round's scores once more in each checkpoint.
    scores = [[round(0.001 * (number + node), 6) for node in range(40)] for number in range(400)]
    history = {"trust_scores": scores, "hospitals": ["hospital_a"], "accuracy": np.float64(0.5)}
    with AuditLogger(folder=tmp_path / "log") as logger:
        note = logger.audit_checkpoint(400, 0.9, history)
        parts = logger.get_recent(limit=100)[::-1]
        key = parse_verifier_key(logger.verifier_key)
    assert open_checkpoint(note.encode(), [key]).checkpoint.size == len(parts) > 1
    assert [(each["part"], each["parts"], each["round"]) for each in parts] == [
        (number, len(parts), 400) for number in range(1, len(parts) + 1)
    ]
    whole = together(parts)
    assert (whole["accuracy"], whole["history"]) == (0.9, {**history, "accuracy": 0.5})


def test_what_no_entry_can_hold_says_what_to_do_and_nothing_is_logged(tmp_path: Path) -> None:
    with AuditLogger(folder=tmp_path / "log") as logger:
        with pytest.raises(InvalidInputError, match="log less at once, or the digest"):
            logger.audit_checkpoint(1, 0.9, {"accuracy": [0.5] * 20_000, "notes": "x" * 70_000})
        for wrong in ({"scores": {0.5}}, {"scores": {("a", "b"): 0.5}}, {"scores": [float("nan")]}):
            with pytest.raises(InvalidInputError):
                logger.audit_checkpoint(1, 0.9, wrong)
        assert logger.get_recent() == []


@pytest.mark.postgres
def test_it_logs_to_postgresql_by_argument_or_environment(
    tmp_path: Path, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditLogger("postgresql", 7, url=postgres_database, folder=tmp_path / "log") as logger:
        logger.audit_log("by argument")
    monkeypatch.setenv("MATL_AUDIT_DB", postgres_database)
    with AuditLogger(backend="postgresql", folder=tmp_path / "log") as logger:
        assert logger.get_recent()[0]["event"] == "by argument"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: AuditLogger(encrypt=False, folder=folder), "every log is encrypted"),
        (lambda folder: AuditLogger(retention_years=5, folder=folder), "164.316"),
        (lambda folder: AuditLogger("oracle", folder=folder), "backend='oracle'"),
        (lambda folder: AuditLogger("postgresql", folder=folder), "MATL_AUDIT_DB"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], AuditLogger],
    told: str,
) -> None:
    monkeypatch.delenv("MATL_AUDIT_DB", raising=False)
    with pytest.raises(ConfigurationError, match=told):
        make(tmp_path / "log")
    # Nothing is held: another logger may be opened.
    AuditLogger(folder=tmp_path / "log").close()


def test_two_loggers_on_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with AuditLogger(folder=tmp_path / "log"), pytest.raises(FolderInUseError):
        AuditLogger(folder=tmp_path / "log")


def test_a_fact_that_cannot_be_logged_loses_nothing(tmp_path: Path) -> None:
    with AuditLogger(folder=tmp_path / "log") as logger:
        logger.audit_log("first")
        with pytest.raises(InvalidInputError):
            logger.audit_log("second", fact=float("nan"))
        itself: list[object] = []
        itself.append(itself)
        with pytest.raises(InvalidInputError, match="contains not itself"):
            logger.audit_log("second", fact=itself)
        assert logger.audit_log("third") == 1


def test_a_log_that_was_tampered_with_is_not_called_active(tmp_path: Path) -> None:
    with AuditLogger(folder=tmp_path / "log") as logger:
        logger.audit_log("first")
        logger.audit_log("second")
        with sqlite3.connect(tmp_path / "log" / "audit.db") as connection:
            connection.execute("UPDATE log_nodes SET hash = zeroblob(32) WHERE node_index = 1")
        assert not logger.is_active()


def test_numpy_numbers_are_logged_as_numbers(tmp_path: Path) -> None:
    with AuditLogger(folder=tmp_path) as log:
        log.audit_log("g", trust_score=np.float32(0.5), round=np.int64(3), all=[np.float64(0.25)])
        (told,) = log.get_recent()
    assert (told["trust_score"], told["round"], told["all"]) == (0.5, 3, [0.25])


def test_a_log_that_was_closed_takes_no_more_and_says_so(tmp_path: Path) -> None:
    log = AuditLogger(folder=tmp_path)
    log.audit_log("g")
    log.close()
    log.close()
    with pytest.raises(ConfigurationError, match="was closed"):
        log.audit_log("g")
    assert not log.is_active()


@pytest.mark.parametrize("years", ["7", 7.5, None, True])
def test_years_that_are_no_number_are_refused(tmp_path: Path, years: Any) -> None:
    with pytest.raises(ConfigurationError, match="whole years"):
        AuditLogger(folder=tmp_path, retention_years=years)


def test_a_newest_entry_that_was_changed_is_not_called_active(tmp_path: Path) -> None:
    with AuditLogger(folder=tmp_path) as log:
        log.audit_log("g")
        with sqlite3.connect(tmp_path / "audit.db") as connection:
            connection.execute("UPDATE log_entries SET payload = x'00'")
        assert not log.is_active()
        assert log.get_recent() == []
