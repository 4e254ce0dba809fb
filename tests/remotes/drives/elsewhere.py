"""Stores that live in another process, whose environment leads to the fakes.

OpenDAL has one HTTP client for a process, and looks at the environment when it makes it: too early for tests that share
a process with others.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.managers import BaseManager, BaseProxy, IteratorProxy  # type: ignore[attr-defined]
from typing import Any, ClassVar

import pytest

from vaultfs.cli.user_seal import user_seal
from vaultfs.remotes.locations import parse
from vaultfs.remotes.opendal_services import make_store
from vaultfs.remotes.store import ObjectInfo, Source, Store
from vaultfs.remotes.tokens_seal import bring_seal


def _open(url: str, options: Mapping[str, str]) -> Store:
    bring_seal(user_seal)
    return make_store(parse(url), options)


class _StoreProxy(BaseProxy):
    _exposed_ = ("put", "get", "size_bytes", "list", "delete", "close")
    _method_to_typeid_: ClassVar = {"get": "Pieces", "list": "Pieces"}

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        return self._callmethod(method, args, options)


class _Manager(BaseManager):
    pass


_Manager.register("store", callable=_open, proxytype=_StoreProxy)
_Manager.register("Pieces", proxytype=IteratorProxy, create_method=False)


class DistantStore:
    """A store in another process."""

    def __init__(self, name: str, proxy: Any) -> None:
        self.name = name
        self._proxy = proxy

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        self._proxy.call("put", key, source, if_absent=if_absent)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        yield from self._proxy.call("get", key, offset=offset, length=length)

    def size_bytes(self, key: str) -> int | None:
        size_bytes: int | None = self._proxy.call("size_bytes", key)
        return size_bytes

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._proxy.call("list", prefix)

    def delete(self, key: str) -> None:
        self._proxy.call("delete", key)

    def close(self) -> None:
        self._proxy.call("close")


class Elsewhere:
    """The other process."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def open(self, url: str, options: Mapping[str, str] | None = None) -> DistantStore:
        """A store there, as `vaultfs.remotes.opendal_services.make_store`."""
        return DistantStore(url, self._manager.store(url, dict(options or {})))


@contextmanager
def elsewhere(environment: Mapping[str, str]) -> Iterator[Elsewhere]:
    """Run the other process.

    Args:
        environment: what it has in addition.
    """
    manager = _Manager(ctx=multiprocessing.get_context("spawn"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        manager.start()
    try:
        yield Elsewhere(manager)
    finally:
        manager.shutdown()
