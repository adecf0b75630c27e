"""Structured logs of the daemons: one event a line, nothing that names a patient.

JSON lines for machines, a coloured line for a person at a terminal; both on standard
error. Paths below the data folders are masked in every event, wherever a library may
have put them.
"""

import logging
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import structlog

LogStyle = Literal["auto", "json", "console"]
Event = MutableMapping[str, Any]
MASK = "<data>"


def configure_logs(
    style: LogStyle,
    *,
    hidden: Sequence[Path] = (),
    level: int = logging.INFO,
) -> None:
    """Set up structlog for this process.

    Args:
        style: ``auto`` is ``console`` on a terminal and ``json`` elsewhere.
        hidden: folders and files whose paths are masked.
        level: the least severe level shown.
    """
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: Any = (
        # The default prints every frame's variables: keys, passphrases, what a hospital sent.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(sort_keys=True, ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_none,
            mask_paths(hidden),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_LineLogger,
        cache_logger_on_first_use=False,
    )


def failed_writes() -> int:
    """How often a line of this process's log could not be written when it was to be."""
    return _LineLogger.failed


class _LineLogger:
    """Writes lines on standard error. Work goes on where they cannot be written.

    A full disk under the log, or a reader that is gone, must not end a round. Once lines can be
    written again, one says how many could not.
    """

    failed: ClassVar[int] = 0
    _untold: ClassVar[int] = 0

    def __init__(self, *_: object) -> None:
        """Take what structlog gives a logger, and need none of it."""

    def msg(self, line: str) -> None:
        cls = type(self)
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            cls.failed += 1
            cls._untold += 1
            return
        if cls._untold:
            lines, cls._untold = cls._untold, 0
            structlog.get_logger(__name__).error("log_was_not_written", lines=lines)

    debug = info = warning = error = critical = msg


def mask_paths(hidden: Sequence[Path]) -> Callable[[Any, str, Event], Event]:
    """Return a processor that cuts everything from a hidden path to the next quote or stop."""
    starts = sorted({str(path) for path in hidden}, key=len, reverse=True)

    def mask(_: Any, __: str, event: Event) -> Event:
        for key, value in event.items():
            if isinstance(value, str):
                event[key] = _masked(value, starts)
        return event

    return mask


def _masked(text: str, starts: Sequence[str]) -> str:
    for start in starts:
        while (at := text.find(start)) >= 0:
            end = at + len(start)
            while end < len(text) and text[end] not in "\"'\n:;,)":
                end += 1
            text = text[:at] + MASK + text[end:]
    return text


def _without_none(_: Any, __: str, event: Event) -> Event:
    return {key: value for key, value in event.items() if value is not None}
