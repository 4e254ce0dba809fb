"""The control socket: nothing that is sent to the daemon ends it, and nothing that it answers confuses a command."""

from __future__ import annotations

import contextlib
import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from vaultfs.errors import UsageError, VaultError
from vaultfs.fuse import control
from vaultfs.fuse.control import RemoteError, read_answer
from vaultfs.fuse.scrubbing import scrub_some

from .corrupting import BOMBS, JSON, any_or_damaged, untimed

REQUEST = b'{"verb": "scrub", "arguments": {"segment": 1, "chunk": 2}}\n'


async def echo(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if verb == "refuse":
        raise UsageError("no")
    return {"verb": verb, "arguments": arguments}


def answer(line: bytes) -> dict[str, Any]:
    """What the daemon answers; nothing in it waits, so it needs no event loop."""
    coroutine = control._answer(line, echo)
    try:
        coroutine.send(None)
    except StopIteration as done:
        found: dict[str, Any] = done.value
        return found
    raise AssertionError("it waited")


@untimed
@given(any_or_damaged(REQUEST))
@example(REQUEST)
@example(b'{"verb": "refuse", "arguments": {}}\n')
def test_any_line_gets_an_answer(line: bytes) -> None:
    given_back = json.dumps(answer(line)).encode() + b"\n"
    assert given_back.count(b"\n") == 1
    with contextlib.suppress(RemoteError):
        assert read_answer(given_back)["verb"] != "refuse"


@untimed
@given(JSON)
def test_any_json_gets_an_answer(message: Any) -> None:
    found = answer(json.dumps(message).encode())
    assert found["exit_code"] == 2


@untimed
@given(st.text(max_size=10), st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_any_request_is_understood(verb: str, arguments: dict[str, Any]) -> None:
    found = answer(json.dumps({"verb": f"x{verb}", "arguments": arguments}).encode())
    assert json.dumps(found["result"]) == json.dumps({"verb": f"x{verb}", "arguments": arguments})


@untimed
@given(any_or_damaged(b'{"result": {"pid": 1}}\n', b'{"error": "it is so", "exit_code": 15}\n'))
@example(b'{"error": "it is so", "exit_code": 999}')
@example(b'{"error": "it is so", "exit_code": []}')
@example(b'{"result": []}')
@example(b'"error"')
def test_any_answer(data: bytes) -> None:
    with contextlib.suppress(VaultError):
        assert isinstance(read_answer(data), dict)


@untimed
@given(JSON)
def test_any_json_as_an_answer(message: Any) -> None:
    with contextlib.suppress(VaultError):
        assert read_answer(json.dumps(message).encode()) == message["result"]


@pytest.mark.parametrize(
    "number", [2**63, -1, float("inf"), float("nan"), "x", None, [], {}, "9" * 5000, 10**400], ids=str
)
async def test_a_position_that_is_none(number: Any) -> None:
    with pytest.raises(UsageError):
        await scrub_some(None, {"segment": number})  # type: ignore[arg-type]  # refused before it is looked at
    with pytest.raises(UsageError):
        await scrub_some(None, {"chunk": number})  # type: ignore[arg-type]


async def test_the_daemon_outlives_bad_messages(tmp_path: Path) -> None:
    def send(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            with control._short_path(tmp_path) as address:
                connection.connect(address)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return connection.makefile("rb").read()
            return b""

    async with control.listening(tmp_path, echo):
        for bomb in BOMBS:
            replied = await trio.to_thread.run_sync(send, bomb + b"\n")
            with pytest.raises(VaultError):
                read_answer(replied)
        assert await trio.to_thread.run_sync(send, b"") == b""
        assert await trio.to_thread.run_sync(send, b"no end of line") == b""
        result = await trio.to_thread.run_sync(partial(control.request, tmp_path, "status", number=1))
    assert result == {"verb": "status", "arguments": {"number": 1}}


async def test_a_message_without_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LARGEST_MESSAGE_BYTES", 1 << 16)

    def send_much() -> int:
        sent = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            with control._short_path(tmp_path) as address:
                connection.connect(address)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while sent < 64 << 20:
                    sent += connection.send(b" " * 65536)
        return sent

    async with control.listening(tmp_path, echo):
        assert await trio.to_thread.run_sync(send_much) < 4 << 20
