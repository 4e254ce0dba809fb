from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaultfs.errors import NoSpaceError, StorageError, UsageError, VaultLockedError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.sync.ledger import Holdings, Ledger, OpenLedger
from vaultfs.sync.remote_layout import RemoteHead

VAULT = VaultId(b"v" * 16)
REMOTE = "memory:one"
HEAD = RemoteHead("d" * 64, 1, "e" * 64)

names = st.integers(0, 9).map(lambda number: SegmentName(f"{number:064x}"))
digests = st.integers(0, 3).map(lambda number: f"{number:064x}")
heads = st.builds(RemoteHead, digests, st.integers(1, 2**63 - 1), digests)
sizes = st.integers(1, 2**60)
statements = st.one_of(
    st.tuples(st.sampled_from(["put", "there"]), names, sizes),
    st.tuples(st.sampled_from(["offered", "header"]), digests),
    st.tuples(st.sampled_from(["known", "whole"]), heads),
)


@pytest.fixture
def ledger(scratch: Path) -> Ledger:
    return Ledger(scratch / "deep" / "ledger", VAULT)


def say(ledger: OpenLedger, statement: tuple[object, ...]) -> None:
    getattr(ledger, str(statement[0]))(*statement[1:])


def filled(ledger: Ledger) -> Holdings:
    """One with something of everything."""
    with ledger.locked(REMOTE) as writer:
        writer.replace(Holdings(is_listed=True))
        writer.offered("1" * 64)
        writer.header("1" * 64)
        for number in range(4):
            writer.put(SegmentName(f"{number:064x}"), number + 1)
        writer.there(SegmentName("0" * 64), 1)
        writer.known(RemoteHead("d" * 64, 1, "b" * 64))
        writer.whole(RemoteHead("d" * 64, 2, "c" * 64))
        return writer.holdings


def test_an_absent_one_says_nothing(ledger: Ledger) -> None:
    assert ledger.read(REMOTE) == Holdings()
    assert not ledger.path.parent.exists()


def test_what_was_said_comes_back(ledger: Ledger) -> None:
    said = filled(ledger)
    assert ledger.read(REMOTE) == said
    assert said.is_listed
    assert said.header == "1" * 64
    assert set(said.there) == {"0" * 64}
    assert set(said.put) == {f"{number:064x}" for number in (1, 2, 3)}
    assert set(said.heads) == {"b" * 64, "c" * 64}
    assert said.whole == {"c" * 64}
    with ledger.locked(REMOTE) as again:
        assert again.holdings == said


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(statements, max_size=30), st.integers(0, 30))
def test_any_statements_come_back(scratch: Path, said: list[tuple[object, ...]], rewritten_at: int) -> None:
    ledger = Ledger(scratch / os.urandom(8).hex(), VAULT)
    with ledger.locked(REMOTE) as writer:
        for number, statement in enumerate(said):
            if number == rewritten_at:
                writer.replace(writer.holdings)
            say(writer, statement)
        expected = writer.holdings
    assert asdict(ledger.read(REMOTE)) == asdict(expected)


def test_another_remotes_says_nothing(ledger: Ledger) -> None:
    filled(ledger)
    assert ledger.read("memory:two") == Holdings()
    assert Ledger(ledger.path.parent, VaultId(b"w" * 16)).read(REMOTE) == Holdings()
    with ledger.locked("memory:two") as writer:
        assert writer.holdings == Holdings()
    assert ledger.read(REMOTE) == Holdings()


def test_a_torn_end_is_cut(ledger: Ledger) -> None:
    filled(ledger)
    whole = ledger.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    start = len(whole) - len(lines[-1])
    before = Holdings()
    ledger.path.write_bytes(whole[:start])
    before = ledger.read(REMOTE)
    assert before.is_listed
    for end in range(start + 1, len(whole)):
        ledger.path.write_bytes(whole[:end])
        assert ledger.read(REMOTE) == before, end
    with ledger.locked(REMOTE) as writer:
        assert writer.holdings == before
        writer.whole(HEAD)
    assert HEAD.hash in ledger.read(REMOTE).whole


@pytest.mark.parametrize("tail", [b"\0" * 100, b"garbage\n", b"\xff\xfe", b"x" * 5000, b"\n", b" \n"])
def test_garbage_at_the_end_says_nothing(ledger: Ledger, tail: bytes) -> None:
    said = filled(ledger)
    with ledger.path.open("ab") as file:
        file.write(tail)
    found = ledger.read(REMOTE)
    found.is_listed = True  # a long tail may look like more than one line
    assert found == said
    with ledger.locked(REMOTE) as writer:
        writer.whole(HEAD)
    assert tail not in ledger.path.read_bytes() or tail in {b"\n", b" \n"}
    assert HEAD.hash in ledger.read(REMOTE).whole


def test_a_flipped_bit_anywhere_says_nothing_false(ledger: Ledger) -> None:
    said = filled(ledger)
    whole = bytearray(ledger.path.read_bytes())
    last = whole.rindex(b"\n", 0, len(whole) - 1)
    for position in range(len(whole)):
        whole[position] ^= 1 << position % 8
        ledger.path.write_bytes(whole)
        whole[position] ^= 1 << position % 8
        found = ledger.read(REMOTE)
        assert found.whole <= said.whole
        assert found.heads.items() <= said.heads.items()
        assert found.offered <= said.offered
        # Without the line that says "there", it was only acknowledged; and that is asked for.
        assert found.there.items() <= said.there.items()
        assert found.put.keys() <= {f"{number:064x}" for number in range(4)}
        if position < last:
            assert not found.is_listed, position


def test_a_missing_line_in_the_middle_is_noticed_only_by_its_effect(ledger: Ledger) -> None:
    """Whole lines are independent: without one, less is known, and that costs a request."""
    said = filled(ledger)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    for number in range(1, len(lines)):
        ledger.path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
        found = ledger.read(REMOTE)
        assert found.there.items() <= said.there.items()
        assert found.whole <= said.whole


@pytest.mark.parametrize(
    "statement",
    [
        "there x 1",
        f"there {'0' * 64} 0",
        f"there {'0' * 64} -1",
        f"there {'0' * 64} 1_0",
        f"there {'0' * 64} {10**30}",
        f"there {'0' * 64}",
        f"whole {'d' * 64} 0000000000 {'e' * 64}",
        f"whole {'d' * 64} 1 {'e' * 64}",
        f"known {'D' * 64} 0000000001 {'e' * 64}",
        "header x",
        "listed twice",
        "",
        "something new",
    ],
)
def test_senseless_statements_are_not_believed(statement: str) -> None:
    holdings = Holdings()
    assert not holdings.apply(statement)
    assert holdings == Holdings()


def test_one_process_at_a_time(ledger: Ledger) -> None:
    with (
        ledger.locked(REMOTE),
        pytest.raises(VaultLockedError, match="another sync with memory:one"),
        ledger.locked(REMOTE),
    ):
        pytest.fail("two had it")
    with ledger.locked(REMOTE):
        pass


def test_the_lock_goes_with_its_process(ledger: Ledger) -> None:
    program = (
        "import sys; from pathlib import Path; from vaultfs.sync.ledger import Ledger\n"
        f"with Ledger(Path({str(ledger.path.parent)!r}), {VAULT!r}).locked({REMOTE!r}):\n"
        "    print('locked', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(VaultLockedError), ledger.locked(REMOTE):
            pytest.fail("two had it")
        assert ledger.read(REMOTE) == Holdings()  # reading needs no lock
        process.kill()
    with ledger.locked(REMOTE):
        pass


def test_a_dry_run_writes_nothing(ledger: Ledger) -> None:
    filled(ledger)
    before = ledger.path.read_bytes()
    looking = ledger.looking(REMOTE)
    looking.put(SegmentName("9" * 64), 3)
    looking.replace(Holdings())
    looking.whole(HEAD)
    assert ledger.path.read_bytes() == before


def test_a_full_disk_is_told(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger.locked(REMOTE) as writer:
        real = os.write

        def full(descriptor: int, data: bytes) -> int:
            if len(data) > 10:
                return real(descriptor, bytes(data)[:10])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(NoSpaceError):
                writer.put(SegmentName("1" * 64), 1)
    with ledger.locked(REMOTE) as again:
        again.whole(HEAD)
    assert ledger.read(REMOTE).whole == {HEAD.hash}


def test_something_else_in_its_place(ledger: Ledger) -> None:
    ledger.path.parent.mkdir(parents=True)
    ledger.path.symlink_to("/dev/zero")
    with pytest.raises(StorageError):
        ledger.read(REMOTE)
    ledger.path.unlink()
    os.mkfifo(ledger.path)
    assert ledger.read(REMOTE) == Holdings()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "-x", ".x", "x" * 65, "\u00e4", "a b", "a\n"])
def test_names_that_cannot_be_a_directory(name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a remote"):
        Ledger.of(VAULT, name)


def test_where_it_is(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(scratch))
    assert Ledger.of(VAULT, "s3-main").path == scratch / "vaultfs" / "sync" / VAULT.hex() / "s3-main" / "ledger"
