"""Who waits for a connection: in the order of coming, by peer, and by the time until which they wait.  Pure."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vaultfs.ids import PeerId
from vaultfs.mesh.pool_records import LeaseId

_FORGOTTEN_AT_LEAST: Final = 64
"""So many deadlines of waiters long gone are kept before they are sorted out."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody who wants a connection.

    Attributes:
        deadline_s: until when; a time, not a duration.
    """

    lease: LeaseId
    peer: PeerId
    is_shared: bool
    deadline_s: float


class WaiterQueue:
    """All who wait.  Finding the next of each peer, and the next deadline, costs the same with ten thousand of them."""

    def __init__(self) -> None:
        self._all: Final[dict[LeaseId, Waiter]] = {}
        self._lines: Final[dict[PeerId, OrderedDict[LeaseId, Waiter]]] = {}
        self._deadlines: list[tuple[float, LeaseId]] = []

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, lease: LeaseId) -> bool:
        return lease in self._all

    def add(self, waiter: Waiter) -> None:
        """Somebody comes, behind all others."""
        self._all[waiter.lease] = waiter
        self._lines.setdefault(waiter.peer, OrderedDict())[waiter.lease] = waiter
        heapq.heappush(self._deadlines, (waiter.deadline_s, waiter.lease))

    def remove(self, lease: LeaseId) -> None:
        """Somebody goes."""
        waiter = self._all.pop(lease)
        line = self._lines[waiter.peer]
        del line[lease]
        if not line:
            del self._lines[waiter.peer]
        if len(self._deadlines) > 2 * len(self._all) + _FORGOTTEN_AT_LEAST:
            self._deadlines = [(waiter.deadline_s, waiter.lease) for waiter in self._all.values()]
            heapq.heapify(self._deadlines)

    def lines(self) -> list[Iterator[Waiter]]:
        """For each peer those who wait for it, in the order of coming; valid until somebody comes or goes."""
        return [iter(line.values()) for line in self._lines.values()]

    def leases(self) -> list[LeaseId]:
        """All who wait, in the order of coming."""
        return list(self._all)

    def next_deadline_s(self) -> float:
        """When the first has waited too long; infinite if nobody waits."""
        while self._deadlines and self._deadlines[0][1] not in self._all:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def overdue(self, now_s: float) -> list[LeaseId]:
        """Take out those who have waited too long."""
        found = []
        while self.next_deadline_s() <= now_s:
            lease = self._deadlines[0][1]
            self.remove(lease)
            found.append(lease)
        return found

    def audit(self) -> list[str]:
        """What is wrong, by counting all again; nothing if all is well."""
        wrong = []
        lined = [waiter for line in self._lines.values() for waiter in line.values()]
        if {waiter.lease: waiter for waiter in lined} != self._all or len(lined) != len(self._all):
            wrong.append("the lines hold others than wait")
        if any(list(line) != sorted(line) or not line for line in self._lines.values()):
            wrong.append("a line is empty or out of order")
        if not {(waiter.deadline_s, waiter.lease) for waiter in lined} <= set(self._deadlines):
            wrong.append("a deadline is missing")
        if len(self._deadlines) > 2 * len(self._all) + _FORGOTTEN_AT_LEAST:
            wrong.append(f"{len(self._deadlines)} deadlines are kept for {len(self._all)} who wait")
        return wrong
