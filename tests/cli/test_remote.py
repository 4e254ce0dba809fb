"""``vaultfs remote``: what is added was tried out, what is stored holds no secret, what is refused leaves no trace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import vaultfs
from vaultfs.errors import ExitCode
from vaultfs.ids import VaultId
from vaultfs.sync.ledger import Ledger

from .conftest import PASSWORD, Run, digest, objects, process

CANARY = "canary-90c2e1-secret"


def test_add_list_test_remove(vault: Path, disk: Path, run: Run) -> None:
    said = run("remote", "add", vault, "disk", disk.as_uri(), bare=True)
    assert (said.code, said.err) == (0, "")
    assert f"Added the remote 'disk': {disk.as_uri()}.  There is no snapshot on it yet." in said.out.decode()
    assert f"vaultfs sync {vault} disk" in said.out.decode()
    assert objects(disk) == {}, "what was tried out is gone again"

    said = run("remote", "list", vault, bare=True)
    assert said.out.decode().splitlines()[1].split() == ["disk", disk.as_uri()]
    (listed,) = json.loads(run("remote", "list", vault, "--json", bare=True).out)["remotes"]
    features = {"conditional_create": True, "range_reads": True, "lists_at_once": True}
    assert listed == {"name": "disk", "url": disk.as_uri(), "options": {}, "features": features}
    assert json.loads(run("remote", "test", vault, "disk", "--json", bare=True).out) == {**listed, "snapshots": 0}
    assert "The remote 'disk' works" in run("remote", "test", vault, "disk", bare=True).out.decode()

    (disk / "something").write_bytes(b"of another program")
    assert json.loads(run("remote", "remove", vault, "disk", "--json", bare=True).out) == listed
    assert objects(disk) == {"something": b"of another program"}
    assert not (vault / "remotes.json").exists(), "without remotes nothing leaves the machine, and the vault sees that"
    assert run("remote", "list", vault, bare=True).out == b"There are no remotes.\n"


def test_without_a_terminal_and_a_password(vault: Path, disk: Path) -> None:
    assert process("remote", "add", vault, "disk", disk.as_uri()).code == 0
    assert process("remote", "test", vault, "disk").code == 0
    assert process("remote", "remove", vault, "disk").code == 0


def test_two_remotes_and_one_goes(vault: Path, tmp_path: Path, run: Run) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert run("remote", "add", vault, name, (tmp_path / name).as_uri(), bare=True).code == 0
    assert run("remote", "remove", vault, "one", bare=True).code == 0
    assert [each["name"] for each in json.loads((vault / "remotes.json").read_text())["remotes"]] == ["two"]


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{CANARY}@bucket/prefix",
        f"s3://bucket/prefix?secret={CANARY}",
        f"webdav+https://{CANARY}@host/path",
        f"file:///disk#{CANARY}",
        f"https://host/{CANARY}?x@y",
    ],
)
def test_a_url_with_a_secret_is_refused(vault: Path, run: Run, url: str) -> None:
    before = digest(vault)
    said = run("remote", "add", vault, "cloud", url, bare=True)
    assert said.code == ExitCode.USAGE
    assert CANARY not in said.error_line
    assert said.out == b""
    assert digest(vault) == before


@pytest.mark.parametrize("option", [f"secret_access_key={CANARY}", f"password={CANARY}", CANARY, f"={CANARY}"])
@pytest.mark.parametrize("url", ["s3://bucket/prefix", "gdrive:folder", "webdav+https://host/path"])
def test_an_option_with_a_secret_is_refused(vault: Path, run: Run, option: str, url: str) -> None:
    before = digest(vault)
    said = run("remote", "add", vault, "cloud", url, "--option", option, bare=True)
    assert said.code == ExitCode.USAGE
    assert CANARY not in said.error_line
    assert digest(vault) == before


def test_an_option_twice(vault: Path, run: Run) -> None:
    words = ["--option", "region=here", "--option", "region=there"]
    said = run("remote", "add", vault, "cloud", "s3://bucket", *words, bare=True)
    assert (said.code, "region is given twice" in said.error_line) == (ExitCode.USAGE, True)


@pytest.mark.parametrize(
    ("name", "url", "code"),
    [
        ("disk", "file:///there/is/no/such/directory", ExitCode.REMOTE_UNREACHABLE),
        ("disk", "ftp://host/path", ExitCode.USAGE),
        ("disk", "directory", ExitCode.USAGE),
        ("disk", "", ExitCode.USAGE),
        ("Disk", "DISK", ExitCode.USAGE),
        ("../disk", "DISK", ExitCode.USAGE),
        ("", "DISK", ExitCode.USAGE),
        ("x" * 33, "DISK", ExitCode.USAGE),
    ],
)
def test_what_cannot_be_added(vault: Path, disk: Path, run: Run, name: str, url: str, code: ExitCode) -> None:
    before = digest(vault)
    said = run("remote", "add", vault, name, disk.as_uri() if url == "DISK" else url, bare=True)
    assert said.code == code
    assert said.error_line
    assert digest(vault) == before
    assert objects(disk) == {}
    assert os.listdir(disk) == []


def test_not_into_the_vault_itself(vault: Path, folder: Path, passfile: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "link").symlink_to(vault)
    for place in (vault, vault / "segments", tmp_path / "link" / "segments"):
        said = run("remote", "add", vault, "disk", place.as_uri(), bare=True)
        assert (said.code, f"is in {vault}" in said.error_line) == (ExitCode.USAGE, True)
    assert process("mount", vault, folder, "--passfile", passfile).code == 0
    (folder / "backup").mkdir()
    for word in (vault, folder):
        said = run("remote", "add", word, "disk", (folder / "backup").as_uri(), bare=True)
        assert (said.code, f"is in {folder}" in said.error_line) == (ExitCode.USAGE, True)
    assert os.listdir(folder / "backup") == []
    assert process("umount", folder).code == 0
    assert not (vault / "remotes.json").exists()


def test_a_name_that_is_taken(backed_up: Path, disk: Path, run: Run) -> None:
    before = digest(backed_up)
    said = run("remote", "add", backed_up, "disk", disk.as_uri(), bare=True)
    assert (said.code, "already" in said.error_line) == (ExitCode.USAGE, True)
    assert digest(backed_up) == before


def test_a_remote_that_is_not_there(vault: Path, backed_up: Path, run: Run) -> None:
    for verb in ("remove", "test"):
        said = run("remote", verb, backed_up, "cloud", bare=True)
        assert (said.code, "has: disk" in said.error_line) == (ExitCode.USAGE, True)


def test_a_remote_that_went_away(backed_up: Path, disk: Path, run: Run) -> None:
    disk.rename(disk.with_name("unplugged"))
    said = run("remote", "test", backed_up, "disk", bare=True)
    assert (said.code, "plugged in" in said.error_line) == (ExitCode.REMOTE_UNREACHABLE, True)


def test_the_remote_of_another_vault(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    assert run("sync", "--snapshot", backed_up).code == 0
    other = tmp_path / "other"
    vaultfs.create_vault(other, vaultfs.Secret.password(PASSWORD), kdf=vaultfs.KdfParameters.weakest())
    before = objects(disk)
    said = run("remote", "add", other, "disk", disk.as_uri(), bare=True)
    assert (said.code, "another vault" in said.error_line) == (ExitCode.USAGE, True)
    assert objects(disk) == before
    assert not (other / "remotes.json").exists()


def test_the_same_remote_again(backed_up: Path, disk: Path, run: Run) -> None:
    assert run("sync", "--snapshot", backed_up).code == 0
    assert "It has 1 snapshot of this vault." in run("remote", "test", backed_up, "disk", bare=True).out.decode()
    assert run("remote", "remove", backed_up, "disk", bare=True).code == 0
    said = run("remote", "add", backed_up, "again", disk.as_uri(), bare=True)
    assert (said.code, "It has 1 snapshot of this vault." in said.out.decode()) == (0, True)
    assert run("sync", backed_up, bare=True).out == b"again: up to date\n"


def test_a_name_for_another_place(backed_up: Path, tmp_path: Path, run: Run) -> None:
    """What was known of the old place does not count for the new one."""
    assert run("sync", "--snapshot", backed_up).code == 0
    assert run("remote", "remove", backed_up, "disk", bare=True).code == 0
    (tmp_path / "new").mkdir()
    assert run("remote", "add", backed_up, "disk", (tmp_path / "new").as_uri(), bare=True).code == 0
    assert run("status", backed_up, bare=True).code == ExitCode.PARTIAL
    assert run("sync", backed_up, bare=True).code == 0
    assert objects(tmp_path / "new") == objects(tmp_path / "disk")


def test_not_while_a_sync_runs(backed_up: Path, disk: Path, run: Run) -> None:
    assert run("sync", "--snapshot", backed_up).code == 0
    vault_id = VaultId(bytes.fromhex(json.loads((backed_up / "vault.json").read_text())["vault_id"]))
    with Ledger.of(vault_id, "disk").locked(disk.as_uri()):
        said = run("remote", "remove", backed_up, "disk", bare=True)
    assert said.code == ExitCode.LOCKED
    assert run("remote", "list", backed_up, "--json", bare=True).out.count(b'"name"') == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1, "remotes": [{}]}', b"\xff", b"[" * 100_000])
def test_a_damaged_list(vault: Path, disk: Path, run: Run, content: bytes) -> None:
    (vault / "remotes.json").write_bytes(content)
    for words in (["remote", "list"], ["remote", "add", "disk", disk.as_uri()], ["sync"], ["verify", "disk"]):
        verb, *rest = words
        at = 1 if verb == "remote" else 0
        said = run(verb, *rest[:at], vault, *rest[at:], bare=True)
        assert (said.code, "remotes.json is damaged" in said.error_line) == (ExitCode.INTEGRITY, True)
    said = run("status", vault, bare=True)
    assert (said.code, b"safe to close: no" in said.out) == (ExitCode.PARTIAL, True)
    assert (vault / "remotes.json").read_bytes() == content


def test_a_list_of_a_newer_version(vault: Path, run: Run) -> None:
    (vault / "remotes.json").write_text('{"format": 2, "places": []}')
    assert run("remote", "list", vault, bare=True).code == ExitCode.FORMAT_TOO_NEW


def test_a_folder_names_its_vault(vault: Path, folder: Path, passfile: Path, disk: Path, run: Run) -> None:
    assert process("mount", vault, folder, "--passfile", passfile).code == 0
    assert run("remote", "add", folder, "disk", disk.as_uri(), bare=True).code == 0
    assert run("remote", "list", folder, bare=True).out == run("remote", "list", vault, bare=True).out
    assert process("umount", folder).code == 0
    assert (vault / "remotes.json").is_file()


def test_no_vault(tmp_path: Path, disk: Path, run: Run) -> None:
    for words in (["list", tmp_path], ["add", tmp_path, "disk", disk.as_uri()], ["remove", tmp_path, "disk"]):
        assert run("remote", *words, bare=True).code == ExitCode.NOT_A_VAULT
    assert os.listdir(disk) == []
