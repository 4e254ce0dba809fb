"""What people and programs write: mount options, sizes, access control lists, secrets, switches."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vaultfs.cli.mount_options import parse_mount_options, split_words
from vaultfs.cli.sizes import parse_duration, parse_size
from vaultfs.crypto.slots import Secret
from vaultfs.errors import FileSystemError, UsageError, VaultError
from vaultfs.fuse.handshake import InitFlag, parse_reply, parse_request, patch_reply
from vaultfs.fuse.kernel_mount import libfuse_options, parse_options
from vaultfs.fuse.session import TRICKS_VARIABLE, Tricks
from vaultfs.vault import acl
from vaultfs.vault.snapshot_manifest import choose

from .corrupting import any_or_damaged, untimed

WORDS = (
    *("ro", "rw", "nosuid", "allow_other", "fsname=a", "idle=30m", "idle=", "commit_interval=5", "snapshot=1"),
    *("passfile=/x", "keyfile=/x", "password=x", "max_read=131072", "max_read=x", "x-systemd.automount", "defaults"),
    *("comment=a,b", "remount", "subtype=x", "=", "fsname=", "idle=1e9", "\\", "\\,", ""),
)
option_texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=12), max_size=6).map(",".join)


@untimed
@given(st.lists(option_texts, max_size=3))
def test_mount_options(texts: list[str]) -> None:
    with contextlib.suppress(UsageError):
        options = parse_mount_options(texts)
        assert options.idle_s is None or options.idle_s >= 0
        parsed = parse_options("vault", options.kernel, read_only=options.read_only, allow_other=options.allow_other)
        assert libfuse_options(parsed)


@untimed
@given(st.lists(st.text(max_size=10).filter(bool), max_size=4))
def test_words_with_commas_and_backslashes_come_back(words: list[str]) -> None:
    escaped = ",".join(word.replace("\\", "\\\\").replace(",", "\\,") for word in words)
    assert split_words(escaped) == words


@untimed
@given(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=4))
def test_words_for_the_kernel(source: str, words: list[str]) -> None:
    with contextlib.suppress(VaultError):
        parse_options(source, words, read_only=False, allow_other=False)


number_texts = st.text(max_size=20) | st.text("0123456789.KMGTPiBdhms -+e", max_size=12)


@untimed
@given(number_texts)
@example("9" * 10_000)
@example("٣K")
def test_a_size(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert 0 <= parse_size(text, "it") < 10**19 << 50


@untimed
@given(number_texts)
@example("9" * 10_000)
def test_a_duration(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert 0 <= parse_duration(text, "it") < 10**9 * 100_000


# --- access control lists

USER, GROUP, OTHER, MASK = (0x01, 7, 0), (0x04, 5, 0), (0x20, 4, 0), (0x10, 7, 0)


def encoded(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


MINIMAL, EXTENDED = encoded(USER, GROUP, OTHER), encoded(USER, (0x02, 6, 1000), GROUP, (0x08, 5, 50), MASK, OTHER)
modes = st.integers(0, 0o177777)


@untimed
@given(any_or_damaged(MINIMAL, EXTENDED), modes)
@example(MINIMAL, 0o644)
@example(EXTENDED, 0o755)
def test_an_access_control_list(value: bytes, mode: int) -> None:
    with contextlib.suppress(FileSystemError):
        entries = acl.decode(value)
        assert acl.encode(entries) == value
        shown = acl.mode_of(entries, mode)
        assert shown & ~0o777 == mode & ~0o777
        assert acl.mode_of(acl.with_mode(entries, mode), 0) == mode & 0o777
        access, made = acl.inherited(entries, mode)
        assert acl.decode(acl.encode(access)) == access
        assert made & 0o777 & ~mode == 0


def test_the_examples_are_valid() -> None:
    assert acl.is_minimal(acl.decode(MINIMAL))
    assert len(acl.decode(EXTENDED)) == 6


# --- the rest


@untimed
@given(st.text(max_size=60))
@example("O0IL1 " * 10)
def test_a_recovery_key(text: str) -> None:
    with contextlib.suppress(UsageError):
        Secret.recovery(text)


@untimed
@given(st.text(max_size=30) | st.lists(st.sampled_from(["none", "-polling", "+hand_mount", "polling"])).map(",".join))
def test_switches(text: str) -> None:
    with contextlib.suppress(UsageError):
        Tricks().overridden({TRICKS_VARIABLE: text})


@untimed
@given(st.text(max_size=20) | st.integers(), st.lists(st.integers(1, 99), max_size=4, unique=True))
def test_the_name_of_a_snapshot(which: str | int, numbers: list[int]) -> None:
    known = [(number, f"{number:064x}") for number in numbers]
    with contextlib.suppress(UsageError):
        assert choose(which, known) in known  # type: ignore[arg-type]


IN = struct.pack("=IIQQIIIHH", 56, 26, 3, 0, 0, 0, 0, 0, 0) + struct.pack("=IIII", 7, 38, 131072, 0xFFFFFFFF)
OUT = struct.pack("=IiQ", 80, 0, 3) + struct.pack("=IIIIHHIIHH", 7, 38, 131072, 1 << 15, 0, 0, 1 << 20, 1, 256, 0)
OUT += bytes(80 - len(OUT))


@untimed
@given(any_or_damaged(IN), any_or_damaged(OUT))
@example(IN, OUT)
def test_the_handshake(request: bytes, reply: bytes) -> None:
    """Its callers pass on unchanged what it refuses with ValueError, as everywhere in it."""
    with contextlib.suppress(ValueError):
        understood = parse_request(request)
        patched = patch_reply(reply, understood, InitFlag.HANDLE_KILLPRIV_V2)
        assert len(patched) == len(reply)
        assert parse_reply(patched).error or parse_reply(patched).flags & ~parse_reply(reply).flags in {
            0,
            InitFlag.HANDLE_KILLPRIV_V2 & understood.flags,
        }


def test_the_handshake_adds_the_flag() -> None:
    patched = patch_reply(OUT, parse_request(IN), InitFlag.HANDLE_KILLPRIV_V2)
    assert parse_reply(patched).flags == InitFlag.HANDLE_KILLPRIV_V2


@pytest.mark.parametrize("value", [b"", b"\x02\0\0\0", b"\x03\0\0\0" + MINIMAL[4:], MINIMAL + b"\0"])
def test_lists_that_are_none(value: bytes) -> None:
    with pytest.raises(FileSystemError):
        acl.decode(value)
