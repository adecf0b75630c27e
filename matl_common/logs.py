"""Structured logs of the daemons: one event a line, nothing that names a patient.

JSON lines for machines, a coloured line for a person at a terminal; both on standard
error. Paths below the data folders are masked in every event, wherever a library may
have put them.
"""

import logging
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


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
