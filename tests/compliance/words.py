"""Words that no output says: whether an organisation satisfies a law is not for software."""

import re

FORBIDDEN = re.compile(rb"\b(non-?)?compliant\b|\bcertified\b|\bcertify\b", re.IGNORECASE)


def forbidden_in(said: bytes | str) -> list[bytes]:
    """Every such word in what was said."""
    data = said.encode() if isinstance(said, str) else said
    return [each.group() for each in FORBIDDEN.finditer(data)]
