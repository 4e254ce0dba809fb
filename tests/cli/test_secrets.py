"""Where a password comes from, in which order; and that none is seen in arguments, logs, messages or tracebacks."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import vaultfs
from vaultfs.cli import secret_sources
from vaultfs.cli.main import main
from vaultfs.cli.secret_sources import Prompt, SecretOptions, obtain
from vaultfs.crypto.slots import Secret
from vaultfs.errors import ExitCode, UsageError, VaultError

from .conftest import PASSWORD, command, opened, process, write_file

PROMPT = Prompt("Password for the test")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What `obtain` makes a secret of."""
    found: list[bytes] = []
    real = Secret.password

    def password(value: bytes | str) -> Secret:
        found.append(value if isinstance(value, bytes) else value.encode())
        return real(value)

    monkeypatch.setattr(Secret, "password", password)
    return found


def private(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def descriptor(data: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def test_sources_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[bytes]) -> None:
    """All sources at once; then without the first, and so on."""
    monkeypatch.setattr(secret_sources, "_ask", lambda prompt: b"from the prompt")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    private(credentials / "vaultfs-password", b"from systemd\n")
    passfile = private(tmp_path / "passfile", b"from the file\n")
    command_line = f"{sys.executable} -c 'print(\"from the command\")'"

    def ask(
        *, fd: bool = False, file: bool = False, run: bool = False, systemd: bool = False, env: bool = False
    ) -> bytes:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials)) if systemd else monkeypatch.delenv(
            "CREDENTIALS_DIRECTORY", raising=False
        )
        monkeypatch.setenv("VAULTFS_PASSWORD", "from the environment") if env else monkeypatch.delenv(
            "VAULTFS_PASSWORD", raising=False
        )
        options = SecretOptions(
            password_fd=descriptor(b"from the descriptor\n") if fd else None,
            passfile=passfile if file else None,
            password_command=command_line if run else None,
        )
        obtain(options, PROMPT)
        return taken.pop()

    assert ask(fd=True, file=True, run=True, systemd=True, env=True) == b"from the descriptor"
    assert ask(file=True, run=True, systemd=True, env=True) == b"from the file"
    assert ask(run=True, systemd=True, env=True) == b"from the command"
    assert ask(systemd=True, env=True) == b"from systemd"
    assert ask(env=True) == b"from the environment"
    assert ask() == b"from the prompt"


@pytest.mark.parametrize(
    ("stored", "password"),
    [(b"a\n", b"a"), (b"a\r\n", b"a"), (b"a\n\n", b"a\n"), (b"a b\t", b"a b\t"), (b"a\r", b"a\r"), (b"\xff", b"\xff")],
)
def test_one_newline_is_taken_off(tmp_path: Path, taken: list[bytes], stored: bytes, password: bytes) -> None:
    obtain(SecretOptions(passfile=private(tmp_path / "file", stored)), PROMPT)
    assert taken == [password]


@pytest.mark.parametrize("stored", [b"", b"\n", b"\r\n"])
def test_empty_password_is_refused(tmp_path: Path, stored: bytes) -> None:
    with pytest.raises(UsageError, match=r"empty|nothing in it"):
        obtain(SecretOptions(passfile=private(tmp_path / "file", stored)), PROMPT)


def test_a_mebibyte_is_read_and_not_more(tmp_path: Path, taken: list[bytes]) -> None:
    file = private(tmp_path / "file", b"x" * (1 << 20))
    obtain(SecretOptions(passfile=file), PROMPT)
    assert len(taken[0]) == 1 << 20
    file.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        obtain(SecretOptions(passfile=file), PROMPT)


def test_password_file_that_others_can_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = private(tmp_path / "file", b"x")
    obtain(SecretOptions(passfile=file), PROMPT)
    assert capsys.readouterr().err == ""
    file.chmod(0o644)
    obtain(SecretOptions(passfile=file), PROMPT)
    assert "can be read by others" in capsys.readouterr().err


def test_password_command_sees_no_password(monkeypatch: pytest.MonkeyPatch, taken: list[bytes]) -> None:
    """The variable is for us; what we start does not inherit it."""
    monkeypatch.setenv("VAULTFS_PASSWORD", "secret")
    obtain(SecretOptions(), PROMPT)
    assert taken == [b"secret"]
    assert "VAULTFS_PASSWORD" not in os.environ
    seen = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert "secret" not in seen.replace(os.environ.get("PYTEST_CURRENT_TEST", ""), "")


def test_failing_password_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VaultError, match="ended with exit code 7"):
        obtain(SecretOptions(password_command="sh -c 'echo half a secret; exit 7'"), PROMPT)


def test_two_prompts_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["one", "two"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    monkeypatch.setattr(os, "open", lambda *_: os.dup(0))
    with pytest.raises(UsageError, match="differ; nothing was done"):
        obtain(SecretOptions(), Prompt("New password", twice=True))


def test_no_terminal(vault: Path) -> None:
    """A session without a controlling terminal, as under cron."""
    said = process("ls", vault)
    assert said.code == ExitCode.USAGE
    assert "no terminal to ask on" in said.error_line


@pytest.mark.parametrize("how", ["descriptor", "file", "command", "systemd", "environment"])
def test_real_process_unlocks_with(how: str, vault: Path, passfile: Path, tmp_path: Path) -> None:
    write_file(vault, "/file", b"contents")
    words: list[str | Path] = ["cat", vault, "/file"]
    environment = dict(os.environ)
    keep: tuple[int, ...] = ()
    if how == "descriptor":
        keep = (descriptor(PASSWORD.encode()),)
        words += ["--password-fd", str(keep[0])]
    elif how == "file":
        words += ["--passfile", passfile]
    elif how == "command":
        words += ["--password-command", f"cat '{passfile}'"]
    elif how == "systemd":
        (tmp_path / "vaultfs-password").symlink_to(passfile)
        environment["CREDENTIALS_DIRECTORY"] = str(tmp_path)
    else:
        environment["VAULTFS_PASSWORD"] = PASSWORD
    said = process(*words, env=environment, pass_fds=keep)
    for each in keep:
        os.close(each)
    assert (said.code, said.out, said.err) == (0, b"contents", "")


def test_wrong_key_file_and_recovery_key(vault: Path, tmp_path: Path) -> None:
    keyfile = private(tmp_path / "key", os.urandom(64))
    said = process("ls", vault, "--keyfile", keyfile)
    assert said.code == ExitCode.WRONG_PASSWORD
    recovery = descriptor(b"not a recovery key")
    said = process("ls", vault, "--recovery-key-fd", str(recovery), pass_fds=(recovery,))
    os.close(recovery)
    assert said.code == ExitCode.USAGE
    assert "not a recovery key" not in said.err


# --- what nobody may see

CANARY = "canary-5b1f77-password"


@pytest.fixture
def canary_vault(tmp_path: Path) -> Path:
    vaultfs.create_vault(tmp_path / "canary", Secret.password(CANARY), kdf=vaultfs.KdfParameters.weakest())
    return tmp_path / "canary"


@pytest.mark.parametrize("debug", ["", "1"])
def test_wrong_password_is_not_shown(vault: Path, tmp_path: Path, debug: str) -> None:
    wrong = private(tmp_path / "wrong", CANARY.encode())
    (tmp_path / "folder").mkdir()
    verbs: list[list[str | Path]] = [["ls", vault], ["mount", vault, tmp_path / "folder"], ["rm", vault, "/x"]]
    for verb in verbs:
        said = process(*verb, "--passfile", wrong, env={**os.environ, "VAULTFS_DEBUG": debug})
        assert said.code == ExitCode.WRONG_PASSWORD
        assert CANARY not in said.err
        assert CANARY.encode() not in said.out
    for log in (tmp_path / "state").rglob("*"):
        assert log.is_dir() or CANARY.encode() not in log.read_bytes()


@pytest.mark.parametrize("debug", ["", "1"])
def test_failure_in_the_middle_shows_no_secret(
    canary_vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], debug: str
) -> None:
    """An exception whose text holds the secret, raised where the secret is a local variable."""
    if debug:
        monkeypatch.setenv("VAULTFS_DEBUG", "1")

    def failing(*arguments: object, **more: object) -> None:
        raise RuntimeError(f"something with {CANARY}" if not debug else "something")

    monkeypatch.setattr(vaultfs.KdfParameters, "derive", failing)
    passfile = private(tmp_path / "password", CANARY.encode())
    assert main(["ls", str(canary_vault), "--passfile", str(passfile)]) == ExitCode.ERROR
    out, err = capfd.readouterr()
    assert CANARY not in out + err
    assert "internal error: RuntimeError" in err


def test_arguments_and_environment_of_a_running_command(canary_vault: Path, tmp_path: Path) -> None:
    """What /proc shows to other users (arguments), and to ourselves after the variable was taken (children)."""
    look = tmp_path / "look"
    look.write_text(f'#!/bin/sh\ntr "\\0" " " </proc/$PPID/cmdline >"$0.seen"\nenv >>"$0.seen"\ncat "{tmp_path}/pw"\n')
    look.chmod(0o700)
    private(tmp_path / "pw", CANARY.encode())
    said = process("ls", canary_vault, "--password-command", look)
    assert said.code == 0
    seen = (tmp_path / "look.seen").read_text()
    assert "vaultfs.cli" in seen
    assert CANARY not in seen


def test_secret_has_no_text(canary_vault: Path) -> None:
    secret = Secret.password(CANARY)
    assert CANARY not in repr(secret) + str(secret) + repr(vars(type(secret)))


def test_prompt_on_a_terminal(vault: Path) -> None:
    """The password is asked for on the terminal, and not echoed; the result goes to standard output alone."""
    write_file(vault, "/file", b"contents")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, command("ls", vault))
    said = b""
    while b"Password for" not in said:
        said += os.read(terminal, 1000)
    os.write(terminal, PASSWORD.encode() + b"\n")
    while True:
        try:
            piece = os.read(terminal, 1000)
        except OSError:
            break
        if not piece:
            break
        said += piece
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
    assert PASSWORD.encode() not in said
    assert b"file\r\n" in said
    with opened(vault) as found:
        assert found.listdir("/") == [b"file"]
