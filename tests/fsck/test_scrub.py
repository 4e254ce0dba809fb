"""Scrubbing: every chunk is opened, in order, and what is damaged is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fsck.vault_copies import CHUNK, Copy, damaged_files, flip, secret
from vaultfs.errors import ExitCode, IntegrityError, VaultLockedError
from vaultfs.fuse.scrubbing import scrub_some
from vaultfs.vault import scrub_step
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.scrub import ScrubReport, scrub

PATH = b"/folder/file6"


def damage(copy: Copy, path: bytes = PATH, index: int = 2) -> None:
    segment, place = copy.segment_of(path, index)
    flip(segment, place.offset + 30)


def test_a_sound_vault(copy: Copy) -> None:
    seen: list[tuple[int, int | None]] = []
    report = scrub(copy.path, secret(), on_progress=lambda done, total: seen.append((done, total)))
    assert report.exit_code == ExitCode.OK
    assert report.ranges == []
    assert report.chunks == copy.check().chunks
    assert seen[-1] == (report.read_bytes, report.read_bytes)


def test_damage_is_named(copy: Copy) -> None:
    damage(copy)
    report = scrub(copy.path, secret())
    assert report.exit_code == ExitCode.INTEGRITY
    assert report.damaged_chunks == 1
    (found,) = report.ranges
    assert set(found.paths) == {"/folder/file6", "/folder/deep/link"}
    assert (found.offset, found.length) == (2 * CHUNK, CHUNK)


def test_what_is_lost_stays_damage(copy: Copy) -> None:
    """A repair makes the vault consistent; the data is gone all the same, and a scrub says so until it is replaced."""
    damage(copy)
    copy.check(repair=True)
    report = scrub(copy.path, secret())
    assert (report.damaged_chunks, report.lost_chunks) == (0, 1)
    assert report.exit_code == ExitCode.INTEGRITY
    with copy.open() as vault:
        vault.remove(PATH)
        vault.remove(b"/folder/deep/link")
    assert scrub(copy.path, secret()).exit_code == ExitCode.OK
    assert copy.check().findings == []


def test_chunks_that_only_a_snapshot_needs(copy: Copy) -> None:
    with copy.open() as vault:
        vault.create_snapshot("kept")
    segment, place = copy.segment_of(PATH, 2)
    with copy.open() as vault:
        vault.remove(PATH)
        vault.remove(b"/folder/deep/link")
    flip(segment, place.offset + 30)
    report = scrub(copy.path, secret())
    assert report.exit_code == ExitCode.INTEGRITY
    assert report.ranges == []
    assert "snapshot 1" in report.others[0]
    found = copy.check()
    assert {each.code for each in found.findings} == {"damaged-snapshot", "segment-altered"} or found.problems
    copy.check(repair=True)
    assert copy.check().is_clean


def test_a_vault_in_use_and_one_that_was_tampered_with(copy: Copy) -> None:
    with copy.open(), pytest.raises(VaultLockedError):
        scrub(copy.path, secret())
    flip(copy.layout.database, 5000)
    with pytest.raises(IntegrityError, match="fsck"):
        scrub(copy.path, secret())


# --- an open vault, in steps


async def in_requests(fs: FileSystem, between: Callable[[], None] = lambda: None) -> tuple[ScrubReport, list[Any]]:
    """All there is, in as many requests as it takes."""
    report, answers = ScrubReport(), []
    position = {"segment": 0, "chunk": 0}
    while True:
        answer = await scrub_some(fs, position)
        answers.append(answer)
        report.chunks += answer["chunks"]
        report.read_bytes += answer["bytes"]
        report.damaged_chunks += answer["damaged_chunks"]
        report.lost_chunks += answer["lost_chunks"]
        if answer["done"]:
            return report, answers
        position = {"segment": answer["segment"], "chunk": answer["chunk"]}
        between()


async def test_an_open_vault(copy: Copy) -> None:
    whole = scrub(copy.path, secret())
    with copy.open() as vault:
        report, answers = await in_requests(vault.filesystem)
        assert (report.chunks, report.read_bytes) == (whole.chunks, whole.read_bytes)
        assert answers[-1]["total_bytes"] == whole.read_bytes
        assert not vault.filesystem.segments.is_leased


async def test_small_requests_see_every_chunk_once(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.fuse.scrubbing.REQUEST_BYTES", 10_000)
    monkeypatch.setattr(scrub_step, "STEP_CHUNKS", 2)
    whole = scrub(copy.path, secret())
    with copy.open() as vault:
        report, answers = await in_requests(vault.filesystem)
    assert report.chunks == whole.chunks
    assert len(answers) > 5


async def test_damage_in_an_open_vault(copy: Copy) -> None:
    damage(copy)
    with copy.open() as vault:
        report, answers = await in_requests(vault.filesystem)
        assert report.damaged_chunks == 1
        (found,) = [each for answer in answers for each in answer["damaged"]]
        assert set(found["paths"]) == {"/folder/file6", "/folder/deep/link"}
        assert found["offset"] == 2 * CHUNK
        # Writing the same bytes again heals the file, instead of sharing the damaged chunk.
        with vault.open(PATH, "r+b") as file:
            file.pwrite(copy.contents[PATH][2 * CHUNK : 3 * CHUNK], 2 * CHUNK)
        vault.commit()
        assert (await in_requests(vault.filesystem))[0].damaged_chunks == 0
    assert damaged_files(copy) == set()


async def test_writing_and_deleting_meanwhile(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends while its bytes are being read is not damage."""
    monkeypatch.setattr("vaultfs.fuse.scrubbing.REQUEST_BYTES", 5_000)
    monkeypatch.setattr(scrub_step, "STEP_CHUNKS", 3)
    with copy.open() as vault:
        left = [b"/folder/file%d" % number for number in range(2, 6)]

        def work() -> None:
            if left:
                vault.remove(left.pop())
                with vault.open(b"/new%d" % len(left), "wb") as file:
                    file.write(b"n" * 9000 + b"%d" % len(left))
                vault.commit()

        report, _ = await in_requests(vault.filesystem, work)
        assert report.damaged_chunks == 0
        assert not left
    assert copy.check().findings == []


async def test_a_chunk_that_moves_between_plan_and_judgement_is_not_damaged(copy: Copy) -> None:
    damage(copy)
    with copy.open() as vault:
        fs = vault.filesystem
        steps = []
        position = scrub_step.Position(0, 0)
        while (step := scrub_step.plan(fs, position)) is not None:
            step.read()
            steps.append(step)
            position = step.position
        assert sum(len(step.bad) for step in steps) == 1
        vault.remove(PATH)
        vault.remove(b"/folder/deep/link")
        while fs.files.sweep():
            pass
        vault.commit()
        assert [scrub_step.judge(fs, step) for step in steps] == [([], [])] * len(steps)
