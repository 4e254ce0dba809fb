"""Warnings of the core, which it logs, as lines like all others."""

from __future__ import annotations

import logging

from vaultfs.cli.output import error_line


class _Warnings(logging.Handler):
    """What the core wants a person to know, as lines like all others."""

    def emit(self, record: logging.LogRecord) -> None:
        error_line(f"warning: {record.getMessage()}")


def show_warnings() -> None:
    """Print warnings of the core on standard error; without this Python prints them in its own way."""
    logger = logging.getLogger("vaultfs")
    if not logger.handlers:
        logger.addHandler(_Warnings(logging.WARNING))
        logger.propagate = False
