"""Who is asked for a part that was asked for before, as a whole or as part of something larger."""

from __future__ import annotations

import pytest

from vaultfs.mesh.served_parts import MOST_KEYS, MOST_PARTS, ServedParts


@pytest.fixture
def served() -> ServedParts[str]:
    return ServedParts()


@pytest.mark.parametrize(
    ("offset", "length", "is_known"),
    [
        (100, 50, True),
        (120, 5, True),
        (90, 11, True),
        (149, 100, True),
        (0, 1000, True),
        (0, None, True),
        (149, None, True),
        (150, None, False),
        (150, 10, False),
        (90, 10, False),
    ],
)
def test_any_byte_counts(served: ServedParts[str], offset: int, length: int | None, is_known: bool) -> None:
    served.note("key", 100, 50, "a")
    assert served.of("key", offset, length) == (["a"] if is_known else [])
    assert served.of("other", offset, length) == []


def test_to_the_end(served: ServedParts[str]) -> None:
    served.note("key", 100, None, "a")
    assert served.of("key", 10**9, 1) == ["a"]
    assert served.of("key", 0, 100) == []


def test_the_last_one_is_last(served: ServedParts[str]) -> None:
    for by in ("a", "b", "c", "a"):
        served.note("key", 0, 10, by)
    assert served.of("key", 5, 1) == ["b", "c", "a"]
    served.note("key", 0, 20, "b")
    assert served.of("key", 5, 1) == ["c", "a", "b"]


def test_it_is_bounded(served: ServedParts[str]) -> None:
    for number in range(MOST_PARTS + 1):
        served.note("key", number, 1, "a")
    assert served.of("key", 0, 1) == []
    assert served.of("key", 1, 1) == ["a"]
    for number in range(MOST_KEYS - 1):
        served.note(f"key {number}", 0, 1, "a")
    assert served.of("key", 1, 1) == ["a"]
    served.note("one more", 0, 1, "a")
    assert served.of("key", 1, 1) == []
