"""What a result is known by: the code that made it, and not what is said about that code."""

from hashlib import sha256
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
        'f"{call()}"\n',
        "while True:\n        \\\n'a'\nreturn 'a'\n",
    ],
)
def test_strings_that_are_values_are_left_as_they_are(code: str) -> None:
    assert carried_out(code) == code


@pytest.mark.parametrize("content", [b"def half(:\n", b"x = '\xe4'\n", b"(\n"])
def test_a_file_that_cannot_be_read_as_python_enters_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "one.py").write_bytes(content)
    assert sources_hash(["one.py"]).digest() == sha256(content).digest()


def test_docstrings_behind_blank_lines_and_of_several_lines_are_told() -> None:
    source = (
        'class A:\n\n    """Told."""\n\n    x = 1\n    """Told\n\n    too."""\n\n'
        '    def f(self):\n        return 1\n\n"""Told\nas well."""\ny = 2\n'
    )
    assert carried_out(source) == (
        "class A:\n    x = 1\n    def f(self):\n        return 1\ny = 2\n"
    )


def test_files_enter_in_their_order_and_single_ones_enter_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(f"{name} = 1\n", encoding="utf-8")
    both = sources_hash(["."]).hexdigest()
    assert both == sources_hash(["a.py", "b.py"]).hexdigest()
    assert both != sources_hash(["b.py", "a.py"]).hexdigest()
    assert sources_hash(["."], without={"b.py"}).hexdigest() == sources_hash(["a.py"]).hexdigest()


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
