"""Which snapshot of a remote is meant."""

from __future__ import annotations

import pytest
from remotes.memory_store import MemoryStore

from sync.fabricated import DEVICE, Fabricated
from vaultfs.errors import (
    UsageError,
)
from vaultfs.sync.download import RemoteHead, choose_head, heads


def test_heads_are_listed_newest_last(filled: MemoryStore, vault: Fabricated) -> None:
    filled.objects["heads/nonsense"] = b""
    filled.objects["heads/" + "a" * 64 + "/0000000000-" + "b" * 64] = b""
    found = heads(filled)
    assert [each.seq for each in found] == [1, 2, 3]
    assert {each.device for each in found} == {DEVICE.hex()}


HEADS = [RemoteHead("d" * 64, seq, digest * 64) for seq, digest in ((1, "a"), (2, "b"), (12, "c"))]


@pytest.mark.parametrize(
    ("which", "seq"), [(None, 12), ("1", 1), (" 12 ", 12), ("aaaa", 1), ("BBBB", 2), ("c" * 64, 12)]
)
def test_choosing(which: str | None, seq: int) -> None:
    assert choose_head(HEADS, which).seq == seq
    assert choose_head(HEADS[::-1], which).seq == seq


@pytest.mark.parametrize("which", ["", "3", "aaa", "dddd", "a" * 65, "01", "-1", "newest", "aaab"])
def test_choosing_what_is_not_there(which: str) -> None:
    with pytest.raises(UsageError, match="there is no snapshot"):
        choose_head(HEADS, which)


def test_choosing_among_none() -> None:
    with pytest.raises(UsageError, match="no snapshot"):
        choose_head([], None)


def test_choosing_among_two() -> None:
    twins = [*HEADS, RemoteHead("e" * 64, 12, "aaaa" + "c" * 60)]
    for which in (None, "12", "aaaa"):
        with pytest.raises(UsageError):
            choose_head(twins, which)
    assert choose_head(twins, "aaaac").device == "e" * 64
