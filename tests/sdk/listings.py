"""The tutorial's Python listings, taken out of its text and given back their indentation.

The text that we have lost it. What follows a colon is one level deeper; where a block ends is
read off definitions and returns, or is in ``ENDS``: the level of a line that begins so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tokenize import COMMENT, OP, STRING, TokenError, generate_tokens

import pytest

TUTORIAL = "healthcare_federated_learning.txt"
ENDS: Mapping[str, Mapping[str, int]] = {
    "import torch": {},
    "from torch.utils.data import": {"return image, label": 2, "hospital_dataset =": 0},
    "import torch.nn as nn": {"num_features =": 2, "model = DiabRetinoModel(": 0},
    "from torch.optim import Adam": {
        "avg_loss =": 4,
        "gradient = [": 3,
        'print(f"\\n🔄 Aggregating': 2,
        "optimizer = Adam(global_model": 2,
        "return global_model, history": 1,
        "accuracy = 100": 1,
    },
    "import matplotlib.pyplot": {"ax2.set_xlabel(": 1, 'print(f"\\nPrivacy Budget Remaining': 1},
    "def verify_hipaa_compliance(": {
        'checks.append(("Data encryption': 1,
        "all_passed =": 1,
        "return all_passed": 1,
    },
    "def create_medical_fl_dashboard(": {
        "with col2:": 1,
        "with col3:": 1,
        'st.subheader("Hospital Trust': 1,
        "low_trust_nodes = [": 1,
        "if low_trust_nodes:": 1,
    },
}
"""By the beginning of a listing's first line."""


@dataclass(frozen=True)
class Listing:
    """One listing, indented."""

    part: str
    source: str


def read_listings() -> list[Listing]:
    """Every Python listing, in order; skips the test where the tutorial is not beside the code."""
    folder = Path(os.environ.get("MATL_SPEC", "../shared/spec"))
    file = folder / TUTORIAL
    if not file.is_file():
        pytest.skip(f"no {file}; set MATL_SPEC to the folder that holds the tutorial")
    lines = file.read_text(encoding="utf-8").splitlines()
    found = []
    for first, ends in ENDS.items():
        start = next(at for at, line in enumerate(lines) if line.startswith(first))
        # A heading of the page ends with a pilcrow.
        stop = next(at for at in range(start, len(lines)) if lines[at].endswith("¶"))
        found.append(Listing(first, "\n".join(indented(lines[start:stop], ends)) + "\n"))
    return found


def indented(lines: Sequence[str], ends: Mapping[str, int]) -> Iterator[str]:
    """The lines of a listing with what their levels indent them by."""
    level, returned = 0, False
    for statement in statements(lines):
        first = statement[0]
        level = _level_of(first, level, returned=returned, ends=ends)
        yield from (f"{'    ' * level}{line}" for line in statement)
        returned = first.startswith("return ")
        if _opens_block(statement):
            level += 1


def _level_of(line: str, level: int, *, returned: bool, ends: Mapping[str, int]) -> int:
    for begin, known in ends.items():
        if line.startswith(begin):
            return known
    if line.startswith("class "):
        return 0
    if line.startswith("def "):
        return 1 if "(self" in line else 0
    if line.startswith("else:"):
        return level - 1
    return level - 1 if returned else level


def statements(lines: Sequence[str]) -> Iterator[list[str]]:
    """Lines that belong together: inside brackets, or of one long string."""
    statement: list[str] = []
    for line in lines:
        statement.append(line)
        if _is_whole(statement):
            yield statement
            statement = []
    assert not statement, f"the listing ends inside {statement[0]!r}"


def _is_whole(statement: Sequence[str]) -> bool:
    depth = 0
    try:
        for token in generate_tokens(StringIO("\n".join(statement) + "\n").readline):
            if token.type == OP:
                depth += (token.string in "([{") - (token.string in ")]}")
    except TokenError:
        return False
    return depth == 0


def _opens_block(statement: Sequence[str]) -> bool:
    tokens = generate_tokens(StringIO("\n".join(statement) + "\n").readline)
    said = [each for each in tokens if each.string.strip() and each.type not in (COMMENT, STRING)]
    return bool(said) and said[-1].string == ":"
