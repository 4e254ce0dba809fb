"""The contents of files against bytearrays: any write, any cut, any way to become durable, and crashes between."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vaultfs.errors import FileSystemError
from vaultfs.vault import files, writeback
from vaultfs.vault.api import Vault

from .vaults import CHUNK_BYTES, Makers, Place, read, require_consistent, write

MOST_BYTES = 10 * CHUNK_BYTES
_counter = itertools.count()


@dataclass(frozen=True)
class Write:
    file: int
    offset: int
    size: int
    seed: int


@dataclass(frozen=True)
class Cut:
    file: int
    size: int


@dataclass(frozen=True)
class Look:
    file: int
    offset: int
    size: int


@dataclass(frozen=True)
class Do:
    """commit, fsync, crash or reopen."""

    what: str


Step = Write | Cut | Look | Do

# Near the borders of chunks most things go wrong.
near_borders = st.builds(
    lambda chunk, distance: max(chunk * CHUNK_BYTES + distance, 0),
    st.integers(0, 6),
    st.integers(-2, 2) | st.integers(0, CHUNK_BYTES),
)
numbers = st.integers(0, 1)
steps = st.one_of(
    st.builds(
        Write,
        numbers,
        near_borders,
        st.integers(1, 9) | st.sampled_from([CHUNK_BYTES, 3 * CHUNK_BYTES]) | st.integers(1, 3 * CHUNK_BYTES),
        st.integers(0, 4),
    ),
    st.builds(Cut, numbers, near_borders),
    st.builds(Look, numbers, near_borders, st.integers(0, 3 * CHUNK_BYTES)),
    st.builds(Do, st.sampled_from(["commit", "fsync", "fsync", "crash", "reopen", "sweep"])),
)


def payload(seed: int, size: int) -> bytes:
    """Zeros, one letter (so that chunks are equal and compressible), or noise."""
    if seed == 0:
        return bytes(size)
    if seed <= 2:
        return bytes([64 + seed]) * size
    noise = (seed * 2654435761).to_bytes(8, "little")
    return bytes((index * 167 + noise[index % 8] + (index >> 8)) % 256 for index in range(size))


@dataclass
class Run:
    """A vault and what must be in it."""

    place: Place
    now: list[bytearray] = field(default_factory=lambda: [bytearray(), bytearray()])
    safe: list[bytes] = field(default_factory=list)

    def begin(self) -> None:
        self.fs = self.place.open()
        vault = Vault(self.fs)
        for name in self.names:
            write(vault, name, b"")
        self.commit()

    names = ("/a", "/b")

    def commit(self) -> None:
        self.fs.committer.commit()
        self.safe = [bytes(each) for each in self.now]

    def step(self, step: Step) -> None:
        vault = Vault(self.fs)
        if isinstance(step, Write):
            data = payload(step.seed, step.size)
            with vault.open(self.names[step.file], "r+b") as file:
                assert file.pwrite(data, step.offset) == len(data)
            model = self.now[step.file]
            model.extend(bytes(max(step.offset - len(model), 0)))
            model[step.offset : step.offset + len(data)] = data
        elif isinstance(step, Cut):
            vault.truncate(self.names[step.file], step.size)
            model = self.now[step.file]
            model.extend(bytes(max(step.size - len(model), 0)))
            del model[step.size :]
        elif isinstance(step, Look):
            with vault.open(self.names[step.file]) as file:
                expected = self.now[step.file][step.offset : step.offset + step.size]
                assert file.pread(step.size, step.offset) == expected
        elif step.what == "commit":
            self.commit()
        elif step.what == "fsync":
            self.fs.committer.fsync()
            self.safe = [bytes(each) for each in self.now]
        elif step.what == "sweep":
            self.fs.files.sweep()
        elif step.what == "crash":
            self.place.crash(self.fs)
            self.now = [bytearray(each) for each in self.safe]
            self.fs = self.place.open()
        else:
            self.fs.close()
            self.safe = [bytes(each) for each in self.now]
            self.fs = self.place.open()

    def check(self) -> None:
        vault = Vault(self.fs)
        for name, expected in zip(self.names, self.now, strict=True):
            assert vault.stat(name).st_size == len(expected)
            assert read(vault, name) == expected


def carry_out(makers: Makers, where: Path, program: list[Step], compression: Literal["none", "zstd"] = "none") -> None:
    base = where / f"run-{next(_counter)}"
    base.mkdir()
    run = Run(makers.place(base, compression=compression))
    run.begin()
    try:
        for step in program:
            run.step(step)
            run.check()
    except BaseException:
        run.fs.abandon()
        raise
    run.fs.close()
    require_consistent(run.place.root)
    shutil.rmtree(base)


hypothesis_settings = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@hypothesis_settings
@given(program=st.lists(steps, max_size=14))
@example(program=[Write(0, 0, 100, 3), Do("commit"), Cut(0, 50), Do("fsync"), Do("crash"), Cut(0, 100)])
@example(program=[Write(0, 0, 9000, 3), Do("commit"), Cut(0, 5000), Do("fsync"), Do("crash"), Write(0, 8000, 9, 1)])
@example(program=[Write(0, 0, 8192, 3), Do("fsync"), Do("crash"), Write(0, 4096, 1, 1), Do("fsync"), Do("crash")])
def test_a_file_is_what_was_written(makers: Makers, scratch: Path, program: list[Step]) -> None:
    carry_out(makers, scratch, program)


@settings(parent=hypothesis_settings, max_examples=30)
@given(program=st.lists(steps, max_size=14))
def test_also_with_compression_and_deduplication(
    makers: Makers, scratch: Path, monkeypatch: pytest.MonkeyPatch, program: list[Step]
) -> None:
    monkeypatch.setattr(writeback, "DEDUP_MIN_BYTES", 16)
    carry_out(makers, scratch, program, "zstd")


@settings(parent=hypothesis_settings, max_examples=30)
@given(program=st.lists(steps, max_size=14))
def test_also_with_little_memory(
    makers: Makers, scratch: Path, monkeypatch: pytest.MonkeyPatch, program: list[Step]
) -> None:
    """Dirty chunks go to the sealing thread all the time."""
    monkeypatch.setattr(writeback, "DIRTY_LIMIT_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(writeback, "DEDUP_MIN_BYTES", 16)
    carry_out(makers, scratch, program)


def test_equal_chunks_are_stored_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "DEDUP_MIN_BYTES", CHUNK_BYTES)
    data = payload(3, CHUNK_BYTES)
    with place.opened() as vault:
        write(vault, "/a", data)
        vault.commit()
        write(vault, "/a", data * 8)
        write(vault, "/b", data * 8)
        vault.commit()
        live = vault.status()["live_bytes"]
        vault.remove("/a")
    with place.opened() as vault:
        assert read(vault, "/b") == data * 8
    assert live < 2 * CHUNK_BYTES
    require_consistent(place.root)


def test_zeros_take_no_room(place: Place) -> None:
    with place.opened() as vault:
        write(vault, "/a", payload(3, 4 * CHUNK_BYTES))
        vault.commit()
        before = vault.status()["live_bytes"]
        write(vault, "/a", bytes(4 * CHUNK_BYTES))
        write(vault, "/b", bytes(64 * CHUNK_BYTES + 5))
        vault.commit()
        assert before > 4 * CHUNK_BYTES
        assert vault.status()["live_bytes"] == 0
        assert read(vault, "/b") == bytes(64 * CHUNK_BYTES + 5)
        assert vault.stat("/b").st_blocks == 0


def test_what_is_cut_off_never_comes_back(place: Place) -> None:
    """After a short fsync of a cut, and a crash, the size is right; so must be the bytes behind it."""
    secret = payload(4, CHUNK_BYTES)
    fs = place.open()
    vault = Vault(fs)
    write(vault, "/a", secret)
    vault.commit()
    vault.truncate("/a", 1000)
    fs.committer.fsync()
    place.crash(fs)
    with place.opened() as vault:
        assert read(vault, "/a") == secret[:1000]
        vault.truncate("/a", CHUNK_BYTES)
        assert read(vault, "/a") == secret[:1000] + bytes(CHUNK_BYTES - 1000)
    require_consistent(place.root)


def test_a_write_of_nothing_changes_nothing(place: Place) -> None:
    with place.opened() as vault:
        write(vault, "/a", b"text")
        with vault.open("/a", "r+b") as file:
            assert file.pwrite(b"", 1000) == 0
        assert vault.stat("/a").st_size == 4


def test_the_largest_file(place: Place) -> None:
    with place.opened() as vault:
        write(vault, "/a", b"end", files.MAX_FILE_BYTES - 3)
        with vault.open("/a", "r+b") as file:
            with pytest.raises(FileSystemError, match="a file holds at most"):
                file.pwrite(b"1", files.MAX_FILE_BYTES)
            assert file.seek(-3, os.SEEK_END) == files.MAX_FILE_BYTES - 3
            assert file.read() == b"end"
            with pytest.raises(FileSystemError, match="a file holds at most"):
                file.truncate(files.MAX_FILE_BYTES + 1)
        vault.truncate("/a", 1)
        assert read(vault, "/a") == b"\0"
    require_consistent(place.root)


@pytest.mark.parametrize("way", ["commit", "fsync"])
def test_a_removed_file_stays_while_it_is_open(place: Place, way: str) -> None:
    fs = place.open()
    vault = Vault(fs)
    write(vault, "/a", payload(3, 3 * CHUNK_BYTES))
    vault.commit()
    file = vault.open("/a", "r+b")
    vault.remove("/a")
    getattr(fs.committer, way)()
    file.pwrite(b"more", 10)
    getattr(fs.committer, way)()
    assert file.pread(4, 10) == b"more"
    place.crash(fs)
    with place.opened() as vault:
        assert vault.listdir() == []
        vault.filesystem.files.sweep()
        assert vault.status()["live_bytes"] == 0
    require_consistent(place.root)
