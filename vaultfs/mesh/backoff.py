"""Keeps from dialling at once again a peer that could not be reached or does not trust this machine.

    closed     it may be dialled
    open       it failed: nobody dials before the pause is over; whoever wants it hears of the last failure at once
    half-open  the pause is over: one may try, and until that is decided nobody else

A pause is drawn at random between nothing and a bound that doubles with every failure ("full jitter"): many machines
that lost one peer together must not come back together.  As much is added as the dial took: a dead peer costs ten
seconds each time, and who asks all peers for one thing after the other would wait for it again and again.  One success
closes it again.  Only peers that fail are kept, and of these the last few hundred.  Nothing here waits or knows the
time.
"""

from __future__ import annotations

import enum
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vaultfs.errors import UsageError, VaultError
from vaultfs.ids import PeerId

_random: Final = random.SystemRandom()

_MOST_DOUBLINGS: Final = 30
"""Twice as much would still be a float, but no pause that anybody waits for."""


class Gate(enum.StrEnum):
    """Whether a peer may be dialled."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True)
class Failure:
    """Why a peer could not be dialled.

    Attributes:
        kind: the error's class, whose only argument is its text.
        text: one line.
        took_s: so long it was waited for.
    """

    kind: type[VaultError]
    text: str
    took_s: float = 0.0


@dataclass(frozen=True)
class BreakerState:
    """What is known of a peer that fails.

    Attributes:
        state: never closed; a peer that does not fail has no state.
        failures: in a row; dials that were under way together count once.
        retry_in_s: 0 when the pause is over.
        last_error: the text of the last failure.
    """

    state: Gate
    failures: int
    retry_in_s: float
    last_error: str


@dataclass(frozen=True)
class BackoffLimits:
    """How patient to be with peers that fail.

    Attributes:
        first_pause_s: bounds the first pause; each later bound is twice the one before.
        longest_pause_s: bounds every pause, what a dial took included.
        most_peers: of so many failing peers something is known at most.

    Raises:
        UsageError: they make no sense.
    """

    first_pause_s: float = 0.5
    longest_pause_s: float = 60.0
    most_peers: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.first_pause_s <= self.longest_pause_s or self.most_peers < 1:
            raise UsageError(f"these limits for the pauses between dials make no sense: {self}")


@dataclass(slots=True)
class _Breaker:
    failures: int
    failure: Failure
    retry_at_s: float
    is_tried: bool = False


class Breakers:
    """A circuit breaker for each peer.

    Args:
        limits: how patient to be.
        draw: a random number between two.
    """

    def __init__(
        self, limits: BackoffLimits = BackoffLimits(), *, draw: Callable[[float, float], float] = _random.uniform
    ) -> None:
        self._limits: Final = limits
        self._draw: Final = draw
        self._failing: Final[OrderedDict[PeerId, _Breaker]] = OrderedDict()

    def is_closed(self, peer: PeerId) -> bool:
        """Whether the peer does not fail, so that it may be dialled several times at once."""
        return peer not in self._failing

    def may_dial(self, peer: PeerId, now_s: float) -> bool:
        """Whether the peer may be dialled now."""
        breaker = self._failing.get(peer)
        return breaker is None or (not breaker.is_tried and now_s >= breaker.retry_at_s)

    def dialling(self, peer: PeerId) -> bool:
        """It is dialled, as `may_dial` allowed.

        Returns:
            Whether this is a trial.  Then nobody else may dial until `failed`, `succeeded` or `given_up`.
        """
        breaker = self._failing.get(peer)
        if breaker is None:
            return False
        breaker.is_tried = True
        return True

    def succeeded(self, peer: PeerId) -> None:
        """It answered."""
        self._failing.pop(peer, None)

    def failed(self, peer: PeerId, failure: Failure, now_s: float, *, is_trial: bool) -> None:
        """It was not reached, or refused.  A dial older than the last failure, and no trial, changes nothing."""
        breaker = self._failing.get(peer)
        if breaker is not None and not is_trial:
            return
        failures = 1 if breaker is None else breaker.failures + 1
        limits = self._limits
        bound_s = min(limits.longest_pause_s, limits.first_pause_s * 2 ** min(failures - 1, _MOST_DOUBLINGS))
        pause_s = min(limits.longest_pause_s, failure.took_s + self._draw(0.0, bound_s))
        self._failing[peer] = _Breaker(failures, failure, now_s + pause_s)
        self._failing.move_to_end(peer)
        if len(self._failing) > limits.most_peers:
            self._failing.popitem(last=False)

    def given_up(self, peer: PeerId) -> None:
        """A trial ended without a result: another may try at once."""
        breaker = self._failing.get(peer)
        if breaker is not None:
            breaker.is_tried = False

    def last_failure(self, peer: PeerId) -> tuple[Failure, float]:
        """Why a peer that `is_closed` denies is not dialled, and the time from which on it may be."""
        breaker = self._failing[peer]
        return breaker.failure, breaker.retry_at_s

    def states(self, now_s: float) -> dict[PeerId, BreakerState]:
        """All peers that fail."""
        return {
            peer: BreakerState(
                Gate.HALF_OPEN if breaker.is_tried or now_s >= breaker.retry_at_s else Gate.OPEN,
                breaker.failures,
                max(0.0, breaker.retry_at_s - now_s),
                breaker.failure.text,
            )
            for peer, breaker in self._failing.items()
        }
