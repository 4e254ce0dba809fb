"""Inputs for parsers: any bytes, and valid ones that were damaged, which get further in."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

untimed = settings(deadline=None)
"""Watching memory is slow, and the machine may have other work."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)

BOMBS = (
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\x91" * 100_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff\xdd\xff\xff\xff\xff",
    b"\x9d\xdd\x7f\xff\xff\xff",
    b"9" * 100_000,
    b"\0" * 100_000,
    b"\xff" * 100_000,
    b'"\xed\xa0\x80"',
)
"""Deep nesting, and lengths that only a fool would allocate, in JSON and in msgpack."""


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """``valid`` with a few bytes changed, cut out, put in, or repeated; or a bomb in the middle of it."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["change", "cut", "insert", "truncate", "repeat", "bomb"]))
        if how == "change" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[place : place + draw(st.integers(1, 40))]
        elif how == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=40))
        elif how == "truncate":
            del data[place:]
        elif how == "repeat":
            data[place:place] = data[: draw(st.integers(0, 200))]
        else:
            data[place:place] = draw(st.sampled_from(BOMBS))[:5000]
    return bytes(data)


def any_or_damaged(*valid: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, bombs, and damaged forms of what is valid."""
    forms: list[st.SearchStrategy[Any]] = [st.binary(max_size=300), st.sampled_from(BOMBS)]
    return st.one_of(*forms, *map(damaged, valid))
