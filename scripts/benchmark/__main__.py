"""`./scripts/bench`: reads the options, runs what they choose, prints the table and writes it where asked."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from benchmark.backup import run_backup
from benchmark.backup_report import backup_json, backup_markdown
from benchmark.backup_systems import PROGRAMS
from benchmark.inputs import QUICK, Inputs, Sizes
from benchmark.mesh import rsync_version, run_mesh
from benchmark.mesh_report import mesh_json, mesh_markdown
from benchmark.own import OWN, run_own
from benchmark.remote_figures import REMOTE
from benchmark.report import Conditions, as_json, chart, lines_of, markdown
from benchmark.rows import ROWS
from benchmark.runner import Results, run_rows, say
from benchmark.systems import SYSTEMS, System, drop_page_cache, mount_points_under

MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
BACKUP = "backup"
MESH = "mesh"


def filesystem_of(directory: Path) -> str:
    """Return the kind of filesystem ``directory`` lies on, as mount(8) calls it."""
    command = ["df", "--output=fstype", str(directory)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    keys = [row.key for row in ROWS] + list(OWN)
    known_keys = [*keys, BACKUP, *REMOTE, MESH]
    parser = argparse.ArgumentParser(prog="bench", description="Measures vaultfs beside other encrypted filesystems.")
    parser.add_argument(
        "--rounds", type=int, help="how often everything runs (3; with --backup 2, with --mesh 5; with --quick 1)"
    )
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated; default %(default)s")
    parser.add_argument("--rows", default=",".join(keys), help="comma-separated; default %(default)s")
    parser.add_argument("--backup", action="store_true", help=f"the rows about backups: {BACKUP}, {', '.join(REMOTE)}")
    parser.add_argument("--mesh", action="store_true", help=f"the row about peers: {MESH}")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="of these rows; default %(default)s")
    parser.add_argument("--quick", action="store_true", help="small input, one round: a trial, not a measurement")
    parser.add_argument("--files", type=int, help="how many files the large vault of many-files has (1000000)")
    parser.add_argument("--output", type=Path, metavar="STEM", help="write STEM.md, STEM.json and STEM.svg")
    parser.add_argument("--where", type=Path, metavar="DIR", help="where vaults lie (/dev/shm)")
    parser.add_argument("--disk", type=Path, metavar="DIR", help="where vaults lie that belong on a real disk (/tmp)")
    options = parser.parse_args(arguments)
    options.systems = options.systems.split(",")
    chosen = [*([BACKUP, *REMOTE] if options.backup else []), *([MESH] if options.mesh else [])]
    options.rows = chosen or options.rows.split(",")
    options.programs = options.programs.split(",")
    for name, known in (("systems", list(SYSTEMS)), ("rows", known_keys), ("programs", list(PROGRAMS))):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"unknown {name}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    usual = 2 if options.backup else 5 if options.mesh else 3
    options.rounds = options.rounds or (1 if options.quick else usual)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.where is None:
        options.where = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
    if options.disk is None:
        candidates = [Path(tempfile.gettempdir()), Path.cwd()]
        real = [path for path in candidates if filesystem_of(path) not in MEMORY_FILESYSTEMS]
        options.disk = (real or candidates)[0]
    return options


def end_by_signal(number: int, _frame: FrameType | None) -> None:
    """Leave through every ``finally``, so that nothing stays mounted."""
    sys.exit(128 + number)


def workplace(stack: ExitStack, directory: Path) -> Path:
    """Make a temporary directory that is unmounted and deleted at the end, however that comes."""
    path = Path(tempfile.mkdtemp(prefix="vaultfs-bench-", dir=directory))

    def clear() -> None:
        for point in mount_points_under(path):
            System(point.parent).destroy()
        shutil.rmtree(path, ignore_errors=True)

    stack.callback(clear)
    return path


def machine() -> str:
    """Return processors, memory and kernel in one line."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 if vaultfs failed a row or a figure, or is not installed."""
    options = parse(arguments)
    sizes = QUICK if options.quick else Sizes()
    if options.files:
        sizes = Sizes(**{**sizes.__dict__, "many_files": options.files})
    rows = [row for row in ROWS if row.key in options.rows]
    wanted = options.systems if rows else [name for name in options.systems if name == "vaultfs"]
    asked = {name: SYSTEMS[name] for name in wanted}
    programs = {name: PROGRAMS[name] for name in options.programs} if BACKUP in options.rows else {}
    absent = [name for name, kind in asked.items() if not kind.installed()]
    absent += [name for name, kind in programs.items() if not kind.installed()]
    if absent:
        say(f"not installed, left out: {', '.join(dict.fromkeys(absent))}")
    names = [name for name in wanted if name not in absent]
    backed_up = [name for name in programs if name not in absent]
    groups = {key: group for key, group in {**OWN, **REMOTE}.items() if key in options.rows and "vaultfs" in names}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, end_by_signal)
    with ExitStack() as stack:
        memory, disk = workplace(stack, options.where), workplace(stack, options.disk)
        conditions = Conditions(
            date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
            machine=machine(),
            versions={
                **{name: SYSTEMS[name].version() for name in names},
                **{name: PROGRAMS[name].version() for name in backed_up},
                **({"rsync": rsync_version() or "not installed"} if MESH in options.rows else {}),
                **dict.fromkeys(absent, "not installed"),
            },
            places=f"vaults on {filesystem_of(memory)}, those of the rows on a disk on {filesystem_of(disk)}",
            rounds=options.rounds,
            caches_dropped=drop_page_cache(),
            quick=options.quick,
            sizes=sizes,
        )
        directory = memory / "input"
        directory.mkdir()
        inputs = Inputs(directory, sizes)
        kinds = [SYSTEMS[name] for name in names]
        results = run_rows(kinds, rows, options.rounds, inputs, memory, disk) if kinds and rows else Results()
        outcomes = run_backup(backed_up, options.rounds, sizes, workplace(stack, memory)) if backed_up else {}
        meshed = None
        if MESH in options.rows and "vaultfs" in names:
            homes = {filesystem_of(each): workplace(stack, each) for each in (memory, disk)}
            meshed = run_mesh(options.rounds, sizes, homes)
        figures = run_own(groups, sizes, memory, disk)
        memory_kind = filesystem_of(memory)
    lines = lines_of(rows, names, results) if names else []
    backups = backup_markdown(outcomes, sizes, options.rounds, memory_kind) if outcomes else ""
    peers = "" if meshed is None else mesh_markdown(meshed, sizes, options.rounds)
    table = markdown(lines, figures, results, conditions, "\n".join(part for part in (backups, peers) if part))
    print(table, end="")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".md").write_text(table)
        options.output.with_suffix(".json").write_text(
            as_json(
                lines, figures, results, conditions, backup_json(outcomes), {} if meshed is None else mesh_json(meshed)
            )
        )
        if lines:
            options.output.with_suffix(".svg").write_text(chart(lines))
    failed = "vaultfs" in absent or any("vaultfs" in by_system for by_system in results.failures.values())
    failed = failed or any(by_name["vaultfs"].failure for by_name in outcomes.values() if "vaultfs" in by_name)
    failed = failed or (meshed is not None and bool(meshed.failures))
    return 1 if failed or any(figure.value is None for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
