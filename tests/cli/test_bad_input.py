"""Bad input to every command: one clear line on standard error, the documented exit code, nothing changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vaultfs.cli.main import main
from vaultfs.cli.verbs import VERBS
from vaultfs.errors import ExitCode
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import VaultLock

from .conftest import Run, digest, listing, opened, write_file

ON_A_VAULT = ["put {v} {f} /new", "get {v} /file {t}/new", "cat {v} /file", "ls {v}", "rm {v} /file"]
ALL_ON_A_VAULT = [*ON_A_VAULT, "mount {v} {e}", "passwd {v}", "key list {v}", "fsck {v}", "scrub {v}"]

OPENED_FOR_WRITING = ("HEAD", "metadata.db", "metadata.db-wal", "metadata.db-shm")
"""Opening a vault for writing counts its generation up; what is in it must be the same afterwards."""

CASES: list[tuple[str, ExitCode, str]] = [
    ("", ExitCode.USAGE, "no verb given"),
    ("lss", ExitCode.USAGE, "did you mean 'ls'"),
    *((f"{verb} --no-such-option", ExitCode.USAGE, "") for verb in VERBS if verb not in {"key", "snapshot"}),
    ("key", ExitCode.USAGE, "must follow"),
    ("key ad {v}", ExitCode.USAGE, "did you mean 'add'"),
    ("snapshot", ExitCode.USAGE, "must follow"),
    ("init", ExitCode.USAGE, "see 'vaultfs init --help'"),
    ("init {v}", ExitCode.USAGE, "not empty"),
    ("init {f}", ExitCode.USAGE, "no directory"),
    ("init {t}/no/parent", ExitCode.USAGE, "does not exist"),
    ("init {t}/new --chunk-size 100K", ExitCode.USAGE, "power of two"),
    ("init {t}/new --chunk-size 8M", ExitCode.USAGE, "power of two"),
    ("init {t}/new --chunk-size huge", ExitCode.USAGE, "no size"),
    ("init {t}/new --kdf-memory 1M", ExitCode.USAGE, "64M"),
    ("init {t}/new --kdf-memory 1T", ExitCode.USAGE, "4G"),
    ("init {t}/new --compression lzma", ExitCode.USAGE, "lzma"),
    ("init {t}/new --passfile {t}/missing", ExitCode.USAGE, "No such file"),
    ("init {t}/new --passfile /dev/null", ExitCode.USAGE, "nothing in it"),
    ("init {t}/new", ExitCode.USAGE, "no terminal"),
    *((words.replace("{v}", "{t}/missing"), ExitCode.NOT_A_VAULT, "{t}/missing") for words in ALL_ON_A_VAULT),
    *((words.replace("{v}", "{e}"), ExitCode.NOT_A_VAULT, "{e}") for words in ALL_ON_A_VAULT),
    *((words.replace("{v}", "{f}"), ExitCode.NOT_A_VAULT, "{f}") for words in ALL_ON_A_VAULT),
    *((f"{words} --passfile {{w}}", ExitCode.WRONG_PASSWORD, "") for words in ON_A_VAULT),
    ("mount {v} {e} --passfile {w}", ExitCode.WRONG_PASSWORD, ""),
    ("mount {v}", ExitCode.USAGE, "see 'vaultfs mount --help'"),
    ("mount {v} {t}/missing --passfile {p}", ExitCode.MOUNT_FAILED, "{t}/missing"),
    ("mount {v} {f} --passfile {p}", ExitCode.MOUNT_FAILED, "{f}"),
    ("mount {v} {t} --passfile {p}", ExitCode.MOUNT_FAILED, "must not lie in one another"),
    ("mount {v} {v}/segments --passfile {p}", ExitCode.MOUNT_FAILED, "must not lie in one another"),
    ("mount {v} {t}/full --passfile {p}", ExitCode.MOUNT_FAILED, "not empty"),
    ("mount {v} {e} --idle 0 --passfile {p}", ExitCode.USAGE, "--idle"),
    ("mount {v} {e} --idle soon --passfile {p}", ExitCode.USAGE, "no duration"),
    ("mount {v} {e} --commit-interval 0.001 --passfile {p}", ExitCode.USAGE, "--commit-interval"),
    ("mount {v} {e} -o wrong --passfile {p}", ExitCode.USAGE, "no such mount option"),
    ("mount {v} {e} -o password=x", ExitCode.USAGE, "passfile"),
    ("mount {v} {e} --snapshot 99 --passfile {p}", ExitCode.USAGE, "99"),
    ("umount {e}", ExitCode.MOUNT_FAILED, "no vault is mounted there"),
    ("umount {t}/missing", ExitCode.MOUNT_FAILED, "no vault is mounted there"),
    ("status {t}/missing", ExitCode.NOT_A_VAULT, "{t}/missing"),
    ("status {e}", ExitCode.NOT_A_VAULT, "{e}"),
    ("put {v} {t}/missing / --passfile {p}", ExitCode.USAGE, "{t}/missing"),
    ("put {v} {f} /no/such/place --passfile {p}", ExitCode.ERROR, "/no/such: there is no such directory"),
    ("put {v} {f} /file/ --passfile {p}", ExitCode.ERROR, "/file/: there is no such directory"),
    ("put {v} {f} /file --passfile {p}", ExitCode.USAGE, "--force"),
    ("put {v} {f} /x/.. --passfile {p}", ExitCode.USAGE, "/x/.."),
    ("put {v} {f} " + "x" * 256 + " --passfile {p}", ExitCode.ERROR, "255"),
    ("put {v} - / --passfile {p}", ExitCode.USAGE, "add a name"),
    ("put {v} {v} / --passfile {p}", ExitCode.USAGE, "into itself"),
    ("get {v} /nowhere {t}/new --passfile {p}", ExitCode.ERROR, "/nowhere: No such file"),
    ("get {v} /file/x {t}/new --passfile {p}", ExitCode.ERROR, "/file/x: Not a directory"),
    ("get {v} /file {t}/no/such/place --passfile {p}", ExitCode.USAGE, "{t}/no/such"),
    ("get {v} /file {t}/new/ --passfile {p}", ExitCode.USAGE, "{t}/new/"),
    ("get {v} / {t} --passfile {p}", ExitCode.USAGE, "a name of its own"),
    ("get {v} /file - --passfile {p}", ExitCode.USAGE, "vaultfs cat"),
    ("cat {v}", ExitCode.USAGE, "PATH"),
    ("cat {v} / --passfile {p}", ExitCode.ERROR, "/: Is a directory"),
    ("cat {v} /file /nowhere --passfile {p}", ExitCode.ERROR, "/nowhere"),
    ("cat {v} /loop --passfile {p}", ExitCode.ERROR, "/loop: Too many levels"),
    ("ls {v} /nowhere --passfile {p}", ExitCode.ERROR, "/nowhere: No such file"),
    ("ls {v} / /file --passfile {p}", ExitCode.USAGE, "see 'vaultfs ls --help'"),
    ("rm {v}", ExitCode.USAGE, "PATH"),
    ("rm {v} / -r --passfile {p}", ExitCode.USAGE, "names no entry"),
    ("rm {v} /dir --passfile {p}", ExitCode.USAGE, "-r"),
    ("rm {v} /file /nowhere --passfile {p}", ExitCode.ERROR, "/nowhere"),
    ("rm {v} /file/x --passfile {p}", ExitCode.ERROR, "/file/x: Not a directory"),
    ("doctor {t}/missing", ExitCode.USAGE, "not a directory"),
    ("bench {t}/missing", ExitCode.USAGE, "not a directory"),
    ("completion tcsh", ExitCode.USAGE, "tcsh"),
    ("completion", ExitCode.USAGE, "see 'vaultfs completion --help'"),
    ("version now", ExitCode.USAGE, "now"),
    ("ls {v} --passfile {p} --keyfile {p}", ExitCode.USAGE, "exclude each other"),
    ("ls {v} --password-fd 99", ExitCode.USAGE, "99"),
    ("ls {v} --password-fd x", ExitCode.USAGE, "password-fd"),
    ("ls {v} --password-command false", ExitCode.ERROR, "exit code 1"),
    ("ls {v} --password-command {t}/missing", ExitCode.USAGE, "No such file"),
    ("ls {v} --password-command '", ExitCode.USAGE, "quotation"),
    ("ls {v} --keyfile {w}", ExitCode.WRONG_PASSWORD, ""),
    ("ls {v} --keyfile /dev/zero", ExitCode.USAGE, "more than"),
    ("ls {v} / further -", ExitCode.USAGE, "'further' '-': more than 'vaultfs ls' takes"),
]


@pytest.fixture
def places(vault: Path, passfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    write_file(vault, "/file", b"contents")
    with opened(vault) as found:
        found.mkdir("/dir")
        found.symlink("loop", "/loop")
    (tmp_path / "a file").write_bytes(b"local")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_bytes(b"")
    (tmp_path / "wrong").write_text("not the password")
    (tmp_path / "wrong").chmod(0o600)
    # The test's own process may have a terminal.
    monkeypatch.setattr("vaultfs.cli.secret_sources._ask", no_terminal)
    return {
        "v": vault,
        "p": passfile,
        "f": tmp_path / "a file",
        "e": tmp_path / "empty",
        "w": tmp_path / "wrong",
        "t": tmp_path,
    }


def no_terminal(_prompt: object) -> bytes:
    from vaultfs.errors import UsageError

    raise UsageError("no password, and no terminal to ask on")


@pytest.mark.parametrize(("line", "code", "text"), CASES, ids=[case[0] or "nothing" for case in CASES])
def test_bad_input(
    places: dict[str, Path],
    capsysbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
    line: str,
    code: ExitCode,
    text: str,
) -> None:
    words = [word.format(**places) for word in line.split(" ") if word]
    before = digest(tmp_path, *OPENED_FOR_WRITING if words[:1] in (["put"], ["rm"]) else ())
    assert main(words) == code
    out, err = capsysbinary.readouterr()
    (error,) = err.decode().splitlines()
    assert error.startswith("vaultfs: ")
    assert text.format(**places) in error
    assert "internal error" not in error
    assert out == b"" or line.startswith("cat {v} /file /nowhere")
    assert digest(tmp_path, *OPENED_FOR_WRITING if words[:1] in (["put"], ["rm"]) else ()) == before
    if words[:1] in (["put"], ["rm"]):
        assert listing(places["v"]) == [b"dir", b"file", b"loop"]
    assert not any(os.path.ismount(path) for path in tmp_path.iterdir())


@pytest.mark.parametrize("words", ON_A_VAULT)
def test_vault_in_use(places: dict[str, Path], run: Run, words: str) -> None:
    """Exit code 11 before anybody is asked for a password."""
    verb, *rest = [word.format(**places) for word in words.split(" ")]
    with VaultLock.acquire(VaultLayout(places["v"]), purpose="something else"):
        said = run(verb, *rest, bare=True)
    assert said.code == ExitCode.LOCKED
    assert f"in use by process {os.getpid()} (something else)" in said.error_line


def test_vault_of_a_newer_version(vault: Path, run: Run) -> None:
    header = vault / "vault.json"
    header.write_text(header.read_text().replace('"format": 1', '"format": 99'))
    before = digest(vault)
    for words in (("ls", vault), ("rm", vault, "/x")):
        said = run(*words)
        assert said.code == ExitCode.FORMAT_TOO_NEW
        assert said.error_line
    assert digest(vault) == before


def test_header_that_was_changed(vault: Path, run: Run) -> None:
    header = vault / "vault.json"
    header.write_text(header.read_text().replace('"label": "password"', '"label": "passw0rd"'))
    assert run("ls", vault).code in {ExitCode.INTEGRITY, ExitCode.WRONG_PASSWORD}


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": "x"}'])
def test_header_that_is_garbage(vault: Path, run: Run, data: bytes) -> None:
    (vault / "vault.json").write_bytes(data)
    said = run("ls", vault)
    assert said.code == ExitCode.NOT_A_VAULT
    assert said.error_line


def test_names_with_control_characters_do_not_drive_the_terminal(run: Run, vault: Path) -> None:
    said = run("cat", vault, "/\x1b[31mred\nline\x07")
    assert said.code == ExitCode.ERROR
    assert "\x1b" not in said.err
    assert "\\x1b[31mred" in said.error_line
