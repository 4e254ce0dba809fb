"""Who has sent which parts of objects lately.  Pure.

Nobody can check a part by itself: it has to open with the vault's key, and who opens it is far away from here.  But who
asks again for bytes that he was given a moment ago does so because they did not.  He may ask for more or fewer of them:
a cache asks for blocks, and whoever finds a chunk in one that does not open asks for the chunk.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final, Generic, NamedTuple, TypeVar

MOST_KEYS: Final = 256
MOST_PARTS: Final = 64
"""Of one object; one that is read from its start to its end is asked for in some."""

_By = TypeVar("_By")


class _Part(NamedTuple, Generic[_By]):
    start: int
    end: float
    by: _By


class ServedParts(Generic[_By]):
    """What was sent lately, and by whom."""

    def __init__(self) -> None:
        self._parts: Final[OrderedDict[str, list[_Part[_By]]]] = OrderedDict()

    def of(self, key: str, offset: int, length: int | None) -> list[_By]:
        """Who has sent any of these bytes, each once, the last one last.

        Args:
            key: the object.
            offset: bytes from its start.
            length: bytes; None: to its end.
        """
        end = math.inf if length is None else offset + length
        found: dict[_By, None] = {}
        for part in self._parts.get(key, ()):
            if part.start < end and offset < part.end:
                found.pop(part.by, None)
                found[part.by] = None
        return list(found)

    def note(self, key: str, offset: int, length: int | None, by: _By) -> None:
        """Somebody has sent these bytes."""
        end = math.inf if length is None else offset + length
        parts = self._parts.setdefault(key, [])
        self._parts.move_to_end(key)
        parts[:] = [part for part in parts if part.by != by or part.start < offset or part.end > end]
        parts.append(_Part(offset, end, by))
        del parts[:-MOST_PARTS]
        if len(self._parts) > MOST_KEYS:
            self._parts.popitem(last=False)
