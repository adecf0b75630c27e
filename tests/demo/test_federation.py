"""The federation's folder: configurations the daemons accept, and studies kept apart."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from matl.demo.federation import (
    SETTINGS_FILE,
    SUMMARY_FILE,
    Layout,
    settle,
    toml_text,
    write_configurations,
)
from matl.demo.hospitals import plan_hospital
from matl.demo.study import COORDINATOR, RECIPE, SUSPECT, Attack, Settings
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.certificates import Role
from matl_common.ids import NodeId
from matl_common.vision.dataset import OnBadImage, read_labels
from matl_coordinator.config import load_config as load_coordinator
from matl_participant.config import load_config as load_participant

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SETTINGS = Settings(patients=210)


def layout_in(folder: Path) -> Layout:
    return Layout(folder / "demo", folder / "demo" / "data")


def prepared(folder: Path, settings: Settings = SETTINGS) -> Layout:
    layout = layout_in(folder)
    settle(layout, settings, now=NOW)
    write_configurations(layout, settings, port=4711)
    return layout


def test_the_coordinator_accepts_its_configuration(tmp_path: Path) -> None:
    layout = prepared(tmp_path)
    config = load_coordinator(layout.config(COORDINATOR), environment={})
    assert config.listen.address == "127.0.0.1:4711"
    assert (config.study.rounds, config.study.epsilon) == (6, 1.0)
    assert config.study.learning_rate == RECIPE.learning_rate
    enrolled = load_allowlist(config.federation.allowlist).nodes
    participants = [n for n in enrolled.values() if n.role is Role.PARTICIPANT]
    assert [n.enrolled_patients for n in participants] == [100, 50, 30, 20, 10]


def test_every_hospital_accepts_its_configuration(tmp_path: Path) -> None:
    layout = prepared(tmp_path)
    for spec in SETTINGS.hospitals:
        config = load_participant(layout.config(spec.node_id), environment={})
        assert config.node_id == spec.node_id
        assert config.coordinator.address == "127.0.0.1:4711"
        assert config.data.declared_patients == spec.patients
        assert Path(str(config.identity.tls_key)).is_file()
        assert config.coordinator.signing_key.is_file()


def test_a_study_without_privacy_is_a_valid_configuration(tmp_path: Path) -> None:
    layout = prepared(tmp_path, replace(SETTINGS, epsilon=float("inf")))
    assert not load_coordinator(layout.config(COORDINATOR), environment={}).study.is_private


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_an_epsilon_that_means_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigurationError, match="epsilon"):
        Settings(epsilon=epsilon)


@pytest.mark.parametrize("text", ['a"b', "back\\slash", "line\nbreak", "\x7f", "ε é"])
def test_any_text_survives_toml(text: str) -> None:
    import tomllib

    table = tomllib.loads(toml_text({"a": text, "b": {"c": text, "d": True, "e": 1.5}}))
    assert table == {"a": text, "b": {"c": text, "d": True, "e": 1.5}}


@pytest.mark.parametrize(
    ("attack", "lies"),
    [(Attack.NONE, True), (Attack.SCALING, True), (Attack.SIGN_FLIP, False), (Attack.NAN, False)],
)
def test_hospital_e_trains_on_wrong_labels_unless_it_needs_the_truth(
    tmp_path: Path, attack: Attack, *, lies: bool
) -> None:
    layout = prepared(tmp_path, replace(SETTINGS, attack=attack))
    labels = load_participant(layout.config(SUSPECT), environment={}).data.labels_file
    assert (labels == layout.labels(SUSPECT)) is lies


def test_the_true_labels_are_the_grades_that_were_drawn(tmp_path: Path) -> None:
    layout = prepared(tmp_path)
    suspect = next(spec for spec in SETTINGS.hospitals if spec.node_id == SUSPECT)
    images = plan_hospital(suspect, seed=SETTINGS.seed).images
    folder = layout.images(SUSPECT)
    folder.mkdir(parents=True)
    for image in images:
        (folder / f"{image.image_id}.jpg").touch()
    read = read_labels(folder, layout.true_labels, on_bad_image=OnBadImage.FAIL)
    assert [r.level for r in read.records] == [int(image.grade) for image in images]
    assert [r.level for r in read.records] != [int(image.recorded_grade) for image in images]


def test_an_unfinished_study_goes_on_with_its_keys_and_state(tmp_path: Path) -> None:
    layout = prepared(tmp_path)
    kept = layout.state(COORDINATOR) / "coordinator.db"
    kept.write_text("rounds")
    key = layout.node_keys(SUSPECT).signing_key.read_bytes()
    assert settle(layout, SETTINGS, now=NOW)
    assert kept.read_text() == "rounds"
    assert layout.node_keys(SUSPECT).signing_key.read_bytes() == key


def test_a_finished_study_is_moved_aside_and_its_features_stay(tmp_path: Path) -> None:
    layout = prepared(tmp_path)
    (layout.out / SUMMARY_FILE).write_text("{}")
    hospital = NodeId("hospital_a")
    ledger = layout.state(hospital) / "ledger"
    ledger.mkdir()
    for cache in (layout.feature_cache(hospital), layout.feature_cache(COORDINATOR)):
        cache.mkdir()
        (cache / "features").write_text("rows")
    assert not settle(layout, SETTINGS, now=NOW)
    assert not ledger.exists()
    assert (layout.previous / hospital / "state" / "ledger").is_dir()
    assert (layout.previous / SUMMARY_FILE).exists()
    assert (layout.feature_cache(hospital) / "features").read_text() == "rows"
    assert (layout.feature_cache(COORDINATOR) / "features").read_text() == "rows"


@pytest.mark.parametrize(
    "other", [{"epsilon": 4.0}, {"attack": Attack.NAN}, {"rounds": 7}, {"patients": 420}]
)
def test_another_study_begins_anew(tmp_path: Path, other: dict[str, object]) -> None:
    layout = prepared(tmp_path)
    (layout.state(COORDINATOR) / "coordinator.db").write_text("rounds")
    changed = replace(SETTINGS, **other)  # type: ignore[arg-type]  # parametrised
    assert not settle(layout, changed, now=NOW)
    assert not layout.state(COORDINATOR).exists()
    found = json.loads((layout.out / SETTINGS_FILE).read_text())["settings"]
    assert found["patients"] == changed.patients
    write_configurations(layout, changed, port=4712)
    config = load_coordinator(layout.config(COORDINATOR), environment={})
    sizes = [
        n.enrolled_patients for n in load_allowlist(config.federation.allowlist).nodes.values()
    ]
    assert sum(sizes) == changed.patients


def test_expired_keys_begin_a_new_study(tmp_path: Path) -> None:
    layout = prepared(tmp_path)
    key = layout.node_keys(SUSPECT).signing_key.read_bytes()
    assert not settle(layout, SETTINGS, now=NOW + timedelta(days=60))
    assert layout.node_keys(SUSPECT).signing_key.read_bytes() != key


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layout.out.mkdir()
    (layout.out / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="thesis"):
        settle(layout, SETTINGS, now=NOW)
    assert [p.name for p in layout.out.iterdir()] == ["thesis.tex"]
