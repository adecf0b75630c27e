"""Trust policies and the quorums they ask for."""

from dataclasses import replace
from itertools import combinations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.identity.keys import generate_private_key
from matl_common.tlog.checkpoint import Checkpoint, SignedCheckpoint, log_key, sign_checkpoint
from matl_common.tlog.cosignature import cosign, witness_key
from matl_common.tlog.merkle import leaf_hash
from matl_common.tlog.note import Note, NoteSignature
from matl_common.tlog.policy import (
    MAX_POLICY_BYTES,
    Group,
    Policy,
    assess,
    encode_policy,
    intersecting_quorum,
    open_witnessed,
    parse_policy,
    quorum_met,
    threshold_policy,
)
from tests.signers import SoftwareSigner

ORIGIN = "dr-study.matl.internal/log"
LOG_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
LOG_KEY = log_key(ORIGIN, LOG_SIGNER.public_key())
CHECKPOINT = Checkpoint(ORIGIN, 42, leaf_hash(b"root"))
SIGNED = sign_checkpoint(CHECKPOINT, LOG_KEY, LOG_SIGNER)
NOW = 1_679_315_147

NAMES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")
SIGNERS = {name: SoftwareSigner(generate_private_key()) for name in NAMES}
KEYS = {name: witness_key(f"{name}.example", SIGNERS[name].public_key) for name in NAMES}
VKEYS = {name: key.vkey for name, key in KEYS.items()}
LINES = {name: cosign(CHECKPOINT, KEYS[name], SIGNERS[name], unix_seconds=NOW) for name in NAMES}

# The example of C2SP tlog-policy, with keys filled in.
EXAMPLE = f"""
log {LOG_KEY.vkey}

witness X1 {VKEYS["X1"]}
witness X2 {VKEYS["X2"]}
witness X3 {VKEYS["X3"]}
group X-witnesses 2 X1 X2 X3

witness Y1 {VKEYS["Y1"]}
witness Y2 {VKEYS["Y2"]}
witness Y3 {VKEYS["Y3"]}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""
POLICY = parse_policy(EXAMPLE.encode())


def cosigned(*names: str) -> SignedCheckpoint:
    lines = tuple(LINES[name] for name in names)
    return replace(SIGNED, note=Note(SIGNED.note.text, (*SIGNED.note.signatures, *lines)))


def test_the_example_of_the_specification_is_read_as_it_says() -> None:
    assert POLICY.logs == (LOG_KEY,)
    assert POLICY.witnesses == KEYS
    assert POLICY.groups == (
        Group("X-witnesses", 2, ("X1", "X2", "X3")),
        Group("Y-witnesses", 1, ("Y1", "Y2", "Y3")),
        Group("X-and-Y", 2, ("X-witnesses", "Y-witnesses")),
    )
    assert POLICY.quorum == "X-and-Y"


def test_every_set_of_witnesses_is_weighed_as_the_example_says() -> None:
    for count in range(len(NAMES) + 1):
        for names in combinations(NAMES, count):
            xs = sum(name.startswith("X") for name in names)
            expected = xs >= 2 and count > xs
            assert quorum_met(POLICY, names) is expected, names


def test_names_of_groups_and_strangers_do_not_cosign() -> None:
    assert not quorum_met(POLICY, ["X-and-Y", "X-witnesses", "Y-witnesses", "Z1"])


def test_a_policy_is_read_back_as_it_was_written() -> None:
    assert parse_policy(encode_policy(POLICY)) == POLICY


@given(st.integers(1, len(NAMES)))
def test_a_threshold_is_met_by_that_many_witnesses(threshold: int) -> None:
    policy = threshold_policy([LOG_KEY], KEYS, threshold=threshold)
    assert parse_policy(encode_policy(policy)) == policy
    assert quorum_met(policy, NAMES[:threshold])
    assert not quorum_met(policy, NAMES[: threshold - 1])


def test_cosignatures_are_verified_and_weighed() -> None:
    assessment = assess(cosigned("X1", "Y2"), POLICY)
    assert dict(assessment.cosigned) == {"X1": NOW, "Y2": NOW}
    assert not assessment.quorum_met
    enough = cosigned("X1", "Y2", "X3")
    assert assess(enough, POLICY).quorum_met
    assert open_witnessed(enough.note.encode(), POLICY) == enough


def test_of_several_cosignatures_by_one_witness_the_latest_counts_once() -> None:
    later = cosign(CHECKPOINT, KEYS["X1"], SIGNERS["X1"], unix_seconds=NOW + 60)
    for lines in ((later, LINES["X1"]), (LINES["X1"], later)):
        note = Note(SIGNED.note.text, (*SIGNED.note.signatures, *lines, LINES["Y1"]))
        assessment = assess(replace(SIGNED, note=note), POLICY)
        assert dict(assessment.cosigned) == {"X1": NOW + 60, "Y1": NOW}
        assert not assessment.quorum_met


@pytest.mark.hostile
def test_a_checkpoint_without_its_quorum_is_refused_by_name() -> None:
    with pytest.raises(IntegrityError, match="cosigned by X1, X2"):
        open_witnessed(cosigned("X2", "X1").note.encode(), POLICY)
    with pytest.raises(IntegrityError, match="cosigned by nobody"):
        open_witnessed(SIGNED.note.encode(), POLICY)


@pytest.mark.hostile
def test_a_forged_cosignature_spoils_a_checkpoint_that_has_its_quorum() -> None:
    forged = NoteSignature(KEYS["X2"].name, KEYS["X2"].key_id, LINES["X1"].signature)
    signed = cosigned("X1", "X3", "Y1")
    note = Note(signed.note.text, (*signed.note.signatures, forged))
    with pytest.raises(IntegrityError, match="X2"):
        open_witnessed(note.encode(), POLICY)


@pytest.mark.hostile
def test_witnesses_without_the_log_are_not_enough() -> None:
    note = Note(SIGNED.note.text, tuple(LINES.values()))
    with pytest.raises(IntegrityError, match="known log"):
        open_witnessed(note.encode(), POLICY)


def test_no_quorum_is_needed_only_where_the_policy_says_so() -> None:
    policy = parse_policy(f"log {LOG_KEY.vkey}\nquorum none\n".encode())
    assert open_witnessed(SIGNED.note.encode(), policy) == SIGNED
    with pytest.raises(IntegrityError, match="known log"):
        open_witnessed(SIGNED.note.encode(), parse_policy(b"quorum none\n"))


def test_two_quorums_share_more_witnesses_than_may_be_faulty() -> None:
    assert intersecting_quorum(5, f=1) == 4
    for n in range(1, 30):
        for f in range(n):
            q = intersecting_quorum(n, f=f)
            assert q <= n
            assert 2 * q - n > f, "two quorums share an honest witness"
            assert 2 * (q - 1) - n <= f, "one fewer would not"
    for n, f in ((0, 0), (3, 3), (3, -1)):
        with pytest.raises(InvalidInputError):
            intersecting_quorum(n, f=f)


def test_comments_blanks_tabs_urls_and_any_order_are_accepted() -> None:
    text = (
        f"# a comment with é\n \t \n\twitness  w\t{VKEYS['X1']} https://w.example \n"
        f"  # another\nlog {LOG_KEY.vkey} https://log.example\nquorum w"
    )
    policy = parse_policy(text.encode())
    assert policy == Policy((LOG_KEY,), {"w": KEYS["X1"]}, (), "w")


def test_names_are_opaque_bytes() -> None:
    kelvin, broken = b"\xe2\x84\xaa", b"\xe2\x84"
    lines = b"witness K %b\nwitness %b %b\nwitness %b %b\ngroup g 2 K %b %b\nquorum g\n" % (
        VKEYS["X1"].encode(),
        kelvin,
        VKEYS["X2"].encode(),
        broken,
        VKEYS["X3"].encode(),
        kelvin,
        broken,
    )
    policy = parse_policy(lines)
    assert len(policy.witnesses) == 3
    assert encode_policy(policy) == lines


@pytest.mark.hostile
@pytest.mark.parametrize(
    "change",
    [
        ("quorum X-and-Y", ""),
        ("quorum X-and-Y", "quorum X-and-Y\nquorum X1"),
        ("quorum X-and-Y", "quorum Z"),
        ("quorum X-and-Y", "quorum X-and-Y extra"),
        ("quorum X-and-Y", "unknown statement"),
        ("group X-witnesses 2", "group X-witnesses 0"),
        ("group X-witnesses 2", "group X-witnesses 4"),
        ("group X-witnesses 2", "group X-witnesses 02"),
        ("group X-witnesses 2", "group X-witnesses ٢"),
        ("group X-witnesses 2", "group X-witnesses most"),
        ("group X-witnesses 2 X1 X2 X3", "group X-witnesses all"),
        ("group X-witnesses 2 X1", "group X-witnesses 2 none"),
        ("group X-witnesses 2 X1", "group X-witnesses 2 Y1"),
        ("group X-witnesses 2 X1", "group X-witnesses 2 X2"),
        ("group Y-witnesses any Y1", "group Y-witnesses any X1"),
        ("group Y-witnesses", "group none"),
        ("group Y-witnesses", "group X1"),
        ("group X-witnesses", "group Y-witnesses"),
        ("witness Y1", "witness X1"),
        ("witness Y1", "witness none"),
        (VKEYS["Y1"], VKEYS["X1"]),
        (VKEYS["Y1"], LOG_KEY.vkey),
        (VKEYS["Y1"], "vkey"),
        ("log ", f"log {LOG_KEY.vkey}\nlog "),
        (f"log {LOG_KEY.vkey}", f"log {VKEYS['Y1']}"),
        ("witness Y1", "witness\rY1"),
        ("witness Y1", "witness Y1\x7f"),
        ("witness Y1", "witness\u00a0Y1"),
    ],
)
def test_a_policy_that_breaks_a_rule_is_refused(change: tuple[str, str]) -> None:
    assert change[0] in EXAMPLE
    with pytest.raises(InvalidInputError):
        parse_policy(EXAMPLE.replace(*change, 1).encode())


def test_a_refusal_names_the_line_and_what_is_wrong_with_it() -> None:
    with pytest.raises(InvalidInputError, match="line 7 of the policy: 'Y1' is not defined"):
        parse_policy(EXAMPLE.replace("2 X1", "2 Y1").encode())
    with pytest.raises(InvalidInputError, match="line 9 of the policy: not a statement"):
        parse_policy(EXAMPLE.replace("witness Y1", "witnes Y1").encode())


def test_a_name_is_used_after_it_is_defined_and_defined_once() -> None:
    one, other = (f"witness w {VKEYS[name]}\n" for name in ("X1", "X2"))
    parse_policy(f"{one}quorum w\n".encode())
    for text in (f"quorum w\n{one}", f"{one}{other}quorum w\n"):
        with pytest.raises(InvalidInputError, match=r"line [12] .*'w' is"):
            parse_policy(text.encode())


@pytest.mark.hostile
@pytest.mark.parametrize("character", ["\x00", "\x0b", "\r", "\x1f", "\x7f"])
def test_control_characters_do_not_hide_in_comments(character: str) -> None:
    with pytest.raises(InvalidInputError, match="control character"):
        parse_policy(f"# {character}\n{EXAMPLE}".encode())


@pytest.mark.hostile
def test_one_key_does_not_count_twice_under_two_names() -> None:
    again = witness_key("another.example", SIGNERS["X1"].public_key)
    with pytest.raises(InvalidInputError, match="share a public key"):
        threshold_policy([LOG_KEY], KEYS | {"Z": again}, threshold=2)


def test_a_policy_holds_keys_of_the_types_that_suit_their_use() -> None:
    with pytest.raises(InvalidInputError, match="type for witnesses"):
        Policy((LOG_KEY,), {"w": LOG_KEY}, (), "none")
    with pytest.raises(InvalidInputError, match="type for logs"):
        Policy((KEYS["X1"],), {}, (), "none")


def test_a_policy_that_is_not_read_from_a_file_keeps_the_same_rules() -> None:
    group = Group("w", 1, ("w",))
    for name in ("two words", "none", ""):
        with pytest.raises(InvalidInputError, match="cannot name"):
            Policy((LOG_KEY,), {name: KEYS["X1"]}, (), "none")
    with pytest.raises(InvalidInputError, match="share a name"):
        Policy((LOG_KEY,), {"w": KEYS["X1"]}, (group,), "w")
    with pytest.raises(InvalidInputError, match="not defined"):
        Policy((LOG_KEY,), {"w": KEYS["X1"]}, (), "x")


@pytest.mark.hostile
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([*EXAMPLE.split(), "none", " ", "\n", "#"]), max_size=30).map(
        lambda words: " ".join(words).encode()
    )
)
def test_arbitrary_bytes_are_refused_as_a_policy_in_one_way_only(data: bytes) -> None:
    try:
        policy = parse_policy(data)
    except InvalidInputError:
        return
    assert parse_policy(encode_policy(policy)) == policy


@pytest.mark.hostile
def test_the_size_of_a_policy_is_bounded() -> None:
    with pytest.raises(InvalidInputError, match="bytes"):
        parse_policy(EXAMPLE.encode() + b"#" * MAX_POLICY_BYTES)
