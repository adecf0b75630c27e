"""What a result is known by: the code that made it, and not what is said about that code."""

from pathlib import Path

import pytest

from matl import sources
from matl.sources import carried_out, sources_hash

TOLD = '''\
"""A module."""

# A comment.
LIMIT = 3  # of what
"""An attribute."""

def add(a, b):
    """Two

    paragraphs."""  # noqa

    return (
        a  # the one
        # and

        + b
    )
'''


def test_comments_docstrings_and_blank_lines_are_not_carried_out() -> None:
    assert carried_out(TOLD) == (
        "LIMIT = 3\ndef add(a, b):\n    return (\n        a\n        + b\n    )\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        'page = """a\n\n# not a comment\n\nb"""\n',
        "words = (\n    'a'\n    'b'\n)\n",
        'said = f"# {name}"\n',
        "x = 'ä'\n",
        'call("told")\n',
    ],
)
def test_strings_that_are_values_are_left_as_they_are(code: str) -> None:
    assert carried_out(code) == code


def test_a_sentence_changes_no_digest_and_a_number_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    path = tmp_path / "code" / "rule.py"
    path.parent.mkdir()

    def digest(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        return sources_hash(["code"]).hexdigest()

    before = digest(TOLD)
    assert digest(TOLD.replace("paragraphs", "sentences")) == before
    assert digest(TOLD.replace("  # of what", "")) == before
    assert digest(TOLD.replace("LIMIT = 3", "LIMIT = 4")) != before
    assert digest(TOLD.replace("+ b", "- b")) != before
