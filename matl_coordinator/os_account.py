"""Who runs this process, for the log: by the system's word and not by the environment's."""

import os
import pwd


def current_account() -> str:
    """The name of the process's user, or its number where the system knows no name for it."""
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
