"""An embedded federation of submitted gradients: what a client promises, and what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from matl import (
    DifferentialPrivacy,
    MATLClient,
    MATLMode,
    MatlWarning,
    verify_hipaa_compliance,
)
from matl.checklist import SafeguardsError
from matl.sdk.embedded import RoundHeldError, StudyCompleteError, TooFewUpdatesError
from matl.sdk.federation import hospital_name
from matl.sdk.gradients import submission
from matl.sdk.hospital import AlreadySubmittedError
from matl_common.durable import FolderInUseError
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.held_keys import KeyKind, generate_key, load_p256_key
from matl_coordinator.service.founding import StudyMismatchError

NODES = ("hospital_a", "hospital_b", "hospital_c")
Gradient = list[NDArray[np.float32]]


def gradient_of(value: float) -> Gradient:
    return [np.full((2, 3), value, dtype=np.float32), np.zeros(2, dtype=np.float32)]


def client_in(folder: Path, **arguments: Any) -> MATLClient:
    wanted = {"node_id": "hospital_a", "allowed_nodes": NODES, "folder": folder / "study"}
    return MATLClient(**{**wanted, **arguments})


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MATLClient]:
    """A federation without privacy, so that what comes out can be computed."""
    with client_in(tmp_path) as made:
        yield made


def submit_all(client: MATLClient, *values: float) -> list[Gradient]:
    gradients = [gradient_of(value) for value in values]
    for node, gradient in zip(NODES, gradients, strict=True):
        assert client.submit_gradient(gradient, {"hospital": node}).admitted
    return gradients


def test_equal_gradients_come_back_as_they_went(client: MATLClient) -> None:
    gradients = submit_all(client, 0.5, 0.5, 0.5)
    weight, bias = client.aggregate(gradients, [0.6, 0.6, 0.6])
    assert np.allclose(weight, 0.5, atol=1e-6)
    assert np.array_equal(bias, np.zeros(2))


def test_trust_that_a_caller_brings_changes_nothing_and_is_pointed_out(
    client: MATLClient,
) -> None:
    gradients = submit_all(client, 0.5, 0.5, 0.5)
    with pytest.warns(MatlWarning, match="not used"):
        weight, _ = client.aggregate(gradients, [0.0, 0.0, 1.0])
    assert np.allclose(weight, 0.5, atol=1e-6)


def test_a_gradient_that_was_not_submitted_does_not_count(client: MATLClient) -> None:
    submit_all(client, 0.5, 0.5, 0.5)
    weight, _ = client.aggregate([gradient_of(9.0)] * 3)
    assert np.allclose(weight, 0.5, atol=1e-6)


def test_numbers_of_samples_that_a_caller_brings_give_no_weight(client: MATLClient) -> None:
    for node, value, samples in zip(NODES, (0.1, 0.1, 0.9), (1, 1, 10**6), strict=True):
        client.submit_gradient(gradient_of(value), {"hospital": node, "num_samples": samples})
    weight, _ = client.aggregate([gradient_of(0.0)])
    assert weight.mean() < 0.5


def test_declared_patients_give_a_submission_no_weight(tmp_path: Path) -> None:
    found = []
    for name, patients in (("equal", NODES), ("large", dict(zip(NODES, (9, 1, 1), strict=True)))):
        with client_in(tmp_path / name, allowed_nodes=patients) as client:
            found.append(client.aggregate(submit_all(client, 0.1, 0.15, 0.2))[0])
    assert np.array_equal(*found)
    assert 0.1 < found[0].mean() < 0.2


def test_privacy_noises_even_a_gradient_of_zeros(tmp_path: Path) -> None:
    privacy = DifferentialPrivacy(epsilon=1.0, clip_norm=0.25)
    with client_in(tmp_path, privacy=privacy, rounds=2) as client:
        zeros: list[Any] = [np.zeros((100, 100), dtype=np.float32)]
        for node in NODES:
            client.submit_gradient(zeros, {"hospital": node})
        (noised,) = client.aggregate([zeros])
    # The mean of three hospitals' noise.
    expected = 0.25 * privacy.noise_multiplier(steps=2) / math.sqrt(3)
    assert noised.std() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("length", [0.0, 0.1, 1e6])
def test_no_two_gradients_are_further_apart_than_the_clip_norm(length: float) -> None:
    """Whatever a patient's presence makes of the gradient, the release moves by at most C."""
    one, other = np.zeros(4), np.zeros(4)
    one[0], other[0] = length, -length
    sent = [submission(each, noise_multiplier=0.0, clip_norm=2.0) for each in (one, other)]
    assert np.linalg.norm(sent[0] - sent[1]) == pytest.approx(min(2.0, 2 * length))
    assert sent[0][0] <= 0.0


def test_no_file_holds_a_raw_gradient(tmp_path: Path) -> None:
    secret = np.random.default_rng(5).normal(size=400).astype(np.float32)
    with client_in(tmp_path, privacy=DifferentialPrivacy(epsilon=50.0)) as client:
        for node in NODES:
            client.submit_gradient([secret], {"hospital": node})
        client.aggregate([[secret]])
    files = [each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()]
    clipped = -secret / np.linalg.norm(secret) / 2
    assert len(files) > 10
    for form in (secret, -secret, clipped.astype(np.float32)):
        assert not any(form.tobytes()[:64] in data for data in files)


def test_every_submission_is_charged_and_the_budget_ends_the_study(tmp_path: Path) -> None:
    privacy = DifferentialPrivacy(epsilon=1.0)
    with client_in(tmp_path, privacy=privacy, rounds=2) as client:
        assert client.get_remaining_privacy_budget() == 1.0
        left = [client.get_remaining_privacy_budget()]
        for _ in range(2):
            client.aggregate(submit_all(client, 0.1, 0.1, 0.1))
            left.append(client.get_remaining_privacy_budget())
        assert left == pytest.approx([1.0, 1.0 - privacy.epsilon_after(1, of=2), 0.0], abs=1e-6)
        with pytest.raises(StudyCompleteError, match=r"in another folder=.* add its ε yourself"):
            client.submit_gradient(gradient_of(0.1))
    # What the message says is what works, and a name alone does not.
    with (
        client_in(tmp_path, privacy=privacy, rounds=2, study="next") as renamed,
        pytest.raises(StudyMismatchError, match=r"another folder=.* yourself"),
    ):
        renamed.submit_gradient(gradient_of(0.1))
    with client_in(tmp_path / "next", privacy=privacy, rounds=2) as another:
        another.submit_gradient(gradient_of(0.1))


def test_a_hospital_submits_once_a_round(client: MATLClient) -> None:
    client.submit_gradient(gradient_of(0.1))
    with pytest.raises(AlreadySubmittedError, match="call aggregate"):
        client.submit_gradient(gradient_of(0.1))


def test_a_hospital_that_was_not_named_is_refused(client: MATLClient) -> None:
    with pytest.raises(ConfigurationError, match="not in allowed_nodes"):
        client.submit_gradient(gradient_of(0.1), {"hospital": "hospital_x"})


def test_what_is_not_finite_is_refused_before_it_is_charged(tmp_path: Path) -> None:
    with client_in(tmp_path, privacy=DifferentialPrivacy()) as client:
        client.submit_gradient(gradient_of(0.1), {"hospital": NODES[1]})
        with pytest.raises(InvalidInputError, match="nothing was charged"):
            client.submit_gradient(gradient_of(math.nan))
        assert client.get_remaining_privacy_budget("hospital_a") == 1.0
        assert client.get_remaining_privacy_budget("hospital_b") < 1.0


@pytest.mark.parametrize(
    "gradient", [[np.zeros(3)], gradient_of(0.1) * 2, "a gradient", [1.0, 2.0], []]
)
def test_another_shape_is_refused_by_name(client: MATLClient, gradient: Any) -> None:
    client.submit_gradient(gradient_of(0.1))
    with pytest.raises(ConfigurationError, match="gradient"):
        client.submit_gradient(gradient, {"hospital": NODES[1]})


def test_a_round_takes_its_quorum_and_no_hospital_that_is_missing(client: MATLClient) -> None:
    with pytest.raises(ConfigurationError, match="nothing was submitted"):
        client.aggregate([gradient_of(0.1)])
    client.submit_gradient(gradient_of(0.1))
    with pytest.raises(TooFewUpdatesError, match="1 admitted updates and takes 3"):
        client.aggregate([gradient_of(0.1)])


def test_a_hospital_that_stays_away_does_not_stop_a_round(tmp_path: Path) -> None:
    nodes = (*NODES, "hospital_d")
    with client_in(tmp_path, allowed_nodes=nodes) as client:
        for present in (nodes, NODES):
            for node in present:
                client.submit_gradient(gradient_of(0.1), {"hospital": node})
            client.aggregate([gradient_of(0.1)])
        excluded = [
            each for each in client.get_recent_events(20) if each["event"] == "node_excluded"
        ]
    assert [each["node"] for each in excluded] == ["hospital_d"]


def test_a_folder_is_gone_on_from_with_what_it_has_cost(tmp_path: Path) -> None:
    privacy = DifferentialPrivacy()
    with client_in(tmp_path, privacy=privacy, rounds=3) as first:
        first.aggregate(submit_all(first, 0.1, 0.1, 0.1))
        left = first.get_remaining_privacy_budget()
        # And one attempt that nobody finishes.
        first.submit_gradient(gradient_of(0.1))
    with client_in(tmp_path, privacy=privacy, rounds=3) as second:
        with pytest.raises(AlreadySubmittedError):
            second.submit_gradient(gradient_of(0.1))
        second.submit_gradient(gradient_of(0.1), {"hospital": NODES[1]})
        assert second.get_current_round() == 2
        assert second.get_remaining_privacy_budget() < left
        assert second.history()["rounds"] == [1]


def test_a_client_of_a_used_folder_tells_what_was_spent_there(tmp_path: Path) -> None:
    def told(client: MATLClient) -> tuple[Any, ...]:
        left = [client.get_remaining_privacy_budget(node) for node in NODES]
        trust = client.get_trust_scores()
        return left, client.get_budget_fraction(), trust, client.get_current_round()

    arguments = {"privacy": DifferentialPrivacy(), "rounds": 2}
    with client_in(tmp_path, **arguments) as first:
        unused = told(first)
        first.aggregate(submit_all(first, 0.1, 0.1, 0.1))
        first.submit_gradient(gradient_of(0.1))
        spent = told(first)
        # While the first has it, and when nobody does.
        with client_in(tmp_path, **arguments) as second:
            assert told(second) == spent
    with client_in(tmp_path, **arguments) as third:
        assert told(third) == spent
        assert told(third) != unused
        assert spent[0][0] < spent[0][1] < 1.0


def test_a_log_that_holds_nothing_passes_no_safeguard(client: MATLClient) -> None:
    def verdicts() -> dict[str, str]:
        told: list[str] = []
        with pytest.raises(SafeguardsError):
            verify_hipaa_compliance(client, report=told.append)
        return {line[12:].partition(":")[0]: line.split()[0] for line in told if " log " in line}

    logs = ("this client's audit log encrypted", "this client's audit log active")
    before = verdicts()
    assert [before.pop(each) for each in (*logs, "the study's log encrypted")] == ["NOT-TESTED"] * 3
    submit_all(client, 0.5, 0.5, 0.5)
    client.audit_log("looked")
    assert set(verdicts().values()) == {"PASS"}


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    with client_in(tmp_path, rounds=3) as first:
        first.submit_gradient(gradient_of(0.1))
    with (
        client_in(tmp_path, rounds=4) as second,
        pytest.raises(StudyMismatchError, match="another folder="),
    ):
        second.submit_gradient(gradient_of(0.1))


def test_two_clients_do_not_share_a_folder(client: MATLClient, tmp_path: Path) -> None:
    client.submit_gradient(gradient_of(0.1))
    with client_in(tmp_path) as second, pytest.raises(FolderInUseError, match="earlier cell"):
        second.submit_gradient(gradient_of(0.1))


def test_a_hospital_signs_with_its_own_key(tmp_path: Path) -> None:
    generate_key(tmp_path / "mine.pem", KeyKind.P256)
    with client_in(tmp_path, private_key=tmp_path / "mine.pem") as client:
        client.submit_gradient(gradient_of(0.1))
        assert client.embedded.study is not None
        node = client.embedded.study.coordinator.allowed(hospital_name("hospital_a"))
    assert node.signing_key == load_p256_key(tmp_path / "mine.pem").public_key


def test_a_rule_that_there_is_none_of_is_refused(tmp_path: Path) -> None:
    with (
        client_in(tmp_path, rule="krumm") as client,
        pytest.raises(ConfigurationError, match="krumm"),
    ):
        client.submit_gradient(gradient_of(0.1))


def test_an_aggregation_by_another_name_is_refused(client: MATLClient) -> None:
    gradients = submit_all(client, 0.1, 0.1, 0.1)
    with pytest.raises(ConfigurationError, match="rule="):
        client.aggregate(gradients, method="fedavg")


def test_a_round_that_is_held_costs_waits_and_is_resumed(tmp_path: Path) -> None:
    nodes = tuple(f"hospital_{letter}" for letter in "abcdefg")
    with client_in(tmp_path, allowed_nodes=nodes, byzantine=3) as client:
        submit_all(client, 0.1, 0.1, 0.1)
        with pytest.raises(RoundHeldError, match="up to 3 of them may be hostile"):
            client.aggregate([gradient_of(0.1)])
        with pytest.raises(RoundHeldError, match="call resume"):
            client.submit_gradient(gradient_of(0.1))
        client.resume("the others come again")
        assert client.submit_gradient(gradient_of(0.1)).round == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"node_id": "hospital_z"}, "add it"),
        ({"rounds": 0}, "at least 1"),
        ({"allowed_nodes": {"hospital_a": 0}}, "1 patient or more"),
        ({"private_key": "/no/such.pem"}, "matl keygen"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_what_to_do(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        client_in(tmp_path, **arguments)


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 0.0}, {"epsilon": math.inf}, {"delta": 1.0}, {"clip_norm": -1.0}]
)
def test_a_promise_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        DifferentialPrivacy(**wrong)


def test_half_of_the_steps_cost_more_than_half_of_epsilon() -> None:
    privacy = DifferentialPrivacy(epsilon=1.0, delta=1e-5)
    assert privacy.epsilon_after(75, of=150) == pytest.approx(0.684, abs=1e-3)
    assert privacy.epsilon_after(150, of=150) == pytest.approx(1.0, abs=1e-6)
    assert privacy.epsilon_after(0, of=150) == 0.0


def test_a_mode_that_cannot_be_had_is_not_silently_another(tmp_path: Path) -> None:
    for mode, holdout in ((MATLMode.MODE1, None), (MATLMode.MODE2, None), (MATLMode.MODE2, [1])):
        with pytest.warns(MatlWarning, match=f"{mode.value.upper()} was asked for"):
            client_in(tmp_path, mode=mode, holdout=holdout)


IMPORTS = """
import sys
{code}
heavy = "torch pandas grpc sqlalchemy matplotlib numpy pydantic streamlit".split()
print(*[name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import matl; from matl import MATLMode", set()),
        (
            (
                "from matl import MATLClient, MATLMode\n"
                "from matl.privacy import DifferentialPrivacy\n"
                "MATLClient(node_id='a', privacy=DifferentialPrivacy())"
            ),
            set(),
        ),
        (
            (
                "import numpy\n"
                "from matl import MATLClient\n"
                "MATLClient(node_id='a').submit_gradient([numpy.ones(2)])"
            ),
            {"grpc", "sqlalchemy", "numpy", "pydantic"},
        ),
    ],
)
def test_importing_and_trying_out_load_no_more_than_they_need(
    tmp_path: Path, code: str, loaded: set[str]
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(code=code)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert set(ran.stdout.split()) == loaded
