"""A small cache of opened chunks, for reads that want a part of one.

Chunks never change, so nothing here can be stale; the oldest go first.
"""

from __future__ import annotations

from typing import Final

from vaultfs.ids import ChunkId

CACHE_BYTES: Final = 8 << 20


class OpenChunks:
    """Plaintext of chunks, by number, least recently used first.

    Args:
        limit_bytes: of plaintext.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._chunks: dict[ChunkId, bytes] = {}

    def get(self, chunk: ChunkId) -> bytes | None:
        """The chunk's plaintext, if it is here."""
        data = self._chunks.pop(chunk, None)
        if data is not None:
            self._chunks[chunk] = data
        return data

    def put(self, chunk: ChunkId, data: bytes) -> None:
        """Keep a chunk."""
        if chunk in self._chunks:
            return
        self._chunks[chunk] = data
        self._bytes += len(data)
        while self._bytes > self._limit_bytes and len(self._chunks) > 1:
            oldest = next(iter(self._chunks))
            self._bytes -= len(self._chunks.pop(oldest))

    def forget(self, chunk: ChunkId) -> None:
        """Drop a chunk, for example to read it from the disk again."""
        data = self._chunks.pop(chunk, None)
        if data is not None:
            self._bytes -= len(data)
