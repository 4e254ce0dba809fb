from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.mesh_server.running import Peer, running


@pytest.fixture
async def peer(scratch: Path) -> AsyncIterator[Peer]:
    async with running(scratch / "peer") as found:
        yield found
