from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import UsageError
from vaultfs.remotes.keys import is_key, is_listed, require_key, require_prefix
from vaultfs.remotes.store import LARGEST_KEY_BYTES

from .contract import INVALID_KEYS


@pytest.mark.parametrize("key", INVALID_KEYS)
def test_invalid(key: str) -> None:
    assert not is_key(key)
    with pytest.raises(UsageError):
        require_key(key)


@pytest.mark.parametrize("key", ["a", "a" * LARGEST_KEY_BYTES, "a/b", "a..b", "a.", "0/-/_", "vault.json"])
def test_valid(key: str) -> None:
    assert require_key(key) == key


@given(st.one_of(st.text(), st.text(alphabet="a./\n\0\\ é-", max_size=12)))
def test_no_key_leaves_a_directory(text: str) -> None:
    if is_key(text):
        path = PurePosixPath("/root/dir") / text
        assert str(path) == f"/root/dir/{text}"
        assert all(not part.startswith(".") for part in text.split("/"))
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= LARGEST_KEY_BYTES


def test_prefixes() -> None:
    for prefix in ("", "a/", "a/b/"):
        assert require_prefix(prefix) == prefix
    for prefix in ("a", "/", "a//", "../", ".a/", "a/\n"):
        with pytest.raises(UsageError):
            require_prefix(prefix)


def test_what_belongs_into_a_listing() -> None:
    assert is_listed("a/b", "a/")
    assert is_listed("a", "")
    assert not is_listed("ab", "a/")
    assert not is_listed("a/.b", "a/")
    assert not is_listed("a/", "a/")
