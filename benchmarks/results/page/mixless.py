# ruff: noqa: E501  # The page's own lines.
"""Table 2 where no hospital was enrolled with the mix of its classes."""

from collections.abc import Mapping
from typing import Any

from benchmarks.results.page.beside import BESIDE, beside_table


def mixless(studies: Mapping[str, Any]) -> str:
    """The table; empty where nothing was run."""
    found = beside_table(studies, "mixless")
    if not found:
        return ""
    return f"""
## Without class mixes

Trust holds what an update does class by class against the class mix that its hospital was enrolled with
(`label_histogram` in the allow-list: [configuration](configuration.md)). That is optional, the hospital's own word, and a
count of patients that no ε covers. In table 2 everybody is enrolled with the right one, but for the authors of
`false_histogram`. Here nobody is, and all else is the same. {BESIDE}

{found}
"""
