from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultfs.ids import KeyEpoch, VaultId
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import SegmentHeader
from vaultfs.storage.segment_writer import SegmentWriter


@pytest.fixture
def layout(tmp_path: Path) -> VaultLayout:
    made = VaultLayout(tmp_path / "vault")
    made.create_directories()
    return made


@pytest.fixture
def header() -> SegmentHeader:
    return SegmentHeader(VaultId(bytes(range(16))), KeyEpoch(3), bytes(range(100, 132)))


@pytest.fixture
def writer(layout: VaultLayout, header: SegmentHeader) -> Iterator[SegmentWriter]:
    made = SegmentWriter.create(layout, header)
    yield made
    made.close()
