"""How many files and connections a daemon may have open at once.

Many systems start a process with 1024, for the sake of programs that use select(2). A
server whose connections use them up can open no file any more, its database included.
"""

from __future__ import annotations

import resource


def raise_descriptor_limit(wanted: int) -> int:
    """Allow ``wanted`` open descriptors, or as many as the system lets; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return wanted if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
