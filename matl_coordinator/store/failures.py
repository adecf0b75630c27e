"""Why PostgreSQL cannot be reached, in one of a few fixed words.

The driver has no code for what fails before a session is there, only a text, which names users,
hosts and files. Nothing of that text leaves this module. A text that it does not know, of a server
in another language for one, has no word.
"""

import errno
import os
import re
from typing import Final

_QUOTED: Final = re.compile(r"\"[^\"]*\"|'[^']*'")
"""Names and paths, in which anything may stand."""

# The first that is found counts. A process that asked for no other language has libpq's in English.
_SAID: Final = {
    "authentication": (
        r"authentication (failed|method)",
        r"no password supplied",
        r"pg_hba\.conf",
        r"is not permitted to log in",
        r'role "" does not exist',
    ),
    "no such database": (r'database "" does not exist',),
    "TLS": (
        # Not what a server that ends does to a session.
        r"SSL error(?!: unexpected eof)",
        r"SSL negotiation",
        r"does not support SSL",
        r"certificate",
        r"private key file",
    ),
    "name unknown": (r"failed to resolve host", r"could not translate host name"),
    "timed out": (r"timeout expired", os.strerror(errno.ETIMEDOUT)),
    "refused": (
        os.strerror(errno.ECONNREFUSED),
        rf'on socket "" failed: {os.strerror(errno.ENOENT)}',
    ),
}


def word_for(text: str) -> str | None:
    """The word for what the driver says, if there is one."""
    told = _QUOTED.sub('""', text)
    return next((word for word, said in _SAID.items() if re.search("|".join(said), told)), None)
