"""Scrub and fsck of a clone: what was not fetched is told, not missed; what nobody has is."""

from __future__ import annotations

from pathlib import Path

import pytest
from vault_compaction.vaults import KEY, read, write

import vaultfs
from vault_elsewhere.sources import Elsewhere
from vaultfs.errors import ExitCode, IntegrityError, UsageError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_source import KnownElsewhere
from vaultfs.vault.api import Vault
from vaultfs.vault.fsck import check
from vaultfs.vault.scrub import scrub
from vaultfs.vault.scrub_step import Position, ScrubStep, judge, plan

NOWHERE = SegmentName("ef" * 32)


@pytest.fixture
def known(clone: tuple[Path, Elsewhere]) -> KnownElsewhere:
    return KnownElsewhere({SegmentName(name) for name in clone[1].segments}, is_complete=True)


@pytest.fixture
def needed(clone: tuple[Path, Elsewhere]) -> list[tuple[str, int]]:
    """The segments that the clone needs, and their sizes."""
    path, source = clone
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        return [(row.name, row.size) for row in vault.filesystem.chunk_rows.segments() if row.name is not None]


def bring(path: Path, source: Elsewhere, *names: str) -> None:
    layout = VaultLayout(path)
    for name in names:
        place = layout.sealed_path(SegmentName(name))
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(source.segments[name])


def scrubbed(vault: Vault) -> list[ScrubStep]:
    """All steps of a scrub of a vault that is open."""
    steps = []
    position = Position(0, 0)
    while (step := plan(vault.filesystem, position)) is not None:
        step.read()
        steps.append(step)
        position = step.position
    return steps


def damage(path: Path, name: str) -> None:
    place = VaultLayout(path).sealed_path(SegmentName(name))
    content = bytearray(place.read_bytes())
    content[100] ^= 1
    place.write_bytes(content)


def test_scrub_counts_what_is_elsewhere(
    clone: tuple[Path, Elsewhere], known: KnownElsewhere, needed: list[tuple[str, int]]
) -> None:
    path, source = clone
    before = len(source.requests)
    told: list[tuple[int, int | None]] = []
    report = scrub(path, KEY, elsewhere=known.names, on_progress=lambda *state: told.append(state))
    assert (report.exit_code, report.chunks, told) == (ExitCode.OK, 0, [])
    assert report.elsewhere_segments == len(needed)
    assert report.elsewhere_bytes == sum(size for _, size in needed)
    assert len(source.requests) == before, "nothing is fetched to be scrubbed"
    (name, size), *_ = needed
    bring(path, source, name)
    report = scrub(path, KEY, elsewhere=known.names, on_progress=lambda *state: told.append(state))
    assert (report.exit_code, report.elsewhere_segments) == (ExitCode.OK, len(needed) - 1)
    assert 0 < report.read_bytes < size
    assert told == [(report.read_bytes, report.read_bytes)]
    damage(path, name)
    report = scrub(path, KEY, elsewhere=known.names)
    assert (report.exit_code, report.damaged_chunks) == (ExitCode.INTEGRITY, 1)


def test_scrub_misses_what_nobody_has(
    clone: tuple[Path, Elsewhere], known: KnownElsewhere, needed: list[tuple[str, int]]
) -> None:
    lost, _ = needed[0]
    report = scrub(clone[0], KEY, elsewhere=set(known.names) - {lost})
    assert (report.exit_code, report.elsewhere_segments) == (ExitCode.INTEGRITY, len(needed) - 1)
    assert report.damaged_chunks > 0
    assert all("is missing" in each.reason for each in report.ranges)


def test_scrub_of_an_open_vault(clone: tuple[Path, Elsewhere], needed: list[tuple[str, int]]) -> None:
    path, source = clone
    bring(path, source, needed[0][0], needed[1][0])
    damage(path, needed[1][0])
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        before = len(source.requests)
        source.is_down = True
        steps = scrubbed(vault)
        elsewhere = [(step.elsewhere.name, step.elsewhere.size) for step in steps if step.elsewhere is not None]
        assert elsewhere == needed[2:]
        assert len(source.requests) == before + 1  # for the damaged chunk; nothing else is fetched to be scrubbed
        found = [judge(vault.filesystem, step) for step in steps]
        assert len([1 for ranges, others in found if ranges or others]) == 1
        assert sum(len(step.chunks) for step in steps) > 0


def test_scrub_of_an_open_vault_without_a_source(clone: tuple[Path, Elsewhere]) -> None:
    with vaultfs.open_vault(clone[0], KEY) as vault:
        steps = scrubbed(vault)
        assert all(step.elsewhere is None for step in steps)
        ranges = [each for step in steps for each in judge(vault.filesystem, step)[0]]
        assert any("is missing" in each.reason for each in ranges)


def test_damage_in_the_place_of_a_segment_is_damage(
    clone: tuple[Path, Elsewhere], needed: list[tuple[str, int]]
) -> None:
    """Although reading the file works, because it is read from elsewhere."""
    path, source = clone
    (name, _), *_ = needed
    bring(path, source, name)
    VaultLayout(path).sealed_path(SegmentName(name)).write_bytes(b"no segment at all")
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        steps = scrubbed(vault)
        assert sum(bool(step.bad) for step in steps) == 1
        assert len([step for step in steps if step.elsewhere is not None]) == len(needed) - 1


def test_fsck_counts_what_is_elsewhere(
    clone: tuple[Path, Elsewhere], known: KnownElsewhere, needed: list[tuple[str, int]]
) -> None:
    path, source = clone
    before = len(source.requests)
    for reads_data in (True, False):
        report = check(path, KEY, reads_data=reads_data, elsewhere=known)
        assert [each for each in report.findings if each.severity != "note"] == []
        assert (report.exit_code, report.read_bytes) == (ExitCode.OK, 0)
        assert report.elsewhere_segments == len(needed)
        assert report.elsewhere_bytes == sum(size for _, size in needed)
    assert len(source.requests) == before
    assert not check(path, KEY, elsewhere=KnownElsewhere({NOWHERE}, is_complete=True)).is_clean
    bring(path, source, needed[0][0])
    damage(path, needed[0][0])
    report = check(path, KEY, elsewhere=known)
    assert report.exit_code == ExitCode.INTEGRITY, "what is here is looked at, whoever else has it"
    assert report.elsewhere_segments == len(needed) - 1


def test_a_repair_leaves_alone_what_is_elsewhere(
    clone: tuple[Path, Elsewhere], data: bytes, known: KnownElsewhere
) -> None:
    """Also if a cut within a chunk that is elsewhere has to be made."""
    path, source = clone
    VaultLayout(path).remotes.write_text("[]")
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        vault.filesystem.database.execute("UPDATE inode SET size=size-100 WHERE size=?", (len(data),))
        vault.filesystem.committer.commit()
    report = check(path, KEY, repair=True, elsewhere=known, source=source)
    assert [each.code for each in report.findings if each.severity != "note"] == ["chunk-past-end"]
    assert report.elsewhere_segments > 0
    assert report.exit_code == ExitCode.OK
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        assert read(vault, "/file") == data[:-100]
        assert read(vault, "/7") == b"small 7"
    assert check(path, KEY, elsewhere=known).is_clean


def test_a_repair_gives_up_what_nobody_has(
    clone: tuple[Path, Elsewhere], data: bytes, known: KnownElsewhere, needed: list[tuple[str, int]]
) -> None:
    path, source = clone
    VaultLayout(path).remotes.write_text("[]")
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        place = vault.filesystem.chunk_rows.places(vault.stat("/file").st_ino, 0, 0)[0]  # type: ignore[arg-type]
        row = vault.filesystem.chunk_rows.segment(place.segment)
        assert row is not None
    left = KnownElsewhere(set(known.names) - {row.name}, is_complete=False)
    with pytest.raises(UsageError, match="sync --check"):
        check(path, KEY, repair=True, elsewhere=left)
    report = check(path, KEY, repair=True, elsewhere=KnownElsewhere(left.names, is_complete=True), source=source)
    assert report.exit_code == ExitCode.PARTIAL
    assert report.elsewhere_segments == len(needed) - 1
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        assert read(vault, "/7") == b"small 7"
        with pytest.raises(IntegrityError):
            read(vault, "/file")


def test_without_metadata_a_repair_wants_everything(clone: tuple[Path, Elsewhere], known: KnownElsewhere) -> None:
    path, _ = clone
    layout = VaultLayout(path)
    layout.remotes.write_text("[]")
    layout.database.write_bytes(b"no database" * 1000)
    for is_complete in (True, False):
        with pytest.raises(UsageError, match="clone --fill"):
            check(path, KEY, repair=True, elsewhere=KnownElsewhere(known.names, is_complete=is_complete))


def test_new_data_in_a_clone_is_looked_at(
    clone: tuple[Path, Elsewhere], data: bytes, known: KnownElsewhere, needed: list[tuple[str, int]]
) -> None:
    path, source = clone
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        write(vault, "/new", data[:500_000])
    report = scrub(path, KEY, elsewhere=known.names)
    assert (report.exit_code, report.elsewhere_segments) == (ExitCode.OK, len(needed))
    assert report.read_bytes >= 500_000


def whole_damaged(path: Path, data: bytes) -> Elsewhere:
    """A vault with a file, of which a segment is damaged here and whole elsewhere."""
    with vaultfs.open_vault(path, KEY) as vault:
        write(vault, "/file", data)
    source = Elsewhere.of(path)
    largest = max(source.segments, key=lambda name: len(source.segments[name]))
    VaultLayout(path).sealed_path(SegmentName(largest)).chmod(0o600)
    damage(path, largest)
    return source


def test_a_scrub_of_an_open_vault_mends(path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    source = whole_damaged(path, data)
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        assert [step.bad for step in scrubbed(vault) if step.bad] == []
    assert "was damaged, and is mended" in caplog.text
    assert len(source.requests) == 1
    assert Elsewhere.of(path).segments.items() >= source.segments.items()
    with vaultfs.open_vault(path, KEY) as vault:
        assert [step.bad for step in scrubbed(vault) if step.bad] == []
        assert read(vault, "/file") == data


@pytest.mark.parametrize("trouble", ["is_down", "flipped", "cut"])
def test_a_scrub_mends_with_nothing_wrong(path: Path, data: bytes, trouble: str) -> None:
    source = whole_damaged(path, data)
    before = Elsewhere.of(path).segments
    setattr(source, trouble, True)
    with vaultfs.open_vault(path, KEY, source=source) as vault:
        assert sum(len(step.bad) for step in scrubbed(vault)) == 1
    assert Elsewhere.of(path).segments.items() >= before.items()
