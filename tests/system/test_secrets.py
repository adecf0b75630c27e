"""Secrets and patients' names, searched for wherever a real study leaves a trace."""

import base64
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import psutil
import pytest
from sqlalchemy import create_engine, inspect, make_url, text

from matl_common.identity.keys import load_private_key
from matl_common.identity.pkcs11.uri import PIN_VARIABLE
from tests.postgres import free_port, fresh_database
from tests.softhsm import PIN, TokenFolder, token_folder
from tests.system.canaries import found, key_secrets
from tests.system.federation import (
    CLASSES,
    COORDINATOR,
    HOSPITALS,
    STUDY,
    Federation,
    Material,
    found_federation,
    logged_events,
    write_images,
)
from tests.system.listening_link import listening_link
from tests.system.processes import ROOT, Daemon
from tests.system.story import wait_for_the_end

pytestmark = [pytest.mark.system, pytest.mark.hostile, pytest.mark.postgres, pytest.mark.hsm]
WATCHED, *OTHERS = HOSPITALS
IMAGE, PATIENT, BROKEN = "canaryimage", "canarypatient", "canarybroken"
REASON = "canaryreason of the operator"
ODD_PASSWORD = "canary/p@ss:word"
PASSPHRASE = "canarypassphrase"
PATIENTS = {"an image's name": IMAGE, "a patient's id": PATIENT, "a broken image's name": BROKEN}


@dataclass(frozen=True)
class Traces:
    """What a study left, by place; and what must be in none of them."""

    federation: Federation
    secrets: Mapping[str, bytes]
    places: Mapping[str, bytes]
    controls: Mapping[str, bytes]
    """By place, what must be found there, or the search would be blind."""


def write_patients(folder: Path) -> None:
    """Images and labels that name patients, with one image that cannot be read."""
    write_images(folder, per_class=3, seed=1)
    rows = []
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        renamed = path.with_name(f"{IMAGE}{number:03d}.png")
        path.rename(renamed)
        rows.append((renamed.stem, number % CLASSES, f"{PATIENT}{number:03d}"))
    (folder / f"{BROKEN}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + BROKEN.encode())
    rows.append((BROKEN, 0, f"{PATIENT}999"))
    with (folder / "labels_deidentified.csv").open("w", newline="", encoding="utf-8") as file:
        lines = [("image_id", "dr_level", "group_key"), *rows]
        csv.writer(file, lineterminator="\n").writerows(lines)


def database_text(url: str) -> bytes:
    """Every row of every table."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            tables = [
                f'"{schema}"."{table}"'
                for schema in inspect(connection).get_schema_names()
                if schema not in ("pg_catalog", "information_schema")
                for table in inspect(connection).get_table_names(schema=schema)
            ]
            rows = [
                str(row)
                for table in tables
                for (row,) in connection.execute(text(f"SELECT t::text FROM {table} t"))
            ]
    finally:
        engine.dispose()
    return "\n".join(rows).encode()


def files_below(folder: Path, *, but: Path | None = None) -> bytes:
    """Names and contents of all files."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != but]
    return b"\n".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in paths)


def scraped(port: int) -> bytes:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return bytes(answer.read())


def arguments_of(*daemons: Daemon) -> bytes:
    """Of the daemons and of every process that they started."""
    processes = [
        each for daemon in daemons for each in (psutil.Process(daemon.pid), *daemon.workers())
    ]
    return "\n".join(" ".join(each.cmdline()) for each in processes).encode()


def told_by(*argv: str, environment: Mapping[str, str] | None = None) -> bytes:
    """What a command writes that ends by itself."""
    run = subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        check=False,
        timeout=60,
    )
    return run.stdout + run.stderr


def doctors(*configs: Path) -> bytes:
    """What the doctor says on either side while nobody answers."""
    run = ("-c", "from matl.cli import app; app()", "doctor", "--config")
    return b"\n".join(told_by(*run, str(config)) for config in configs)


def failures(federation: Federation, folder: Path, hospital: Path) -> bytes:
    """The error texts of daemons that cannot start because of a secret thing."""
    coordinator = federation.folder / "coordinator.toml"
    table = coordinator.read_text()
    nobody = make_url(federation.database).set(port=free_port(), password=ODD_PASSWORD)
    unreachable = folder / "unreachable.toml"
    wrong = nobody.render_as_string(hide_password=False)
    unreachable.write_text(table.replace(json.dumps(federation.database), json.dumps(wrong)))
    tls_key = federation.keys[WATCHED].tls.private_key
    damaged_key, no_key = folder / "damaged.key", folder / "damaged-key.toml"
    damaged_key.write_bytes(tls_key.read_bytes().replace(b"-----END", b"!\n-----END"))
    no_key.write_text(hospital.read_text().replace(str(tls_key), str(damaged_key)))
    named, strange = folder / "named", folder / "named.toml"
    named.mkdir()
    (named / "labels_deidentified.csv").write_text(f"image_id,dr_level,{PATIENT}\n{IMAGE},1,x\n")
    strange.write_text(hospital.read_text().replace(str(federation.images / WATCHED), str(named)))
    in_the_uri = folder / "pin-value.toml"
    in_the_uri.write_text(table.replace("?module-path=", f"?pin-value={PIN}&module-path="))
    asked = folder / "in-the-query.toml"
    behind = nobody.set(password=None, query={"password": ODD_PASSWORD, "sslpassword": PASSPHRASE})
    as_text = behind.render_as_string(hide_password=False)
    asked.write_text(table.replace(json.dumps(federation.database), json.dumps(as_text)))
    coordinator_daemon = ("-m", "matl_coordinator.daemon", "-c")
    texts = {
        "refuses the PIN": told_by(
            *coordinator_daemon, str(coordinator), environment={PIN_VARIABLE: f"not-{PIN}"}
        ),
        "has a PIN in it": told_by(*coordinator_daemon, str(in_the_uri)),
        "database did not confirm": told_by(*coordinator_daemon, str(unreachable)),
        "matl:***@": told_by(*coordinator_daemon, str(unreachable), "--print-config"),
        "password, sslpassword behind": told_by(*coordinator_daemon, str(asked), "--print-config"),
        "unencrypted private key": told_by("-m", "matl_participant", "-c", str(no_key)),
        "remove column 3": told_by("-m", "matl_participant", "-c", str(strange)),
    }
    for expected, told in texts.items():
        assert expected in told.decode()
    return b"\n".join(texts.values())


@pytest.fixture(scope="module")
def traces(
    tmp_path_factory: pytest.TempPathFactory, material: Material, postgres_url: str
) -> Iterator[Traces]:
    folder = tmp_path_factory.mktemp("secrets")
    with (
        fresh_database(postgres_url) as database,
        pytest.MonkeyPatch.context() as patch,
        token_folder(folder / "softhsm", patch) as tokens,
    ):
        tokens.add("hsm")
        yield leave_traces(folder, material, database, tokens)


def leave_traces(folder: Path, material: Material, database: str, tokens: TokenFolder) -> Traces:
    """Run a study with a round, and collect."""
    images = folder / "images"
    images.mkdir()
    for node in (*OTHERS, "holdout"):
        (images / node).symlink_to(material.images / node)
    write_patients(images / WATCHED)
    federation = replace(
        found_federation(folder, material, database=database, study={"rounds": 1}),
        images=images,
    )
    keys, metrics_port = federation.keys, free_port()
    tokens.put("hsm", "signing", load_private_key(keys[COORDINATOR].signing_key))
    federation.identities[COORDINATOR] = {"signing_key": tokens.uri_text("hsm", "signing")}
    with ExitStack() as running:
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        link = running.enter_context(
            listening_link(
                federation.port,
                coordinator=keys[COORDINATOR].tls,
                hospital=keys[WATCHED].tls,
            )
        )
        config = federation.participant_config(WATCHED, address=link.address, changes={})
        metrics = f'[daemon]\nmetrics = "127.0.0.1:{metrics_port}"'
        config.write_text(config.read_text().replace("[daemon]", metrics))
        hospital = running.enter_context(Daemon("-m", "matl_participant", "-c", str(config)))
        others = [running.enter_context(federation.start_scripted(node)) for node in OTHERS]
        hospital.wait_for("participant.update_sealed", round=1)
        arguments, hospital_metrics = arguments_of(coordinator, hospital), scraped(metrics_port)
        wait_for_the_end(federation)
        with federation.operator() as operator:
            operator.pause(REASON)
        coordinator_metrics = scraped(federation.metrics_port)
        assert [each.wait() for each in (hospital, *others)] == [0, 0, 0]
        arguments += arguments_of(coordinator)
        assert coordinator.drain() == 0
        heard = link.heard
    state, encryption_key = federation.coordinator_state, "log-encryption.key"
    printed = told_by(
        "-m", "matl_coordinator.daemon", "--print-config", "-c", str(folder / "coordinator.toml")
    ) + told_by("-m", "matl_participant", "--print-config", "-c", str(config))
    places = {
        "the coordinator's output": coordinator.output.encode(),
        "the hospital's output": hospital.output.encode(),
        "the coordinator's metrics": coordinator_metrics,
        "the hospital's metrics": hospital_metrics,
        "what hospital and coordinator said to each other": heard,
        "the database": database_text(federation.database),
        "the log's entries, decrypted": json.dumps(
            [dict(each) for each in logged_events(federation)]
        ).encode(),
        "the coordinator's files": files_below(state, but=state / encryption_key),
        "arguments of processes": arguments,
        "--print-config": printed,
        "error texts": failures(federation, folder, config),
        "what the doctor says": doctors(federation.coordinator_config, config),
    }
    password = make_url(federation.database).password
    secrets = {
        **{name: canary.encode() for name, canary in PATIENTS.items()},
        **key_secrets(folder / "keys"),
        "the log's encryption key": (state / encryption_key).read_bytes().strip(),
        "the database's password": str(password).encode(),
        "a password with signs": ODD_PASSWORD.encode(),
        "the same in a URL": quote(ODD_PASSWORD, safe="").encode(),
        "a TLS key's passphrase in a URL": PASSPHRASE.encode(),
        "the token's PIN": PIN.encode(),
    }
    controls = {
        "the coordinator's output": WATCHED.encode(),
        "the hospital's output": b"participant.update_sealed",
        "the coordinator's metrics": b"matl_rounds_total",
        "the hospital's metrics": b"matl_",
        "what hospital and coordinator said to each other": STUDY.encode(),
        "the database": WATCHED.encode(),
        "the log's entries, decrypted": REASON.encode(),
        "the coordinator's files": b"matl.frozen",
        "arguments of processes": str(config).encode(),
        "--print-config": str(keys[WATCHED].signing_key).encode(),
        "error texts": b"unencrypted private key",
        "what the doctor says": WATCHED.encode(),
    }
    return Traces(federation, secrets, places, controls)


def test_no_secret_and_no_patient_is_anywhere_outside_its_own_place(traces: Traces) -> None:
    assert found(traces.secrets, traces.places) == []


def test_the_search_sees_into_every_place(traces: Traces) -> None:
    assert traces.controls.keys() == traces.places.keys()
    for place, control in traces.controls.items():
        assert found({"control": control}, {place: traces.places[place]}), place


@pytest.mark.parametrize("form", ["raw", "hexadecimal", "base64", "base64 inside"])
def test_a_secret_that_is_planted_is_found_in_every_place(traces: Traces, form: str) -> None:
    for name, secret in traces.secrets.items():
        planted = {
            "raw": secret,
            "hexadecimal": secret.hex().encode(),
            "base64": base64.b64encode(secret),
            "base64 inside": base64.b64encode(b"before " + secret + b" after"),
        }[form]
        for place, content in traces.places.items():
            tampered = content + b"\n" + planted
            assert found({name: secret}, {place: tampered}) == [(name, place)]
