"""MATL: the library a researcher imports."""

import matl_common  # noqa: F401 - before gRPC, which reads its TLS settings once
from matl_common.modes import MATLMode

__all__ = ["MATLMode"]
