"""The input every system gets: the same bytes in every run of one size, made from a fixed seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmark.systems import run

MIB = 1 << 20
BLOCK = 4096
SEED = 20_240_229
FILES_PER_DIRECTORY = 1_000


@dataclass(frozen=True)
class Sizes:
    """How much each row does."""

    sequential_mib: int = 512
    buffered_mib: int = 128
    random_file_mib: int = 256
    random_operations: int = 20_000
    tree_files: int = 8_000
    git_files: int = 1_500
    syncs: int = 500
    commits: int = 200
    many_files: int = 1_000_000
    fewer_files: int = 10_000
    probes: int = 2_000
    overhead_mib: int = 256
    rewrites: int = 1_000_000
    streamed_gib: float = 20.0
    backup_files: int = 20_000
    backup_mib: int = 2048
    sent_mib: int = 1024
    mesh_mib: int = 1024
    mesh_requests: int = 10_000
    mesh_objects: int = 100_000


QUICK = Sizes(
    sequential_mib=64,
    buffered_mib=32,
    random_file_mib=64,
    random_operations=4_000,
    tree_files=1_500,
    git_files=300,
    syncs=100,
    commits=50,
    many_files=20_000,
    fewer_files=2_000,
    probes=500,
    overhead_mib=64,
    rewrites=50_000,
    streamed_gib=1.0,
    backup_files=2_000,
    backup_mib=200,
    sent_mib=512,
    mesh_mib=256,
    mesh_requests=1_000,
    mesh_objects=5_000,
)


class Inputs:
    """Makes each piece of input when a row first asks for it.

    Args:
        directory: where files of input are kept; on a tmpfs, so that reading them costs the same for everyone.
        sizes: how much.
    """

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        self.directory = directory
        self.sizes = sizes

    @cached_property
    def random_bytes(self) -> memoryview:
        """Incompressible bytes without repetition, as many as the largest file of a row has."""
        size = max(self.sizes.sequential_mib, self.sizes.random_file_mib, self.sizes.buffered_mib) * MIB
        generator = random.Random(SEED)
        return memoryview(b"".join(generator.randbytes(MIB) for _ in range(size // MIB)))

    @cached_property
    def tree(self) -> Path:
        """A tree as source code has it: directories five deep, symlinks, most files under 8 KiB, a few of 1 MiB."""
        root = self.directory / "tree"
        write_tree(root, self.sizes.tree_files, random.Random(SEED + 1))
        return root

    @cached_property
    def tarball(self) -> Path:
        """The tree as an uncompressed tar."""
        tarball = self.directory / "tree.tar"
        run(["tar", "-cf", str(tarball), "-C", str(self.tree.parent), self.tree.name])
        return tarball

    @cached_property
    def repository(self) -> Path:
        """A bare git repository with some history."""
        work, bare = self.directory / "work", self.directory / "repository.git"
        generator = random.Random(SEED + 2)
        write_tree(work, self.sizes.git_files, generator)
        git(["init", "-q", "-b", "main"], work)
        for revision in range(5):
            for path in generator.sample(sorted(work.glob("**/*.txt")), 20):
                path.write_text(f"revision {revision}\n" + path.read_text())
            git(["add", "-A"], work)
            git(["commit", "-q", "-m", f"revision {revision}"], work)
        git(["clone", "-q", "--bare", str(work), str(bare)], self.directory)
        shutil.rmtree(work)
        return bare


def directory_name(number: int) -> str:
    """Return the name of the ``number``-th directory of a vault with many files."""
    return f"d{number:06}"


def git(arguments: list[str], directory: Path) -> str:
    """Run git without anybody's settings and return what it printed."""
    environment = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "bench",
        "GIT_AUTHOR_EMAIL": "bench@localhost",
        "GIT_AUTHOR_DATE": "2024-02-29T00:00:00Z",
        "GIT_COMMITTER_NAME": "bench",
        "GIT_COMMITTER_EMAIL": "bench@localhost",
        "GIT_COMMITTER_DATE": "2024-02-29T00:00:00Z",
    }
    return run(["git", *arguments], env=environment, cwd=directory)


def write_tree(root: Path, files: int, generator: random.Random) -> None:
    """Write a tree of text files of unequal content.

    Args:
        root: the directory to make.
        files: how many regular files; one symlink comes with every fiftieth.
        generator: the source of names, sizes and contents.
    """
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz_", k=generator.randint(2, 12))) for _ in range(4000)]
    text = "\n".join(" ".join(generator.choices(words, k=10)) for _ in range(40_000)).encode()
    directories = list(directory_names(root, max(files // 14, 1), words, generator))
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        path = generator.choice(directories) / f"{generator.choice(words)}_{number}.txt"
        size = MIB if number % 1000 == 999 else min(int(generator.lognormvariate(7.9, 1.4)), 256 * 1024)
        start = generator.randrange(len(text) - size)
        path.write_bytes(b"%d\n" % number + text[start : start + size])
        if number % 50 == 0:
            path.with_suffix(".link").symlink_to(path.name)


def directory_names(root: Path, count: int, words: list[str], generator: random.Random) -> Iterator[Path]:
    """Yield ``root`` and ``count`` directories below it, at most five deep."""
    made = [root]
    yield root
    for number in range(count):
        parent = generator.choice(made)
        path = parent / f"{generator.choice(words)}{number}"
        if len(path.relative_to(root).parts) < 5:
            made.append(path)
        yield path
