"""``vaultfs passwd`` and ``vaultfs key`` as a person or a script calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vaultfs
from vault_keys.sample import (
    FILES,
    KEY,
    KEY_TEXT,
    OTHER,
    OTHER_PASSWORD,
    OTHER_TEXT,
    PASSWORD,
    other,
    require_files,
    secret,
)
from vaultfs.cli.main import main
from vaultfs.crypto.slots import Secret
from vaultfs.errors import ExitCode, WrongPasswordError
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.keyslots import list_slots
from vaultfs.vault.opening import load_header


def file_with(directory: Path, name: str, content: bytes | str) -> str:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def passfile(tmp_path: Path) -> str:
    return file_with(tmp_path, "passfile", PASSWORD + "\n")


@pytest.fixture
def new_passfile(tmp_path: Path) -> str:
    return file_with(tmp_path, "new-passfile", OTHER_PASSWORD + "\n")


def recovery_fd(tmp_path: Path, text: str) -> str:
    """A descriptor to read a recovery key from; the command closes it."""
    import os

    return str(os.open(file_with(tmp_path, "paper", text + "\n"), os.O_RDONLY))


def parsed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def opens(path: Path, key: Secret) -> bool:
    try:
        load_header(VaultLayout(path)).unlock(key)
    except WrongPasswordError:
        return False
    return True


def test_passwd(vault_path: Path, passfile: str, new_passfile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passwd", str(vault_path), "--passfile", passfile, "--new-passfile", new_passfile]) == 0
    assert capsys.readouterr().out == "Changed the password of the key slot 'password'.\n"
    assert not opens(vault_path, secret())
    require_files(vault_path, other())
    assert main(["passwd", str(vault_path), "--passfile", passfile, "--new-passfile", new_passfile]) == 12
    assert "wrong password" in capsys.readouterr().err


def test_passwd_of_a_forgotten_slot(
    path: Path, tmp_path: Path, new_passfile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["passwd", str(path), "--new-passfile", new_passfile, "--kdf-memory", "64M", "--json"]
    assert main([*words, "--recovery-key-fd", recovery_fd(tmp_path, KEY_TEXT)]) == ExitCode.USAGE
    assert "--slot" in capsys.readouterr().err
    assert main([*words, "--slot", "second", "--recovery-key-fd", recovery_fd(tmp_path, KEY_TEXT)]) == 0
    assert (parsed(capsys)["label"], list_slots(path)[1].kind) == ("second", "password")
    assert opens(path, other())
    assert opens(path, KEY)
    assert not opens(path, OTHER)


def test_a_recovery_key_is_shown_once_and_opens_the_vault(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["key", "add", str(path), "--recovery", "--label", "safe"]
    assert main([*words, "--recovery-key-fd", recovery_fd(tmp_path, KEY_TEXT)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Added the key slot 'safe' (recovery)."
    key = Secret.recovery(shown[-1])
    require_files(path, key)
    assert shown[-1].strip().encode() not in (path / "vault.json").read_bytes()
    words = ["key", "add", str(path), "--recovery", "--json"]
    assert main([*words, "--recovery-key-fd", recovery_fd(tmp_path, shown[-1])]) == 0
    added = parsed(capsys)
    assert added["label"] == "recovery"
    require_files(path, Secret.recovery(added["recovery_key"]))


def test_a_key_file_is_added_and_unlocks_each_command(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytes(range(64))
    keyfile = file_with(tmp_path, "keyfile", content)
    words = ["key", "add", str(path), "--keyfile", keyfile, "--kdf-memory", "64M"]
    assert main([*words, "--recovery-key-fd", recovery_fd(tmp_path, KEY_TEXT)]) == 0
    assert [slot.label for slot in list_slots(path)] == ["paper", "second", "keyfile"]
    assert opens(path, Secret.keyfile(content))
    assert main(["key", "add", str(path), "--unlock-keyfile", keyfile, "--recovery", "--label", "new"]) == 0
    assert main(["key", "remove", str(path), "second", "--keyfile", keyfile, "--json"]) == 0
    capsys.readouterr()
    assert [slot.label for slot in list_slots(path)] == ["paper", "keyfile", "new"]


def test_one_slot_has_one_secret(path: Path, new_passfile: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (path / "vault.json").read_bytes()
    for extra in (["--recovery", "--keyfile", "x"], ["--recovery", "--new-passfile", new_passfile]):
        assert main(["key", "add", str(path), *extra]) == ExitCode.USAGE
        assert "exclude each other" in capsys.readouterr().err
    assert (path / "vault.json").read_bytes() == before


def test_list(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "list", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["LABEL", "KIND", "CREATED", "ID"]
    assert [line.split()[:2] for line in lines[1:]] == [["paper", "recovery"], ["second", "recovery"]]
    with vaultfs.open_vault(path, KEY):  # in use, which does not matter
        assert main(["key", "list", str(path), "--json"]) == 0
    assert [slot["label"] for slot in parsed(capsys)["slots"]] == ["paper", "second"]


def test_a_removed_slot_opens_nothing(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["key", "remove", str(path), "second", "--recovery-key-fd"]
    assert main([*words, recovery_fd(tmp_path, OTHER_TEXT)]) == ExitCode.USAGE
    assert "a secret that stays" in capsys.readouterr().err
    assert main([*words, recovery_fd(tmp_path, KEY_TEXT)]) == 0
    assert capsys.readouterr().out == "Removed the key slot 'second' (recovery).\n"
    assert not opens(path, OTHER)


def test_rotate_names_the_slots_that_would_be_lost(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["key", "rotate", str(path), "--recovery-key-fd"]
    assert main([*words, recovery_fd(tmp_path, KEY_TEXT)]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "'second' (recovery)" in error
    assert "--yes" in error
    assert load_header(VaultLayout(path)).epoch == 1
    assert main([*words, recovery_fd(tmp_path, KEY_TEXT), "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "epoch 2" in shown
    assert "gone: 'second'" in shown
    assert "1 segments" in shown
    assert not opens(path, OTHER)
    require_files(path, KEY)


def test_rotate_with_survivors_and_all_at_once(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = file_with(tmp_path, "second", OTHER_TEXT)
    words = ["key", "rotate", str(path), "--wait", "--json", "--progress", "json", "--keep-recovery-file", kept]
    assert main([*words, "--recovery-key-fd", recovery_fd(tmp_path, KEY_TEXT)]) == 0
    printed = capsys.readouterr()
    done = json.loads(printed.out)
    assert [slot["label"] for slot in done["kept"]] == ["paper", "second"]
    assert (done["epoch"], done["lost"], done["old_bytes"], done["is_over"]) == (2, [], 0, True)
    progress = [json.loads(line) for line in printed.err.splitlines()]
    assert progress[-1]["finished"]
    assert progress[-1]["resumable"]
    assert progress[-1]["done_bytes"] >= len(FILES["/large"])
    require_files(path, OTHER)


@pytest.mark.parametrize(
    "words",
    [["passwd"], ["key", "add"], ["key", "remove"], ["key", "rotate"]],
)
def test_a_vault_in_use_is_exit_code_11(
    path: Path, tmp_path: Path, new_passfile: str, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    rest = ["second"] if words[-1] == "remove" else []
    if words[-1] in {"passwd", "add"}:
        rest = ["--new-passfile", new_passfile]
    if words[-1] == "passwd":
        rest += ["--slot", "second"]
    before = (path / "vault.json").read_bytes()
    with vaultfs.open_vault(path, KEY):
        code = main([*words, str(path), *rest, "--recovery-key-fd", recovery_fd(tmp_path, KEY_TEXT)])
    assert code == ExitCode.LOCKED
    assert "in use by process" in capsys.readouterr().err
    assert (path / "vault.json").read_bytes() == before


@pytest.mark.parametrize("words", [["passwd"], ["key", "add"], ["key", "list"], ["key", "rotate"]])
def test_no_vault_there(tmp_path: Path, passfile: str, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    rest = [] if words[-1] == "list" else ["--passfile", passfile]
    assert main([*words, str(empty), *rest]) == ExitCode.NOT_A_VAULT
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(empty.iterdir())


@pytest.mark.parametrize("size", ["63M", "5G", "much"])
def test_kdf_memory_out_of_bounds(path: Path, passfile: str, capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert main(["key", "add", str(path), "--passfile", passfile, "--kdf-memory", size]) == ExitCode.USAGE
    assert "--kdf-memory" in capsys.readouterr().err


def test_no_secret_is_printed_with_an_error(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = KEY_TEXT[:-1] + ("0" if KEY_TEXT[-1] != "0" else "1")
    kept = file_with(tmp_path, "kept", wrong)
    words = ["key", "rotate", str(path), "--keep-recovery-file", kept]
    assert main([*words, "--recovery-key-fd", recovery_fd(tmp_path, KEY_TEXT)]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "typing error" in error
    assert not any(group in error for group in wrong.split("-"))
