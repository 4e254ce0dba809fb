"""A store that fails and lies as it is told.

Each `Fault` is for some requests: those of an operation, to keys that begin so, after a number of them that go well.
The first fault that is due decides; every other one still counts the request.

    FaultyStore(inner, Fail(RemoteUnreachableError("cut"), "put", skip=3, times=None))   # offline from the 4th put on
    FaultyStore(inner, FailAfter(RemoteUnreachableError("cut"), "put"))                  # stored, but nobody says so
    FaultyStore(inner, LosePut("segments/"))                                             # says so, but is not stored
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vaultfs.errors import RemoteUnreachableError, VaultError
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.store import BytesSource, ObjectInfo, Source, Store

OPERATIONS = ("put", "get", "size_bytes", "list", "delete")


@dataclass
class Fault:
    """Which requests.

    Attributes:
        operation: one of `OPERATIONS`; any if empty.
        key: requests whose key or prefix begins with this.
        skip: how many of them go well first.
        times: how many of them are hit; None for all that follow.
    """

    operation: str = ""
    key: str = ""
    skip: int = 0
    times: int | None = 1
    seen: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)

    def is_due(self, operation: str, key: str) -> bool:
        """Count a request, and say whether it is hit."""
        if (self.operation and operation != self.operation) or not key.startswith(self.key):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.seen > self.skip + self.times):
            return False
        self.hits += 1
        return True


class _Raising(Fault):
    def __init__(
        self, error: VaultError, operation: str = "", key: str = "", *, skip: int = 0, times: int | None = 1
    ) -> None:
        super().__init__(operation, key, skip, times)
        self.error = error


class Fail(_Raising):
    """The request raises, and nothing is done."""


class FailAfter(_Raising):
    """The request is done, and raises all the same: the answer was lost.  For ``get`` and ``list`` at their end."""


class BreakBody(Fault):
    """``get`` and ``list`` raise in the middle.

    Args:
        after: how many bytes of a body, or entries of a listing, come first.
        error: what is raised then.
    """

    def __init__(
        self,
        after: int,
        error: VaultError | None = None,
        operation: str = "get",
        key: str = "",
        *,
        skip: int = 0,
        times: int | None = 1,
    ) -> None:
        super().__init__(operation, key, skip, times)
        self.after = after
        self.error = error or RemoteUnreachableError("the connection broke")


class RandomFailures(Fault):
    """Requests raise `RemoteUnreachableError` by chance, before they are done or after.

    Args:
        seed: of the chances.
        share: of all requests.
    """

    def __init__(self, seed: int, share: float, operation: str = "", key: str = "") -> None:
        super().__init__(operation, key, 0, None)
        self._random = random.Random(seed)
        self._share = share

    def is_due(self, operation: str, key: str) -> bool:
        return self._random.random() < self._share and super().is_due(operation, key)

    def is_before(self) -> bool:
        return self._random.random() < 0.5


class LosePut(Fault):
    """``put`` returns, and nothing was stored."""

    def __init__(self, key: str = "", *, skip: int = 0, times: int | None = 1) -> None:
        super().__init__("put", key, skip, times)


class ChangePut(Fault):
    """``put`` stores other bytes than it was given.

    Args:
        change: makes them.
    """

    def __init__(
        self, change: Callable[[bytes], bytes], key: str = "", *, skip: int = 0, times: int | None = 1
    ) -> None:
        super().__init__("put", key, skip, times)
        self.change = change


class ChangeBody(Fault):
    """``get`` answers as if the object had other bytes: `cut`, `flip`, or the other object of `instead`.

    Args:
        change: makes them from the object's.
    """

    def __init__(
        self, change: Callable[[bytes], bytes], key: str = "", *, skip: int = 0, times: int | None = 1
    ) -> None:
        super().__init__("get", key, skip, times)
        self.change = change


class EndlessBody(Fault):
    """``get`` sends zeros, many more than the object has: 10 GiB."""

    def __init__(self, key: str = "", *, size_bytes: int = 10 << 30, skip: int = 0, times: int | None = 1) -> None:
        super().__init__("get", key, skip, times)
        self.size_bytes = size_bytes


class ChangeList(Fault):
    """``list`` leaves out, repeats, or invents: `omit`, `repeat`, `invent`.

    Args:
        change: makes the listing from the true one.
    """

    def __init__(
        self,
        change: Callable[[Sequence[ObjectInfo]], Sequence[ObjectInfo]],
        prefix: str = "",
        *,
        skip: int = 0,
        times: int | None = 1,
    ) -> None:
        super().__init__("list", prefix, skip, times)
        self.change = change


class ChangeSize(Fault):
    """``size_bytes`` says something else.

    Args:
        size_bytes: what it says.
    """

    def __init__(self, size_bytes: int | None, key: str = "", *, skip: int = 0, times: int | None = 1) -> None:
        super().__init__("size_bytes", key, skip, times)
        self.answer = size_bytes


def cut(count: int = 1) -> Callable[[bytes], bytes]:
    """The last bytes are lacking."""
    return lambda data: data[: max(0, len(data) - count)]


def flip(position: int = 0) -> Callable[[bytes], bytes]:
    """One bit is wrong."""
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def instead(data: bytes) -> Callable[[bytes], bytes]:
    """Something else altogether."""
    return lambda _: data


def omit(*keys: str) -> Callable[[Sequence[ObjectInfo]], Sequence[ObjectInfo]]:
    """Objects are lacking; all if none is named."""
    return lambda found: [info for info in found if keys and info.key not in keys]


def repeat(times: int = 2) -> Callable[[Sequence[ObjectInfo]], Sequence[ObjectInfo]]:
    """Every object comes more than once."""
    return lambda found: [info for info in found for _ in range(times)]


def invent(*infos: ObjectInfo) -> Callable[[Sequence[ObjectInfo]], Sequence[ObjectInfo]]:
    """Objects that are not there are listed too, before the others."""
    return lambda found: [*infos, *found]


def resize(size_bytes: int) -> Callable[[Sequence[ObjectInfo]], Sequence[ObjectInfo]]:
    """Every object is listed with this size."""
    return lambda found: [info._replace(size_bytes=size_bytes) for info in found]


class FaultyStore:
    """A store with faults.

    Args:
        inner: the store; what it holds can be looked at beside this one.
        faults: what goes wrong.

    Attributes:
        requests: every request so far, those that failed too: its operation and its key or prefix.
        before: called with the operation and key of each request before anything is done; may raise, wait or change
            things.
    """

    def __init__(self, inner: Store, *faults: Fault) -> None:
        self.inner = inner
        self.name = inner.name
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda _operation, _key: None
        self._faults = list(faults)
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Let more go wrong from now on."""
        with self._lock:
            self._faults += faults

    def heal(self) -> None:
        """Let all go well from now on."""
        with self._lock:
            self._faults.clear()

    def count(self, operation: str, key: str = "") -> int:
        """How many requests there were of an operation, to keys that begin so."""
        return sum(kind == operation and name.startswith(key) for kind, name in list(self.requests))

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        fault = self._next("put", key)
        if isinstance(fault, LosePut):
            return
        if isinstance(fault, ChangePut):
            with source.open() as file:
                source = BytesSource(fault.change(file.read()))
        self.inner.put(key, source, if_absent=if_absent)
        _raise_after(fault)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        fault = self._next("get", key)
        if isinstance(fault, EndlessBody):
            yield from _zeros(fault.size_bytes - offset if length is None else length)
        elif isinstance(fault, ChangeBody):
            data = fault.change(b"".join(self.inner.get(key)))
            yield from _pieces(data[offset : None if length is None else offset + length])
        elif isinstance(fault, BreakBody):
            came = 0
            for piece in self.inner.get(key, offset=offset, length=length):
                if came + len(piece) > fault.after:
                    if came < fault.after:
                        yield piece[: fault.after - came]
                    raise _fresh(fault.error)
                came += len(piece)
                yield piece
            raise _fresh(fault.error)
        else:
            yield from self.inner.get(key, offset=offset, length=length)
            _raise_after(fault)

    def size_bytes(self, key: str) -> int | None:
        fault = self._next("size_bytes", key)
        if isinstance(fault, ChangeSize):
            return fault.answer
        size_bytes = self.inner.size_bytes(key)
        _raise_after(fault)
        return size_bytes

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        fault = self._next("list", prefix)
        if isinstance(fault, ChangeList):
            yield from fault.change(list(self.inner.list(prefix)))
        elif isinstance(fault, BreakBody):
            yield from list(self.inner.list(prefix))[: fault.after]
            raise _fresh(fault.error)
        else:
            yield from self.inner.list(prefix)
            _raise_after(fault)

    def delete(self, key: str) -> None:
        fault = self._next("delete", key)
        self.inner.delete(key)
        _raise_after(fault)

    def close(self) -> None:
        self.inner.close()

    def _next(self, operation: str, key: str) -> Fault | None:
        """The fault of a request; raises already if that is all it does."""
        with self._lock:
            self.requests.append((operation, key))
            due = [fault for fault in self._faults if fault.is_due(operation, key)]
            is_before = bool(due) and (
                isinstance(due[0], Fail) or (isinstance(due[0], RandomFailures) and due[0].is_before())
            )
        self.before(operation, key)
        if is_before:
            raise _error_of(due[0])
        return due[0] if due else None


def _raise_after(fault: Fault | None) -> None:
    if isinstance(fault, FailAfter | RandomFailures):
        raise _error_of(fault)


def _error_of(fault: Fault) -> VaultError:
    return _fresh(fault.error) if isinstance(fault, _Raising) else RemoteUnreachableError("bad luck")


def _fresh(error: VaultError) -> VaultError:
    """The same error anew: one that is raised twice would carry the first traceback along."""
    return type(error)(*error.args)


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def _zeros(size_bytes: int) -> Iterator[bytes]:
    piece = bytes(PIECE_BYTES)
    while size_bytes > 0:
        yield piece[:size_bytes]
        size_bytes -= PIECE_BYTES
