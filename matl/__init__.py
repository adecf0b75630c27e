"""MATL: the library a researcher imports."""

import matl_common  # noqa: F401 - before gRPC, which reads its TLS settings once
