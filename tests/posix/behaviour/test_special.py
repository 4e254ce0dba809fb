"""FIFOs, sockets and device nodes."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from .calls import fails, opened
from .other_user import ALICE, run_as


def test_a_fifo_connects_processes(mounted: Path) -> None:
    fifo = mounted / "fifo"
    os.mkfifo(fifo, 0o640)
    assert fifo.is_fifo()
    assert fifo.stat().st_mode & 0o777 == 0o640
    child = os.fork()
    if child == 0:
        try:
            fifo.write_bytes(b"through the pipe")
        finally:
            os._exit(0)
    assert fifo.read_bytes() == b"through the pipe"
    os.waitpid(child, 0)
    assert fifo.stat().st_size == 0


def test_a_socket_accepts_connections(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mounted)  # a socket's path holds no more than 108 bytes
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        assert (mounted / "socket").is_socket()
        client.connect("socket")
        connection, _ = server.accept()
        with connection:
            client.sendall(b"hello")
            assert connection.recv(10) == b"hello"
        with fails(errno.EADDRINUSE), socket.socket(socket.AF_UNIX) as second:
            second.bind("socket")
    with fails(errno.ENXIO):
        os.open(mounted / "socket", os.O_RDONLY)


@pytest.mark.root
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize(("major", "minor"), [(0, 0), (1, 3), (255, 255), (259, 1_000), (4_095, 1_048_575)])
def test_device_nodes_keep_their_numbers(mounted: Path, kind: int, major: int, minor: int) -> None:
    node = mounted / "node"
    os.mknod(node, kind | 0o640, os.makedev(major, minor))
    status = node.stat()
    assert stat.S_IFMT(status.st_mode) == kind
    assert status.st_mode & 0o777 == 0o640
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (major, minor)


@pytest.mark.root
def test_a_device_node_opens_its_device(mounted: Path) -> None:
    node = mounted / "zero"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with opened(node, os.O_RDONLY) as descriptor:
        assert os.read(descriptor, 4) == bytes(4)


@pytest.mark.root
def test_users_make_no_device_nodes(mounted: Path) -> None:
    mounted.chmod(0o777)
    assert run_as(ALICE, lambda: os.mknod(mounted / "node", stat.S_IFCHR | 0o600, os.makedev(1, 5))) == "EPERM"
    assert run_as(ALICE, lambda: os.mkfifo(mounted / "fifo")) == "ok"
    assert os.listdir(mounted) == ["fifo"]


def test_mknod_makes_plain_files(mounted: Path) -> None:
    os.mknod(mounted / "file", stat.S_IFREG | 0o604)
    assert (mounted / "file").read_bytes() == b""
    assert (mounted / "file").stat().st_mode == stat.S_IFREG | 0o604
    with fails(errno.EEXIST):
        os.mknod(mounted / "file", stat.S_IFREG | 0o604)
