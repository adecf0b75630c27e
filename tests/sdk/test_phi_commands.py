import json
import random
import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from matl.cli import app
from matl_common.phi.ocr import is_available
from tests.common import phi_corpus as corpus

CANARY_NAME, CANARY_NUMBER = "Canarysson", "90817263"
CANARIES = (CANARY_NAME, CANARY_NUMBER, "canary", "1961-03-02")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["phi", "scan", *map(str, arguments)])


@pytest.fixture
def canaries(tmp_path: Path) -> Path:
    """A folder in which a value is in every place that the scan knows."""
    folder = tmp_path / "data"
    (folder / f"{CANARY_NAME}_{CANARY_NUMBER}").mkdir(parents=True)
    (folder / f"{CANARY_NAME}_{CANARY_NUMBER}" / f"mrn{CANARY_NUMBER} canary.txt").write_text("")
    secret = f"MRN {CANARY_NUMBER}, Patient: Mary {CANARY_NAME}, 1961-03-02, canary@example.org"
    jpeg, png = corpus.picture(random.Random(1), "JPEG"), corpus.picture(random.Random(1), "PNG")
    for number, data in enumerate(
        (
            corpus.with_segment(jpeg, 0xFE, secret.encode()),
            corpus.with_segment(jpeg, 0xE7, secret.encode()),
            jpeg + secret.encode(),
            corpus.with_chunk(png, b"tEXt", b"canary\0" + secret.encode()),
            corpus.with_chunk(png, b"caNy", secret.encode()),
            jpeg[:-2] + secret.encode(),
            corpus.picture(random.Random(1), "TIFF", tiffinfo={0x010E: secret}),
        )
    ):
        (folder / f"image_{number}.jpg").write_bytes(data)
    (folder / "notes.txt").write_text(secret)
    (folder / "data.json").write_text(json.dumps({f"canary {CANARY_NUMBER}": secret}))
    (folder / "broken.json").write_text('{"' + secret)
    (folder / "labels.csv").write_text(f"image_id,{CANARY_NAME}\n{CANARY_NUMBER},{secret}\n")
    (folder / "broken.csv").write_text(f'image_id\n"{secret}\0')
    return folder


def test_no_value_is_in_any_output_error_or_log(canaries: Path, tmp_path: Path) -> None:
    with capture_logs() as logs:
        results = [
            run(canaries),
            run(canaries, "--json"),
            run(canaries, "--clean", tmp_path / "out"),
            run(canaries, "--json", "--clean", tmp_path / "more"),
            run(canaries, "--schema", canaries / "labels.csv"),
            run(canaries, "--clean", canaries),
        ]
    assert [each.exit_code for each in results] == [1, 1, 1, 1, 2, 2]
    told = "\n".join([each.output for each in results] + [json.dumps(logs, default=str)])
    told = told.replace(str(tmp_path), "")
    for canary in CANARIES:
        assert canary.lower() not in told.lower()
    # The search is not blind: every place was found.
    report = json.loads(results[1].stdout)
    places = {each["file"] for each in report["findings"]}
    images = {f"image_{number}.jpg" for number in (0, 1, 2, 3, 4, 6)}
    assert images | {"notes.txt", "data.json", "labels.csv"} < places
    assert len(places) == 11
    # A table and a document that end in the middle, and a picture without an end.
    assert len(report["files_not_understood"]) == 3
    copied = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    names = " ".join(str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*"))
    for canary in CANARIES:
        assert canary.encode() not in copied
        assert canary not in names


def test_clean_data_ends_with_0_and_says_what_was_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "e1.png").write_bytes(corpus.picture(random.Random(1), "PNG"))
    result = run(tmp_path)
    assert result.exit_code == 0
    assert "no findings in 1 file\n" in result.output
    assert "NOT-TESTED text burned into pixels: not asked for (--ocr); 1 images" in result.output


def test_a_folder_that_is_not_understood_ends_with_3_and_a_missing_one_is_named(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "patients.xlsx").write_bytes(b"PK\3\4")
    assert run(folder).exit_code == 3
    (folder / "notes.txt").write_text("MRN 1234567")
    assert run(folder).exit_code == 1
    missing = run(tmp_path / "missing")
    assert missing.exit_code == 2
    assert f"{tmp_path}/missing" in missing.output.replace("\n", "")


def test_findings_end_with_1_and_are_told_by_place_category_and_mark(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("fine\nMRN 1234567\nMRN 1234567\nMRN 7654321")
    result = run(tmp_path, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    marks = [each.pop("mark") for each in found["findings"]]
    assert found["findings"] == [
        {"file": "notes.txt", "where": f"line {line}", "category": "medical record number"}
        for line in (2, 3, 4)
    ]
    assert marks[0] == marks[1] != marks[2]
    # Another run has another key.
    assert json.loads(run(tmp_path, "--json").stdout)["findings"][0]["mark"] != marks[0]


def test_marks_compare_under_one_key_file(tmp_path: Path) -> None:
    folder, key = tmp_path / "data", tmp_path / "key"
    folder.mkdir()
    (folder / "notes.txt").write_text("MRN 1234567")
    key.write_bytes(bytes(16))
    first, second = (run(folder, "--json", "--key-file", key).stdout for _ in range(2))
    assert first == second
    key.write_bytes(bytes(15))
    assert run(folder, "--key-file", key).exit_code == 2


def test_a_schema_decides_what_a_table_may_have(tmp_path: Path) -> None:
    folder, schema = tmp_path / "data", tmp_path / "schema.toml"
    folder.mkdir()
    rows = "".join(f"e{n},{n},{n * 17 % 101 / 100}\n" for n in range(50))
    (folder / "table.csv").write_text("image_id,age,score\n" + rows)
    assert "near-unique column that the schema does not list" in run(folder).output
    schema.write_text(
        '[columns.image_id]\nkind = "code"\n'
        '[columns.age]\nkind = "number"\nmin = 0\nmax = 89\n'
        '[columns.score]\nkind = "number"\nmin = 0\nmax = 1.01\nfractions = true\n'
    )
    assert run(folder, "--schema", schema).exit_code == 0
    schema.write_text(schema.read_text().replace("max = 89", "max = 40"))
    assert "row 43, column 2 (age)" in run(folder, "--schema", schema).output
    schema.write_text('[columns.age]\nkind = "anything"\n')
    assert run(folder, "--schema", schema).exit_code == 2


def test_the_help_shows_a_schema_that_works(tmp_path: Path) -> None:
    from matl.commands.phi import scan
    from matl_common.phi.schema import load_schema

    shown = (scan.__doc__ or "").split("```")[1]
    (tmp_path / "schema.toml").write_text(re.sub(r"(?m)^    ", "", shown))
    assert set(load_schema(tmp_path / "schema.toml").columns) == {"image_id", "dr_level", "camera"}


def test_text_in_pixels_is_found_where_tesseract_is(tmp_path: Path) -> None:
    if not is_available():
        pytest.skip("tesseract is not installed (apt-get install tesseract-ocr)")
    from PIL import Image, ImageDraw

    image = Image.new("L", (640, 480), 0)
    ImageDraw.Draw(image).text((10, 10), "WEBER ANNA 1961-03-02", fill=255, font_size=24)
    image.save(tmp_path / "image.png")
    result = run(tmp_path, "--ocr")
    assert result.exit_code == 1
    assert "text burned into the pixels" in result.output
    assert "WEBER" not in result.output
    assert "NOT-TESTED" not in result.output


def test_without_tesseract_pixels_are_not_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "e1.png").write_bytes(corpus.picture(random.Random(1), "PNG"))
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run(tmp_path, "--ocr")
    assert result.exit_code == 0
    assert "NOT-TESTED text burned into pixels: tesseract is not installed" in result.output
