"""``vaultfs verify``: what is missing, cut, changed or forged on a remote is named, and no password is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaultfs.errors import ExitCode

from .conftest import Run, digest, objects, process


@pytest.fixture
def copied(backed_up: Path, run: Run) -> Path:
    assert run("sync", backed_up, "--snapshot").code == 0
    return backed_up


def largest_segment(disk: Path) -> Path:
    found = max((path for path in (disk / "segments").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    found.chmod(0o600)
    return found


def test_nothing_is_wrong(copied: Path, disk: Path) -> None:
    before = digest(disk)
    for words in ([copied, "disk"], [disk.as_uri()]):
        said = process("verify", *words)  # no terminal, no password
        assert (said.code, said.err) == (0, "")
        assert said.out.decode().rstrip().endswith("read: nothing is wrong")
    assert digest(disk) == before


def test_json(copied: Path, disk: Path, run: Run) -> None:
    stored = objects(disk)
    said = run("verify", copied, "disk", "--read-data", "--json", bare=True)
    assert json.loads(said.out) == {
        "url": disk.as_uri(),
        "problems": [],
        "objects": len(stored),
        "snapshots": 1,
        "unused_segments": 0,
        "bytes_read": sum(map(len, stored.values())),
    }
    assert json.loads(said.err.splitlines()[-1])["finished"] is True
    quick = json.loads(run("verify", copied, "disk", "--json", bare=True).out)
    assert quick["bytes_read"] == sum(len(data) for key, data in stored.items() if not key.startswith("segments/"))


def test_a_share_is_read(copied: Path, disk: Path, run: Run) -> None:
    everything = sum(map(len, objects(disk).values()))
    for share in ("1%", "0.5%"):
        said = run("verify", copied, "disk", f"--read-data={share}", "--json", bare=True)
        assert said.code == 0
        assert json.loads(said.out)["bytes_read"] <= everything
    assert run("verify", copied, "disk", "--read-data=100%", "--quiet", bare=True).code == 0


@pytest.mark.parametrize("finds", ["at once", "by reading"])
def test_damage(copied: Path, disk: Path, run: Run, finds: str) -> None:
    victim = largest_segment(disk)
    data = bytearray(victim.read_bytes())
    if finds == "at once":
        victim.write_bytes(data[:-1])
    else:
        data[100] ^= 1
        victim.write_bytes(data)
        assert run("verify", copied, "disk", bare=True).code == 0
    said = run("verify", copied, "disk", *([] if finds == "at once" else ["--read-data"]), "--quiet", bare=True)
    assert (said.code, "'vaultfs verify --repair' sends again" in said.error_line) == (ExitCode.INTEGRITY, True)
    lines = said.out.decode().splitlines()
    assert victim.name in lines[0]
    assert lines[-1].endswith("1 problem")


@pytest.mark.parametrize("part", ["segment", "vault.json", "manifest"])
def test_something_is_missing(copied: Path, disk: Path, run: Run, part: str) -> None:
    if part == "segment":
        largest_segment(disk).unlink()
    elif part == "vault.json":
        (disk / "vault.json").unlink()
    else:
        (manifest,) = (path for path in (disk / "heads").rglob("*") if path.is_file())
        manifest.write_bytes(manifest.read_bytes()[:-1])
    said = run("verify", copied, "disk", "--json", bare=True)
    assert said.code == ExitCode.INTEGRITY
    assert len(json.loads(said.out)["problems"]) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["VAULT"], ExitCode.USAGE),
        (["VAULT", "cloud"], ExitCode.USAGE),
        (["VAULT", "disk", "--read-data=0%"], ExitCode.USAGE),
        (["VAULT", "disk", "--read-data=101%"], ExitCode.USAGE),
        (["VAULT", "disk", "--read-data=all"], ExitCode.USAGE),
        (["VAULT", "disk", "--read-data=-1%"], ExitCode.USAGE),
        (["VAULT", "disk", "--option", "region=here"], ExitCode.USAGE),
        (["URL", "--read-data", "10%"], ExitCode.USAGE),
        (["URL", "--option", "region=here"], ExitCode.USAGE),
        (["file:///there/is/no/such/directory"], ExitCode.REMOTE_UNREACHABLE),
        (["VAULT/nothing", "disk"], ExitCode.NOT_A_VAULT),
    ],
)
def test_words_that_make_no_sense(copied: Path, disk: Path, run: Run, words: list[str], code: ExitCode) -> None:
    filled = [word.replace("VAULT", str(copied)).replace("URL", disk.as_uri()) for word in words]
    said = run("verify", *filled, bare=True)
    assert said.code == code
    assert said.error_line


def test_a_secret_in_a_url_is_not_shown(run: Run) -> None:
    said = run("verify", "s3://user:secret-8f1@bucket/prefix", bare=True)
    assert (said.code, "secret-8f1" in said.err) == (ExitCode.USAGE, False)


def test_what_is_damaged_is_sent_again(backed_up: Path, disk: Path, run: Run) -> None:
    assert run("sync", backed_up, "--snapshot").code == 0
    path = largest_segment(disk)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert run("verify", backed_up, "disk", "--read-data", bare=True).code == ExitCode.INTEGRITY
    assert run("verify", disk.as_uri(), "--repair", bare=True).code == ExitCode.USAGE
    # Without reading it is not found, and nothing is sent.
    said = run("verify", backed_up, "disk", "--repair", bare=True)
    assert (said.code, said.err) == (0, "")
    said = run("verify", backed_up, "disk", "--read-data", "--repair", "--quiet", bare=True)
    assert said.code == 0
    assert "is damaged or was replaced" in said.out.decode()
    assert said.out.decode().endswith("nothing is wrong\n")
    assert said.error_line.startswith("vaultfs: sent 1 segment and 0 snapshots")
    said = run("verify", backed_up, "disk", "--read-data", "--json", "--quiet", bare=True)
    assert json.loads(said.out)["problems"] == []


def test_a_repair_hides_nothing_that_only_the_key_finds(copied: Path, passfile: Path, run: Run) -> None:
    """What is looked at again after a repair is looked at without the key, so the two do not go together."""
    said = run("verify", copied, "disk", "--repair", "--unlock", "--passfile", passfile, bare=True)
    assert said.code == ExitCode.USAGE
    assert "--unlock" in said.error_line
