"""The operator's client against a real server over mutual TLS."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from matl.calls import CoordinatorUnavailableError, OperationsError
from matl.demo.federation import COORDINATOR_NAME, settle
from matl.demo.run import free_port
from matl.demo.study import COORDINATOR, OPERATOR, Settings
from matl.operations import (
    OperationsClient,
    connect_operator,
)
from matl_common.identity.tls import server_credentials
from matl_common.wire import audit_pb2
from matl_common.wire import operations_pb2 as pb
from matl_common.wire.audit_pb2_grpc import (
    AuditServiceServicer,
    add_AuditServiceServicer_to_server,
)
from matl_common.wire.operations_pb2_grpc import (
    OperationsServiceServicer,
    add_OperationsServiceServicer_to_server,
)
from tests.demo.test_federation import layout_in

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
Answer = Callable[[Any, Any], Any]

pytestmark = pytest.mark.certificates


def round_of(number: int) -> pb.RoundSummary:
    return pb.RoundSummary(
        round_id=number,
        phase="released",
        released_model="ab" * 32,
        contributions=[
            pb.Contribution(
                node_id="hospital_a", status="admitted", upload_fraction=1.0, trust=0.9, weight=0.4
            )
        ],
        evaluation=pb.Evaluation(accuracy=0.8, per_class_recall=[0.5, 0.25], images=500),
    )


@contextmanager
def served(folder: Path, answers: Mapping[str, Answer]) -> Iterator[OperationsClient]:
    """Yield a client of a coordinator that gives these answers."""
    layout = layout_in(folder)
    settle(layout, Settings(patients=210), now=datetime.now(UTC))
    servicer: Any = type(
        "Servicer",
        (OperationsServiceServicer, AuditServiceServicer),
        {
            name: (lambda _, request, context, answer=answer: answer(request, context))
            for name, answer in answers.items()
        },
    )()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    add_OperationsServiceServicer_to_server(servicer, server)
    add_AuditServiceServicer_to_server(servicer, server)
    port = server.add_secure_port(
        "127.0.0.1:0", server_credentials(layout.node_keys(COORDINATOR).tls)
    )
    server.start()
    files = layout.node_keys(OPERATOR).tls
    try:
        with connect_operator(f"127.0.0.1:{port}", files, COORDINATOR_NAME) as client:
            yield client
    finally:
        server.stop(None).wait()


def test_a_status_comes_back_as_values(tmp_path: Path) -> None:
    told = pb.GetStatusResponse(
        study_id="retinopathy",
        rounds_released=1,
        rounds_planned=6,
        log_size=9,
        log_root="cd" * 32,
        current_round=round_of(1),
        study_complete=True,
        active_participants=5,
    )
    with served(tmp_path, {"GetStatus": lambda *_: told}) as client:
        status = client.status()
    assert (status.study_id, status.rounds_released, status.rounds_planned) == ("retinopathy", 1, 6)
    assert (status.log_size, status.study_complete, status.active_participants) == (9, True, 5)
    assert status.current_round is not None
    assert status.current_round.evaluation is not None
    assert status.current_round.evaluation.recall == (0.5, 0.25)
    assert status.current_round.contributions[0].weight == 0.4


def test_between_rounds_there_is_no_round_and_no_evaluation(tmp_path: Path) -> None:
    with served(tmp_path, {"GetStatus": lambda *_: pb.GetStatusResponse()}) as client:
        assert client.status().current_round is None


def test_all_rounds_are_fetched_however_many_there_are(tmp_path: Path) -> None:
    def page(request: Any, _: Any) -> Any:
        last = min(request.after_round + request.limit, 250)
        numbers = range(request.after_round + 1, last + 1)
        return pb.ListRoundsResponse(rounds=[round_of(number) for number in numbers])

    with served(tmp_path, {"ListRounds": page}) as client:
        assert [each.round_id for each in client.rounds()] == list(range(1, 251))
        assert [each.round_id for each in client.rounds(after=248)] == [249, 250]


def test_a_hospital_that_was_never_seen_has_no_last_seen(tmp_path: Path) -> None:
    seen = int(AT.timestamp() * 1000)
    told = pb.ListParticipantsResponse(
        participants=[
            pb.ParticipantSummary(node_id="hospital_a", trust=0.9, last_seen_unix_ms=seen),
            pb.ParticipantSummary(
                node_id="hospital_b",
                epsilon_spent=0.5,
                epsilon_budget=1.0,
                budget_fraction=0.3,
                rounds_left=7,
            ),
        ]
    )
    with served(tmp_path, {"ListParticipants": lambda *_: told}) as client:
        first, second = client.participants()
    assert (first.last_seen, second.last_seen) == (AT, None)
    assert (second.epsilon_spent, second.epsilon_budget) == (0.5, 1.0)
    assert (second.budget_fraction, second.rounds_left) == (0.3, 7)
    # Unknown here is not the same as nothing.
    assert first.epsilon_spent is None


def test_orders_carry_their_reason(tmp_path: Path) -> None:
    heard: list[str] = []

    def hear(kind: Callable[[], Any]) -> Answer:
        def answer(request: Any, _: Any) -> Any:
            heard.append(f"{type(request).__name__} {request.reason}")
            return kind()

        return answer

    answers = {
        "Pause": hear(pb.PauseResponse),
        "Resume": hear(pb.ResumeResponse),
        "StartRound": hear(lambda: pb.StartRoundResponse(round_id=7)),
        "Quarantine": hear(pb.QuarantineResponse),
        "Release": hear(pb.ReleaseResponse),
    }
    with served(tmp_path, answers) as client:
        client.pause("one")
        client.resume("two")
        assert client.start_round("three") == 7
        client.quarantine("hospital_e", "four")
        client.release("hospital_e", "five")
    assert heard == [
        "PauseRequest one",
        "ResumeRequest two",
        "StartRoundRequest three",
        "QuarantineRequest four",
        "ReleaseRequest five",
    ]


def test_a_refusal_names_the_coordinators_reason(tmp_path: Path) -> None:
    def refuse(_: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "no operator's certificate")

    with (
        served(tmp_path, {"GetStatus": refuse}) as client,
        pytest.raises(OperationsError, match="no operator's certificate") as caught,
    ):
        client.status()
    assert not isinstance(caught.value, CoordinatorUnavailableError)


def test_nobody_there_is_told_apart_from_a_refusal(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    settle(layout, Settings(patients=210), now=datetime.now(UTC))
    files = layout.node_keys(OPERATOR).tls
    with (
        connect_operator(f"127.0.0.1:{free_port()}", files, COORDINATOR_NAME) as client,
        pytest.raises(CoordinatorUnavailableError),
    ):
        client.status()


def test_log_entries_come_back_byte_for_byte(tmp_path: Path) -> None:
    told = audit_pb2.ReadLogResponse(
        entries=[
            audit_pb2.LogEntry(index=2, leaf=b"its key was erased"),
            audit_pb2.LogEntry(index=3, entry=b'{"event":"a"}'),
        ]
    )
    with served(tmp_path, {"ReadLog": lambda *_: told}) as client:
        assert client.newest_log_entries() == (b'{"event":"a"}',)
