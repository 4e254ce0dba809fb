"""What any caller can make fail as often as it likes does not fill the log."""

from __future__ import annotations

from pathlib import Path

import pytest
from mesh_replicas.peer_objects import VAULT, put_segment

from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.messages import Fail, Get, Have

from .running import Peer

MANY = 50


async def test_requests_that_fail(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    key = put_segment(peer.store, b"data")
    async with peer.call() as caller:
        for number in range(1, MANY):
            failed = await caller.ask(Get(number, VAULT, key, 5, 5), Fail)
            assert failed.code is Code.FAILED
    assert len([record for record in caplog.records if "failed" in record.message]) == 1


async def test_grants_that_cannot_be_read(peer: Peer, scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with peer.call() as caller:
        (scratch / "peer" / "grants.json").write_text("{}")
        for number in range(1, MANY):
            failed = await caller.ask(Have(number, VAULT, b""), Fail)
            assert failed.code is Code.FAILED
    assert len([record for record in caplog.records if "grants.json" in record.message]) == 1
