"""Shared by the tests of ``matl_common``."""

# Before any test module imports grpc: it shuts out TLS 1.2 (see the package's docstring).
import matl_common  # noqa: F401
