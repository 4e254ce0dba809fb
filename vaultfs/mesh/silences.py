"""Passes over for a while a peer that can be reached and does not answer.  Pure.

Such a peer, with a disk that hangs or ill will, takes every new connection, so the pool's breaker does not help: each
request would wait a minute for nothing, and a sync asks about each segment.  After a silence nothing is asked of it for
a pause that doubles, and whoever wants it hears of the silence at once.  An answer ends all that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import PeerId

FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 300.0


@dataclass
class _Silence:
    text: str
    pause_s: float
    until_s: float


class Silences:
    """What is remembered of the peers of one client."""

    def __init__(self) -> None:
        self._silences: Final[dict[PeerId, _Silence]] = {}

    def require_none(self, peer: PeerId, now_s: float) -> None:
        """See that a peer may be asked.

        Args:
            peer: whom.
            now_s: the time, by any clock that does not go back.

        Raises:
            RemoteUnreachableError: it was silent, and the pause is not over.
        """
        silence = self._silences.get(peer)
        if silence is not None and now_s < silence.until_s:
            raise RemoteUnreachableError(f"{silence.text}; it is asked again in {silence.until_s - now_s:.0f} s")

    def note(self, peer: PeerId, text: str, now_s: float) -> None:
        """It was silent; requests that were under way together count once.

        Args:
            peer: who.
            text: in what way.
            now_s: the time.
        """
        silence = self._silences.get(peer)
        if silence is None:
            self._silences[peer] = _Silence(text, FIRST_PAUSE_S, now_s + FIRST_PAUSE_S)
        elif now_s >= silence.until_s:
            pause_s = min(2 * silence.pause_s, LONGEST_PAUSE_S)
            self._silences[peer] = _Silence(text, pause_s, now_s + pause_s)

    def end(self, peer: PeerId) -> None:
        """It has answered."""
        self._silences.pop(peer, None)
