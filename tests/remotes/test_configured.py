from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaultfs.errors import FormatTooNewError, IntegrityError, StorageError, UsageError
from vaultfs.remotes.configured import MAX_FILE_BYTES, MAX_REMOTES, Remote, load_remotes, save_remotes
from vaultfs.remotes.store import Features
from vaultfs.remotes.trusted_commands import is_trusted, trust
from vaultfs.storage.layout import VaultLayout

ALL = Features(conditional_create=True, range_reads=True, lists_at_once=True)
NO_FEATURES = {"conditional_create": False, "range_reads": False, "lists_at_once": False}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VaultLayout:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = VaultLayout(tmp_path / "vault")
    made.create_directories()
    return made


def stored(**changes: object) -> dict[str, Any]:
    return {"name": "one", "url": "s3://bucket", "options": {}, "features": NO_FEATURES} | changes


def write(layout: VaultLayout, *remotes: object, version: object = 1) -> None:
    layout.remotes.write_bytes(msgspec.json.encode({"format": version, "remotes": list(remotes)}))


def test_none(layout: VaultLayout) -> None:
    assert load_remotes(layout) == []


def test_round_trip(layout: VaultLayout) -> None:
    remotes = [
        Remote("usb", "file:///media/stick/vault"),
        Remote("cloud-1", "s3://bucket/x", {"region": "eu-1", "profile": "mé"}, ALL),
        Remote("a" * 32, "gdrive:folder", {"access_token_command": "print-token 'a b'"}, Features(range_reads=True)),
        Remote("0_", "future+kind://x", {}, Features()),
    ]
    save_remotes(layout, remotes)
    assert load_remotes(layout) == remotes
    assert stat.S_IMODE(layout.remotes.stat().st_mode) == 0o600
    save_remotes(layout, remotes[1:])
    assert load_remotes(layout) == remotes[1:]
    save_remotes(layout, [])
    assert load_remotes(layout) == []


def test_the_file_is_as_documented(layout: VaultLayout) -> None:
    save_remotes(layout, [Remote("one", "s3://bucket", {"region": "x"}, ALL)])
    features = {"conditional_create": True, "range_reads": True, "lists_at_once": True}
    assert msgspec.json.decode(layout.remotes.read_bytes()) == {
        "format": 1,
        "remotes": [{"name": "one", "url": "s3://bucket", "options": {"region": "x"}, "features": features}],
    }


@pytest.mark.parametrize(
    "remotes",
    [
        [Remote("", "s3://b")],
        [Remote("A", "s3://b")],
        [Remote("-a", "s3://b")],
        [Remote("a\n", "s3://b")],
        [Remote("../a", "s3://b")],
        [Remote("a" * 33, "s3://b")],
        [Remote("a", "")],
        [Remote("a", "s3://b c")],
        [Remote("a", "s3://user:very-secret@b")],
        [Remote("a", "s3://b?x=very-secret")],
        [Remote("a", "s3://b", {"A b": "x"})],
        [Remote("a", "s3://b", {"region": "x\ny"})],
        [Remote("a", "s3://b", {"region": "x" * 1025})],
        [Remote("a", "s3://b", {f"o{number}": "x" for number in range(17)})],
        [Remote("a", "s3://b"), Remote("a", "s3://c")],
        [Remote(f"a{number}", "s3://b") for number in range(MAX_REMOTES + 1)],
        [Remote(f"a{number}", "s3://b", {f"o{x}": "é" * 1024 for x in range(16)}) for number in range(MAX_REMOTES)],
    ],
)
def test_what_cannot_be_stored(layout: VaultLayout, remotes: list[Remote]) -> None:
    save_remotes(layout, [Remote("old", "s3://b")])
    with pytest.raises(UsageError) as caught:
        save_remotes(layout, remotes)
    assert "very-secret" not in str(caught.value)
    assert load_remotes(layout) == [Remote("old", "s3://b")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"format": 1}',
        b'{"format": "1", "remotes": []}',
        b'{"format": 0, "remotes": []}',
        b'{"format": -1, "remotes": []}',
        b'{"format": 1, "remotes": {}}',
        b'{"format": 1, "remotes": [], "more": 1}',
        b'{"format": 1, "remotes": [], "\x1b[31m": 1}',
        b'{"format": 1, "remotes": []} x',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "format": 1, "remotes": []}',
        b'{"format": 1, "remotes": []' + b" " * MAX_FILE_BYTES + b"}",
    ],
    ids=range(16),
)
def test_damage(layout: VaultLayout, data: bytes) -> None:
    layout.remotes.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged") as caught:
        load_remotes(layout)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "remote",
    [
        stored(name="../x"),
        stored(name="A"),
        stored(name=1),
        stored(url="s3://b\n"),
        stored(url=""),
        stored(url="s3://" + "b" * 3000),
        stored(options={"a b": "x"}),
        stored(options={"a": 1}),
        stored(options={"a": "\x1b[31m"}),
        stored(options={"a": "\u202e"}),
        stored(options=[]),
        stored(features={}),
        stored(features=NO_FEATURES | {"more": True}),
        stored(features=NO_FEATURES | {"range_reads": 1}),
        stored(more=1),
        {"name": "one"},
        [],
    ],
)
def test_damaged_remotes(layout: VaultLayout, remote: object) -> None:
    write(layout, remote)
    with pytest.raises(IntegrityError):
        load_remotes(layout)


def test_two_of_one_name(layout: VaultLayout) -> None:
    write(layout, stored(), stored())
    with pytest.raises(IntegrityError, match="one name"):
        load_remotes(layout)


def test_a_newer_format(layout: VaultLayout) -> None:
    layout.remotes.write_bytes(b'{"format": 2, "things": {"a": [1]}}')
    with pytest.raises(FormatTooNewError):
        load_remotes(layout)


def test_a_kind_that_is_not_known_is_no_damage(layout: VaultLayout) -> None:
    write(layout, stored(url="carrier-pigeon://coop"))
    assert load_remotes(layout)[0].url == "carrier-pigeon://coop"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_something_else_in_its_place(layout: VaultLayout, tmp_path: Path, kind: str) -> None:
    if kind == "symlink":
        (tmp_path / "elsewhere").write_bytes(b'{"format": 1, "remotes": []}')
        layout.remotes.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(layout.remotes)
    else:
        layout.remotes.mkdir()
    with pytest.raises(IntegrityError):
        load_remotes(layout)


def test_a_disk_that_fails(layout: VaultLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    write(layout)

    def fail(*_: object, **__: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StorageError):
        load_remotes(layout)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=300), JSON.map(msgspec.json.encode)))
def test_anything_is_read_or_told_to_be_damaged(layout: VaultLayout, data: bytes) -> None:
    layout.remotes.write_bytes(data)
    try:
        load_remotes(layout)
    except (IntegrityError, FormatTooNewError):
        return
    assert msgspec.json.decode(data)["format"] == 1


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_flipped_bits(layout: VaultLayout, position: int, bit: int) -> None:
    save_remotes(layout, [Remote("one", "s3://bucket", {"region": "x"}, ALL), Remote("two", "file:///x")])
    data = bytearray(layout.remotes.read_bytes())
    data[position % len(data)] ^= 1 << bit
    layout.remotes.write_bytes(data)
    try:
        remotes = load_remotes(layout)
    except (IntegrityError, FormatTooNewError):
        return
    save_remotes_is_possible_or_refused(layout, remotes)


def save_remotes_is_possible_or_refused(layout: VaultLayout, remotes: list[Remote]) -> None:
    try:
        save_remotes(layout, remotes)
    except UsageError:
        return
    assert load_remotes(layout) == remotes


class TestCommands:
    """Whoever can write into the vault's directory must not have commands run."""

    def test_a_strangers_command_is_passed_over(self, layout: VaultLayout) -> None:
        write(layout, stored(url="gdrive:x", options={"access_token_command": "evil", "plain": "stays"}))
        assert load_remotes(layout)[0].options == {"plain": "stays"}

    def test_saving_what_was_loaded_does_not_trust_it(self, layout: VaultLayout) -> None:
        write(layout, stored(url="gdrive:x", options={"access_token_command": "evil"}))
        save_remotes(layout, [*load_remotes(layout), Remote("two", "s3://b")])
        write(layout, stored(url="gdrive:x", options={"access_token_command": "evil"}))
        assert load_remotes(layout)[0].options == {}

    @pytest.mark.parametrize(
        "change",
        [
            {"url": "webdav+https://evil/x"},
            {"options": {"password_command": "evil"}},
            {"options": {"access_token_command": "mine"}},
        ],
    )
    def test_only_the_very_same_is_trusted(self, layout: VaultLayout, change: dict[str, Any]) -> None:
        mine = Remote("one", "webdav+https://mine/x", {"password_command": "mine"})
        save_remotes(layout, [mine])
        assert load_remotes(layout) == [mine]
        write(layout, stored(url=mine.url, options=mine.options) | change)
        assert load_remotes(layout)[0].options == {}

    def test_another_machine_does_not_trust_it(
        self, layout: VaultLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_remotes(layout, [Remote("one", "gdrive:x", {"access_token_command": "mine"})])
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
        assert load_remotes(layout)[0].options == {}

    def test_notes_are_private_and_kept(self, layout: VaultLayout, tmp_path: Path) -> None:
        for number in range(3):
            trust("gdrive:x", "a_command", f"run {number}")
            trust("gdrive:x", "a_command", f"run {number}")
        path = tmp_path / "state" / "vaultfs" / "remote-commands"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.read_text().splitlines()) == 3
        assert "run" not in path.read_text()
        assert all(is_trusted("gdrive:x", "a_command", f"run {number}") for number in range(3))
        assert not is_trusted("gdrive:x", "a_command", "run 3")

    def test_damaged_notes_trust_nothing(self, layout: VaultLayout, tmp_path: Path) -> None:
        trust("gdrive:x", "a_command", "run")
        path = tmp_path / "state" / "vaultfs" / "remote-commands"
        path.write_bytes(b"\xff" + path.read_bytes()[1:] + b"\nhalf")
        assert not is_trusted("gdrive:x", "a_command", "run")
        trust("gdrive:x", "a_command", "run")
        assert is_trusted("gdrive:x", "a_command", "run")
