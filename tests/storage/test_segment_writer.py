from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import blake3
import pytest
from descriptors import open_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaultfs.errors import IntegrityError, NoSpaceError, StorageError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader
from vaultfs.storage.segment_reader import hash_file
from vaultfs.storage.segment_writer import Buffer, SegmentWriter, discard_open_name

from .disk_model import Recorder
from .faults import failing
from .foreign import KINDS, put

SYNC_ERRORS = [errno.EIO, errno.ENOSPC, errno.EDQUOT]


def expected_error(code: int) -> type[Exception]:
    return StorageError if code == errno.EIO else NoSpaceError


def on_disk(writer: SegmentWriter, layout: VaultLayout) -> bytes:
    return layout.open_path(writer.token).read_bytes()


def test_a_new_segment(layout: VaultLayout, header: SegmentHeader) -> None:
    old = os.umask(0)
    try:
        writer = SegmentWriter.create(layout, header)
    finally:
        os.umask(old)
    assert layout.open_tokens() == [writer.token]
    assert (writer.header, writer.size_bytes) == (header, HEADER_BYTES)
    assert on_disk(writer, layout) == header.encode()
    assert stat.S_IMODE(layout.open_path(writer.token).stat().st_mode) == 0o600
    assert writer.token != SegmentWriter.create(layout, header).token
    writer.close()


def test_append_and_read(writer: SegmentWriter, layout: VaultLayout) -> None:
    assert writer.append([b"one", bytearray(b"two"), memoryview(b"three")]) == 64
    assert writer.append([]) == 75
    assert writer.append([b"", memoryview(b"abcdefgh").cast("I"), b""]) == 75
    assert writer.size_bytes == 83
    assert writer.read(64, 11) == b"onetwothree"
    assert writer.read(83, 0) == b""
    assert on_disk(writer, layout)[64:] == b"onetwothreeabcdefgh"


@pytest.mark.parametrize(("offset", "length"), [(64, 4), (-1, 1), (68, 0), (0, 10**12), (64, -1)])
def test_reading_what_is_not_there(writer: SegmentWriter, offset: int, length: int) -> None:
    writer.append([b"abc"])
    with pytest.raises(IntegrityError):
        writer.read(offset, length)


def test_reading_what_was_cut_off(writer: SegmentWriter, layout: VaultLayout) -> None:
    writer.append([b"abc"])
    os.truncate(layout.open_path(writer.token), 65)
    with pytest.raises(IntegrityError, match="cut"):
        writer.read(64, 3)


def test_more_pieces_than_one_call_takes(writer: SegmentWriter, layout: VaultLayout) -> None:
    pieces: list[Buffer] = [bytes([number % 251]) * (number % 7) for number in range(5000)]
    writer.append(pieces)
    assert on_disk(writer, layout)[64:] == b"".join(pieces)
    name = writer.seal()
    assert hash_file(layout.sealed_path(name)) == name


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    appends=st.lists(st.lists(st.binary(max_size=30), max_size=5), max_size=5),
    shorts=st.lists(st.integers(1, 40), min_size=1),
)
def test_short_writes_lose_nothing(
    layout: VaultLayout, header: SegmentHeader, appends: list[list[bytes]], shorts: list[int]
) -> None:
    real = os.pwritev
    calls = 0

    def short(descriptor: int, pieces: list[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        return real(descriptor, [b"".join(pieces)[: shorts[calls % len(shorts)]]], offset)

    writer = SegmentWriter.create(layout, header)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", short)
        for pieces in appends:
            expected = writer.size_bytes
            assert writer.append(pieces) == expected
    content = header.encode() + b"".join(b"".join(pieces) for pieces in appends)
    assert on_disk(writer, layout) == content
    assert writer.seal() == blake3.blake3(content).hexdigest()
    writer.close()


def test_a_write_of_nothing_is_an_error_and_not_for_ever(
    writer: SegmentWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(StorageError, match="wrote nothing"):
        writer.append([b"x"])


@pytest.mark.parametrize("code", SYNC_ERRORS)
@pytest.mark.parametrize("written_first", [0, 5])
def test_a_failed_append_counts_for_nothing_and_the_next_one_works(
    writer: SegmentWriter, layout: VaultLayout, monkeypatch: pytest.MonkeyPatch, code: int, written_first: int
) -> None:
    writer.append([b"before"])
    real = os.pwritev
    with monkeypatch.context() as patch:
        failing(patch, "pwritev", code, skip=1 if written_first else 0)
        second = os.pwritev

        def short_then_fail(descriptor: int, pieces: list[memoryview], offset: int) -> int:
            return second(descriptor, [b"".join(pieces)[:written_first]], offset)

        patch.setattr(os, "pwritev", short_then_fail)
        with pytest.raises(expected_error(code), match="cannot write"):
            writer.append([b"lost", b"lost too"])
    assert os.pwritev is real
    assert writer.size_bytes == 70
    assert on_disk(writer, layout) == writer.header.encode() + b"before"
    assert writer.append([b"after"]) == 70
    writer.sync()
    name = writer.seal()
    assert name == blake3.blake3(writer.header.encode() + b"beforeafter").hexdigest()
    assert hash_file(layout.sealed_path(name)) == name


def test_an_interrupted_append_counts_for_nothing(
    writer: SegmentWriter, layout: VaultLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def interrupted(descriptor: int, pieces: list[memoryview], offset: int) -> int:
        real(descriptor, pieces, offset)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.append([b"a long piece that would show behind the next one"])
    writer.append([b"x"])
    assert on_disk(writer, layout) == writer.header.encode() + b"x"


def test_an_append_that_cannot_be_undone_ends_the_segment(
    writer: SegmentWriter, layout: VaultLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.append([b"before"])
    with monkeypatch.context() as patch:
        failing(patch, "pwritev", errno.ENOSPC)
        failing(patch, "ftruncate", errno.EIO)
        with pytest.raises(NoSpaceError):
            writer.append([b"x"])
    only_reading_works(writer)
    assert list(layout.sealed_names()) == []


def only_reading_works(writer: SegmentWriter) -> None:
    for act in (lambda: writer.append([b"x"]), writer.sync, writer.seal):
        with pytest.raises(StorageError, match="write the data to another"):
            act()
    assert writer.read(64, 6) == b"before"


@pytest.mark.parametrize("code", SYNC_ERRORS)
@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_after_a_failed_sync_no_sync_can_succeed(
    writer: SegmentWriter, layout: VaultLayout, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    writer.append([b"before"])
    with monkeypatch.context() as patch:
        failing(patch, call, code, times=1)
        with pytest.raises(expected_error(code)):
            writer.sync()
        only_reading_works(writer)
    assert list(layout.sealed_names()) == []


@pytest.mark.parametrize("code", SYNC_ERRORS)
@pytest.mark.parametrize(("call", "skip"), [("fdatasync", 0), ("fsync", 0), ("fsync", 1)])
def test_after_a_failed_sync_while_sealing_no_sealing_can_succeed(
    writer: SegmentWriter, monkeypatch: pytest.MonkeyPatch, call: str, skip: int, code: int
) -> None:
    writer.append([b"before"])
    writer.sync()
    with monkeypatch.context() as patch:
        failing(patch, call, code, skip=skip, times=1)
        with pytest.raises(expected_error(code)):
            writer.seal()
        only_reading_works(writer)


@pytest.mark.parametrize("code", SYNC_ERRORS)
@pytest.mark.parametrize("call", ["fchmod", "mkdir", "link"])
def test_sealing_can_be_tried_again_where_nothing_was_lost(
    writer: SegmentWriter, layout: VaultLayout, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    writer.append([b"before"])
    with monkeypatch.context() as patch:
        failing(patch, call, code)
        with pytest.raises(expected_error(code)):
            writer.seal()
    assert list(layout.sealed_names()) == []
    writer.append([b"more"])
    name = writer.seal()
    assert layout.sealed_path(name).read_bytes() == writer.header.encode() + b"beforemore"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["open", "write"])
def test_a_segment_that_cannot_be_created_leaves_nothing(
    layout: VaultLayout, header: SegmentHeader, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    before = open_files()
    with monkeypatch.context() as patch:
        failing(patch, call, code)
        with pytest.raises(expected_error(code), match="cannot create"):
            SegmentWriter.create(layout, header)
    assert layout.open_tokens() == []
    assert open_files() == before


def test_the_order_of_system_calls(layout: VaultLayout, header: SegmentHeader, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(layout.root, monkeypatch)
    calls = recorder.calls

    def calls_of(act: Callable[[], object]) -> list[tuple[str, str]]:
        calls.clear()
        act()
        return list(calls)

    writer = SegmentWriter.create(layout, header)
    segment = "segments/open/*.seg"
    assert calls == [("open", segment), ("write", segment)]
    assert calls_of(lambda: writer.append([b"x", b"y"])) == [("pwritev", segment)]
    assert calls_of(writer.sync) == [("fdatasync", segment), ("fsync", "segments/open")]
    assert calls_of(lambda: writer.append([b"z"])) == [("pwritev", segment)]
    assert calls_of(writer.sync) == [("fdatasync", segment)]
    assert calls_of(writer.seal) == [
        ("fchmod", segment),
        ("fdatasync", segment),
        ("mkdir", "segments/*"),
        ("fsync", "segments"),
        ("link", "segments/*/*.seg"),
        ("fsync", "segments/*"),
    ]
    assert calls_of(writer.seal) == []
    assert calls_of(writer.discard_open_name) == [("unlink", segment)]
    assert calls_of(writer.close) == []


def test_sealing(writer: SegmentWriter, layout: VaultLayout) -> None:
    writer.append([b"data"])
    name = writer.seal()
    assert name == blake3.blake3(writer.header.encode() + b"data").hexdigest()
    path = layout.sealed_path(name)
    assert list(layout.sealed_names()) == [name]
    assert layout.open_tokens() == [writer.token]
    assert path.samefile(layout.open_path(writer.token))
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert writer.read(64, 4) == b"data"
    assert writer.seal() == name
    for act in (lambda: writer.append([b"x"]), writer.sync):
        with pytest.raises(StorageError, match="sealed already"):
            act()
    writer.discard_open_name()
    writer.discard_open_name()
    assert layout.open_tokens() == []
    assert hash_file(path) == name
    assert writer.read(64, 4) == b"data"
    writer.close()
    assert hash_file(path) == name


def test_sealing_where_the_same_content_lies_already(writer: SegmentWriter, layout: VaultLayout) -> None:
    writer.append([b"data"])
    name = SegmentName(hash_file(layout.open_path(writer.token)))
    layout.sealed_path(name).parent.mkdir()
    layout.sealed_path(name).write_bytes(on_disk(writer, layout))
    assert writer.seal() == name


@pytest.mark.parametrize("kind", ["file", *KINDS])
def test_sealing_where_something_else_lies(writer: SegmentWriter, layout: VaultLayout, kind: str) -> None:
    writer.append([b"data"])
    name = SegmentName(hash_file(layout.open_path(writer.token)))
    put(layout.sealed_path(name), kind, layout.open_path(writer.token))
    with pytest.raises(IntegrityError):
        writer.seal()
    assert layout.open_tokens() == [writer.token]


def test_sealing_when_the_open_name_leads_to_another_file(writer: SegmentWriter, layout: VaultLayout) -> None:
    writer.append([b"data"])
    layout.open_path(writer.token).unlink()
    layout.open_path(writer.token).write_bytes(b"something else")
    with pytest.raises(IntegrityError):
        writer.seal()


def test_sealing_when_the_open_name_is_gone(writer: SegmentWriter, layout: VaultLayout) -> None:
    layout.open_path(writer.token).unlink()
    with pytest.raises(StorageError):
        writer.seal()


def test_closing_and_discarding(writer: SegmentWriter, layout: VaultLayout) -> None:
    before = open_files()
    for _ in range(2):
        writer.close()
        writer.discard_open_name()
    assert layout.open_tokens() == []
    assert open_files() == before - 1
    with pytest.raises(StorageError):
        writer.read(0, 1)


def test_a_name_that_cannot_be_discarded_is_reported(
    writer: SegmentWriter, layout: VaultLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "unlink", errno.EIO)
    with pytest.raises(StorageError, match="cannot delete"):
        discard_open_name(layout, writer.token)
    with pytest.raises(IntegrityError):
        discard_open_name(layout, "../../vault.json")


def test_errors_while_closing_are_reported_once(writer: SegmentWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors: list[int] = []

    def fail(descriptor: int) -> None:
        descriptors.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        with pytest.raises(StorageError, match="cannot close"):
            writer.close()
    writer.close()
    os.close(*descriptors)
