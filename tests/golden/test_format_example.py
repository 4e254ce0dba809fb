"""A vault of each format opens for ever, and docs/format.md describes it to the byte."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import apsw
import pytest

from vaultfs.crypto.slots import Secret
from vaultfs.metadata.schema import SCHEMA
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.api import open_vault
from vaultfs.vault.fsck import check

from . import longhand
from .make import HELLO, describe, numbers

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "format.md"
GOLDEN = HERE / "format-1"


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.with_suffix(".json").read_bytes())
    return found


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work on, with a state directory that has seen nothing of the vault."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    target = tmp_path / "vault"
    shutil.copytree(GOLDEN, target)
    VaultLayout(target).open_segments.mkdir(exist_ok=True)  # git keeps no empty directories
    return target


@pytest.fixture(scope="module")
def decoded(facts: dict[str, Any]) -> longhand.Decoded:
    return longhand.decode(GOLDEN, facts["password"])


def contents(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_every_file_is_as_it_was(copy: Path, facts: dict[str, Any]) -> None:
    with open_vault(copy, Secret.password(facts["password"]), read_only=True) as vault:
        assert describe(vault) == facts["now"]
        assert [(info.seq, info.label) for info in vault.snapshots()] == [(1, "golden")]


def test_the_snapshot_is_as_it_was(copy: Path, facts: dict[str, Any]) -> None:
    with open_vault(copy, Secret.password(facts["password"]), snapshot=1) as vault:
        assert describe(vault) == facts["snapshot 1"]
    assert facts["snapshot 1"] != facts["now"]


def test_fsck_finds_nothing_in_it(copy: Path, facts: dict[str, Any]) -> None:
    report = check(copy, Secret.password(facts["password"]), reads_data=True)
    assert report.findings == []
    assert report.chunks


def test_opening_read_only_changes_nothing(copy: Path, facts: dict[str, Any]) -> None:
    with open_vault(copy, Secret.password(facts["password"]), read_only=True) as vault:
        vault.listdir()
    after = contents(copy)
    after.pop("lock")
    assert after == contents(GOLDEN)


def test_the_recovery_key_opens_it_for_writing(copy: Path, facts: dict[str, Any]) -> None:
    recovery = Secret.recovery(facts["recovery_key"])
    with open_vault(copy, recovery) as vault, vault.open("/documents/new", "wb") as file:
        file.write(b"written today")
    with open_vault(copy, recovery, read_only=True) as vault:
        now = describe(vault)
        assert now.pop("/documents/new")["size"] == len(b"written today")
        for each in (now, facts["now"]):
            each["/documents"].pop("mtime_ns", None)
        assert now == facts["now"]


def test_the_golden_vault_has_what_a_format_must_carry(facts: dict[str, Any]) -> None:
    now = facts["now"]
    assert now["/link"]["target"] == "documents/hello.txt"
    assert now["/hard link"]["links"] == now["/documents/hello.txt"]["links"] == 2
    assert "user.comment" in now["/documents/hello.txt"]["xattrs"]
    assert now["/documents/hole"]["size"] == 100 * 4096 + 1
    assert any("\xff" in path for path in now)


# --- the document


def example() -> dict[str, str]:
    """The values in the document's worked example."""
    values: dict[str, str] = {}
    for block in re.findall(r"^```example\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            name, _, value = line.partition(" = ")
            assert name not in values
            values[name] = value
    return values


def test_the_document_quotes_what_is_on_disk(decoded: longhand.Decoded) -> None:
    assert example() == decoded.values


def test_the_longhand_decoder_gets_the_files(decoded: longhand.Decoded) -> None:
    assert bytes.fromhex(decoded.values["plaintext"]) == HELLO
    assert decoded.values["numbers_sha256"] == hashlib.sha256(numbers(2000)).hexdigest()


def test_the_longhand_decoder_uses_nothing_of_vaultfs() -> None:
    source = (HERE / "longhand.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) (vaultfs|tests)", source, re.MULTILINE)


def test_the_index_tells_where_the_chunk_lies(decoded: longhand.Decoded) -> None:
    values = decoded.values
    rows = longhand.read_index(decoded, values["segment_name"])
    place = tuple(int(values[name]) for name in ("chunk", "offset", "stored", "length", "inode"))
    assert (*place, 0) in rows


def test_the_image_of_the_snapshot_opens(decoded: longhand.Decoded, tmp_path: Path) -> None:
    path = tmp_path / "image.db"
    path.write_bytes(longhand.read_manifest(decoded))
    database = longhand.open_database(path, decoded.subkeys["metadata"])
    try:
        directory = longhand.find_inode(database, (b"documents",))
        names = {name for (name,) in database.execute("SELECT name FROM entry WHERE parent=?", (directory,))}
    finally:
        database.close()
    assert b"copy of noise.bin" in names  # deleted since


def test_the_document_tells_of_every_table_and_column() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = re.findall(r"^### (.*?)\n(.*?)(?=^##)", text, re.DOTALL | re.MULTILINE)
    database = apsw.Connection(":memory:")
    database.execute(SCHEMA)
    tables = [str(name) for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
    for table in tables:
        (section,) = (
            title + body for title, body in sections if table in re.findall("[a-z_]+", re.split("[:(]", title)[0])
        )
        columns = [str(column[1]) for column in database.execute(f"PRAGMA table_info({table})")]
        missing = [column for column in columns if not re.search(rf"\b{column}\b", section)]
        assert not missing, f"docs/format.md, table {table}"
    database.close()


def test_the_document_tells_of_every_setting(decoded: longhand.Decoded) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    database = longhand.open_database(GOLDEN / "metadata.db", decoded.subkeys["metadata"])
    try:
        names = [str(name) for (name,) in database.execute("SELECT name FROM setting")]
    finally:
        database.close()
    assert [name for name in names if f"`{name}`" not in text] == []
