"""Power cuts and kills between each two system calls, and proof that every sync is there for a reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest

from vaultfs.ids import SegmentName
from vaultfs.storage.durable import atomic_replace
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import SegmentHeader
from vaultfs.storage.segment_reader import hash_file
from vaultfs.storage.segment_writer import SegmentWriter, seal_leftover

from .disk_model import Disk, Recorder

FIRST = b"first" * 1000
SECOND = b"second" * 1000


def sealed_files_are_whole(disk: Disk, layout: VaultLayout) -> list[str]:
    """What a backup finds under a sealed name must be what the name says, at every instant."""
    wrong = []
    for name in layout.sealed_names():
        left = disk.content(layout.sealed_path(name), all_names=True)
        if left is None or blake3.blake3(left).hexdigest() != name:
            wrong.append(f"{name} is not what its name says")
    return wrong


def leave_shard(layout: VaultLayout, content: bytes) -> None:
    """A segment's directory, as a process leaves it that died between creating and syncing it."""
    layout.sealed_path(SegmentName(blake3.blake3(content).hexdigest())).parent.mkdir()


def write_and_seal(layout: VaultLayout, header: SegmentHeader, disk: Disk, *, fresh: bool) -> None:
    disk.invariant = lambda disk: sealed_files_are_whole(disk, layout)
    layout.create_directories()
    if not fresh:
        leave_shard(layout, header.encode() + FIRST + SECOND + b"index and trailer")
    writer = SegmentWriter.create(layout, header)
    writer.append([FIRST])
    writer.sync()
    disk.promises[layout.open_path(writer.token)] = header.encode() + FIRST
    disk.check()
    writer.append([SECOND])
    writer.sync()
    disk.promises[layout.open_path(writer.token)] = header.encode() + FIRST + SECOND
    disk.check()
    writer.append([b"index and trailer"])
    name = writer.seal()
    disk.promises[layout.sealed_path(name)] = header.encode() + FIRST + SECOND + b"index and trailer"
    disk.check()
    del disk.promises[layout.open_path(writer.token)]  # the metadata now has the sealed name
    writer.discard_open_name()
    writer.close()


def replace(layout: VaultLayout, _header: SegmentHeader, disk: Disk) -> None:
    layout.create_directories()
    atomic_replace(layout.head, FIRST)
    disk.check()
    disk.invariant = lambda disk: [
        f"HEAD is mixed or missing ({all_names=})"
        for all_names in (False, True)
        if disk.content(layout.head, all_names=all_names) not in {FIRST, SECOND}
    ]
    disk.check()
    atomic_replace(layout.head, SECOND)
    disk.promises[layout.head] = SECOND
    disk.check()


def seal_what_a_kill_left(layout: VaultLayout, header: SegmentHeader, disk: Disk, *, linked: bool) -> None:
    disk.invariant = lambda disk: sealed_files_are_whole(disk, layout)
    layout.create_directories()
    writer = SegmentWriter.create(layout, header)
    writer.append([FIRST])
    writer.sync()
    disk.promises[layout.open_path(writer.token)] = header.encode() + FIRST
    keep = writer.size_bytes
    writer.append([SECOND])
    writer.sync()
    writer.close()
    if linked:
        path = layout.open_path(writer.token)
        sealed = layout.sealed_path(hash_file(path))
        sealed.parent.mkdir()
        os.link(path, sealed)
    else:
        leave_shard(layout, header.encode() + FIRST)
    name, size = seal_leftover(layout, writer.token, keep)
    content = header.encode() + FIRST + (SECOND if linked else b"")
    assert size == len(content)
    disk.promises[layout.sealed_path(name)] = content
    disk.check()


def write_and_seal_in_new_shard(layout: VaultLayout, header: SegmentHeader, disk: Disk) -> None:
    write_and_seal(layout, header, disk, fresh=True)


def write_and_seal_in_shard_of_a_dead_process(layout: VaultLayout, header: SegmentHeader, disk: Disk) -> None:
    write_and_seal(layout, header, disk, fresh=False)


def seal_leftover_of_a_kill(layout: VaultLayout, header: SegmentHeader, disk: Disk) -> None:
    seal_what_a_kill_left(layout, header, disk, linked=False)


def seal_leftover_of_a_kill_after_the_link(layout: VaultLayout, header: SegmentHeader, disk: Disk) -> None:
    seal_what_a_kill_left(layout, header, disk, linked=True)


def seal_beside_a_copy(layout: VaultLayout, header: SegmentHeader, disk: Disk) -> None:
    """As in a vault that was copied, without its hard links and just now, between a link and its commit."""
    layout.create_directories()
    writer = SegmentWriter.create(layout, header)
    writer.append([FIRST])
    content = header.encode() + FIRST
    leave_shard(layout, content)
    sealed = layout.sealed_path(SegmentName(blake3.blake3(content).hexdigest()))
    sealed.write_bytes(content)
    writer.seal()
    disk.promises[sealed] = content
    disk.check()
    writer.close()


Scenario = Callable[[VaultLayout, SegmentHeader, Disk], None]
# With the numbers of the syncs that the scenario would survive without, and why.
SCENARIOS: dict[Scenario, set[int]] = {
    write_and_seal_in_new_shard: set(),
    write_and_seal_in_shard_of_a_dead_process: set(),
    replace: {0},  # of segments/, where nothing is written
    seal_beside_a_copy: {0, 3},  # of segments/, which sealing syncs again; of the file in open/, which may go
    seal_leftover_of_a_kill: {5},  # the dead process's last, of what is cut off anyway
    seal_leftover_of_a_kill_after_the_link: {6},  # repeats the fdatasync that the dead process must have made
}


def run(scenario: Scenario, tmp_path: Path, header: SegmentHeader, *, drop: int | None = None) -> Disk:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(Recorder(tmp_path, patch), drop=drop)
        scenario(VaultLayout(tmp_path / "vault"), header, disk)
    disk.close()
    return disk


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_at_any_call_loses_nothing_promised(
    scenario: Scenario, tmp_path: Path, header: SegmentHeader
) -> None:
    disk = run(scenario, tmp_path, header)
    assert not disk.violations
    assert disk.syncs >= 5


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_sync_is_needed(scenario: Scenario, tmp_path: Path, header: SegmentHeader) -> None:
    harmless = set()
    number = 0
    while True:
        directory = tmp_path / str(number)
        directory.mkdir()
        disk = run(scenario, directory, header, drop=number)
        if number >= disk.syncs:
            break
        if not disk.violations:
            harmless.add(number)
        number += 1
    assert harmless == SCENARIOS[scenario]


def killed_at(number: int, root: Path, work: Callable[[Callable[[str], None]], None]) -> list[str] | None:
    """Run ``work(report)`` in a process that is killed before its system call of that number.

    Returns:
        What it reported; None if it finished first.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            recorder = Recorder(root, patch)

            def die(_name: str, _subject: object) -> None:
                if len(recorder.calls) == number:
                    os._exit(9)

            recorder.before = die
            real_write = os.write
            work(lambda text: void(real_write(sending, text.encode() + b"\n")))
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        reported = pipe.read().split("\n")[:-1]
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in {0, 9}
    return reported if os.waitstatus_to_exitcode(status) == 9 else None


def void(_value: object) -> None:
    """Make a function of something that returns a value."""


def recover(layout: VaultLayout, reported: list[str]) -> bytes | None:
    """What a mount after the kill finds of the data, or None if nothing was committed."""
    if not reported:
        return None
    token, keep, name = reported[-1].split(" ")
    if name == "-":
        name, size = seal_leftover(layout, token, int(keep))
        assert (name, size) == seal_leftover(layout, token, int(keep))
        assert size >= int(keep)
    path = layout.sealed_path(SegmentName(name))
    assert hash_file(path) == name
    return path.read_bytes()


def test_a_kill_before_any_call_is_recovered(tmp_path: Path, header: SegmentHeader) -> None:
    number = 0
    outcomes = set()
    while True:
        root = tmp_path / str(number)
        root.mkdir()
        layout = VaultLayout(root / "vault")
        layout.create_directories()

        def work(report: Callable[[str], None], layout: VaultLayout = layout) -> None:
            writer = SegmentWriter.create(layout, header)
            for data in (FIRST, SECOND):
                writer.append([data])
                writer.sync()
                report(f"{writer.token} {writer.size_bytes} -")
            writer.append([b"index and trailer"])
            name = writer.seal()
            report(f"{writer.token} {writer.size_bytes} {name}")
            writer.discard_open_name()
            writer.close()

        reported = killed_at(number, root, work)
        if reported is None:
            break
        committed = [None, FIRST, FIRST + SECOND, FIRST + SECOND + b"index and trailer"][len(reported)]
        found = recover(layout, reported)
        assert (found is None) == (committed is None)
        if found is not None and committed is not None:
            rest = found.removeprefix(header.encode() + committed)
            assert rest in {b"", b"index and trailer"}
            assert len(found) == len(header.encode() + committed + rest)
        outcomes.add((len(reported), found and len(found)))
        for name in layout.sealed_names():
            assert hash_file(layout.sealed_path(name)) == name
        number += 1
    assert number >= 14
    whole = len(header.encode() + FIRST + SECOND)
    # Both are met: kills before the link, which cut the index off, and after it, which leave the file whole.
    assert {(2, whole), (2, whole + len(b"index and trailer"))} <= outcomes


@pytest.mark.parametrize("linked", [False, True])
def test_a_kill_while_sealing_a_leftover_is_recovered(tmp_path: Path, header: SegmentHeader, *, linked: bool) -> None:
    number = 0
    while True:
        root = tmp_path / str(number)
        root.mkdir()
        layout = VaultLayout(root / "vault")
        layout.create_directories()
        writer = SegmentWriter.create(layout, header)
        writer.append([FIRST])
        keep = writer.size_bytes
        writer.append([SECOND])
        content = header.encode() + FIRST
        if linked:
            writer.seal()
            content += SECOND
        writer.close()

        def work(_report: Callable[[str], None], layout: VaultLayout = layout, token: str = writer.token) -> None:
            seal_leftover(layout, token, keep)  # noqa: B023  # used up within this turn of the loop

        reported = killed_at(number, root, work)
        name, size = seal_leftover(layout, writer.token, keep)
        assert size == len(content)
        assert layout.sealed_path(name).read_bytes() == content
        assert list(layout.sealed_names()) == [name]
        if reported is None:
            break
        number += 1
    assert number >= 6


def test_a_kill_before_any_call_of_atomic_replace_leaves_old_or_new(tmp_path: Path) -> None:
    number = 0
    found = []
    while True:
        root = tmp_path / str(number)
        root.mkdir()
        path = root / "HEAD"
        path.write_bytes(FIRST)

        def work(_report: Callable[[str], None], path: Path = path) -> None:
            atomic_replace(path, SECOND)

        reported = killed_at(number, root, work)
        found.append(path.read_bytes())
        if reported is None:
            break
        number += 1
    assert number >= 5
    assert found == [FIRST] * found.count(FIRST) + [SECOND] * found.count(SECOND)
    assert found[-1] == SECOND
