"""Every control, as a literal table. Pure; ``docs/compliance.md`` shows the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from matl.compliance.control import BOTH, Control, Level, Side

_R, _A, _P, _OWN = Level.REQUIRED, Level.ADDRESSABLE, Level.PROPOSED, Level.OWN

CONTROLS: Final = (
    Control(
        "access.certificates",
        "164.312(a)(1), (d)",
        _R,
        "who does not belong is refused, and the log says so",
        "dials the coordinator with no certificate and seven bad ones (another authority, expired, "
        "not yet valid, unlisted, another key, another role, another federation), and looks for "
        "each refusal in the log",
        "a stolen key of an enrolled node; more than 60 refusals of a kind an hour are summed up "
        "in the log, and the row then fails",
        needs_daemon=True,
    ),
    Control(
        "access.unique",
        "164.312(a)(2)(i)",
        _R,
        "every node has a name and keys of its own",
        "reads the allow-list and compares names, TLS pins, signing keys and witness keys",
        "people behind a node: who uses an operator's key is for the hospital to know",
    ),
    Control(
        "access.emergency",
        "164.312(a)(2)(ii)",
        _R,
        "the log can be read when its coordinator is down",
        "opens an entry written for the purpose with the key-encryption key and the database "
        "alone, as `matl audit decrypt` does, without its order",
        "that the people who would have to do it can reach the key",
        writes=True,
    ),
    Control(
        "access.emergency-drill",
        "164.312(a)(2)(ii)",
        _R,
        "breaking the glass was practised within a year",
        "looks for an entry `entries_decrypted` of the last 365 days",
        "who took part",
    ),
    Control(
        "access.logoff",
        "164.312(a)(2)(iii)",
        _A,
        "who says nothing is cut off",
        "opens a call with an operator's certificate, says nothing, and waits for the end",
        "workstations and their screen locks",
        needs_daemon=True,
    ),
    Control(
        "access.dashboard",
        "164.312(a)(2)(iii)",
        _A,
        "the dashboard is for who sits at it, and an idle session ends",
        "looks whether its port is open to other machines, which fails; otherwise NOT-TESTED, for "
        "a session takes a browser",
        "when an idle session ends: its own tests hold one past its limit",
    ),
    Control(
        "encryption.entries",
        "164.312(a)(2)(iv)",
        _A,
        "what the log says is encrypted where it lies",
        "writes an entry with a random word, reads its row by SQL: the word must not be there, the "
        "row must open with the data key, and not once a bit of it is changed",
        "memory of the running coordinator, and the study's own tables, which are not encrypted",
        writes=True,
    ),
    Control(
        "encryption.files",
        "164.312(a)(2)(iv)",
        _A,
        "what lies in the state folder is nobody else's to read, and holds no plaintext of the log",
        "searches every file of the state folder for that random word and for private keys in "
        "PEM, and looks at modes",
        "what was deleted, and copies elsewhere",
        writes=True,
    ),
    Control(
        "encryption.disk",
        "164.312(a)(2)(iv)",
        _A,
        "the disk below is encrypted",
        "follows the state folder's device down to dm-crypt",
        "encryption by the drive, the hypervisor or a storage service cannot be seen from here",
        sides=BOTH,
    ),
    Control(
        "audit.integrity",
        "164.312(b)",
        _R,
        "the log is whole and what was signed",
        "recomputes the root from every leaf, opens every entry, verifies every checkpoint and "
        "cosignature, and compares with the checkpoint kept beside",
        "events that never were put into it; see audit.completeness",
    ),
    Control(
        "audit.roles",
        "164.312(b)",
        _R,
        "nobody who uses the database can change the log",
        "tries UPDATE, DELETE and TRUNCATE on the log's tables as every user it is given, in a "
        "transaction that is rolled back, and expects SQLSTATE 42501",
        "what a superuser of the database can do; cosigned checkpoints show that",
    ),
    Control(
        "audit.completeness",
        "164.312(b)",
        _R,
        "every round in the database is told in the log",
        "compares rounds, updates and models with the entries that must be there of each",
        "rounds that are in neither",
    ),
    Control(
        "audit.review",
        "164.308(a)(1)(ii)(D)",
        _R,
        "somebody has reviewed the activity within 30 days",
        "looks for an entry `activity_reviewed` of the last 30 days",
        "how carefully",
    ),
    Control(
        "integrity.updates",
        "164.312(c)(1), (c)(2)",
        _A,
        "updates and models are what was signed and released",
        "verifies the hospitals' signatures on the newest updates and the digests of released "
        "models again; a changed copy of each must fail",
        "that training was honest; see docs/robustness.md",
    ),
    Control(
        "authentication.keys",
        "164.312(d)",
        _R,
        "the node's keys are its own, and do what they are for",
        "signs and verifies a random challenge with every key, compares keys with certificates, "
        "and looks at who can read them",
        "copies of a key that lies in a file",
        sides=BOTH,
    ),
    Control(
        "authentication.hsm",
        "164.312(d)",
        _OWN,
        "the node's keys cannot leave their token",
        "asks the PKCS#11 token for CKA_SENSITIVE and CKA_NEVER_EXTRACTABLE of each key and "
        "whether it is hardware; a key in a PEM file fails",
        "what the token's maker promises",
        sides=BOTH,
    ),
    Control(
        "authentication.mfa",
        "164.312(d), proposed (f)",
        _P,
        "operators need a second factor",
        "reads who signed for it; no password exists, so that none alone lets anybody in",
        "whether operators' keys are in tokens with a PIN, which a server cannot see",
    ),
    Control(
        "transmission.tls",
        "164.312(e)(1), (e)(2)(ii)",
        _R,
        "nothing below TLS 1.3 is spoken",
        "sends a ClientHello of TLS 1.0, 1.1 and 1.2 that each offers every usual suite, and "
        "expects no ServerHello; then begins TLS 1.3",
        "proxies between hospitals and the address that was dialled",
        needs_daemon=True,
    ),
    Control(
        "transmission.plaintext",
        "164.312(e)(1)",
        _R,
        "nothing is spoken in the clear",
        "speaks HTTP/2 without TLS to the port, and expects no HTTP/2 back; wants metrics, which "
        "have no TLS, on loopback alone",
        "other ports; see inventory.sockets",
        needs_daemon=True,
    ),
    Control(
        "transmission.database",
        "164.312(e)(1)",
        _R,
        "the way to the database is encrypted, and ends at the right one",
        "asks the database about this very connection (pg_stat_ssl) and wants sslmode verify-full, "
        "or a way that does not leave the machine",
        "replication between databases",
    ),
    Control(
        "retention.kept",
        "164.316(b)(2)(i)",
        _R,
        "entries are kept as long as was promised",
        "counts the months that the tree has leaves of, and asks to drop the newest one: by the "
        "rules, and in the database as every user it is given, in a transaction that is rolled "
        "back",
        "copies of what was dropped by order",
    ),
    Control(
        "retention.years",
        "164.316(b)(2)(i)",
        _R,
        "entries are kept for six years at least",
        "reads the configured years, and asks the database to erase a younger month than that, in "
        "a transaction that is rolled back",
        "whether the rule covers every detail of a log, which was never said",
    ),
    Control(
        "retention.promise",
        "this product, tutorial part 1",
        _OWN,
        "entries are kept for seven years, as promised",
        "the same with seven years",
        "",
    ),
    Control(
        "contingency.restore",
        "164.308(a)(7)(ii), 164.316(b)(2)",
        _R,
        "the newest backup is of these days and can be restored",
        "reads when each was made from its signed manifest, restores the newest into a scratch "
        "folder and a scratch database, goes over the whole log there, and compares "
        "its root with the running log's; tells how long that took",
        "keys and configuration, which are in no backup; where the backup is kept",
    ),
    Control(
        "agreements.nodes",
        "164.308(b), 164.314(a)",
        _R,
        "there is an agreement with every hospital",
        "looks for an unexpired agreement of every enrolled hospital in the registry, and compares "
        "the document's SHA-256 where it is at hand",
        "what the agreements say",
    ),
    Control(
        "deidentification.scan",
        "164.514(b)(2)",
        _R,
        "no identifiers lie in the data folders",
        "scans every file of the folders, and the labels beside them: names, columns, values, "
        "metadata of pictures, DICOM",
        "what the scanner's recall leaves, which its documentation states; text in the pixels",
        sides=BOTH,
    ),
    Control(
        "deidentification.burned-in",
        "164.514(b)(2)",
        _OWN,
        "no text is burned into the pixels",
        "reads every image with tesseract, where the registry asks for it",
        "handwriting, and what OCR does not recognise",
        sides=BOTH,
    ),
    Control(
        "deidentification.route",
        "164.514(b)(1), (b)(2)(i)(P), (e)",
        _OWN,
        "somebody has decided by which route retinal images count as de-identified",
        "reads who signed for expert determination, safe harbor or a limited data set",
        "whether they are right: retinal images may be biometric identifiers",
        sides=BOTH,
    ),
    Control(
        "privacy.spent",
        "this product, tutorial part 6",
        _OWN,
        "no hospital's patients have paid more than the plan allows",
        "reads the signed plan and counts admitted updates of each hospital in the log, and "
        "computes the epsilon that they come to; at a hospital, verifies its ledgers and compares "
        "them with plan and limit",
        "attempts that never arrived: they are in the hospital's own ledger",
        sides=BOTH,
    ),
    Control(
        "inventory.software",
        "164.312 as proposed: inventory, patching",
        _P,
        "what is installed is what was locked",
        "compares the version of every installed distribution with the lock file",
        "the operating system's packages, and whether the locked versions are good ones",
        sides=BOTH,
    ),
    Control(
        "inventory.sockets",
        "164.308 as proposed: network map",
        _P,
        "nothing listens that was not declared",
        "compares the sockets that other machines can reach with those declared",
        "what a firewall lets through",
        sides=BOTH,
    ),
    Control(
        "inventory.segmentation",
        "164.312 as proposed: segmentation",
        _P,
        "the network is segmented",
        "reads who signed for it, and when",
        "the network",
        sides=BOTH,
    ),
    Control(
        "inventory.patching",
        "164.308 as proposed: patch management",
        _P,
        "patches were reviewed within a month",
        "reads who signed for it, and when",
        "the patches",
        sides=BOTH,
    ),
    Control(
        "inventory.scan",
        "164.312 as proposed: vulnerability scan",
        _P,
        "a vulnerability scan is no older than six months",
        "reads the date of the report in the registry",
        "what the report says",
        sides=BOTH,
    ),
    Control(
        "inventory.penetration-test",
        "164.312 as proposed: penetration test",
        _P,
        "a penetration test is no older than twelve months",
        "reads the date of the report in the registry",
        "what the report says",
        sides=BOTH,
    ),
)


def controls_of(side: Side) -> tuple[Control, ...]:
    """The rows that are probed on a machine."""
    return tuple(each for each in CONTROLS if side in each.sides)


def controls_before(side: Side, *, may_write: bool) -> tuple[Control, ...]:
    """Those that can be probed before the daemon runs, and without an entry if there is to be none.

    What a hospital's own folders and keys show is the same whether its daemon runs or not.
    """
    return tuple(
        each
        for each in controls_of(side)
        if not each.needs_daemon and (may_write or not each.writes)
    )


def table_lines() -> Iterator[str]:
    """The table in Markdown."""
    yield "| control | 45 CFR | level | what has to be so | what the probe does | left open |"
    yield "|---|---|---|---|---|---|"
    for each in CONTROLS:
        cells = (
            f"`{each.id}`",
            each.cfr,
            each.level.value,
            each.title,
            each.probe,
            each.leaves_open or "-",
        )
        yield f"| {' | '.join(cells)} |"
