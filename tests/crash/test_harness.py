"""The crash tests must find what is wrong, and nothing else: both are tried on a store whose safety is known."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .block_power_cut import BlockRecorded, digest_of
from .power_cut import Job, Recorded
from .recorder import Recorder
from .report import Inspection
from .simulated_disk import Loss, Recording, State
from .stores import ModelStore, SqliteStore, differences
from .trace import TraceError, run_traced
from .workload import STEPS, Expectation, generate


def inspect_sqlite(root: Path) -> Inspection:
    store = SqliteStore(root)
    tree = store.tree()
    store.close()
    return Inspection(tree)


def prepare_sqlite(root: Path) -> None:
    SqliteStore(root).close()


@pytest.mark.parametrize("workload", sorted(STEPS))
def test_safe_store_passes_everywhere(scratch: Path, root: Path, workload: str) -> None:
    prepare_sqlite(root)
    report = Recorded(Job("sqlite", workload, 1, 20), scratch, root).check(inspect_sqlite)
    report.verify(least_points=60)


def test_store_without_syncs_is_caught(scratch: Path, root: Path) -> None:
    prepare_sqlite(root)
    recorded = Recorded(Job("sqlite-unsafe", "documents", 1, 12), scratch, root)
    for loss in set(Loss) - {Loss.NOTHING}:
        assert recorded.check(inspect_sqlite, losses=[loss]).problems, loss
    assert not recorded.check(inspect_sqlite, losses=[Loss.NOTHING]).problems


@pytest.mark.root
def test_safe_store_passes_on_ext4(scratch: Path) -> None:
    report = BlockRecorded(Job("sqlite", "documents", 1, 12), scratch, prepare_sqlite).check(inspect_sqlite, seeds=2)
    report.verify(least_points=60)


@pytest.mark.root
def test_store_without_syncs_is_caught_on_ext4(scratch: Path) -> None:
    recorded = BlockRecorded(Job("sqlite-unsafe", "documents", 1, 12), scratch, prepare_sqlite)
    assert recorded.check(inspect_sqlite).problems


def test_directories_that_differ_have_other_digests(tmp_path: Path) -> None:
    def made(name: str, change: Callable[[Path], object] = lambda _: None) -> bytes:
        root = tmp_path / name
        (root / "d").mkdir(parents=True)
        (root / "d" / "a").write_bytes(b"1234")
        (root / "b").write_bytes(b"")
        (root / "s").symlink_to("d")
        change(root)
        return digest_of(root)

    def point_elsewhere(root: Path) -> None:
        (root / "s").unlink()
        (root / "s").symlink_to("e")

    same = made("same")
    assert made("equal") == same
    assert made("shared memory", lambda root: (root / "b").rename(root / "c-shm")) == made(
        "other shared memory", lambda root: ((root / "b").rename(root / "c-shm"), (root / "c-shm").write_bytes(b"x"))
    )
    changes: list[Callable[[Path], object]] = [
        lambda root: (root / "d" / "a").write_bytes(b"1235"),
        lambda root: (root / "d" / "a").write_bytes(b"12345"),
        lambda root: (root / "b").rename(root / "c"),
        lambda root: (root / "b").unlink(),
        lambda root: (root / "b").chmod(0o600),
        lambda root: (root / "b2").hardlink_to(root / "b"),
        point_elsewhere,
        lambda root: (root / "e").mkdir(),
    ]
    assert len({same, *(made(str(number), change) for number, change in enumerate(changes))}) == len(changes) + 1


def test_mixed_state_is_caught() -> None:
    expectation = Expectation(generate("rewrite", 3, 12))
    trees = expectation.trees
    mixed = dict(trees[-1])
    path, entry = next((path, entry) for path, entry in mixed.items() if entry.data)
    mixed[path] = entry._replace(data=entry.data[:-1])
    assert "no moment" in expectation.mismatch(mixed, range(len(trees)))
    early = next(n for n, tree in enumerate(trees) if differences(trees[-1], tree))
    assert "promise was broken" in expectation.mismatch(trees[early], range(len(trees) - 1, len(trees)))


@pytest.mark.parametrize("workload", sorted(STEPS))
def test_workload_depends_on_its_seed_alone(workload: str) -> None:
    assert generate(workload, 5, 30) == generate(workload, 5, 30)
    assert generate(workload, 5, 30) != generate(workload, 6, 30)
    trees = Expectation(generate(workload, 5, 30)).trees
    assert sum(before != after for before, after in itertools.pairwise(trees)) > 10


def test_stored_tree_is_the_model(root: Path) -> None:
    model, store = ModelStore(), SqliteStore(root)
    for operation in generate("names", 1, 60):
        for target in (model, store):
            getattr(target, operation.verb)(*operation.arguments)
    store.close()
    assert not differences(model.tree(), SqliteStore(root).tree())


PROGRAM = """
import os, sys, threading
root = sys.argv[1]
file = os.open(f"{root}/a", os.O_RDWR | os.O_CREAT | os.O_EXCL)
os.pwritev(file, [b"first ", b"piece"], 0)
os.fdatasync(file)
os.write(file, b"FI")
os.write(file, b"RST")
os.mkdir(f"{root}/d")
os.link(f"{root}/a", f"{root}/d/b")
directory = os.open(f"{root}/d", os.O_RDONLY)
os.fsync(directory)
os.unlink(f"{root}/a")
os.pwrite(file, b"!", 11)
os.rename(f"{root}/d/b", f"{root}/c")
os.truncate(f"{root}/c", 4)
os.symlink("c", "s", dir_fd=directory)
os.rename("s", "t", src_dir_fd=directory, dst_dir_fd=directory)
with open(f"{root}/log", "ab") as log:
    log.write(b"one"); log.flush(); log.write(b"two")
with open(f"{root}/log", "ab") as log:
    log.write(b"three")
"""


def record_program(program: str, scratch: Path, root: Path) -> Recording:
    recorder = Recorder(root, scratch / "marks")
    script = scratch / "program.py"
    script.write_text(program)
    return recorder.follow(run_traced([sys.executable, script, root], scratch / "trace", directory=scratch))


def read_tree(root: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for base, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = Path(base, name)
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = b"-> " + os.fsencode(path.readlink())
            else:
                found[key] = b"directory" if path.is_dir() else path.read_bytes()
    return found


def test_recording_ends_where_the_program_did(scratch: Path, root: Path) -> None:
    (root / "before").write_bytes(b"it")
    recording = record_program(PROGRAM, scratch, root)
    truth = read_tree(root)
    assert truth["c"] == b"FIRS"
    assert truth["log"] == b"onetwothree"
    recording.crash(recording.cuts[-1], Loss.NOTHING).write_to(root)
    assert read_tree(root) == truth


def texts(state: State) -> dict[bytes, bytes | None]:
    return {path: content for path, (_, content) in state.tree.items()}


def test_only_what_was_synced_is_sure(scratch: Path, root: Path) -> None:
    recording = record_program(PROGRAM, scratch, root)
    end = recording.cuts[-1]
    assert texts(recording.crash(end, Loss.EVERYTHING)) == {}  # the root directory was never synced
    assert texts(recording.crash(end, Loss.DATA))[b"c"] == b"firs"  # the truncated size, and the bytes that were synced
    seen = {recording.crash(end, Loss.SCATTERED, seed).digest() for seed in range(100)}
    assert len(seen) > 50
    journal = [texts(recording.crash(end, Loss.JOURNAL, seed)) for seed in range(100)]
    assert all(b"d" in tree for tree in journal)  # it was made before the last sync of anything
    assert any(b"log" not in tree for tree in journal)
    assert any(b"log" in tree for tree in journal)
    assert not any(b"log" in tree and b"c" not in tree for tree in journal)  # the journal keeps the order


def test_rename_over_without_sync_can_leave_nothing(scratch: Path, root: Path) -> None:
    (root / "a").write_bytes(b"old")
    program = "import os, sys; os.chdir(sys.argv[1]); f=open(os.path.abspath('n'),'wb'); f.write(b'new'); f.close()\n"
    program += "os.rename(os.path.abspath('n'), os.path.abspath('a'))"
    recording = record_program(program, scratch, root)
    end = recording.cuts[-1]
    found = {texts(recording.crash(end, loss, seed))[b"a"] for loss in Loss for seed in range(50)}
    assert found == {b"old", b"new", b"", b"\0\0\0"}


def test_write_through_mmap_is_refused(scratch: Path, root: Path) -> None:
    (root / "a").write_bytes(bytes(4096))
    program = "import mmap, sys; f=open(sys.argv[1]+'/a','r+b'); mmap.mmap(f.fileno(), 4096)[0:1] = b'x'"
    with pytest.raises(TraceError, match="mmap"):
        record_program(program, scratch, root)


def test_failed_program_is_an_error(scratch: Path) -> None:
    with pytest.raises(TraceError, match="ended with 3"):
        run_traced([sys.executable, "-c", "raise SystemExit(3)"], scratch / "trace", directory=scratch)
