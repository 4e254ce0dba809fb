from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .running import Peer, running


@pytest.fixture
async def peer(scratch: Path) -> AsyncIterator[Peer]:
    async with running(scratch / "peer") as found:
        yield found
