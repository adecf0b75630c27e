"""The participant's configuration, its first look at the data, and its logs."""

import json
import math
from pathlib import Path

import pytest
import structlog

from matl_common.errors import ConfigurationError
from matl_common.logs import configure_logs
from matl_participant.config import Config, load_config
from matl_participant.core.limits import PrivacyLimits
from matl_participant.core.spending import DatasetLimit
from matl_participant.data.inspect import (
    LabelsRefusedError,
    check_patient_unit,
    inspect_data,
    parse_header,
)

MINIMAL = """
state_dir = "state"

[identity]
node_id = "hospital_a"
tls_key = "keys/tls.key"
tls_certificate = "keys/tls.crt"
signing_key = "/etc/matl/signing.key"

[coordinator]
address = "coordinator.example:8470"
spiffe_id = "spiffe://dr-study/coordinator/coordinator"
authority = "keys/trusted-ca.crt"
signing_key = "keys/coordinator-signing.pub"

[data]
images = "data/images"
declared_patients = 2100
"""


def load(folder: Path, text: str = MINIMAL, **environment: str) -> Config:
    path = folder / "participant.toml"
    path.write_text(text)
    return load_config(path, environment=environment)


def test_the_smallest_file_gives_a_whole_configuration(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.node_id == "hospital_a"
    assert config.state_dir == tmp_path / "state"
    assert config.tls.private_key == tmp_path / "keys/tls.key"
    assert config.tls.trusted_authority == tmp_path / "keys/trusted-ca.crt"
    assert config.identity.signing_key == Path("/etc/matl/signing.key")
    assert config.coordinator.name.server_name == "coordinator.dr-study.matl.internal"
    assert config.privacy.limits.max_epsilon == 1.0
    assert config.daemon.metrics == ""


def test_a_coordinator_with_a_standby_has_two_addresses(tmp_path: Path) -> None:
    assert load(tmp_path).coordinator.addresses == ("coordinator.example:8470",)
    both = load(tmp_path, MATL_COORDINATOR_ADDRESS="first.example:1, second.example:2")
    assert both.coordinator.addresses == ("first.example:1", "second.example:2")


def test_what_a_hospital_insists_on_becomes_its_limits(tmp_path: Path) -> None:
    assert load(tmp_path).privacy.limits == PrivacyLimits(1.0, 1e-5)
    told = "[privacy]\nrequire_discrete_noise = true\nmin_send_after_seconds = 60.0\n"
    limits = load(tmp_path, f"{MINIMAL}\n{told}").privacy.limits
    assert limits == PrivacyLimits(1.0, 1e-5, 60.0, require_discrete_noise=True)


def test_the_environment_takes_precedence(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        MATL_NODE_ID="hospital_b",
        MATL_PRIVATE_KEY="/secure/hospital_b.pem",
        MATL_COORDINATOR_ADDRESS="other:1",
    )
    assert config.node_id == "hospital_b"
    assert config.tls.private_key == Path("/secure/hospital_b.pem")
    assert config.coordinator.address == "other:1"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("declared_patients = 2100", "declared_patients = 0", "data.declared_patients"),
        ("declared_patients = 2100", 'declared_patients = "2100"', "data.declared_patients"),
        ("declared_patients = 2100", "patients = 2100", "data.patients"),
        ('"hospital_a"', '"Hospital A"', "identity.node_id"),
        ('"coordinator.example:8470"', '"coordinator.example"', "coordinator.address"),
        ('"coordinator.example:8470"', '""', "coordinator.address"),
        ('"coordinator.example:8470"', '"a:1,b"', "coordinator.address"),
        ('"coordinator.example:8470"', '"a:1,"', "coordinator.address"),
        ('"coordinator.example:8470"', '"a:1, a:1"', "coordinator.address"),
        ("/coordinator/coordinator", "/participant/hospital_b", "coordinator.spiffe_id"),
        ("/coordinator/coordinator", "/coordinator", "coordinator.spiffe_id"),
        ('/etc/matl/signing.key"', 'a"\nwitness_key = "w.key"', "coordinator.log_key"),
        ("[data]", "[daemon]\nwitness_seconds = 0\n[data]", "daemon.witness_seconds"),
        ("[data]", "[privacy]\nmax_epsilon = -1.0\n[data]", "privacy.max_epsilon"),
        ("[data]", "[privacy]\nmax_epsilon = nan\n[data]", "privacy.max_epsilon"),
        ("[data]", "[surprise]\n[data]", "surprise"),
        ("[data]", "[training]\nprocesses = 3\n[data]", "processes may not exceed workers"),
        ("[data]", "[data", "not TOML"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_the_name_of_its_key(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    assert old in MINIMAL
    with pytest.raises(ConfigurationError, match=named):
        load(tmp_path, MINIMAL.replace(old, new))


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_config(tmp_path / "absent.toml", environment={})


def test_a_hospital_may_allow_studies_without_noise_only_in_so_many_words(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL + "\n[privacy]\nmax_epsilon = inf\n")
    assert math.isinf(config.privacy.limits.max_epsilon)


def test_what_is_printed_shows_paths_of_keys_and_nothing_of_their_content(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/tls.key").write_text("-----BEGIN SECRET-----")
    printed = json.dumps(load(tmp_path).printable())
    assert str(tmp_path / "keys/tls.key") in printed
    assert "SECRET" not in printed
    assert json.loads(printed)["training"]["device"] == "auto"


def test_labels_lie_in_the_images_folder_or_beside_it_or_where_the_file_says(
    tmp_path: Path,
) -> None:
    images = tmp_path / "data/images"
    images.mkdir(parents=True)
    beside = tmp_path / "data/labels_deidentified.csv"
    assert load(tmp_path).data.labels_file == beside
    (images / "labels_deidentified.csv").touch()
    assert load(tmp_path).data.labels_file == images / "labels_deidentified.csv"
    explicit = MINIMAL + 'labels = "elsewhere.csv"\n'
    assert load(tmp_path, explicit).data.labels_file == tmp_path / "elsewhere.csv"


@pytest.mark.parametrize(
    "header",
    ["image_id,dr_level", "dr_level,image_id,group_key\n", "Image_ID, DR_Level ,group_key\r\n"],
)
def test_harmless_columns_are_accepted(header: str) -> None:
    assert {"image_id", "dr_level"} <= set(parse_header(header))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("image_id,dr_level,patient_id", "remove column 3"),
        ("Doe John,image_id,mrn,dr_level", "remove column 1, 3"),
        ("image_id", "no column dr_level"),
        ("", "no column image_id and no dr_level"),
        ("image_id,dr_level,image_id", "twice"),
    ],
)
def test_other_columns_are_refused_by_number_and_never_quoted(header: str, reason: str) -> None:
    with pytest.raises(LabelsRefusedError, match=reason) as refused:
        parse_header(header)
    assert "Doe" not in str(refused.value)
    assert "mrn" not in str(refused.value)


def test_data_is_inspected_by_its_first_line_alone(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    with pytest.raises(LabelsRefusedError, match="not a folder"):
        inspect_data(tmp_path / "absent", labels)
    with pytest.raises(LabelsRefusedError, match="cannot be read"):
        inspect_data(tmp_path, labels)
    labels.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(LabelsRefusedError, match="UTF-8"):
        inspect_data(tmp_path, labels)
    labels.write_bytes(b"\xef\xbb\xbfimage_id,dr_level\nnot, a, sound, row\n")
    assert inspect_data(tmp_path, labels) == ("image_id", "dr_level")


def test_a_folder_of_images_that_cannot_be_looked_at_is_refused_without_its_path(
    tmp_path: Path,
) -> None:
    images = tmp_path / ("x" * 300)
    with pytest.raises(LabelsRefusedError, match=r"data\.images cannot be looked at") as refused:
        inspect_data(images, tmp_path / "labels.csv")
    assert images.name not in str(refused.value)


def test_logs_are_one_json_object_a_line_and_mask_what_lies_below_data_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "data" / "images"
    try:
        configure_logs("json", hidden=(images,))
        log = structlog.get_logger("matl.test")
        log.info("seen", error=f"cannot open '{images}/Doe John 1.jpg': gone\n{images}", round=3)
        log.debug("hidden")
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event["error"] == "cannot open '<data>': gone\n<data>"
    assert (event["event"], event["level"], event["round"]) == ("seen", "info", 3)


@pytest.mark.privacy
def test_how_images_belong_to_patients_is_known_in_one_way_or_complained_of() -> None:
    plain, grouped = ("image_id", "dr_level"), ("image_id", "dr_level", "group_key")
    assert check_patient_unit(grouped, None) is None
    assert check_patient_unit(plain, 2) is None
    assert check_patient_unit(plain, 1) is None
    assert "patient of its own" in (check_patient_unit(plain, None) or "")
    with pytest.raises(ConfigurationError, match="remove one of the two"):
        check_patient_unit(grouped, 2)


@pytest.mark.privacy
def test_a_data_sets_limit_is_that_of_one_study_unless_it_is_set(tmp_path: Path) -> None:
    assert load(tmp_path).privacy.dataset_limit == DatasetLimit(1.0, 1e-5, is_implied=True)
    told = load(tmp_path, f"{MINIMAL}\n[privacy]\nmax_epsilon = 2.5\nmax_delta = 1e-6\n")
    assert told.privacy.dataset_limit == DatasetLimit(2.5, 1e-6, is_implied=True)
    told = load(tmp_path, f"{MINIMAL}\n[privacy]\ndataset_epsilon = 2.0\ndataset_delta = 1e-6\n")
    assert told.privacy.dataset_limit == DatasetLimit(2.0, 1e-6)
    told = load(tmp_path, f"{MINIMAL}\n[privacy]\ndataset_epsilon = inf\n")
    assert told.privacy.dataset_limit == DatasetLimit(math.inf, 1e-5)
    for bad in ("dataset_epsilon = 0.0", "dataset_epsilon = -1.0", "dataset_delta = 1.0"):
        with pytest.raises(ConfigurationError, match="privacy"):
            load(tmp_path, f"{MINIMAL}\n[privacy]\n{bad}\n")


@pytest.mark.privacy
def test_the_printed_configuration_tells_the_data_sets_limit_that_is_in_effect(
    tmp_path: Path,
) -> None:
    printed = load(tmp_path, f"{MINIMAL}\n[privacy]\nmax_epsilon = 0.5\n").printable()["privacy"]
    assert (printed["dataset_epsilon"], printed["dataset_delta"]) == (0.5, 1e-5)
