"""For whom a program waits, so that it can say so when that takes long.  Pure: time is passed in.

Each peer is named once only: who waits for hours, as a daemon does, would say nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from vaultfs.ids import PeerId

TELL_AFTER_S: Final = 3.0
_TOGETHER_S: Final = 0.5
"""Those that are nearly due are told with the one that is: one line for peers that were called together."""


class Waits:
    """What is being waited for.

    Args:
        after_s: what takes longer is told.
    """

    def __init__(self, after_s: float = TELL_AFTER_S) -> None:
        self._after_s: Final = after_s
        self._begun: Final[dict[int, tuple[PeerId, float]]] = {}
        self._told: Final[set[PeerId]] = set()
        self._last = 0

    def begin(self, peer: PeerId, now_s: float) -> int:
        """Something is wanted of a peer; gives what `end` takes."""
        self._last += 1
        if peer not in self._told:
            self._begun[self._last] = (peer, now_s)
        return self._last

    def end(self, wait: int) -> None:
        """It has come, or will not."""
        self._begun.pop(wait, None)

    def due_s(self) -> float:
        """When `take_due` has something to say; infinite if nothing is waited for."""
        for _, begun_s in self._begun.values():  # in the order of beginning
            return begun_s + self._after_s
        return math.inf

    def take_due(self, now_s: float) -> list[PeerId]:
        """The peers that are waited for too long, and were not named before."""
        if now_s < self.due_s():
            return []
        slow = {peer: None for peer, begun_s in self._begun.values() if begun_s + self._after_s - _TOGETHER_S <= now_s}
        self._told.update(slow)
        for wait in [wait for wait, (peer, _) in self._begun.items() if peer in slow]:
            del self._begun[wait]
        return list(slow)


def waiting_text(peers: list[PeerId], describe: Callable[[PeerId], str]) -> str:
    """What to say of them.

    Args:
        peers: one at least.
        describe: names one.
    """
    names = ", ".join(sorted(map(describe, peers)))
    return f"no answer yet from {names}; waiting for {'it' if len(peers) == 1 else 'them'}"
