"""The schema of ``metadata.db``, as a specification: units, sentinels, invariants.

The file is SQLite 3 encrypted page by page by SQLite3 Multiple Ciphers (cipher ``aegis``, a raw 256-bit key), in WAL
mode.  Every commit is a consistent state of the whole vault, so the invariants below hold at each of them.
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 1
"""Stored as ``user_version``.  A larger one in a file means a newer vaultfs wrote it."""

SCHEMA: Final = """
-- Settings and counters.  Values are integers or blobs.
--   generation     of the vault, see vault/head.py
--   next_inode     the next inode's number; numbers are never used twice
--   next_chunk     the next chunk's number; likewise
--   next_cookie    the next directory entry's cookie; 1 and 2 are those of . and .., which have no rows
--   chunk_size     bytes of plaintext in a full chunk
--   snapshot_seq   the newest snapshot's number; chunks written now are born at snapshot_seq + 1
--   snapshot_making    number of the snapshot being made, 0 or no row if none; a mount finishes or undoes it
--   snapshot_cleaning  1 while pieces and chunks of ended snapshots are given back; a mount goes on with it
--   key_epoch      of the key that this file is encrypted with; no row: 1
CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

-- One row per file, directory, symlink, FIFO, socket, device.  1 is the root directory.
CREATE TABLE inode (
    id       INTEGER PRIMARY KEY,
    mode     INTEGER NOT NULL,  -- type and permissions, as st_mode
    uid      INTEGER NOT NULL,
    gid      INTEGER NOT NULL,
    nlink    INTEGER NOT NULL,  -- names that refer to it; directories: 2 + directories in it; 0: see orphan
    size     INTEGER NOT NULL,  -- bytes; directories: 0; symlinks: length of the target
    rdev     INTEGER NOT NULL,  -- device number; 0 unless a device node
    atime_ns INTEGER NOT NULL,  -- nanoseconds since 1970, may be negative
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    chunks   INTEGER NOT NULL,  -- rows in extent
    target   BLOB,              -- symlinks only
    parent   INTEGER NOT NULL   -- directories: the directory that holds the name, the root: itself; others: 0
);

-- Names.  (parent, name) is unique; names are 1 to 255 bytes without NUL and '/', never '.' or '..'.
-- A directory has exactly one row that names it, except the root, which has none.
CREATE TABLE entry (
    parent INTEGER NOT NULL,
    name   BLOB    NOT NULL,
    inode  INTEGER NOT NULL,
    cookie INTEGER NOT NULL,    -- rises with every insertion; the offset of readdir, so listings stay stable
    PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE UNIQUE INDEX entry_cookie ON entry (parent, cookie, inode);  -- covers a listing

CREATE TABLE xattr (
    inode INTEGER NOT NULL,
    name  BLOB    NOT NULL,
    value BLOB    NOT NULL,
    PRIMARY KEY (inode, name)
) WITHOUT ROWID;

-- Inodes without a name that were still open, or whose chunks are not all released yet.  Emptied at mount.
CREATE TABLE orphan (
    inode INTEGER PRIMARY KEY
);

-- Which chunk holds bytes [index * chunk_size, (index + 1) * chunk_size) of a file.  No row: zeros.
-- A chunk shorter than its range is followed by zeros.  No chunk holds non-zero bytes past the file's size.
CREATE TABLE extent (
    inode INTEGER NOT NULL,
    idx   INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    PRIMARY KEY (inode, idx)
) WITHOUT ROWID;

-- Sealed chunks.  refs = rows in extent and snapshot_piece that name it.  A chunk is needed while refs > 0 or a
-- snapshot s exists with born <= s < died.  died is NULL while refs > 0.  No chunk is named in both tables; one that is
-- named in snapshot_piece goes with its last row there, whatever snapshots exist.
CREATE TABLE chunk (
    id          INTEGER PRIMARY KEY,
    segment     INTEGER NOT NULL,
    offset      INTEGER NOT NULL,  -- bytes from the start of the segment to the nonce
    stored      INTEGER NOT NULL,  -- bytes in the segment, nonce and tag included
    length      INTEGER NOT NULL,  -- bytes of plaintext; stored < length + 28 says that it is compressed (zstd)
    refs        INTEGER NOT NULL,
    born        INTEGER NOT NULL,
    died        INTEGER,
    fingerprint BLOB               -- first 16 bytes of the keyed BLAKE3; NULL for chunks too small to deduplicate
);
CREATE INDEX chunk_fingerprint ON chunk (fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX chunk_segment ON chunk (segment);
CREATE INDEX chunk_died ON chunk (died) WHERE died IS NOT NULL;

-- Segment files.  name is NULL while the segment is open; then it lies in segments/open/<token>.seg.
CREATE TABLE segment (
    id    INTEGER PRIMARY KEY,
    token TEXT NOT NULL,          -- random name while open
    name  TEXT,                   -- BLAKE3 of the sealed file, hexadecimal
    epoch INTEGER NOT NULL,       -- of the master key
    salt  BLOB NOT NULL,          -- 32 bytes, derives the segment's key
    size  INTEGER NOT NULL,       -- bytes; 0 while open
    live  INTEGER NOT NULL,       -- bytes in chunk rows of this segment
    holes INTEGER NOT NULL        -- bytes punched out; then its hash no longer matches its name
);
CREATE UNIQUE INDEX segment_token ON segment (token);

-- Ranges of segments that no chunk row covers any more: to be punched once the commit that put them here is durable.
CREATE TABLE reclaim (
    segment INTEGER NOT NULL,
    offset  INTEGER NOT NULL,
    length  INTEGER NOT NULL,
    PRIMARY KEY (segment, offset)
) WITHOUT ROWID;

-- Intent log: bytes made durable by an fsync that are not in a chunk yet; applied in order of id at mount.
CREATE TABLE intent (
    id     INTEGER PRIMARY KEY,
    inode  INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    data   BLOB    NOT NULL
);

CREATE TABLE snapshot (
    seq        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL,     -- BLAKE3 of the manifest, hexadecimal
    created_ns INTEGER NOT NULL,
    label      TEXT NOT NULL,
    files      INTEGER NOT NULL,  -- inodes in it
    bytes      INTEGER NOT NULL   -- of plaintext, sum of sizes
);
CREATE UNIQUE INDEX snapshot_id ON snapshot (id);

-- Pieces of the database's image that belong to snapshots: not files, but chunks all the same.  Those of a seq without
-- row in snapshot belong to the snapshot being made, or wait to be given back.
CREATE TABLE snapshot_piece (
    seq   INTEGER NOT NULL,
    idx   INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    PRIMARY KEY (seq, idx)
) WITHOUT ROWID;
"""
