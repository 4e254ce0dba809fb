"""Mounts and unmounts by hand, as root with mount(2) and else through fusermount3, and says clearly why it could not.

libfuse would mount as well, but it hides the descriptor from us (the handshake needs it), it cannot show an arbitrary
source, and it explains failures only on stderr.

Sources: mount(2), umount2(2), <linux/mount.h>; Documentation/filesystems/fuse.rst of the kernel for the option string;
util/fusermount.c of libfuse 3 for the _FUSE_COMMFD protocol.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vaultfs.errors import MountError

SUBTYPE: Final = "vaultfs"
DEVICE: Final = "/dev/fuse"
FUSERMOUNT: Final = "fusermount3"

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4

_FLAGS: Final = {  # name of the option: (bit of mount(2), set or clear)
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (_MS_NOSUID, True),
    "suid": (_MS_NOSUID, False),
    "nodev": (_MS_NODEV, True),
    "dev": (_MS_NODEV, False),
    "noexec": (8, True),
    "exec": (8, False),
    "sync": (16, True),
    "async": (16, False),
    "dirsync": (128, True),
    "noatime": (1024, True),
    "atime": (1024, False),
    "nodiratime": (2048, True),
    "diratime": (2048, False),
    "relatime": (1 << 21, True),
    "strictatime": (1 << 24, True),
}
_FSTAB_WORDS: Final = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
)
"""Words that mount(8) and fstab use among themselves and that mean nothing to the kernel."""


class MountBusyError(MountError):
    """Programs still have files open, or their working directory, below the mount point."""

    errno = errno.EBUSY


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """The options of one mount, sorted by who understands them.

    Attributes:
        source: what ``mount`` shows as the device.
        flags: bits of mount(2), with nosuid and nodev unless the options said otherwise.
        words: the words for flags, in the order given (for fusermount3, which parses words).
        allow_other: whether other users than the mounting one may enter.
        max_read: largest read request in bytes, or None for the kernel's own limit.
    """

    source: str
    flags: int
    words: tuple[str, ...]
    allow_other: bool
    max_read: int | None


def parse_options(source: str, options: Iterable[str], *, read_only: bool, allow_other: bool) -> KernelOptions:
    """Sort the words of ``-o`` options.

    Args:
        source: shown by ``mount`` unless an option ``fsname=`` says otherwise.
        options: words or ``name=value``, already split at commas.
        read_only: as if ``ro`` was the last option.
        allow_other: as if ``allow_other`` was among them.

    Raises:
        MountError: an option is unknown or its value is not a number.
    """
    flags = _MS_NOSUID | _MS_NODEV
    words: list[str] = []
    max_read: int | None = None
    for option in (*options, *(("ro",) if read_only else ())):
        name, _, value = option.partition("=")
        if option in _FLAGS:
            bit, is_set = _FLAGS[option]
            flags = flags | bit if is_set else flags & ~bit
            words.append(option)
        elif name == "fsname" and value:
            source = value
        elif option == "allow_other":
            allow_other = True
        elif name == "max_read" and value.isdecimal():
            max_read = int(value)
        elif option not in _FSTAB_WORDS and option != "default_permissions" and not option.startswith(("x-", "X-")):
            raise MountError(f"unknown mount option {option!r}")
    return KernelOptions(source, flags, tuple(words), allow_other, max_read)


def libfuse_options(options: KernelOptions) -> list[str]:
    """Return the words that libfuse and fusermount3 understand."""
    escaped = options.source.replace("\\", "\\\\").replace(",", "\\,")
    words = [f"fsname={escaped}", f"subtype={SUBTYPE}", "default_permissions", *options.words]
    words += ["allow_other"] if options.allow_other else []
    words += [] if options.max_read is None else [f"max_read={options.max_read}"]
    return words


def check_mountpoint(mountpoint: Path) -> None:
    """Refuse early, with a message a person can act on, what cannot be mounted on.

    Raises:
        MountError: the mount point is missing, is no directory, may not be entered, or is the stale mount of a daemon
            that died.
    """
    try:
        mode = mountpoint.stat().st_mode
        os.statvfs(mountpoint)  # a dead mount may answer stat() from the kernel's cache, this never
    except FileNotFoundError:
        raise MountError(f"mount point {mountpoint} does not exist; create it with: mkdir {mountpoint}") from None
    except NotADirectoryError:
        raise MountError(f"mount point {mountpoint} is not a directory") from None
    except PermissionError:
        raise MountError(f"no permission to enter mount point {mountpoint}") from None
    except OSError as error:
        if error.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
            raise MountError(
                f"mount point {mountpoint} holds a mount whose daemon is gone; clear it with: {_clearing(mountpoint)}"
            ) from None
        raise MountError(f"mount point {mountpoint}: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISDIR(mode):
        raise MountError(f"mount point {mountpoint} is not a directory")


def _clearing(mountpoint: Path) -> str:
    return f"umount -l {mountpoint}" if os.geteuid() == 0 else f"{FUSERMOUNT} -u -z {mountpoint}"


def mount(mountpoint: Path, options: KernelOptions) -> int:
    """Mount a FUSE filesystem and return its descriptor; the kernel's INIT request waits in it.

    Blocks while fusermount3 runs (milliseconds).  Permissions are always checked by the kernel (default_permissions).

    Raises:
        MountError: with one line that says what to do.
    """
    check_mountpoint(mountpoint)
    if os.geteuid() == 0:
        return _mount_as_root(mountpoint, options)
    return _mount_through_fusermount(mountpoint, options)


def _libc_call(function: str, *arguments: object) -> None:
    """Call a function of libc with the GIL released; a result of -1 becomes an OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount_as_root(mountpoint: Path, options: KernelOptions) -> int:
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MountError(f"{DEVICE} does not exist; load the kernel module with: modprobe fuse") from None
    except OSError as error:
        raise MountError(f"{DEVICE} cannot be opened: {os.strerror(error.errno or 0)}") from error
    rootmode = stat.S_IFMT(mountpoint.stat().st_mode)
    data = f"fd={descriptor},rootmode={rootmode:o},user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    data += ",allow_other" * options.allow_other
    data += "" if options.max_read is None else f",max_read={options.max_read}"
    try:
        _libc_call(
            "mount",
            os.fsencode(options.source),
            os.fsencode(mountpoint),
            f"fuse.{SUBTYPE}".encode(),
            ctypes.c_ulong(options.flags),
            data.encode(),
        )
    except OSError as error:
        os.close(descriptor)
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise MountError(f"no permission to mount on {mountpoint} (a container needs CAP_SYS_ADMIN)") from error
        raise MountError(f"cannot mount on {mountpoint}: {error.strerror}") from error
    return descriptor


def _mount_through_fusermount(mountpoint: Path, options: KernelOptions) -> int:
    program = _fusermount()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            done = subprocess.run(  # noqa: S603  # a program found in PATH, arguments in a list
                [program, "-o", ",".join(libfuse_options(options)), "--", str(mountpoint)],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        if done.returncode != 0:
            raise MountError(_explain(done.stderr.decode(errors="replace"), mountpoint))
        return _receive_descriptor(ours, mountpoint)


def _receive_descriptor(channel: socket.socket, mountpoint: Path) -> int:
    descriptors = array.array("i")
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: descriptors.itemsize])
    if not descriptors:
        raise MountError(f"{FUSERMOUNT} mounted on {mountpoint} but handed over no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _fusermount() -> str:
    program = shutil.which(FUSERMOUNT)
    if program is None:
        raise MountError(f"{FUSERMOUNT} is not installed; an ordinary user needs it to mount: apt install fuse3")
    return program


def _explain(output: str, mountpoint: Path) -> str:
    """Turn what fusermount3 printed into one line that says what to do."""
    lines = [line.rpartition(f"{FUSERMOUNT}: ")[2] for line in output.splitlines() if "ignored" not in line]
    said = next((line for line in lines if line.strip()), "no reason given")
    if "user_allow_other" in said:
        return "allow_other needs the line 'user_allow_other' in /etc/fuse.conf (or mount as root)"
    if f"open {DEVICE}" in said:  # fusermount3 gives up its rights before it opens the device
        return f"{DEVICE} may not be opened by ordinary users; as root: chmod 666 {DEVICE} (udev of Debian does that)"
    if "no write access" in said or "Permission denied" in said:
        return f"no permission to mount on {mountpoint}: it must be writable by you"
    if "Operation not permitted" in said:
        return f"no permission to mount on {mountpoint}: {FUSERMOUNT} is not setuid root, or this is a container"
    if "device not found" in said:
        return f"{DEVICE} does not exist; load the kernel module with: modprobe fuse"
    return f"cannot mount on {mountpoint}: {said}"


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount; blocks until the kernel has sent all dirty pages to the daemon, so never call it in the event loop.

    Args:
        mountpoint: where.
        lazy: detach at once although files are open; they keep working until they are closed.

    Raises:
        MountBusyError: something is open there and ``lazy`` is false.
        MountError: nothing is mounted there, or no permission.
    """
    if os.geteuid() == 0:
        try:
            _libc_call("umount2", os.fsencode(mountpoint), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
        except OSError as error:
            _raise_unmount_error(error.errno or 0, str(error.strerror), mountpoint)
        return
    done = subprocess.run(  # noqa: S603  # a program found in PATH, arguments in a list
        [_fusermount(), "-u", *(["-z"] if lazy else []), "--", str(mountpoint)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().rpartition(f"{FUSERMOUNT}: ")[2]
        code = errno.EBUSY if "busy" in said.lower() else errno.EINVAL if "not found" in said else errno.EPERM
        _raise_unmount_error(code, said, mountpoint)


def _raise_unmount_error(code: int, said: str, mountpoint: Path) -> None:
    if code == errno.EBUSY:
        raise MountBusyError(f"{mountpoint} is busy: a program has a file or its working directory there")
    if code in {errno.EINVAL, errno.ENOENT}:
        raise MountError(f"nothing is mounted on {mountpoint}")
    raise MountError(f"cannot unmount {mountpoint}: {said}")


def sync_filesystem(mountpoint: Path) -> None:
    """Make the kernel write back the dirty pages of one filesystem (syncfs(2)); blocks, as `unmount` does.

    Raises:
        OSError: the mount point cannot be opened or synced.
    """
    descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            _libc_call("syncfs", descriptor)
        except InterruptedError:
            # Nobody interrupts this.  A program was killed while the kernel told us the ctime of what it had renamed
            # or removed, which we know; fs/fuse/dir.c, fuse_flush_time_update, keeps that as an error of the mapping.
            _libc_call("syncfs", descriptor)
    finally:
        os.close(descriptor)
