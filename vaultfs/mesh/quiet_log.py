"""A log that strangers cannot fill: of each kind of message one line in a while, which says how many were left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

INTERVAL_S: Final = 10.0


class QuietLog:
    """Writes warnings to a logger.

    Args:
        log: where to.
        clock: seconds, never going back.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log: Final = log
        self._clock: Final = clock
        self._next_s: Final[dict[str, float]] = {}
        self._left_out: Final[dict[str, int]] = {}

    def warning(self, text: str, *values: object) -> None:
        """Write a line, unless one of this kind was written a moment ago.

        Args:
            text: the kind: a constant with ``%s`` in it.
            values: for these.
        """
        now_s = self._clock()
        if now_s < self._next_s.get(text, now_s):
            self._left_out[text] = self._left_out.get(text, 0) + 1
            return
        self._next_s[text] = now_s + INTERVAL_S
        left_out = self._left_out.pop(text, 0)
        if left_out:
            self._log.warning(f"{text} (and %d more since the last line)", *values, left_out)
        else:
            self._log.warning(text, *values)
