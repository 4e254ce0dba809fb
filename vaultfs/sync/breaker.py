"""Keeps from asking at once again who has just failed: whoever wants something fails fast instead of waiting.

After a failure nobody asks for a while, which doubles with each further failure.  Then one caller may try, and all
others go on failing fast until it knows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from vaultfs.errors import VaultError

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0


class Breaker:
    """Whether one remote may be asked.  Threads may share it.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock: Final = clock
        self._lock: Final = threading.Lock()
        self._failure: VaultError | None = None
        self._pause_s = FIRST_PAUSE_S
        self._next_try_s = 0.0
        self._is_tried = False

    def refusal(self) -> VaultError | None:
        """The failure for which nobody may ask now; None if the caller may, who then tells how it went."""
        with self._lock:
            if self._failure is None:
                return None
            if self._is_tried or self._clock() < self._next_try_s:
                return self._failure
            self._is_tried = True
            return None

    def succeeded(self) -> bool:
        """It answered; return whether it had failed before."""
        with self._lock:
            was_failing = self._failure is not None
            self._failure = None
            self._is_tried = False
            self._pause_s = FIRST_PAUSE_S
            return was_failing

    def failed(self, failure: VaultError) -> float | None:
        """It failed.

        Returns:
            For how many seconds nobody asks; None if that is so already, because several had asked at once.
        """
        with self._lock:
            if self._failure is not None and not self._is_tried:
                return None
            self._failure = failure
            self._is_tried = False
            pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, LONGEST_PAUSE_S)
            self._next_try_s = self._clock() + pause_s
            return pause_s
