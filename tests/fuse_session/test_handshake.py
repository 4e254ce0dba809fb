from __future__ import annotations

import os
import socket
import struct

import pytest

from vaultfs.errors import MountError
from vaultfs.fuse import handshake
from vaultfs.fuse.handshake import InitFlag, InitRequest, Negotiated, Relay, parse_reply, parse_request, patch_reply

WANTED = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.CACHE_SYMLINKS


def request(flags: int = 0xFFFFFFFF, *, unique: int = 2, major: int = 7, opcode: int = 26) -> bytes:
    body = struct.pack("<IIII", major, 45, 131072, flags) + bytes(48)  # struct fuse_init_in of 7.36
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, 0, 0, 0, 0, 0, 0) + body


def reply(flags: int = 0, *, unique: int = 2, error: int = 0) -> bytes:
    body = struct.pack("<IIIIHHIIHHI", 7, 38, 131072, flags, 12, 9, 1 << 20, 1, 256, 0, 0) + bytes(28)
    if error:
        body = b""
    return struct.pack("<IiQ", 16 + len(body), error, unique) + body


def test_request_is_read_by_the_layout_of_the_kernel() -> None:
    assert parse_request(request(0x1234, unique=99)) == InitRequest(99, 7, 45, 131072, 0x1234)


def test_request_of_old_kernels_without_flags2_is_read() -> None:
    whole = request(5)
    short = struct.pack("<I", 56) + whole[4:56]
    assert parse_request(short).flags == 5


@pytest.mark.parametrize(
    "message",
    [b"", request()[:55], request() + b"\0", request(opcode=1), request(major=8)],
    ids=["empty", "short", "long", "another opcode", "another protocol"],
)
def test_what_is_no_init_request_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError):
        parse_request(message)


def test_offered_flags_are_added_and_nothing_else_changes() -> None:
    before = reply(0x10021)
    after = patch_reply(before, parse_request(request()), WANTED)
    assert parse_reply(after).flags == 0x10021 | 1 << 28 | 1 << 23
    assert after[:28] == before[:28]
    assert after[32:] == before[32:]


def test_flags_that_the_kernel_did_not_offer_are_not_added() -> None:
    asked = parse_request(request(int(InitFlag.CACHE_SYMLINKS)))
    assert parse_reply(patch_reply(reply(), asked, WANTED)).flags == InitFlag.CACHE_SYMLINKS


def test_error_reply_stays_as_it_is() -> None:
    refused = reply(error=-71)
    assert patch_reply(refused, parse_request(request()), WANTED) == refused


@pytest.mark.parametrize("message", [b"", reply()[:-1], reply() + b"\0", reply(unique=3)])
def test_unreadable_or_foreign_reply_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError):
        patch_reply(message, parse_request(request()), WANTED)


class FakeKernel:
    """The kernel's side of /dev/fuse, played by a socket; and libfuse's side."""

    def __init__(self, wanted: InitFlag = WANTED) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.heard: list[Negotiated] = []
        self.relay = Relay(device.detach(), wanted, self.heard.append)

    def close(self) -> None:
        self.kernel.close()
        self.relay.close()
        os.close(self.relay.descriptor)


@pytest.mark.parametrize("offered", [0xFFFFFFFF, 0])
def test_relay_negotiates_and_steps_aside(offered: int) -> None:
    fake = FakeKernel()
    fake.kernel.send(request(offered))
    fake.relay.let_request_in()
    assert not fake.relay.is_done()
    assert os.read(fake.relay.descriptor, 4096) == request(offered)
    os.write(fake.relay.descriptor, reply())
    assert fake.heard == []
    assert fake.relay.is_done()
    expected = bool(offered)
    assert fake.heard == [Negotiated(handle_killpriv_v2=expected, cache_symlinks=expected, max_write_bytes=1 << 20)]
    assert parse_reply(fake.kernel.recv(4096)).flags == (int(WANTED) & offered)
    fake.kernel.send(b"next request")
    assert os.read(fake.relay.descriptor, 4096) == b"next request"
    os.write(fake.relay.descriptor, b"its answer")
    assert fake.kernel.recv(4096) == b"its answer"
    fake.close()


def test_unreadable_init_is_passed_on_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeKernel()
    fake.kernel.send(request(major=9))
    fake.relay.let_request_in()
    assert not fake.relay.is_done()
    os.read(fake.relay.descriptor, 4096)
    os.write(fake.relay.descriptor, reply())
    assert fake.relay.is_done()
    assert fake.kernel.recv(4096) == reply()
    assert fake.heard == [Negotiated()]
    assert "passed on unchanged" in caplog.text
    fake.close()


def test_libfuse_without_an_answer_is_an_error() -> None:
    fake = FakeKernel()
    fake.kernel.send(request())
    fake.relay.let_request_in()
    assert not fake.relay.is_done()
    with pytest.raises(MountError, match="did not answer"):
        fake.relay.is_done()
    fake.close()


def test_kernel_without_a_request_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_INIT_TIMEOUT_MS", 1)
    fake = FakeKernel()
    with pytest.raises(MountError, match="did not begin"):
        fake.relay.let_request_in()
    fake.close()


def test_closing_twice_closes_once() -> None:
    fake = FakeKernel()
    fake.relay.close()
    other = os.open(os.devnull, os.O_RDONLY)  # gets the number that was freed
    fake.relay.close()
    os.fstat(other)
    os.close(other)
    fake.close()
