"""An unknown key is answered with those that there are, and nothing is echoed but keys."""

from pathlib import Path

import pytest
from pydantic import Field

from matl_common.configuration import Section, load
from matl_common.errors import ConfigurationError


class Inner(Section):
    learning_rate: float = 1.0
    rounds: int = 1


class Outer(Section):
    inner: Inner | None = None
    many: dict[str, Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("inner.learnig_rate = 7", "inner.learnig_rate: no such key; did you mean learning_rate?"),
        ("inner.zeal = 7", "inner.zeal: no such key; there are learning_rate, rounds"),
        ("iner = 7", "iner: no such key; did you mean inner?"),
        ("many.a.zeal = 7", "many.a.zeal: no such key"),
        ("inner.rounds = 'secret'", "inner.rounds: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(Outer, path, overrides={})
    assert str(caught.value) == f"{path}: {told}"
    assert "secret" not in str(caught.value)
