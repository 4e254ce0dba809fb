"""What a mount does before anything else, so that a crash needs no manual step.

| a crash leaves | and a mount |
|---|---|
| a segment in open/ with chunks in the database | cuts off what no commit refers to, and seals it |
| one without | deletes it, and its sealed name if it has one |
| a sealed segment with its open name too | drops the open name |
| records in the intent log | writes them into their files again |
| inodes without a name | ends them |

Every step can be repeated: a crash in between is like one before.
"""

from __future__ import annotations

import logging

from vaultfs.errors import IntegrityError
from vaultfs.ids import SegmentName
from vaultfs.metadata.chunk_rows import ChunkRows
from vaultfs.metadata.tree_rows import TreeRows
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_writer import discard_open_name, discard_sealed_name, seal_leftover
from vaultfs.vault.files import MAX_FILE_BYTES, Files
from vaultfs.vault.inodes import Inode, InodeTable

log = logging.getLogger(__name__)


def seal_leftovers(rows: ChunkRows, layout: VaultLayout) -> list[str]:
    """Seal or delete what an earlier process left in open/.

    Returns:
        Tokens whose open names may go once the rows are durable.

    Raises:
        IntegrityError: a segment that the database refers to is missing or too short.
        NoSpaceError, StorageError: the disk failed.
    """
    discard: list[str] = []
    tokens = set(layout.open_tokens())
    for row in rows.segments():
        if row.name is not None:
            if row.token in tokens:
                tokens.discard(row.token)
                discard.append(row.token)
            continue
        end = rows.referenced_end(row.id)
        tokens.discard(row.token)
        if not end:
            discard_sealed_name(layout, row.token)
            rows.delete_segment(row.id)
            discard.append(row.token)
            continue
        try:
            name, size = seal_leftover(layout, row.token, end)
        except IntegrityError as error:
            # The chunks in it are lost; each read of one says so.  The rest of the vault is not to suffer.
            log.error("segment open/%s: %s", row.token, error)  # noqa: TRY400  # the message says it all
            continue
        log.info("sealed segment %s that was left open", name)
        rows.seal_segment(row.id, SegmentName(name), size)
        discard.append(row.token)
    for token in tokens:
        log.info("deleted segment open/%s, to which nothing refers", token)
        discard_sealed_name(layout, token)
        discard_open_name(layout, token)
    return discard


def apply_intents(rows: ChunkRows, inodes: InodeTable, files: Files) -> bool:
    """Write the log's records into their files; the sizes in the database stay.  Return whether there were any.

    Raises:
        IntegrityError: a chunk that a record changes does not open.
    """
    touched: dict[int, tuple[Inode, int]] = {}
    records = list(rows.intents())
    for number, offset, data in records:
        inode = inodes.find(number)
        if inode is None or not inode.is_regular:
            continue  # deleted after the record was made
        if number not in touched:
            touched[number] = (inode, inode.size)
            # The database has the size that the file had in the end.  How long it was when a record was made is not
            # known; as long as can be, so that every cut is made, and the last one below drops what is past the end.
            inode.size = MAX_FILE_BYTES
        if data:
            files.write(inode, offset, data)
        else:
            files.truncate(inode, offset)
    for inode, size in touched.values():
        files.truncate(inode, size)
    if records:
        log.info("applied %d records of the intent log", len(records))
    return bool(records)


def end_orphans(rows: TreeRows, inodes: InodeTable, files: Files) -> None:
    """End the inodes that had no name when the vault stopped."""
    for number in rows.orphans():
        rows.delete_orphan(number)
        inode = inodes.find(number)
        if inode is not None and inode.nlink == 0 and not inode.opens:
            files.end(inode)
