"""Memory is watched in every test here: whatever the input says, a parser must not take much more than it was given."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

MOST_BYTES = 64 << 20
"""Inputs have some kilobytes, and the lengths in them say gigabytes; Hypothesis itself takes up to 20 MB."""


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < MOST_BYTES
