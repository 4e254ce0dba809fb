"""Clouds that Apache OpenDAL speaks with; which ones, and with which credentials, is in `opendal_services`.

- OpenDAL puts URLs, headers and tokens into the texts of its errors.  None is passed on, not even as a cause: messages
  are written here, of the kind of an error and its HTTP status.
- Its retries are not used (`vaultfs.remotes.retrying` does that); its time limits are.
- ``if_absent`` is honoured where the service itself can, and ignored elsewhere, so that `vaultfs.remotes.probing` finds
  out; looking first would pretend what a race disproves.
- An object is held in memory while it is sent: these services want it in one request, and with OpenDAL that cannot be
  made of pieces.  So only as many go at once as fit into `_ROOM_BYTES`, from however many threads.
- When credentials are refused that were good before, new ones are asked for once: access tokens live an hour.
"""

from __future__ import annotations

import asyncio
import posixpath
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Final, Self, TypeVar

from vaultfs.errors import ObjectMissingError, RemoteRefusedError, RemoteUnreachableError
from vaultfs.remotes.bodies import PIECE_BYTES, exact, opened, require_range, wanted_bytes
from vaultfs.remotes.keys import is_key, is_listed, require_key, require_prefix
from vaultfs.remotes.memory_room import MemoryRoom
from vaultfs.remotes.opendal_errors import caught_errors, translated
from vaultfs.remotes.store import ObjectInfo, Source

_T = TypeVar("_T")

_TIMEOUT_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 16 << 10
_LOT: Final = 256
_ROOM_BYTES: Final = 128 << 20
"""Two segments of the usual size; a sync shall need less than 250 MiB in all."""
_FRESH_S: Final = 30.0
"""Credentials younger than this that are refused will not get better by asking again."""

_room: Final = MemoryRoom(_ROOM_BYTES)


class OpenDalStore:
    """A service of OpenDAL.

    Args:
        name: for messages.
        configure: makes OpenDAL's settings, ``scheme`` among them; is called before the first request, and again for
            new credentials; raises errors of vaultfs.
        is_renewable: whether it is worth calling again when credentials are refused that are not quite new.
        has_better: the same, found out: is called when credentials are refused; whether ``configure`` gives others now.
        is_staged: whether objects are sent under another name and then renamed, as a service needs it that shows them
            half sent.
        is_walked: whether a listing asks for one folder after the other, as a service needs it of which OpenDAL tells
            names without their folders.
        is_ending: whether the credentials are near their end: new ones are asked for before the next request.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        name: str,
        configure: Callable[[], Mapping[str, str]],
        *,
        is_renewable: bool = False,
        has_better: Callable[[], bool] | None = None,
        is_staged: bool = False,
        is_walked: bool = False,
        is_ending: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._configure = configure
        self._is_renewable = is_renewable
        self._has_better = has_better or self._is_worth_asking
        self._is_staged = is_staged
        self._is_walked = is_walked
        self._is_ending = is_ending
        self._clock = clock
        self._lock = threading.Lock()
        self._operator: Any = None
        self._made_at_s = 0.0

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object, as `Store.put`; ``if_absent`` as far as the service can."""
        require_key(key)

        def write(operator: Any) -> None:
            slow = _with_timeout(operator, _TIMEOUT_S + source.size_bytes / _SLOWEST_BYTES_PER_S)
            if self._is_staged:
                staged = posixpath.join(posixpath.dirname(key), f".vaultfs-{secrets.token_hex(16)}.tmp")
                _write(slow, staged, key, source)
                operator.rename(staged, key)
            else:
                _write(slow, key, key, source, only_new=if_absent and operator.capability().write_with_if_not_exists)

        with _room.taken(source.size_bytes):
            self._call(f"storing {key} on {self.name}", write)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, as `Store.get`; its length is asked for first."""
        require_key(key)
        require_range(offset, length)
        what = f"{key} on {self.name}"
        size_bytes = self.size_bytes(key)
        if size_bytes is None:
            raise ObjectMissingError(f"{self.name} has no {key}")
        wanted = wanted_bytes(what, size_bytes, offset, length)
        yield from exact(what, self._pieces(key, offset, None if length is None and wanted else wanted), wanted)

    def size_bytes(self, key: str) -> int | None:
        """The length of an object, as `Store.size_bytes`."""
        require_key(key)

        def stat(operator: Any) -> int | None:
            found = operator.stat(key)
            return int(found.content_length) if found.is_file else None

        try:
            return self._call(f"looking for {key} on {self.name}", stat)
        except ObjectMissingError:
            return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin so, as `Store.list`.  Some services list lengths as 0: those are looked up."""
        require_prefix(prefix)
        folders = [prefix]
        while folders:
            folder = folders.pop()
            for name, entry in self._entries(folder):
                key = folder + name if self._is_walked else name
                if self._is_walked and key.endswith("/"):
                    if is_key(key.removesuffix("/")):  # in others there is nothing of ours
                        folders.append(key)
                elif not key.endswith("/") and is_listed(key, prefix):
                    size_bytes = int(entry.metadata.content_length or 0) or self.size_bytes(key)
                    if size_bytes is not None:
                        yield ObjectInfo(key, size_bytes)

    def _entries(self, folder: str) -> Iterator[tuple[str, Any]]:
        """What OpenDAL lists of a folder, with all that is below it if it can; nothing if there is no such folder."""
        what = f"listing {folder or 'all'} on {self.name}"
        begin = partial(_Listing.begin, prefix=folder, is_recursive=not self._is_walked)
        try:
            with closing(self._call(what, begin)) as listing:
                while entries := self._go_on(what, listing.take):
                    for entry in entries:
                        yield str(entry.path), entry
        except ObjectMissingError:
            return

    def delete(self, key: str) -> None:
        """Remove an object, as `Store.delete`; it is looked at first, as some services would remove a whole folder."""
        if self.size_bytes(key) is None:
            return
        try:
            self._call(f"removing {key} from {self.name}", lambda operator: operator.delete(key))
        except ObjectMissingError:
            return

    def close(self) -> None:
        """Forget connections and credentials."""
        with self._lock:
            self._operator = None

    def _pieces(self, key: str, offset: int, length: int | None) -> Iterator[bytes]:
        """What comes.  Never more of a part than was asked for; but of the whole, to see that it has not grown."""
        what = f"reading {key} on {self.name}"

        def begin(operator: Any) -> tuple[Any, bytes]:
            file = operator.open(key, "rb")
            file.seek(offset)
            return file, file.read(_piece(length))

        if length == 0:
            return
        file, piece = self._call(what, begin)
        try:
            while piece:
                yield piece
                if length is not None:
                    length -= len(piece)
                piece = self._go_on(what, partial(file.read, _piece(length))) if length != 0 else b""
        finally:
            file.close()

    def _go_on(self, what: str, request: Callable[[], _T]) -> _T:
        """The next part of what `_call` began.

        Raises:
            RemoteUnreachableError: also if credentials have expired in the middle: then a new request is needed.
        """
        operator = self._operator
        try:
            return self._translating(what, request)
        except RemoteRefusedError:
            if not self._renew(operator):
                raise
        raise RemoteUnreachableError(f"{what} failed: the credentials have expired; try again with new ones")

    def _call(self, what: str, request: Callable[[Any], _T]) -> _T:
        """Make a request; once more if it was refused, and with new credentials it may not be."""
        operator = self._get_operator(what)
        try:
            return self._translating(what, lambda: request(operator))
        except RemoteRefusedError:
            if not self._renew(operator):
                raise
        operator = self._get_operator(what)
        return self._translating(what, lambda: request(operator))

    def _translating(self, what: str, request: Callable[[], _T]) -> _T:
        try:
            return request()
        except caught_errors() as error:
            failure = translated(error, what, self.name)
        raise failure  # here, where the original is not the context

    def _get_operator(self, what: str) -> Any:
        with self._lock:
            if self._operator is None or self._is_ending():
                settings = dict(self._configure())
                self._operator = self._translating(what, lambda: _make_operator(settings))
                self._made_at_s = self._clock()
            return self._operator

    def _renew(self, refused: Any) -> bool:
        """Whether there may be better credentials now than those of the operator that was refused."""
        with self._lock:
            if self._operator is refused:
                if not self._has_better():
                    return False
                self._operator = None
            return True

    def _is_worth_asking(self) -> bool:
        return self._is_renewable and self._clock() - self._made_at_s >= _FRESH_S


class _Listing:
    """The entries of a listing, in lots.

    OpenDAL's own blocking listing holds the interpreter's lock while it waits for the server, which stops every other
    thread.  Its asynchronous one does not.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._entries: Any = None

    @classmethod
    def begin(cls, operator: Any, *, prefix: str, is_recursive: bool) -> Self:
        """Ask for the first entries."""
        listing = cls()
        try:
            listing._loop.run_until_complete(listing._begin(operator.to_async_operator(), prefix or "/", is_recursive))
        except BaseException:
            listing.close()
            raise
        return listing

    def take(self) -> list[Any]:
        """The next entries; none at the end."""
        return self._loop.run_until_complete(self._take())

    def close(self) -> None:
        """Stop."""
        self._loop.close()

    async def _begin(self, operator: Any, path: str, is_recursive: bool) -> None:
        self._entries = await operator.list(path, recursive=is_recursive)

    async def _take(self) -> list[Any]:
        taken: list[Any] = []
        async for entry in self._entries:
            taken.append(entry)
            if len(taken) == _LOT:
                break
        return taken


def _write(operator: Any, path: str, key: str, source: Source, *, only_new: bool = False) -> None:
    """Store what a source holds, in one request, which is made when all of it was read and found right."""
    options = {"if_not_exists": True} if only_new else {}
    with opened(key, source) as reader:
        if source.size_bytes <= PIECE_BYTES:
            operator.write(path, reader.readall(), **options)
            return
        # Larger chunks than there is, so that nothing goes before the end: a file that is not closed stores nothing.
        # Compared with `write`, this spares one of two copies.  It is read at once and not in pieces, because so large
        # a block goes back to the system when it is free; many threads would keep what was pieces of a MiB.
        file = operator.open(path, "wb", chunk=source.size_bytes + 1, **options)
        while data := reader.read(source.size_bytes + 1):
            file.write(data)
            del data
        file.close()


def _piece(rest: int | None) -> int:
    return PIECE_BYTES if rest is None else min(PIECE_BYTES, rest)


def _make_operator(settings: dict[str, str]) -> Any:
    import opendal  # noqa: PLC0415  # takes long to load

    return _with_timeout(opendal.Operator(settings.pop("scheme"), **settings), _TIMEOUT_S)


def _with_timeout(operator: Any, io_timeout_s: float) -> Any:
    from opendal.layers import TimeoutLayer  # noqa: PLC0415  # takes long to load

    return operator.layer(TimeoutLayer(timeout=_TIMEOUT_S, io_timeout=io_timeout_s))
