"""The daemon beside a hospital's own data, and the worker it trains with."""

# Before anything here imports gRPC: it puts TLS 1.2 out of reach.
import matl_common  # noqa: F401
