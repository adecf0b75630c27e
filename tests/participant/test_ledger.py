"""The privacy ledger: what was spent never shrinks, whatever the disk or a crash does."""

import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.ids import Digest, RoundId, digest_of
from matl_common.privacy.budget import calibrate_noise
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import PrivacyTerms
from matl_participant.core.account import (
    Abandoned,
    Account,
    AttemptState,
    IllegalEntryError,
    Planned,
    Reserved,
    Sealed,
    after,
    exceeds_budget,
)
from matl_participant.core.journal import (
    GENESIS,
    MAX_LINE_BYTES,
    LedgerCorruptError,
    format_line,
    replay,
)
from matl_participant.core.spending import summarise, why_over_budget
from matl_participant.ledger import (
    BudgetExhaustedError,
    FileStorage,
    Ledger,
    LedgerBusyError,
    LedgerUnusableError,
    ledger_path,
    open_ledger,
    read_summaries,
)

pytestmark = pytest.mark.privacy

NOW = datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)
STEPS = 30
TERMS = PrivacyTerms(
    unit="patient",
    adjacency="add-or-remove-one",
    target_epsilon=1.0,
    target_delta=1e-5,
    noise_multiplier=calibrate_noise(1.0, 1e-5, steps=5 * STEPS),
    max_grad_norm=1.0,
    sample_rate=1.0,
    max_steps=5 * STEPS,
)
PLANNED = Planned(
    at=NOW,
    federation_id="dr-study",
    study_id="étude 1",
    dataset="retina",
    plan_digest=digest_of(b"plan"),
    dataset_digest=digest_of(b"labels"),
    privacy=TERMS,
    steps_per_round=STEPS,
    software="0.1.0",
)
BASE, OTHER_BASE = digest_of(b"base"), digest_of(b"other base")
UPDATE, CONTENT = digest_of(b"update"), digest_of(b"content")


@dataclass
class Disk:
    """What a power cut leaves, told apart from what a reader sees before it."""

    seen: bytes = b""
    durable: bytes = b""
    name_is_durable: bool = False
    calls: list[str] = field(default_factory=list)

    def survivors(self) -> Iterator[bytes]:
        """Every content a power cut now may leave: unsynced bytes are kept, lost or torn."""
        if not self.name_is_durable:
            yield b""
        yield self.durable
        if self.seen.startswith(self.durable):
            for size in range(len(self.durable) + 1, len(self.seen) + 1):
                yield self.seen[:size]
        else:
            yield self.seen


@dataclass
class DiskStorage:
    """Storage on a ``Disk`` which can fail its n-th call before or after its effect."""

    disk: Disk
    fail_call: int | None = None
    fail_after_effect: bool = False

    def _call(self, name: str, effect: Callable[[], None]) -> None:
        number = len(self.disk.calls)
        self.disk.calls.append(name)
        if number == self.fail_call and not self.fail_after_effect:
            raise OSError(28, "No space left on device")
        effect()
        if number == self.fail_call:
            raise OSError(5, "Input/output error")

    def read(self) -> bytes:
        return self.disk.seen

    def append(self, data: bytes) -> None:
        def effect() -> None:
            self.disk.seen += data

        self._call("append", effect)

    def truncate(self, size: int) -> None:
        def effect() -> None:
            self.disk.seen = self.disk.seen[:size]

        self._call("truncate", effect)

    def sync(self) -> None:
        def effect() -> None:
            self.disk.durable = self.disk.seen

        self._call("sync", effect)

    def sync_name(self) -> None:
        def effect() -> None:
            self.disk.name_is_durable = True

        self._call("sync_name", effect)

    def close(self) -> None:
        self.disk.calls.append("close")


def reserve(ledger: Ledger, number: int = 1, *, base: Digest = BASE, steps: int = STEPS) -> None:
    ledger.reserve(at=NOW, round_id=RoundId(number), steps=steps, base_model=base)


def seal(ledger: Ledger, number: int = 1) -> None:
    ledger.seal(at=NOW, round_id=RoundId(number), update_digest=UPDATE, content_digest=CONTENT)


def acknowledge(ledger: Ledger, number: int = 1, *, update: Digest = UPDATE) -> None:
    ledger.acknowledge(at=NOW, round_id=RoundId(number), update_digest=update, log_index=7)


def abandon(ledger: Ledger, number: int = 1) -> None:
    ledger.abandon(at=NOW, round_id=RoundId(number), reason="lost")


STORY: tuple[Callable[[Ledger], None], ...] = (
    lambda ledger: ledger.plan(PLANNED),
    lambda ledger: reserve(ledger, 1),
    lambda ledger: seal(ledger, 1),
    lambda ledger: acknowledge(ledger, 1),
    lambda ledger: reserve(ledger, 2),
    lambda ledger: abandon(ledger, 2),
    lambda ledger: reserve(ledger, 3, base=OTHER_BASE),
    lambda ledger: seal(ledger, 3),
    lambda ledger: abandon(ledger, 3),
    lambda ledger: ledger.halt(at=NOW, reason="the operator left the study"),
)


def told(step: int) -> Disk:
    """A disk after the first ``step`` entries of the story."""
    disk = Disk()
    ledger = Ledger(DiskStorage(disk))
    for act in STORY[:step]:
        act(ledger)
    return disk


def planned() -> tuple[Ledger, Disk]:
    disk = told(1)
    return Ledger(DiskStorage(disk)), disk


def rank(account: Account) -> tuple[int, int, int, bool]:
    """Grows with every entry of the story."""
    order = list(AttemptState)
    last = order.index(account.attempts[-1].state) if account.attempts else -1
    return (int(account.plan is not None), account.steps_spent, last, account.halted is not None)


def test_an_account_survives_being_written_and_read_whole() -> None:
    for step in range(len(STORY) + 1):
        disk = told(step)
        ledger = Ledger(DiskStorage(Disk(seen=disk.durable)))
        assert ledger.account == replay(disk.seen).account
        assert len(disk.seen.splitlines()) == step
    assert ledger.account.plan == PLANNED
    assert ledger.account.halted == "the operator left the study"
    states = [attempt.state for attempt in ledger.account.attempts]
    assert states == [
        AttemptState.ACKNOWLEDGED,
        AttemptState.ABANDONED,
        AttemptState.ABANDONED,
    ]
    assert [attempt.base_model for attempt in ledger.account.attempts] == [BASE, BASE, OTHER_BASE]


@pytest.mark.crash
@pytest.mark.parametrize("step", range(len(STORY)))
def test_a_power_cut_at_any_byte_of_any_write_never_lowers_what_was_confirmed(step: int) -> None:
    confirmed = replay(told(step).seen).account
    after_it = replay(told(step + 1).seen).account
    torn = 0
    for call in range(2):
        for fail_after_effect in (False, True):
            disk = told(step)
            calls = len(disk.calls)
            storage = DiskStorage(
                disk, fail_call=calls + 3 + call, fail_after_effect=fail_after_effect
            )
            ledger = Ledger(storage)
            with pytest.raises(LedgerUnusableError, match="restart"):
                STORY[step](ledger)
            # Nothing more is possible before the file is read again.
            with pytest.raises((LedgerUnusableError, IllegalEntryError)):
                ledger.halt(at=NOW, reason="x")
            for survivor in disk.survivors():
                torn += 1
                account = Ledger(DiskStorage(Disk(seen=survivor))).account
                assert account in (confirmed, after_it)
                assert rank(account) >= rank(confirmed)
    assert torn > 100


@pytest.mark.crash
def test_a_power_cut_right_after_a_confirmation_loses_nothing() -> None:
    disk = Disk()
    ledger = Ledger(DiskStorage(disk))
    for act in STORY:
        act(ledger)
        for survivor in disk.survivors():
            assert Ledger(DiskStorage(Disk(seen=survivor))).account == ledger.account


@pytest.mark.crash
@pytest.mark.parametrize("effect", ["not persisted", "persisted"])
@pytest.mark.parametrize("call", range(4))
def test_a_failure_while_opening_loses_nothing(call: int, effect: str) -> None:
    disk = told(2)
    disk.seen = disk.seen + b'{"line":{"entry":{"at":"2026'
    disk.durable = disk.seen
    disk.calls.clear()
    storage = DiskStorage(disk, fail_call=call, fail_after_effect=effect == "persisted")
    if call < 3:
        with pytest.raises(LedgerUnusableError):
            Ledger(storage)
    else:
        seal(Ledger(replace(storage, fail_call=None)))
    for survivor in disk.survivors():
        assert Ledger(DiskStorage(Disk(seen=survivor))).account.steps_spent == STEPS


def test_the_order_of_writes_is_content_then_flush_and_the_name_before_the_first_entry() -> None:
    disk = told(2)
    assert disk.calls == [
        *("truncate", "sync", "sync_name"),
        *("append", "sync"),
        *("append", "sync"),
    ]


def test_an_incomplete_last_line_is_dropped_and_the_next_entry_follows_cleanly() -> None:
    whole, more = told(2).seen, told(3).seen
    for cut in range(len(whole) + 1, len(more) - 1):
        disk = Disk(seen=more[:cut])
        ledger = Ledger(DiskStorage(disk))
        assert disk.durable == whole
        seal(ledger)
        assert disk.durable == more


def test_a_last_line_that_lacks_only_its_line_break_still_counts() -> None:
    disk = Disk(seen=told(2).seen[:-1])
    ledger = Ledger(DiskStorage(disk))
    assert ledger.account.steps_spent == STEPS
    assert disk.durable == told(2).seen


def test_a_last_block_of_zeros_is_a_torn_write() -> None:
    disk = Disk(seen=told(2).seen + bytes(300))
    assert Ledger(DiskStorage(disk)).account.steps_spent == STEPS


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    sound = told(len(STORY)).seen
    at = data.draw(st.integers(0, len(sound) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda value: value != sound[at]))
    with pytest.raises(LedgerCorruptError, match="do not delete"):
        replay(sound[:at] + bytes([new]) + sound[at + 1 :])


@pytest.mark.parametrize("byte", [b"X", b" ", b"\0", b"}"])
def test_a_last_line_whose_break_was_changed_is_damage_and_not_a_torn_write(byte: bytes) -> None:
    with pytest.raises(LedgerCorruptError, match="line 2"):
        replay(told(2).seen[:-1] + byte)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps_per_round", "NaN"), ("steps_per_round", "1e999"), ("steps_per_round", "[]"),
     ("privacy", "7"), ("at", "[]"), ("study_id", '"\\ud800"')],
)  # fmt: skip
def test_a_line_of_absurd_values_is_damage_though_its_hash_fits(name: str, value: str) -> None:
    sound, _ = format_line(PLANNED, sequence=0, previous=GENESIS)
    body = json.dumps(json.loads(sound)["line"], sort_keys=True, separators=(",", ":"))
    current = json.dumps(json.loads(body)["entry"][name], sort_keys=True, separators=(",", ":"))
    absurd = body.replace(f'"{name}":{current}', f'"{name}":{value}').encode()
    assert absurd != body.encode()
    line = b'{"line":%b,"sha256":"%b"}\n' % (absurd, digest_of(absurd).encode())
    with pytest.raises(LedgerCorruptError, match="line 1"):
        replay(line)


def test_a_missing_repeated_or_swapped_line_is_noticed() -> None:
    lines = told(7).seen.splitlines(keepends=True)
    damaged = [lines[:at] + lines[at + 1 :] for at in range(len(lines) - 1)]
    damaged += [lines[: at + 1] + lines[at:] for at in range(len(lines))]
    damaged += [
        [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]] for at in range(len(lines) - 1)
    ]
    # A whole attempt: what is left breaks no rule of the account.
    damaged.append(lines[:4] + lines[6:])
    for each in damaged:
        with pytest.raises(LedgerCorruptError):
            replay(b"".join(each))


def test_a_line_rewritten_with_a_matching_hash_is_noticed_by_the_next() -> None:
    lines = told(4).seen.splitlines(keepends=True)
    document = json.loads(lines[1])
    document["line"]["entry"]["steps"] = 1
    body = json.dumps(document["line"], sort_keys=True, separators=(",", ":")).encode()
    lines[1] = b'{"line":%b,"sha256":"%b"}\n' % (body, digest_of(body).encode())
    with pytest.raises(LedgerCorruptError, match="line 3"):
        replay(b"".join(lines))


def rehashed(line: bytes, **privacy: object) -> bytes:
    """A plan's line with terms changed and a hash that fits."""
    document = json.loads(line)
    document["line"]["entry"]["privacy"].update(privacy)
    body = json.dumps(
        document["line"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    return b'{"line":%b,"sha256":"%b"}\n' % (body, digest_of(body).encode())


def test_the_kind_of_noise_is_kept_and_a_plan_from_before_there_was_a_choice_is_continuous() -> (
    None
):
    hardened = replace(PLANNED, privacy=replace(TERMS, noise=Noise.DISCRETE_GAUSSIAN))
    for entry in (PLANNED, hardened):
        line, _ = format_line(entry, sequence=0, previous=GENESIS)
        assert replay(line).account.plan == entry
    old, _ = format_line(PLANNED, sequence=0, previous=GENESIS)
    assert b"noise_multiplier" in old
    assert b'"noise"' not in old
    assert rehashed(line) == line


@pytest.mark.parametrize("noise", ["laplace", "", None, 3, "gaussian"])
def test_a_kind_of_noise_that_cannot_be_accounted_for_makes_a_ledger_unusable(
    noise: object,
) -> None:
    line, _ = format_line(PLANNED, sequence=0, previous=GENESIS)
    with pytest.raises(LedgerCorruptError, match="line 1"):
        replay(rehashed(line, noise=noise))


def test_the_whole_budget_of_a_hardened_plan_can_be_spent_and_not_one_step_more() -> None:
    terms = replace(
        TERMS,
        noise=Noise.DISCRETE_GAUSSIAN,
        noise_multiplier=calibrate_noise(1.0, 1e-5, steps=5 * STEPS, noise=Noise.DISCRETE_GAUSSIAN),
    )
    account = after(Account(), replace(PLANNED, privacy=terms))
    for number in range(1, 6):
        assert not exceeds_budget(account, steps=STEPS)
        account = after(account, Reserved(NOW, RoundId(number), STEPS, BASE))
        account = after(account, Abandoned(NOW, RoundId(number), "lost"))
    assert exceeds_budget(account, steps=1)
    assert 0.9999 < summarise(account).epsilon_spent <= 1.0
    # The filter itself, and not only the number of steps: with the noise that would do for
    # continuous noise, the last round does not fit.
    weaker = replace(terms, noise_multiplier=TERMS.noise_multiplier)
    assert exceeds_budget(replace(account, plan=replace(PLANNED, privacy=weaker)), steps=0)


def test_a_chain_whose_entries_could_not_follow_one_another_is_damage() -> None:
    """Every hash is right: whoever wrote this had the format, and not the rules."""
    sealed = Sealed(NOW, RoundId(1), UPDATE, CONTENT)
    first, head = format_line(PLANNED, sequence=0, previous=GENESIS)
    second, _ = format_line(sealed, sequence=1, previous=head)
    with pytest.raises(LedgerCorruptError, match="line 2"):
        replay(first + second)


def test_the_whole_budget_can_be_spent_and_not_one_step_more() -> None:
    ledger, disk = planned()
    for number in range(1, 6):
        reserve(ledger, number)
        abandon(ledger, number)
    assert ledger.summary().budget_fraction == 1.0
    assert ledger.summary().rounds_left == 0
    assert 0.9999 < ledger.summary().epsilon_spent <= 1.0
    with pytest.raises(BudgetExhaustedError, match="150 of the study's 150 steps"):
        reserve(ledger, 6, steps=1)
    reread = Ledger(DiskStorage(disk)).account
    assert reread.halted is not None
    assert reread.steps_spent == 5 * STEPS
    with pytest.raises(IllegalEntryError, match="halted"):
        reserve(Ledger(DiskStorage(disk)), 7, steps=1)


def test_the_sum_of_inverse_variances_stops_a_plan_with_too_many_steps() -> None:
    ledger = Ledger(DiskStorage(Disk()))
    ledger.plan(replace(PLANNED, privacy=replace(TERMS, max_steps=1000)))
    reserve(ledger, 1, steps=5 * STEPS)
    abandon(ledger)
    assert exceeds_budget(ledger.account, steps=1)
    with pytest.raises(BudgetExhaustedError):
        reserve(ledger, 2, steps=1)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 1000.0},
        {"noise_multiplier": 0.0},
        {"sample_rate": 0.1},
    ],
)
def test_the_planned_number_of_steps_stops_whatever_the_noise_is(change: dict[str, float]) -> None:
    ledger = Ledger(DiskStorage(Disk()))
    ledger.plan(replace(PLANNED, privacy=replace(TERMS, **change)))  # type: ignore[arg-type]
    reserve(ledger, 1, steps=5 * STEPS - 1)
    abandon(ledger)
    assert not exceeds_budget(ledger.account, steps=1)
    assert exceeds_budget(ledger.account, steps=2)
    with pytest.raises(BudgetExhaustedError):
        reserve(ledger, 2, steps=2)


def test_epsilon_is_not_linear_in_the_budget_fraction() -> None:
    ledger, _ = planned()
    reserve(ledger)
    summary = ledger.summary()
    assert summary.budget_fraction == 0.2
    assert 0.38 < summary.epsilon_spent < 0.42
    assert (summary.rounds_left, summary.adjacency) == (4, "add-or-remove-one")
    assert (summary.target_epsilon, summary.target_delta) == (1.0, 1e-5)


def test_a_plan_without_noise_counts_steps_and_says_infinity() -> None:
    terms = replace(TERMS, noise_multiplier=0.0, target_epsilon=math.inf, target_delta=0.0)
    disk = Disk()
    ledger = Ledger(DiskStorage(disk))
    ledger.plan(replace(PLANNED, privacy=terms))
    reserve(ledger)
    assert ledger.summary().epsilon_spent == math.inf
    assert b"Infinity" not in disk.seen
    assert Ledger(DiskStorage(disk)).account == ledger.account
    assert exceeds_budget(ledger.account, steps=5 * STEPS)


def test_what_would_hide_a_cost_is_refused_and_writes_nothing() -> None:
    def refused(ledger: Ledger, act: Callable[[Ledger], None], match: str) -> None:
        before = ledger.account, ledger.head
        with pytest.raises(IllegalEntryError, match=match):
            act(ledger)
        assert (ledger.account, ledger.head) == before

    refused(Ledger(DiskStorage(Disk())), reserve, "no plan")
    ledger, disk = planned()
    refused(ledger, lambda each: each.plan(PLANNED), "only one")
    refused(ledger, lambda each: reserve(each, steps=0), "charges nothing")
    refused(ledger, seal, "no attempt")
    reserve(ledger, 2)
    refused(ledger, lambda each: reserve(each, 2), "still reserved")
    refused(ledger, lambda each: seal(each, 1), "no attempt")
    refused(ledger, lambda each: acknowledge(each, 2), "no attempt that is sealed")
    seal(ledger, 2)
    refused(ledger, lambda each: seal(each, 2), "no attempt that is reserved")
    refused(ledger, lambda each: acknowledge(each, 2, update=CONTENT), "sealed was")
    acknowledge(ledger, 2)
    refused(ledger, lambda each: abandon(each, 2), "no attempt")
    refused(ledger, lambda each: reserve(each, 1), "before round 2")
    ledger.halt(at=NOW, reason="x")
    refused(ledger, lambda each: reserve(each, 3), "halted")
    refused(ledger, lambda each: each.halt(at=NOW, reason="y"), "already halted")
    assert Ledger(DiskStorage(disk)).account == ledger.account


def test_a_reservation_that_is_not_allowed_ends_no_study_though_it_is_too_large() -> None:
    ledger, disk = planned()
    reserve(ledger)
    before = disk.seen
    with pytest.raises(IllegalEntryError, match="still reserved"):
        reserve(ledger, 2, steps=1000)
    assert disk.seen == before
    assert ledger.account.halted is None


@pytest.mark.parametrize("base", [BASE, OTHER_BASE])
def test_a_round_tried_again_is_charged_again_whatever_its_model(base: Digest) -> None:
    ledger, _ = planned()
    reserve(ledger)
    abandon(ledger)
    reserve(ledger, base=base)
    assert ledger.account.steps_spent == 2 * STEPS


@pytest.mark.parametrize("base", [BASE, OTHER_BASE])
def test_a_round_that_was_sealed_gets_no_second_update(base: Digest) -> None:
    ledger, _ = planned()
    reserve(ledger)
    seal(ledger)
    abandon(ledger)
    with pytest.raises(IllegalEntryError, match="only one"):
        reserve(ledger, base=base)


def test_an_entry_too_long_to_be_read_back_is_refused_and_writes_nothing() -> None:
    ledger, disk = planned()
    before = disk.seen
    with pytest.raises(IllegalEntryError, match="65536 is the most"):
        ledger.halt(at=NOW, reason="x" * MAX_LINE_BYTES)
    assert disk.seen == before
    ledger.halt(at=NOW, reason="x" * (MAX_LINE_BYTES - 500))
    assert Ledger(DiskStorage(disk)).account.halted is not None


def test_nothing_may_be_spent_without_a_plan() -> None:
    assert exceeds_budget(Account(), steps=1)
    assert why_over_budget(Account(), steps=1) is not None


def test_an_empty_ledger_has_no_summary() -> None:
    with pytest.raises(IllegalEntryError, match="no plan yet"):
        Ledger(DiskStorage(Disk())).summary()


def test_the_file_is_private_and_opened_by_one_writer(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "ledger"
    with open_ledger(folder, dataset="retina", study_id="a/../b") as ledger:
        ledger.plan(PLANNED)
        path = ledger_path(folder, dataset="retina", study_id="a/../b")
        assert path.parent == folder
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(LedgerBusyError, match="in use"):
            open_ledger(folder, dataset="retina", study_id="a/../b")
        with open_ledger(folder, dataset="retina", study_id="other") as other:
            assert other.account.plan is None
    with open_ledger(folder, dataset="retina", study_id="a/../b") as again:
        assert again.account.plan == PLANNED


def test_a_damaged_file_refuses_to_open_and_lets_go_of_the_lock(tmp_path: Path) -> None:
    path = ledger_path(tmp_path, dataset="retina", study_id="s")
    path.write_bytes(b"not a ledger\n")
    with pytest.raises(LedgerCorruptError, match="line 1"):
        open_ledger(tmp_path, dataset="retina", study_id="s")
    path.unlink()
    open_ledger(tmp_path, dataset="retina", study_id="s").close()


def test_budgets_are_read_beside_a_running_writer(tmp_path: Path) -> None:
    with open_ledger(tmp_path, dataset="retina", study_id="s") as ledger:
        assert read_summaries(tmp_path) == ()
        ledger.plan(PLANNED)
        reserve(ledger)
        assert read_summaries(tmp_path) == (ledger.summary(),)


def test_a_closed_ledger_takes_no_entry(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, dataset="retina", study_id="s")
    ledger.close()
    with pytest.raises(LedgerUnusableError, match="closed"):
        ledger.plan(PLANNED)


def test_file_storage_keeps_and_cuts_bytes(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "new" / "file")
    storage.append(b"abc")
    storage.append(b"def")
    storage.truncate(4)
    storage.append(b"X")
    storage.sync()
    storage.sync_name()
    assert storage.read() == b"abcdX"
    storage.close()


def test_an_entry_is_written_whole_though_the_kernel_takes_it_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = os.write
    storage = FileStorage(tmp_path / "file")
    monkeypatch.setattr(os, "write", lambda descriptor, data: kernel(descriptor, data[:2]))
    storage.append(b"abcde")
    assert storage.read() == b"abcde"
    storage.close()


@pytest.mark.crash
def test_a_killed_writer_leaves_its_reservation_and_no_lock(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from datetime import UTC, datetime
        from matl_participant.ledger import open_ledger
        from tests.participant.test_ledger import PLANNED, reserve
        ledger = open_ledger(Path({str(tmp_path)!r}), dataset="retina", study_id="s")
        ledger.plan(PLANNED)
        reserve(ledger)
        os.kill(os.getpid(), signal.SIGKILL)
        """)
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env={**os.environ}, check=False, timeout=60
    )
    assert ended.returncode == -9
    with open_ledger(tmp_path, dataset="retina", study_id="s") as ledger:
        assert ledger.account.steps_spent == STEPS
