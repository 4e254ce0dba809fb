"""What the core logs, as lines like all others.

A log that cannot be written, as on a full disk or where nobody reads it any more, is no reason for a daemon to end.
"""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress

from vaultfs.cli.output import error_line, note, printable


class _Warnings(logging.Handler):
    """What the core wants a person to know, as lines like all others; of a fault also where it happened."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "warning: " if record.levelno >= logging.WARNING else ""
        with suppress(OSError):
            error_line(f"{kind}{record.getMessage()}")
            if record.exc_info is not None:
                for line in "".join(traceback.format_exception(*record.exc_info)).splitlines():
                    note(printable(line))


def show_warnings(level: int = logging.WARNING) -> None:
    """Print warnings of the core on standard error; without this Python prints them in its own way.

    Args:
        level: of `logging`, from which on; a daemon also tells what it did.
    """
    logger = logging.getLogger("vaultfs")
    if not logger.handlers:
        logger.addHandler(_Warnings(level))
        if level < logging.WARNING:
            logger.setLevel(level)
        logger.propagate = False
