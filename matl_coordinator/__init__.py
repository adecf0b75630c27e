"""The coordinator daemon: schedules rounds, admits, scores, aggregates, releases."""

import matl_common  # noqa: F401 - before gRPC, which reads its TLS settings once
