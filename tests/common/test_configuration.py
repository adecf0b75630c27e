"""Whose configuration a file is."""

from pathlib import Path

import pytest

from matl_common.configuration import daemon_of
from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import Role

EXAMPLES = Path(__file__).parents[2] / "deploy/examples"


def test_a_daemon_is_known_by_its_sections() -> None:
    assert daemon_of(EXAMPLES / "coordinator.toml") is Role.COORDINATOR
    assert daemon_of(EXAMPLES / "participant.toml") is Role.PARTICIPANT


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("operator.toml", r"matl --config .*operator\.toml status"),
        ("front-end.toml", "front end's"),
    ],
)
def test_what_is_no_such_daemons_is_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        daemon_of(EXAMPLES / name)


@pytest.mark.parametrize(("text", "told"), [("a = [" * 2000, "is not TOML"), (None, "cannot read")])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "x.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        daemon_of(path)
