"""``deploy_medical_fl.py``: the flags laid over a configuration, and what it refuses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from matl.demo.run import DEPLOY
from matl.demo.study import COORDINATOR
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId
from tests.demo.test_federation import prepared

HOSPITALS = "hospital_a, hospital_b,hospital_c,hospital_d,hospital_e"


def loaded_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_medical_fl", DEPLOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deploy = loaded_script()


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


def test_the_audit_database_is_laid_over_the_file(tmp_path: Path) -> None:
    path = prepared(tmp_path).config(COORDINATOR)
    url = "postgresql+psycopg://secure-db:5432/audit"
    config = deploy.coordinator_configuration(path, hospitals=HOSPITALS, audit_db=url)
    assert config.database_url == url
    assert config.holdout.images.is_absolute()
    without = deploy.coordinator_configuration(path, hospitals=None, audit_db=None)
    assert without.database_url.startswith("sqlite:///")


def test_a_url_that_is_none_is_refused(tmp_path: Path) -> None:
    path = prepared(tmp_path).config(COORDINATOR)
    with pytest.raises(ConfigurationError, match="--audit-db"):
        deploy.coordinator_configuration(path, hospitals=None, audit_db="no url")


@pytest.mark.parametrize(
    ("hospitals", "named"),
    [
        (HOSPITALS + ",hospital_f", "hospital_f"),
        ("hospital_a,hospital_b", "hospital_c, hospital_d, hospital_e"),
        ("Hospital A", "Hospital A"),
    ],
)
def test_hospitals_must_be_exactly_those_enrolled(
    tmp_path: Path, hospitals: str, named: str
) -> None:
    path = prepared(tmp_path).config(COORDINATOR)
    with pytest.raises(ConfigurationError, match=named):
        deploy.coordinator_configuration(path, hospitals=hospitals, audit_db=None)


def test_the_data_folder_is_laid_over_the_file(tmp_path: Path) -> None:
    path = prepared(tmp_path).config(NodeId("hospital_b"))
    config = deploy.participant_configuration(
        path, coordinator="coordinator", data_dir=tmp_path / "retinal_images"
    )
    assert config.data.images == tmp_path / "retinal_images"


def test_a_coordinator_that_the_file_does_not_trust_is_refused(tmp_path: Path) -> None:
    path = prepared(tmp_path).config(NodeId("hospital_b"))
    with pytest.raises(ConfigurationError, match="certificate and signing key"):
        deploy.participant_configuration(path, coordinator="hospital_a", data_dir=None)


def test_compliance_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    said = refused("--role", "participant", "--compliance", "hipaa", folder=tmp_path)
    assert "--compliance is not available" in said


def test_a_flag_of_the_other_role_is_refused(tmp_path: Path) -> None:
    said = refused("--role", "coordinator", "--data-dir", ".", folder=tmp_path)
    assert "--data-dir means nothing for a coordinator" in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "participant.toml" in refused("--role", "participant", folder=tmp_path)
