"""The verbs that need no vault, init, the overview and the help of all; how faults of the program are told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vaultfs
from vaultfs.cli import bench, doctor
from vaultfs.cli.main import main
from vaultfs.cli.mount_options import parse_mount_options
from vaultfs.cli.sizes import parse_duration, parse_size
from vaultfs.cli.verbs import VERBS
from vaultfs.errors import ExitCode, UsageError
from vaultfs.vault import opening

from .conftest import PASSWORD, REPOSITORY, Run, opened, process


def test_overview_names_every_verb(run: Run) -> None:
    said = process("--help")
    assert (said.code, said.err) == (0, "")
    for verb in VERBS.values():
        assert f"\n  {verb.name} " in said.out.decode()
        assert verb.summary in said.out.decode()


@pytest.mark.parametrize("verb", [*VERBS])
def test_help_of_each_verb(verb: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsysbinary.readouterr().out.decode()
    assert text.startswith(f"Usage: vaultfs {verb}")
    assert max(map(len, text.splitlines())) <= 125
    loaded = VERBS[verb].load()
    for word in loaded if isinstance(loaded, dict) else ():
        assert main([verb, word, "--help"]) == 0
        assert f"Usage: vaultfs {verb} {word}" in capsysbinary.readouterr().out.decode()


def test_help_shows_what_may_be_left_out(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    for verb, usage in (("list", "[VAULT]"), ("ping", "VAULT [PEER]"), ("remove", "VAULT PEER")):
        assert main(["peer", verb, "--help"]) == 0
        assert capsysbinary.readouterr().out.decode().startswith(f"Usage: vaultfs peer {verb} [options] {usage}\n")


@pytest.mark.parametrize("verb", [*VERBS])
def test_each_verb_has_a_page(verb: str) -> None:
    page = REPOSITORY / "docs/cli" / f"{verb}.md"
    assert page.read_text(encoding="utf-8").startswith(f"# vaultfs {verb}\n")
    assert f"[{verb}]({verb}.md)" in (REPOSITORY / "docs/cli/README.md").read_text(encoding="utf-8")


def test_exit_codes_are_documented() -> None:
    text = (REPOSITORY / "docs/cli/README.md").read_text(encoding="utf-8")
    for code in ExitCode:
        assert f"| {code.value} |" in text, code


def test_version(run: Run) -> None:
    said = process("--version")
    assert (said.code, said.err) == (0, "")
    assert said.out == process("version").out
    components = json.loads(run("version", "--json", bare=True).out)["components"]
    assert {"cryptography", "pyfuse3", "blake3"} <= set(components)


def test_doctor(run: Run, tmp_path: Path) -> None:
    said = run("doctor", tmp_path, bare=True)
    assert said.code in {ExitCode.OK, ExitCode.ERROR}
    answer = json.loads(run("doctor", tmp_path, "--json", bare=True).out)
    assert answer["ok"] == (said.code == 0)
    assert {"kernel", "/dev/fuse", "disk"} <= {check["name"] for check in answer["checks"]}


def test_doctor_finds_a_machine_without_fuse(tmp_path: Path) -> None:
    machine = doctor.Machine(tmp_path, "4.4.0", 1000, lambda name: None)
    found = {check.name: check for check in doctor.examine(machine, tmp_path)}
    for name in ("/dev/fuse", "fusermount3", "kernel"):
        assert found[name].result == "problem"
        assert found[name].advice


def test_bench(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_MEASURE_S", 0.0)
    monkeypatch.setattr(bench, "_FILE_BYTES", 2 << 20)
    figures = json.loads(run("bench", tmp_path, "--json", bare=True).out)
    assert len(figures) == 10
    assert all(value > 0 for name, value in figures.items() if name.startswith("disk"))
    assert "/s" in run("bench", tmp_path, bare=True).out.decode()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["password"]


def test_bench_without_room(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_MEASURE_S", 0.0)
    monkeypatch.setattr(bench, "_FILE_BYTES", 1 << 60)
    said = run("bench", tmp_path, bare=True)
    assert said.code == ExitCode.ERROR
    assert "too little to measure" in said.error_line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_accepted_by_its_shell(shell: str, run: Run, tmp_path: Path) -> None:
    said = run("completion", shell, bare=True)
    assert (said.code, said.err) == (0, "")
    for word in ("umount", "put", "snapshot", "doctor"):
        assert word.encode() in said.out
    script = tmp_path / "script"
    script.write_bytes(said.out)
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", script], check=True)


def completions(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(words)
    program = f"""
source '{script}'
COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
COMP_LINE='{line}'; COMP_POINT={len(line)}
function=$(complete -p vaultfs | sed -n 's/.*-F \\([^ ]*\\).*/\\1/p')
"$function" vaultfs '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_completion_in_bash(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(run("completion", "bash", bare=True).out)
    assert {"mount"} <= set(completions(script, "vaultfs", "mo"))
    assert {"umount"} <= set(completions(script, "vaultfs", "um"))
    assert {"--read-only"} <= set(completions(script, "vaultfs", "mount", "--rea"))
    assert {"add", "list"} <= set(completions(script, "vaultfs", "key", ""))


# --- init


def test_init(tmp_path: Path, passfile: Path) -> None:
    words = ["--kdf-memory", "64M", "--chunk-size", "64K", "--compression", "zstd", "--json"]
    said = process("init", tmp_path / "new", "--passfile", passfile, *words)
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out) == {
        "vault": str(tmp_path / "new"),
        "chunk_size_bytes": 65536,
        "compression": "zstd",
    }
    with opened(tmp_path / "new") as found:
        assert found.status()["chunk_size_bytes"] == 65536
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_init_that_fails_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(opening, "atomic_replace", failing)
    monkeypatch.setattr(vaultfs.KdfParameters, "calibrate", lambda *_: vaultfs.KdfParameters.weakest())
    (tmp_path / "empty").mkdir()
    for where in ("new", "empty"):
        said = run("init", tmp_path / where, "--kdf-memory", "64M")
        assert said.code == ExitCode.ERROR
        assert "No space left" in said.error_line
    assert not (tmp_path / "new").exists()
    assert os.listdir(tmp_path / "empty") == []


# --- parsing


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("128K", 131072), ("1.5G", 3 << 29), ("64MiB", 64 << 20), ("0", 0), ("1 kb", 1024)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "x") == size


@pytest.mark.parametrize("text", ["", "-1", "1.00001K", "1E5", "K", "0x10", "\uff11", "1" * 30, "1Q"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text, "x")


@pytest.mark.parametrize(
    ("text", "seconds"), [("45", 45), ("30m", 1800), ("1h30m", 5400), ("0.5s", 0.5), ("2d", 172800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "x") == seconds


@pytest.mark.parametrize("text", ["", "m", "1m1h", "-5", "forever"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text, "x")


def test_mount_options() -> None:
    words = parse_mount_options([r"ro,noatime,fsname=a\,b,idle=30m", "passfile=/x,_netdev,x-foo=1,user"])
    assert (words.read_only, words.kernel, words.source, words.idle_s) == (True, ("noatime",), "a,b", 1800)
    assert str(words.secret.passfile) == "/x"
    assert not parse_mount_options(["ro,rw"]).read_only


# --- faults of the program


def test_fault_of_the_program_is_one_line(run: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ValueError("a text that nobody vouches for")

    monkeypatch.setattr(vaultfs.Vault, "scan", failing)
    said = run("ls", vault)
    assert said.code == ExitCode.ERROR
    assert "internal error: ValueError in" in said.error_line
    assert "vouches" not in said.err
    monkeypatch.setenv("VAULTFS_DEBUG", "1")
    said = run("ls", vault)
    assert "Traceback" in said.err
    assert PASSWORD not in said.err


@pytest.mark.parametrize(("words", "code"), [(["version"], 0), (["no-such-verb"], 2)])
@pytest.mark.parametrize("module", ["opendal", "json"])
def test_a_process_with_opendal_leaves_the_interpreter_as_it_is(words: list[str], code: int, module: str) -> None:
    """Its threads would abort one that is taken down under them."""
    program = (
        f"import atexit, sys, {module}\n"
        "atexit.register(print, 'taken down')\n"
        f"sys.argv = ['vaultfs', *{words!r}]\n"
        "from vaultfs.cli.main import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert done.returncode == code
    assert bool(done.stdout.startswith(b"vaultfs ")) == (code == 0)
    assert (b"taken down" in done.stdout) == (module == "json")
