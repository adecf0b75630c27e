"""The tutorial's listings, run as written: paths, network and sizes of images aside."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from matl import MATLClient, MatlWarning, create_medical_fl_dashboard, plot_medical_fl_results
from matl.results import read_history
from matl_common.identity.held_keys import KeyKind, generate_key
from matl_common.modes import MATLMode
from matl_common.tlog.entry import parse_entry
from tests.sdk.listings import Listing, read_listings

pytestmark = pytest.mark.postgres

ROUNDS = 2
IMAGES = 3
LETTERS = "abcde"


@dataclass
class Tutorial:
    """Everything that the listings have defined so far, in one namespace as in a notebook."""

    folder: Path
    listings: dict[str, Listing]
    names: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)

    def run(self, first: str) -> None:
        source = self.listings[first].source
        for written, here in (
            ("/secure/hospital_a.pem", str(self.folder / "hospital_a.pem")),
            ("/data/hospital_a", str(self.folder / "data")),
            ("torchvision.models", "tests.sdk.small_resnet"),
            ("Resize((224, 224))", "Resize((16, 16))"),
            ("num_workers=4", "num_workers=0"),
            ("dpi=300", "dpi=30"),
        ):
            source = source.replace(written, here)
        exec(compile(source, f"<tutorial: {first}>", "exec"), self.names)

    @property
    def client(self) -> MATLClient:
        client = self.names["matl_client"]
        assert isinstance(client, MATLClient)
        return client


def write_data(folder: Path) -> None:
    """A hospital's images, named by numbers, and their labels."""
    (folder / "retinal_images").mkdir(parents=True)
    draws = np.random.default_rng(3)
    rows = ["image_id,dr_level"]
    for number in range(IMAGES):
        pixels = draws.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "retinal_images" / f"{number}.jpg")
        rows.append(f"{number},{number % 5}")
    (folder / "labels_deidentified.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Tutorial]:
    """The tutorial up to the end of Part 4."""
    from tests.postgres import fresh_database

    listings = {each.part: each for each in read_listings()}
    folder = tmp_path_factory.mktemp("tutorial")
    write_data(folder / "data")
    generate_key(folder / "hospital_a.pem", KeyKind.P256)
    tutorial = Tutorial(folder, listings)
    with contextlib.ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        monkeypatch.setenv("MATL_AUDIT_DB", stack.enter_context(fresh_database(postgres_url)))
        monkeypatch.setenv("MPLBACKEND", "agg")
        monkeypatch.chdir(folder)
        with pytest.warns(MatlWarning, match="MODE2 was asked for"):
            tutorial.run("import torch")
        stack.callback(tutorial.client.audit_logger.close)
        stack.callback(tutorial.client.close)
        for first in ("from torch.utils.data import", "import torch.nn as nn"):
            tutorial.run(first)
        tutorial.run("from torch.optim import Adam")
        dataset = tutorial.names["hospital_dataset"]
        tutorial.names["test_loader"] = tutorial.names["DataLoader"](dataset, batch_size=2)
        _, tutorial.history = tutorial.names["train_federated_medical_ai"](
            [dataset] * len(LETTERS), tutorial.client, num_rounds=ROUNDS, local_epochs=1
        )
        yield tutorial


def test_training_returns_the_history_that_the_tutorial_plots(trained: Tutorial) -> None:
    history = trained.history
    assert history["rounds"] == [0, 1]
    assert [len(each) for each in history["trust_scores"]] == [len(LETTERS)] * ROUNDS
    assert all(0.0 <= each <= 100.0 for each in history["accuracy"])
    first, second = history["privacy_budget"]
    assert 1.0 > first > second > 0.0


def test_every_gradient_went_through_admission_ledger_and_log(trained: Tutorial) -> None:
    study = trained.client.embedded.study
    assert study is not None
    events = [
        parse_entry(each.data)["event"]
        for each in study.coordinator.store.log_entries(start=0, limit=1000)
        if each.data is not None
    ]
    assert events.count("update_admitted") == ROUNDS * len(LETTERS)
    assert events.count("model_released") == ROUNDS
    spent = {node: each.steps_spent for node, each in study.budgets().items()}
    assert spent == {f"hospital_{letter}": ROUNDS for letter in LETTERS}


def test_the_study_is_calibrated_for_all_rounds_that_it_may_have(trained: Tutorial) -> None:
    study = trained.client.embedded.study
    assert study is not None
    terms = study.coordinator.plan.privacy
    assert terms.max_steps == 50
    assert terms.noise_multiplier == pytest.approx(np.sqrt(50) / 0.26805, rel=1e-4)


def test_an_embedded_federation_says_what_it_is(trained: Tutorial) -> None:
    assert trained.client.mode is MATLMode.MODE0
    assert trained.client.allowed_nodes == tuple(f"hospital_{letter}" for letter in LETTERS)
    assert trained.client.get_active_nodes() == len(LETTERS)
    assert trained.client.get_current_round() == ROUNDS
    assert trained.client.get_accuracy() == pytest.approx(trained.history["accuracy"][-1])
    assert "0 of 5 hospitals may be hostile" in trained.client.claim


def test_the_audit_log_has_submissions_and_checkpoints(trained: Tutorial) -> None:
    newest = trained.client.audit_logger.get_recent(limit=6)
    assert [each["event"] for each in newest] == [
        "audit_checkpoint",
        *["gradient_submission"] * len(LETTERS),
    ]
    assert newest[1]["hospital"] == "hospital_E"


def test_the_four_plots_of_part_five_are_drawn(
    trained: Tutorial, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.run("import matplotlib.pyplot")
    with warnings.catch_warnings():
        # A window cannot be shown here, and fonts may lack what the titles have.
        warnings.simplefilter("ignore")
        trained.names["plot_medical_fl_results"](trained.history)
    assert Path("medical_fl_results.png").is_file()
    assert "MEDICAL FL TRAINING SUMMARY" in capsys.readouterr().out


def test_ours_are_drawn_of_the_same_history(trained: Tutorial, tmp_path: Path) -> None:
    path = plot_medical_fl_results(trained.history, tmp_path / "ours.png")
    with Image.open(path) as image:
        assert image.width > 2000


def test_the_folder_of_the_study_tells_the_same_as_the_client(trained: Tutorial) -> None:
    kept = read_history(trained.folder / "matl-study")
    assert kept == read_history(trained.client)
    assert list(kept.rounds) == [1, 2]
    assert [100 * each for each in kept.accuracy] == pytest.approx(trained.history["accuracy"])


def test_part_six_fails_an_embedded_federation_for_want_of_tls_alone(
    trained: Tutorial, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.run("def verify_hipaa_compliance(")
    with pytest.raises(RuntimeError, match="not met"):
        trained.names["verify_hipaa_compliance"](
            trained.client, [trained.names["hospital_dataset"]]
        )
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAIL -" in line]
    assert [line.split(" - ")[1] for line in failed] == ["TLS encryption"]


PAGE = """
import streamlit as st
st.session_state["draw"](st.session_state["client"])
"""


@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_the_dashboard_of_part_eight_is_drawn(trained: Tutorial, whose: str) -> None:
    from streamlit.testing.v1 import AppTest

    draw = create_medical_fl_dashboard
    if whose == "theirs":
        trained.run("def create_medical_fl_dashboard(")
        draw = trained.names["create_medical_fl_dashboard"]
    page = AppTest.from_string(PAGE, default_timeout=30)
    page.session_state["draw"], page.session_state["client"] = draw, trained.client
    page.run()
    assert not page.exception
    assert [each.value for each in page.metric][:2] == ["5", "2"]
    assert len(page.table[0].value) == 10
    if whose == "ours":
        assert any("δ = 1e-05, add or remove" in each.value for each in page.caption)
