"""put and get stream: memory is bounded by pieces and commits, not by the size of the file.

The source and the destination are made of nothing: `os.pread` and `os.pwrite` of one descriptor are replaced, so that
the test needs no disk for the plaintext.  The bound is on what Python allocates (tracemalloc), and on what the process
grows by (its resident set), which sees the core's C parts too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from vaultfs.vault import transfer, transfer_out
from vaultfs.vault.transfer_outcome import no_progress

from .conftest import PASSWORD, REPOSITORY, opened

PIECE = 1 << 20


def piece(number: int) -> bytes:
    """A MiB that no other number gives, so that nothing is shared, and cheap to make."""
    return hashlib.shake_128(number.to_bytes(8, "little")).digest(4096) * 256


def test_allocations_do_not_grow_with_the_file(vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's peak for 20 MiB and for 200 MiB, with commits as rare in relation as they are for 20 GiB."""
    monkeypatch.setattr(transfer, "COMMIT_BYTES", 10 << 20)
    peaks = {}
    with opened(vault) as found:
        for size_mib in (20, 200):
            numbers = iter(range(size_mib))

            def read(_size: int, numbers: object = numbers) -> bytes:
                number = next(numbers, None)  # type: ignore[call-overload]
                return b"" if number is None else piece(number + 1000 * size_mib)  # noqa: B023  # used in this round

            tracemalloc.start()
            transfer.put_stream(found, read, f"/{size_mib}".encode())
            _, put_peak = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            transfer_out.get(found, f"/{size_mib}".encode(), str(tmp_path / "back"), replace=True)
            _, get_peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert (tmp_path / "back").stat().st_size == size_mib << 20
            peaks[size_mib] = (put_peak, get_peak)
    # What may wait for the sealing thread is up to 16 MiB, and how much of that waits is chance.
    assert max(*peaks[20], *peaks[200]) < 32 << 20, peaks
    for small, large in zip(peaks[20], peaks[200], strict=True):
        assert large < small + (16 << 20), peaks


SCRIPT = """
import hashlib, os, sys
from pathlib import Path
import vaultfs
from vaultfs.cli.opened import MemoryTrimmer
from vaultfs.vault import transfer, transfer_out
vault, password, size_mib, where = sys.argv[1:]
size = int(size_mib) << 20
block = os.urandom(1 << 20)
def piece(position):
    return position.to_bytes(8, "little") * 512 + block[4096:]
transfer._data_ranges = lambda descriptor, status: iter([(0, size)])
real_pread, real_pwrite = os.pread, os.pwrite
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
with vaultfs.open_vault(vault, vaultfs.Secret.password(password)) as found:
    source = Path(where) / "source"
    source.write_bytes(b"")
    start = peak = 0
    trimmer = MemoryTrimmer()
    def look(done_bytes, *_):
        global peak
        peak = max(peak, resident())
        trimmer(done_bytes)
    os.pread = lambda descriptor, wanted, position: piece(position)[:wanted]
    start = resident()
    transfer.put(found, source, b"/big", progress=look)
    os.pread = real_pread
    put_growth, peak = peak - start, 0
    start = resident()
    os.pwrite = lambda descriptor, data, position: len(data)
    transfer_out.get(found, b"/big", where + "/back", progress=look)
    os.pwrite = real_pwrite
    print(put_growth >> 20, (peak - start) >> 20, found.stat("/big").st_size >> 20)
"""


def growth_mib(vault: Path, where: Path, size_mib: int) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, vault, PASSWORD, str(size_mib), where],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    put, get, size = map(int, done.stdout.split())
    assert size == size_mib
    return put, get


def check_growth(vault: Path, where: Path, size_mib: int) -> None:
    put, get = growth_mib(vault, where, size_mib)
    # What waits for the sealing thread (16 MiB), dirty chunks, buffers, and the database's cache; measured: 40 to 60.
    assert put < 100
    assert get < 40


def test_resident_memory_for_a_large_file(vault: Path, tmp_path: Path) -> None:
    check_growth(vault, tmp_path, 1 << 10)


@pytest.mark.long
def test_resident_memory_for_20_gib(vault: Path, tmp_path: Path) -> None:
    check_growth(vault, tmp_path, 20 << 10)


def test_progress_is_called_for_every_piece(vault: Path, tmp_path: Path) -> None:
    """The bound above is by pieces of 1 MiB: no step may take more at once."""
    (tmp_path / "file").write_bytes(bytes(PIECE) + os.urandom(5 * PIECE + 1))
    steps: list[int] = []

    def note(done_bytes: int, total_bytes: int | None, files: int) -> None:
        no_progress(done_bytes, total_bytes, files)
        steps.append(done_bytes)

    with opened(vault) as found:
        transfer.put(found, tmp_path / "file", b"/file", progress=note)
        assert max(after - before for before, after in pairwise(steps)) <= PIECE
        steps.clear()
        transfer_out.get(found, b"/file", str(tmp_path / "back"), progress=note)
        assert steps == sorted(steps)
        assert max(after - before for before, after in pairwise(steps)) <= PIECE
