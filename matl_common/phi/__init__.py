"""Looking for what identifies patients in a folder of data (45 CFR 164.514(b)(2)).

Parsers and detectors are pure; ``scan`` reads files and ``cleaning`` writes copies. What is
reported is place, category and keyed mark, never a value.
"""

from matl_common.phi.findings import Category, Finding, NotUnderstood, ScanReport
from matl_common.phi.scan import scan_folder

__all__ = ["Category", "Finding", "NotUnderstood", "ScanReport", "scan_folder"]
