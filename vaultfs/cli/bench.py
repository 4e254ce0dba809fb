"""``vaultfs bench``: how fast this machine encrypts and its disk writes, measured in a few seconds."""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from vaultfs.cli.output import emit_json, fields
from vaultfs.cli.sizes import format_size
from vaultfs.crypto.aead import OVERHEAD_BYTES, SegmentCipher
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import fingerprint
from vaultfs.errors import NoSpaceError, UsageError
from vaultfs.ids import ChunkId, VaultId

_MEASURE_S: Final = 0.3
_CHUNKS_BYTES: Final = (4 << 10, 128 << 10)
_FILE_BYTES: Final = 256 << 20
_PIECE_BYTES: Final = 1 << 20
_SYNCS: Final = 50
_SEALS_PER_KEY: Final = 4096
"""A key may seal 65,536 chunks; a new one for each 4,096 costs next to nothing."""


def run(directory: Path | None = None, /, *, json: bool = False) -> int:
    """Measure encryption and disk speed in a few seconds.

    A temporary file of 256 MiB is written to the directory and removed again.

    Args:
        directory: On the disk that holds, or shall hold, a vault. The current directory if not given.
        json: Print JSON.
    """
    place = directory or Path()
    if not place.is_dir():
        raise UsageError(f"{place}: not a directory")
    figures = {**_crypto(), **_disk(place)}
    if json:
        emit_json(figures)
    else:
        fields([(_label(name), _shown(name, value)) for name, value in figures.items()])
    return 0


def _label(name: str) -> str:
    return name.removesuffix("_bytes_per_s").removesuffix("_ms").replace("_", " ")


def _shown(name: str, value: float) -> str:
    return f"{format_size(value)}/s" if name.endswith("_bytes_per_s") else f"{value:.2f} ms"


def _rate(work: Callable[[], Any], size: int) -> float:
    """Bytes per second of something that is done again and again for a while."""
    work()
    done, started = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started) < _MEASURE_S:
        work()
        done += size
    return round(done / elapsed_s)


def _crypto() -> dict[str, float]:
    """Sealing, opening and fingerprinting on one core, and the cheapest key derivation."""
    figures: dict[str, float] = {}
    for size in _CHUNKS_BYTES:
        for name, rate in _chunk_rates(size).items():
            figures[f"{name}_{size >> 10}_KiB_chunks_bytes_per_s"] = rate
    started = time.perf_counter()
    KdfParameters.weakest().derive(b"benchmark", secrets.token_bytes(16))
    figures["key_derivation_64_MiB_ms"] = round(1000 * (time.perf_counter() - started), 2)
    return figures


def _chunk_rates(size: int) -> dict[str, float]:
    """Bytes per second of what is done with each chunk of this size."""
    key, vault_id = secrets.token_bytes(32), VaultId(secrets.token_bytes(16))
    data = secrets.token_bytes(size)
    known = fingerprint(key, data)
    sealed = bytearray(size + OVERHEAD_BYTES)
    cipher = SegmentCipher(key, vault_id, secrets.token_bytes(32))
    seals = 0

    def seal() -> None:
        nonlocal cipher, seals
        if seals == _SEALS_PER_KEY:
            cipher, seals = SegmentCipher(key, vault_id, secrets.token_bytes(32)), 0
        seals += 1
        cipher.seal_into(memoryview(sealed), ChunkId(1), data, known, length=size)

    return {
        "seal": _rate(seal, size),
        "open": _rate(lambda: cipher.open(ChunkId(1), sealed, length=size), size),
        "fingerprint": _rate(lambda: fingerprint(key, data), size),
    }


def _disk(place: Path) -> dict[str, float]:
    """Sequential writing and reading past the cache, and small synced writes, through a file without a name."""
    usage = os.statvfs(place)
    if usage.f_bavail * usage.f_frsize < 2 * _FILE_BYTES:
        raise NoSpaceError(f"{place}: less than {format_size(2 * _FILE_BYTES)} free, too little to measure")
    data = secrets.token_bytes(_PIECE_BYTES)
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        descriptor = file.fileno()
        started = time.perf_counter()
        for offset in range(0, _FILE_BYTES, _PIECE_BYTES):
            os.pwrite(descriptor, data, offset)
        os.fdatasync(descriptor)
        write = _FILE_BYTES / (time.perf_counter() - started)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        for offset in range(0, _FILE_BYTES, _PIECE_BYTES):
            os.pread(descriptor, _PIECE_BYTES, offset)
        read = _FILE_BYTES / (time.perf_counter() - started)
        times_s = []
        for number in range(_SYNCS):
            started = time.perf_counter()
            os.pwrite(descriptor, data[:4096], number * 4096)
            os.fdatasync(descriptor)
            times_s.append(time.perf_counter() - started)
    return {
        "disk_write_bytes_per_s": round(write),
        "disk_read_bytes_per_s": round(read),
        "disk_4_KiB_write_and_sync_ms": round(1000 * statistics.median(times_s), 3),
    }
