"""Truncation both ways; bytes past the end are zero whatever was there before."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .calls import fails, opened

CHUNK = 128 << 10


@pytest.mark.parametrize("cut", [0, 1, 4095, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("synced", [False, True])
def test_cut_bytes_come_back_as_zeros(mounted: Path, cut: int, synced: bool) -> None:
    file = mounted / "file"
    data = b"\xaa" * (3 * CHUNK)
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, data)
        if synced:
            os.fsync(descriptor)
        os.ftruncate(descriptor, cut)
        os.ftruncate(descriptor, len(data))
    assert file.read_bytes() == data[:cut] + bytes(len(data) - cut)


def test_a_write_past_the_end_leaves_zeros_between(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"\xaa" * 10_000)
    os.truncate(file, 10)
    with opened(file, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"end", 9_000)
    assert file.read_bytes() == b"\xaa" * 10 + bytes(8_990) + b"end"


def test_opening_with_o_trunc_empties(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"data" * 100_000)
    with opened(file, os.O_WRONLY | os.O_TRUNC):
        assert file.stat().st_size == 0
    assert file.read_bytes() == b""


def test_truncation_is_seen_through_another_descriptor(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"data" * 1000)
    with opened(file, os.O_RDONLY) as reader:
        assert os.pread(reader, 4, 2000) == b"data"
        os.truncate(file, 2002)
        assert os.pread(reader, 4, 2000) == b"da"
        assert os.fstat(reader).st_size == 2002


def test_what_cannot_be_truncated(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"data")
    with fails(errno.EISDIR):
        os.truncate(mounted, 0)
    with fails(errno.ENOENT):
        os.truncate(mounted / "missing", 0)
    with fails(errno.EINVAL):
        os.truncate(file, -1)
    with opened(file, os.O_RDONLY) as descriptor, fails(errno.EINVAL):
        os.ftruncate(descriptor, 0)
    assert file.read_bytes() == b"data"


def test_a_limit_of_the_process_on_file_sizes_holds(mounted: Path) -> None:
    file = mounted / "file"
    child = os.fork()
    if child == 0:
        outcomes = []
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
                outcomes.append(os.pwrite(descriptor, b"x" * 100, 950))
                for too_long in (lambda: os.pwrite(descriptor, b"x", 1000), lambda: os.ftruncate(descriptor, 1001)):
                    try:
                        too_long()
                    except OSError as error:
                        outcomes.append(error.errno or 0)
        finally:
            os._exit(0 if outcomes == [50, errno.EFBIG, errno.EFBIG] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.stat().st_size == 1000


OFFSETS = st.one_of(st.integers(0, 3 * CHUNK), st.sampled_from([0, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK]))
STEPS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, st.integers(1, CHUNK + 10)),
    st.tuples(st.just("truncate"), OFFSETS, st.just(0)),
    st.tuples(st.sampled_from(["fsync", "reopen", "read"]), st.just(0), st.just(0)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=1, max_size=12))
def test_any_sequence_of_writes_and_truncations(mounted: Path, steps: list[tuple[str, int, int]]) -> None:
    file = mounted / "file"
    model = bytearray()
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_TRUNC)
    try:
        for number, (verb, offset, length) in enumerate(steps, 1):
            if verb == "write":
                data = bytes([number]) * length
                assert os.pwrite(descriptor, data, offset) == length
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + length] = data
            elif verb == "truncate":
                os.ftruncate(descriptor, offset)
                model.extend(bytes(max(0, offset - len(model))))
                del model[offset:]
            elif verb == "fsync":
                os.fsync(descriptor)
            elif verb == "reopen":
                os.close(descriptor)
                descriptor = os.open(file, os.O_RDWR)
            else:
                assert os.pread(descriptor, len(model) + 1, 0) == model
        assert os.fstat(descriptor).st_size == len(model)
        assert os.pread(descriptor, len(model) + 1, 0) == model
    finally:
        os.close(descriptor)
    assert file.read_bytes() == model
