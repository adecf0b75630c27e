"""``deploy_medical_fl.py``: the flags laid over a configuration, and what it refuses."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from matl.demo.federation import Layout
from matl.demo.run import DEPLOY
from matl.demo.study import COORDINATOR
from matl.deploy import command as deploy
from matl.deploy.plan import participant_plan
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import encode_allowlist, enrol, load_allowlist
from matl_common.ids import NodeId
from matl_common.modes import MATLMode
from matl_coordinator.config import Config, Standby, with_database
from matl_coordinator.config import load_config as load_coordinator
from matl_participant.config import load_config as load_participant
from tests.compliance.words import forbidden_in
from tests.demo.test_federation import prepared

HOSPITALS = "hospital_a, hospital_b,hospital_c,hospital_d,hospital_e"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return a federation's files, which no test changes."""
    return prepared(tmp_path_factory.mktemp("federation"))


def refused(*flags: str, folder: Path) -> str:
    """Run the script, which must refuse its configuration; returns what it said."""
    done = subprocess.run(
        [sys.executable, str(DEPLOY), *flags],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("MATL_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_audit_database_is_laid_over_the_file(layout: Layout) -> None:
    path = layout.config(COORDINATOR)
    url = "postgresql+psycopg://secure-db:5432/audit"
    config = deploy.coordinator_configuration(path, hospitals=HOSPITALS, audit_db=url)
    assert config.database_url == url
    assert config.holdout is not None
    assert config.holdout.images.is_absolute()
    without = deploy.coordinator_configuration(path, hospitals=None, audit_db=None)
    assert without.database_url.startswith("sqlite:///")


def test_a_url_that_is_none_is_refused(layout: Layout) -> None:
    path = layout.config(COORDINATOR)
    for url, told in (
        ("no url", "--audit-db: .*database is not a URL such as postgresql://host/name"),
        ("postgresql://host/name?password=x", "has password behind the question mark"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            deploy.coordinator_configuration(path, hospitals=None, audit_db=url)


def test_a_standby_is_told_that_its_database_cannot_be_shared(layout: Layout) -> None:
    alone = load_coordinator(layout.config(COORDINATOR))
    standby = alone.model_copy(update={"standby": Standby(name=NodeId("hospital_a"))})
    with pytest.raises(ConfigurationError, match=r"--audit-db: .*\[standby\] needs PostgreSQL"):
        with_database(standby, "sqlite:///here.db")


@pytest.mark.parametrize(
    ("hospitals", "named"),
    [
        (HOSPITALS + ",hospital_f", "hospital_f"),
        ("hospital_a,hospital_b", "hospital_c, hospital_d, hospital_e"),
        ("Hospital A", "Hospital A"),
    ],
)
def test_hospitals_must_be_exactly_those_enrolled(
    layout: Layout, hospitals: str, named: str
) -> None:
    path = layout.config(COORDINATOR)
    with pytest.raises(ConfigurationError, match=named):
        deploy.coordinator_configuration(path, hospitals=hospitals, audit_db=None)


def test_the_hospital_that_coordinates_may_be_named_among_the_others(layout: Layout) -> None:
    path = layout.config(COORDINATOR)
    allowed = load_allowlist(load_coordinator(path, environment={}).federation.allowlist)
    others = [node for name, node in allowed.nodes.items() if name != "hospital_a"]
    file = path.with_name("without-hospital-a.toml")
    file.write_bytes(encode_allowlist(enrol(allowed.federation, others)))
    changed = path.with_name("coordinated-by-hospital-a.toml")
    lines = path.read_text().splitlines()
    changed.write_text(
        "\n".join(
            f'allowlist = "{file}"' if line.startswith("allowlist = ") else line for line in lines
        )
    )
    line = "hospital_a,hospital_b,hospital_c,hospital_d,hospital_e"
    audit_db = "postgresql://secure-db:5432/audit"

    def named(hospitals: str) -> Config:
        return deploy.coordinator_configuration(
            changed,
            hospitals=hospitals,
            audit_db=audit_db,
            environment={"MATL_NODE_ID": "hospital_a"},
        )

    assert named(line).node_id == "hospital_a"
    assert named(line.removeprefix("hospital_a,")).node_id == "hospital_a"
    with pytest.raises(ConfigurationError, match="hospital_f"):
        named(f"{line},hospital_f")
    with pytest.raises(ConfigurationError, match="also enrols hospital_e"):
        named(line.removesuffix(",hospital_e"))


def test_the_data_folder_is_laid_over_the_file(layout: Layout, tmp_path: Path) -> None:
    path = layout.config(NodeId("hospital_b"))
    config = deploy.participant_configuration(
        path, coordinator="coordinator", data_dir=tmp_path / "retinal_images"
    )
    assert config.data.images == tmp_path / "retinal_images"


def test_a_coordinator_that_the_file_does_not_trust_is_refused(layout: Layout) -> None:
    path = layout.config(NodeId("hospital_b"))
    with pytest.raises(ConfigurationError, match="certificate and signing key"):
        deploy.participant_configuration(path, coordinator="hospital_a", data_dir=None)


@pytest.mark.parametrize("mode", ["MODE1", "mode1", ""])
def test_the_mode_of_the_environment_is_that_of_the_file(layout: Layout, mode: str) -> None:
    path = layout.config(COORDINATOR)
    environment = {"MATL_MODE": mode}
    config = deploy.coordinator_configuration(
        path, hospitals=None, audit_db=None, environment=environment
    )
    assert config.mode is MATLMode.MODE1


@pytest.mark.parametrize(("mode", "said"), [("MODE2", "of MODE1"), ("MODE9", "use MODE0, MODE1")])
def test_another_mode_than_the_files_is_refused(layout: Layout, mode: str, said: str) -> None:
    path = layout.config(COORDINATOR)
    with pytest.raises(ConfigurationError, match=said):
        deploy.coordinator_configuration(
            path, hospitals=None, audit_db=None, environment={"MATL_MODE": mode}
        )


def test_a_participant_of_mode2_must_ask_for_evidence(layout: Layout) -> None:
    path = layout.config(NodeId("hospital_b"))
    with pytest.raises(ConfigurationError, match="no evidence"):
        deploy.participant_configuration(
            path, coordinator=None, data_dir=None, environment={"MATL_MODE": "MODE2"}
        )


def without_address(path: Path, **names: str) -> Path:
    """The same configuration beside it, which does not say where the coordinator is."""
    lines = path.read_text().splitlines()
    (address,) = [line for line in lines if line.startswith("address = ")]
    text = "\n".join(line for line in lines if line != address)
    for old, new in names.items():
        text = text.replace(f"/coordinator/{old}", f"/coordinator/{new}")
    changed = path.with_name("without-address.toml")
    changed.write_text(text)
    return changed


def test_the_environment_goes_before_the_file_and_the_file_before_dns(layout: Layout) -> None:
    path = layout.config(NodeId("hospital_b"))

    def address(**environment: str) -> str:
        config = deploy.participant_configuration(
            path, coordinator="coordinator", data_dir=None, environment=environment
        )
        return config.coordinator.address

    assert address() == "127.0.0.1:4711"
    assert address(MATL_COORDINATOR_ADDRESS="elsewhere:1") == "elsewhere:1"
    path = without_address(path)
    assert address(MATL_COORDINATOR_ADDRESS="elsewhere:1") == "elsewhere:1"


def test_a_name_that_dns_knows_is_an_address(layout: Layout) -> None:
    path = without_address(layout.config(NodeId("hospital_b")), coordinator="localhost")
    config = deploy.participant_configuration(
        path, coordinator="localhost", data_dir=None, environment={}
    )
    assert config.coordinator.address == f"localhost:{deploy.COORDINATOR_PORT}"


def test_a_name_that_is_nowhere_says_what_was_tried(layout: Layout) -> None:
    path = without_address(layout.config(NodeId("hospital_b")))
    with pytest.raises(ConfigurationError) as refused:
        deploy.participant_configuration(
            path, coordinator="no-such.invalid", data_dir=None, environment={}
        )
    said = str(refused.value)
    for place in ("MATL_COORDINATOR_ADDRESS: not set", "coordinator.address", "DNS for no-such"):
        assert place in said


def asked(*flags: str) -> Result:
    """Ask for what starts no daemon, in this process."""
    return CliRunner().invoke(deploy.app, flags)


def test_compliance_refuses_to_start_and_names_every_control_with_its_remedy(
    layout: Layout,
) -> None:
    path = str(layout.config(COORDINATOR))
    done = asked("--role", "coordinator", "--config", path, "--compliance", "hipaa")
    assert done.exit_code == 2, done.output
    # Before the study is founded there is no log to fail with; there are no agreements either.
    assert "agreements.nodes (164.308(b), 164.314(a)): no agreement with hospital_a" in done.output
    assert "to do: sign one" in done.output
    # SQLite has no users: not only once there is something to lose.
    assert "audit.roles (164.312(b))" in done.output
    assert "FAIL authentication.hsm" in done.output
    assert "coordinator_ready" not in done.output
    assert not forbidden_in(done.output)


def test_compliance_refuses_a_hospital_whose_data_nobody_scans(layout: Layout) -> None:
    path = layout.config(NodeId("hospital_b"))
    unscanned = path.with_name("unscanned.toml")
    text = path.read_text()
    assert "[data]\n" in text
    assert "phi_scan" not in text
    unscanned.write_text(text.replace("[data]\n", '[data]\nphi_scan = "off"\n'))
    done = asked(
        *("--role", "participant", "--config", str(unscanned), "--compliance", "hipaa", "--dry-run")
    )
    assert done.exit_code == 2, done.output
    assert 'data.phi_scan = "off"; set it to "refuse"' in done.output


def test_a_dry_run_shows_the_plan_and_changes_nothing(layout: Layout) -> None:
    path = str(layout.config(COORDINATOR))
    for images in (layout.data / "public" / "images", layout.data / "holdout" / "images"):
        some_data(images)
    before = contents(layout.out.parent)
    done = asked("--role", "coordinator", "--config", path, "--dry-run")
    assert done.exit_code == 0, done.output
    for told in ("hospital_a (100 patients)", "sqlite:///", "127.0.0.1:4711", "signing.key"):
        assert told in done.output
    with_checks = asked(
        *("--role", "coordinator", "--config", path, "--dry-run", "--compliance", "hipaa"),
        *("--audit-db", "postgresql://u:secret@127.0.0.1:9/audit"),
    )
    assert with_checks.exit_code == 2
    assert "agreements.nodes" in with_checks.output
    assert "secret" not in with_checks.output
    assert contents(layout.out.parent) == before


def test_a_participants_dry_run_names_coordinator_and_data(layout: Layout) -> None:
    path = layout.config(NodeId("hospital_b"))
    some_data(load_participant(path).data.images)
    done = asked("--role", "participant", "--config", str(path), "--dry-run")
    assert done.exit_code == 0, done.output
    for told in ("hospital_b", "127.0.0.1:4711", "epsilon 1", "software-held"):
        assert told in done.output


def test_a_participants_dry_run_refuses_what_is_not_there(layout: Layout, tmp_path: Path) -> None:
    path = layout.config(NodeId("hospital_b"))
    dry = ("--role", "participant", "--config", str(path), "--dry-run", "--data-dir")
    nowhere = asked(*dry, str(tmp_path / "nowhere"))
    assert nowhere.exit_code == 2
    assert "data.images is" in nowhere.output
    config = load_participant(path)
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    data = config.data.model_copy(update={"images": images, "labels": None})
    config = config.model_copy(update={"data": data})
    with pytest.raises(ConfigurationError, match=r"data\.labels: there is no file"):
        participant_plan(config)
    some_data(images)
    assert participant_plan(config)
    identity = config.identity.model_copy(update={"signing_key": tmp_path / "signing.key"})
    with pytest.raises(ConfigurationError, match="the key for signing: there is no file"):
        participant_plan(config.model_copy(update={"identity": identity}))


def some_data(images: Path) -> None:
    """An empty folder of images, with labels beside it."""
    images.mkdir(parents=True, exist_ok=True)
    (images.parent / "labels_deidentified.csv").write_text("image_id,dr_level\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }


def test_a_flag_of_the_other_role_is_refused(tmp_path: Path) -> None:
    said = refused("--role", "coordinator", "--data-dir", ".", folder=tmp_path)
    assert "--data-dir means nothing for a coordinator" in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "participant.toml" in refused("--role", "participant", folder=tmp_path)


@pytest.mark.parametrize("name", ["deploy_medical_fl.py", "verify_hipaa.py"])
def test_the_tutorials_names_are_installed_and_run_the_same_program(name: str) -> None:
    project = tomllib.loads((DEPLOY.parents[1] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert f"from {module} import {function}" in (DEPLOY.parent / name).read_text()
