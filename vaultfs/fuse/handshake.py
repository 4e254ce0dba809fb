"""Stands between the kernel and libfuse for one request, INIT, to negotiate features that libfuse 3.14 does not know.

libfuse gets one end of a SOCK_SEQPACKET pair as its device.  The kernel's INIT request is passed in, libfuse's reply
comes out, gets flag bits added, and is written to the real descriptor, which then takes the place (dup2) of the end
that libfuse holds.  From then on nothing stands between.  `Relay.is_done` is asked each time before pyfuse3 reads: the
first time INIT lies ready, the second time the reply is there (pyfuse3 answers INIT without suspending), so the event
loop never registers the socket and cannot mistake it for the device later.

Layouts and flags: <linux/fuse.h>, struct fuse_in_header, fuse_out_header, fuse_init_in, fuse_init_out; protocol 7.31
and newer.
"""

from __future__ import annotations

import enum
import logging
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vaultfs.errors import MountError

log = logging.getLogger(__name__)

FUSE_INIT: Final = 26
_IN_HEADER: Final = struct.Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
_INIT_IN: Final = struct.Struct("=IIII")  # major minor max_readahead flags; flags2 and padding follow
_OUT_HEADER: Final = struct.Struct("=IiQ")  # len error unique
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHH")  # major minor max_readahead flags max_background congestion_threshold
#                                                  max_write time_gran max_pages map_alignment; flags2 follows
_READ_BYTES: Final = 1 << 17  # the kernel refuses reads with a small buffer, FUSE_MIN_READ_BUFFER = 8192
_INIT_TIMEOUT_MS: Final = 10_000


class InitFlag(enum.IntFlag):
    """Bits of ``flags`` in INIT that libfuse 3.14 or pyfuse3 cannot set."""

    DONT_MASK = 1 << 6
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What kernel and filesystem agreed on.

    Attributes:
        handle_killpriv_v2: the filesystem itself must clear set-uid, set-gid and security.capability on write,
            truncate and chown; in return the kernel does not ask for security.capability before each write.
        cache_symlinks: the kernel caches the targets of symlinks.
        dont_mask: the filesystem must apply the caller's umask (``ctx.umask``) to create, mkdir and mknod, except
            below a directory with a default ACL.
        max_write_bytes: largest write request; 0 where unknown (plain mount).
    """

    handle_killpriv_v2: bool = False
    cache_symlinks: bool = False
    dont_mask: bool = False
    max_write_bytes: int = 0


@dataclass(frozen=True, slots=True)
class InitRequest:
    """The kernel's INIT: its protocol version and the features it offers."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: int


@dataclass(frozen=True, slots=True)
class InitReply:
    """The filesystem's answer to INIT, the fields that matter here."""

    unique: int
    error: int
    max_readahead: int
    flags: int
    max_write: int


def parse_request(message: bytes) -> InitRequest:
    """Read a complete INIT request, header included.

    Raises:
        ValueError: it is no INIT request of protocol 7.
    """
    if len(message) < _IN_HEADER.size + _INIT_IN.size:
        raise ValueError(f"INIT request of {len(message)} bytes is too short")
    length, opcode, unique = struct.unpack_from("=IIQ", message)
    if opcode != FUSE_INIT or length != len(message):
        raise ValueError(f"not an INIT request: opcode {opcode}, length {length} in {len(message)} bytes")
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(message, _IN_HEADER.size)
    if major != 7:
        raise ValueError(f"FUSE protocol {major}.{minor} is unknown")
    return InitRequest(unique, major, minor, max_readahead, flags)


def parse_reply(message: bytes) -> InitReply:
    """Read a complete reply to INIT, header included.

    Raises:
        ValueError: it is cut short or its length field lies.
    """
    if len(message) < _OUT_HEADER.size:
        raise ValueError(f"INIT reply of {len(message)} bytes is too short")
    length, error, unique = _OUT_HEADER.unpack_from(message)
    if length != len(message):
        raise ValueError(f"INIT reply says {length} bytes and has {len(message)}")
    if error:
        return InitReply(unique, error, 0, 0, 0)
    if len(message) < _OUT_HEADER.size + _INIT_OUT.size:
        raise ValueError(f"INIT reply of {len(message)} bytes is too short")
    _, _, max_readahead, flags, _, _, max_write, _, _, _ = _INIT_OUT.unpack_from(message, _OUT_HEADER.size)
    return InitReply(unique, 0, max_readahead, flags, max_write)


_ASYNC_DIO: Final = 1 << 15


def patch_reply(message: bytes, request: InitRequest, wanted: InitFlag) -> bytes:
    """Add to a reply those of the ``wanted`` flags that the kernel offered; an error reply stays as it is.

    FUSE_ASYNC_DIO, which libfuse always asks for, is taken out: after an asynchronous direct write the kernel would
    leave older pages in its cache (xfstests generic/451).

    Raises:
        ValueError: the reply cannot be read or answers another request.
    """
    reply = parse_reply(message)
    if reply.unique != request.unique:
        raise ValueError(f"INIT reply answers request {reply.unique}, not {request.unique}")
    if reply.error:
        return message
    patched = bytearray(message)
    struct.pack_into("=I", patched, _OUT_HEADER.size + 12, (reply.flags & ~_ASYNC_DIO) | (int(wanted) & request.flags))
    return bytes(patched)


class Relay:
    """One INIT handshake: from the mount's descriptor to the moment when libfuse holds it.

    Args:
        device: the mount's descriptor with INIT waiting in it; owned (and in the end closed) by this object.
        wanted: flags to add to the reply where the kernel offers them.
        on_negotiated: called before the kernel hears the answer, so before any other request exists.
    """

    def __init__(self, device: int, wanted: InitFlag, on_negotiated: Callable[[Negotiated], None]) -> None:
        self._device = device
        self._wanted = wanted
        self._on_negotiated = on_negotiated
        self._request: InitRequest | None = None
        self._is_request_taken = False
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptor = theirs.detach()
        """What libfuse is given as /dev/fd/N; closed by pyfuse3.close()."""

    def let_request_in(self) -> None:
        """Read INIT from the kernel (it comes at once) and put it where libfuse will read it.

        Raises:
            MountError: no INIT request came within ten seconds.
        """
        poller = select.poll()
        poller.register(self._device, select.POLLIN)
        if not poller.poll(_INIT_TIMEOUT_MS):
            raise MountError("the kernel did not begin the FUSE session within 10 s")
        try:
            message = os.read(self._device, _READ_BYTES)
        except OSError as error:
            raise MountError(f"the FUSE session ended before it began: {error.strerror}") from error
        try:
            self._request = parse_request(message)
        except ValueError as error:
            log.warning("INIT is passed on unchanged: %s", error)
        self._ours.sendall(message)

    def is_done(self) -> bool:
        """Take the next step of the handshake; to be called each time before libfuse reads.

        Returns:
            False at the first call: INIT lies ready.  True at the second: libfuse has answered, the kernel has the
            patched answer, and libfuse holds the real device, of which readability is not known yet.

        Raises:
            MountError: libfuse did not answer, or the kernel refused the answer.
        """
        if not self._is_request_taken:
            self._is_request_taken = True
            return False
        try:
            message = self._ours.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise MountError("libfuse did not answer the kernel's INIT request") from None
        message, negotiated = self._negotiate(message)
        self._on_negotiated(negotiated)
        try:
            os.write(self._device, message)
        except OSError as error:
            raise MountError(f"the kernel refused the answer to INIT: {error.strerror}") from error
        os.dup2(self._device, self.descriptor, inheritable=False)
        self.close()
        return True

    def _negotiate(self, message: bytes) -> tuple[bytes, Negotiated]:
        if self._request is None:
            return message, Negotiated()
        try:
            message = patch_reply(message, self._request, self._wanted)
            reply = parse_reply(message)
        except ValueError as error:
            log.warning("the reply to INIT is passed on unchanged: %s", error)
            return message, Negotiated()
        return message, Negotiated(
            handle_killpriv_v2=bool(reply.flags & InitFlag.HANDLE_KILLPRIV_V2),
            cache_symlinks=bool(reply.flags & InitFlag.CACHE_SYMLINKS),
            dont_mask=bool(reply.flags & InitFlag.DONT_MASK),
            max_write_bytes=reply.max_write,
        )

    def close(self) -> None:
        """Close what libfuse does not hold; harmless when that was done already."""
        self._ours.close()
        if self._device != -1:
            os.close(self._device)
            self._device = -1
