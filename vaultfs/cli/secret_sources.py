"""Where a command gets its password, recovery key or key file from.  No secret ever stands on a command line.

A password comes from the first of: ``--password-fd``, ``--passfile``, ``--password-command``, the file
``vaultfs-password`` in ``$CREDENTIALS_DIRECTORY`` (systemd.exec(5)), ``VAULTFS_PASSWORD``, a prompt on the terminal.
``--keyfile`` or ``--recovery-key-fd`` take its place.  Nothing here is logged, and no message holds a secret's bytes.
"""

from __future__ import annotations

import getpass
import os
import shlex
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from vaultfs.cli.output import note
from vaultfs.errors import UsageError, VaultError

if TYPE_CHECKING:
    from vaultfs.crypto.slots import Secret

LARGEST_SECRET_BYTES: Final = 1 << 20
"""Passwords and key files may be this long; reading stops there, so that ``--keyfile /dev/zero`` ends."""

PASSWORD_VARIABLE: Final = "VAULTFS_PASSWORD"  # noqa: S105  # the name of a variable
CREDENTIAL_NAME: Final = "vaultfs-password"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SecretOptions:
    """The options of every command that unlocks a vault.

    Attributes:
        password_fd: Read the password from this file descriptor.
        passfile: Read the password from this file.
        password_command: Run this command and read the password from its output.
        keyfile: Unlock with this key file instead of a password.
        recovery_key_fd: Read a recovery key from this file descriptor, instead of a password.
    """

    password_fd: int | None = None
    passfile: Path | None = None
    password_command: str | None = None
    keyfile: Path | None = None
    recovery_key_fd: int | None = None

    def given(self) -> list[str]:
        """The options that were used, as written on a command line."""
        names = ("password_fd", "passfile", "password_command", "keyfile", "recovery_key_fd")
        return ["--" + name.replace("_", "-") for name in names if getattr(self, name) is not None]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class NewPasswordOptions:
    """The options of commands that set a new password beside the one that unlocks.

    Attributes:
        new_password_fd: Read the new password from this file descriptor.
        new_passfile: Read the new password from this file.
        new_password_command: Run this command and read the new password from its output.
    """

    new_password_fd: int | None = None
    new_passfile: Path | None = None
    new_password_command: str | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class UnlockOptions:
    """As :class:`SecretOptions`, for ``key add``, where ``--keyfile`` names the new slot's key file.

    Attributes:
        password_fd: Read the password that unlocks from this file descriptor.
        passfile: Read the password that unlocks from this file.
        password_command: Run this command and read the password that unlocks from its output.
        unlock_keyfile: Unlock with this key file instead of a password.
        recovery_key_fd: Read a recovery key that unlocks from this file descriptor.
    """

    password_fd: int | None = None
    passfile: Path | None = None
    password_command: str | None = None
    unlock_keyfile: Path | None = None
    recovery_key_fd: int | None = None

    def plain(self) -> SecretOptions:
        """The same choice under the usual names."""
        return SecretOptions(
            password_fd=self.password_fd,
            passfile=self.passfile,
            password_command=self.password_command,
            keyfile=self.unlock_keyfile,
            recovery_key_fd=self.recovery_key_fd,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """The secrets of slots that shall survive a rotation; each option may be given several times.

    Attributes:
        keep_passfile: Keep the slot that the password in this file opens.
        keep_keyfile: Keep the slot that this key file opens.
        keep_recovery_file: Keep the slot that the recovery key in this file opens.
    """

    keep_passfile: tuple[Path, ...] = ()
    keep_keyfile: tuple[Path, ...] = ()
    keep_recovery_file: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """How to ask the person.

    Args:
        what: as in ``Password for /data/vault``.
        twice: ask again and compare, for a new password.
    """

    what: str
    twice: bool = False


SecretOption = Annotated[SecretOptions, Parameter(name="*")]
NewPasswordOption = Annotated[NewPasswordOptions, Parameter(name="*")]
UnlockOption = Annotated[UnlockOptions, Parameter(name="*")]
KeepOption = Annotated[KeepOptions, Parameter(name="*")]


def obtain(options: SecretOptions, prompt: Prompt) -> Secret:
    """The secret that unlocks a vault, from the options, the environment or the terminal.

    Args:
        options: as parsed.
        prompt: what to ask if nothing else gives a password.

    Raises:
        UsageError: a source is missing, empty, too long, or two kinds of secret were asked for.
        VaultError: the password command failed.
    """
    from vaultfs.crypto.slots import Secret  # noqa: PLC0415  # loads ciphers, and options alone need none

    given = options.given()
    alternatives = {"--keyfile", "--recovery-key-fd"}.intersection(given)
    if alternatives and len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other")
    if options.keyfile is not None:
        return Secret.keyfile(_read_file(options.keyfile, "--keyfile"))
    if options.recovery_key_fd is not None:
        text = _read_descriptor(options.recovery_key_fd, "--recovery-key-fd")
        return Secret.recovery(_decoded(text, "the recovery key"))
    value = _password(options.password_fd, options.passfile, options.password_command)
    if value is None:
        value = _from_environment()
    if value is None:
        value = _ask(prompt)
    return Secret.password(value)


def obtain_new_password(options: NewPasswordOptions, prompt: Prompt) -> Secret:
    """A new password, from the options or the terminal; the environment holds the old one and is not asked.

    Args:
        options: as parsed.
        prompt: what to ask if no option gives the password.

    Raises:
        UsageError: a source is missing, empty or too long.
        VaultError: the password command failed.
    """
    from vaultfs.crypto.slots import Secret  # noqa: PLC0415  # loads ciphers, and options alone need none

    value = _password(options.new_password_fd, options.new_passfile, options.new_password_command, "new-")
    return Secret.password(_ask(prompt) if value is None else value)


def obtain_keyfile(path: Path, option: str) -> Secret:
    """A key file's contents as a secret.

    Args:
        path: the key file.
        option: that named it, for messages.

    Raises:
        UsageError: it cannot be read, is empty or too long.
    """
    from vaultfs.crypto.slots import Secret  # noqa: PLC0415  # loads ciphers, and options alone need none

    return Secret.keyfile(_read_file(path, option))


def obtain_text(path: Path, option: str) -> str:
    """A secret that opens no vault: the text in a file, without white space around it.

    Args:
        path: the file.
        option: that named it, for messages.

    Raises:
        UsageError: it cannot be read, is empty, too long, or no text.
    """
    return _stripped(_read_file(path, option), option)


def obtain_text_of_descriptor(descriptor: int, option: str) -> str:
    """As `obtain_text`, from a descriptor that the caller opened; it is closed.

    Args:
        descriptor: is read up to its end.
        option: that named it, for messages.

    Raises:
        UsageError: it cannot be read, is empty, too long, or no text.
    """
    return _stripped(_read_descriptor(descriptor, option), option)


def obtain_kept(options: KeepOptions) -> list[Secret]:
    """The secrets of slots that shall survive a rotation.

    Args:
        options: as parsed.

    Raises:
        UsageError: a file cannot be read, is empty or too long, or holds no recovery key.
    """
    from vaultfs.crypto.slots import Secret  # noqa: PLC0415  # loads ciphers, and options alone need none

    passwords = [_line(_read_file(path, "--keep-passfile"), "--keep-passfile") for path in options.keep_passfile]
    keys = [
        _decoded(_read_file(path, "--keep-recovery-file"), "the recovery key") for path in options.keep_recovery_file
    ]
    return [
        *(Secret.password(value) for value in passwords),
        *(obtain_keyfile(path, "--keep-keyfile") for path in options.keep_keyfile),
        *(Secret.recovery(text) for text in keys),
    ]


def _password(descriptor: int | None, file: Path | None, command: str | None, prefix: str = "") -> bytes | None:
    """The password from the first option that was given."""
    if descriptor is not None:
        return _line(_read_descriptor(descriptor, f"--{prefix}password-fd"), f"--{prefix}password-fd")
    if file is not None:
        return _line(_read_file(file, f"--{prefix}passfile"), f"--{prefix}passfile")
    if command is not None:
        return _line(_run(command, f"--{prefix}password-command"), f"--{prefix}password-command")
    return None


def _from_environment() -> bytes | None:
    """The password from systemd's credentials or the environment variable, which is removed for our children."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    variable = os.environb.pop(os.fsencode(PASSWORD_VARIABLE), None)
    if directory:
        path = Path(directory) / CREDENTIAL_NAME
        if path.exists():
            return _line(_read_file(path, "$CREDENTIALS_DIRECTORY"), "$CREDENTIALS_DIRECTORY")
    return None if variable is None else _line(variable, PASSWORD_VARIABLE)


def _ask(prompt: Prompt) -> bytes:
    """Prompt on the terminal, never on standard input."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise UsageError(
            "no password, and no terminal to ask on: use --passfile, --password-fd, --password-command or --keyfile"
        ) from None
    first = getpass.getpass(f"{prompt.what}: ")
    if not first:
        raise UsageError("the password is empty")
    if prompt.twice and getpass.getpass("The same again: ") != first:
        raise UsageError("the two passwords differ; nothing was done")
    return first.encode(errors="surrogateescape")


def _read_file(path: Path, option: str) -> bytes:
    """The contents of a file; warns if others than its owner can read it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                note(f"warning: {path} can be read by others; 'chmod 600' keeps it yours")
            return _bounded(file.read, option)
    except OSError as error:
        raise UsageError(f"{option}: {path}: {error.strerror}") from None


def _read_descriptor(descriptor: int, option: str) -> bytes:
    """Everything up to the end of a descriptor that the caller opened; it is closed."""
    if descriptor < 0:
        raise UsageError(f"{option}: {descriptor} is no file descriptor")
    try:
        with os.fdopen(descriptor, "rb") as file:
            return _bounded(file.read, option)
    except OSError as error:
        raise UsageError(f"{option}: descriptor {descriptor}: {error.strerror}") from None


def _run(command: str, option: str) -> bytes:
    """The output of a password command; it is split as a shell would, but runs without one."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{option}: {str(error).lower()}") from None
    if not words:
        raise UsageError(f"{option}: the command is empty")
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, check=False)  # noqa: S603  # the person's own command
    except OSError as error:
        raise UsageError(f"{option}: {words[0]}: {error.strerror}") from None
    if done.returncode != 0:
        how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        raise VaultError(f"{option}: {words[0]} ended with {how}")
    if len(done.stdout) > LARGEST_SECRET_BYTES:
        raise UsageError(f"{option}: more than {LARGEST_SECRET_BYTES} bytes")
    return done.stdout


def _bounded(read: Callable[[int], bytes], option: str) -> bytes:
    """Read at most the largest secret."""
    value = read(LARGEST_SECRET_BYTES + 1)
    if len(value) > LARGEST_SECRET_BYTES:
        raise UsageError(f"{option}: more than {LARGEST_SECRET_BYTES} bytes")
    if not value:
        raise UsageError(f"{option}: nothing in it")
    return value


def _line(value: bytes, source: str) -> bytes:
    """A password without the one newline that editors and ``echo`` put at its end."""
    password = value.removesuffix(b"\n").removesuffix(b"\r") if value.endswith(b"\n") else value
    if not password:
        raise UsageError(f"{source}: the password is empty")
    return password


def _stripped(value: bytes, option: str) -> str:
    """Text from bytes, without white space around it."""
    text = _decoded(value, option).strip()
    if not text:
        raise UsageError(f"{option}: nothing in it")
    return text


def _decoded(value: bytes, what: str) -> str:
    """Text from bytes, without showing them where they are no text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not text") from None
