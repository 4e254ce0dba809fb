"""Everything that a server may answer instead of the right thing, to sync, verify, restore and clone.

Each case: the command ends with its documented exit code and one line that says what to do, no secret in it; nothing
wrong is taken; and once the server behaves, the next sync succeeds, the remote is sound, and the vault comes back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from cli.conftest import Run, Said

from vaultfs.errors import ExitCode
from vaultfs.remotes.retrying import RetryPolicy

from .conftest import require_next_is_clean, require_restored
from .s3_double import Asked, Change, Plan, S3Double, Say, each, error, listing

HTML: Final = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>"
XHTML: Final = b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><body><h1>Log in</h1></body></html>"
TEN_GIB: Final = 10 << 30
MIB: Final = 1 << 20
DEEP: Final = 100_000
TAKEN: Final = Say(200, b"", {"ETag": '"x"'})
"""What a store says that has stored an object."""

REFUSED, AWAY, ERROR = ExitCode.REMOTE_REFUSED, ExitCode.REMOTE_UNREACHABLE, ExitCode.ERROR
WRONG, TOO_NEW = ExitCode.INTEGRITY, ExitCode.FORMAT_TOO_NEW


def to(method: str = "", key: str = "") -> Callable[[Asked], bool]:
    """Which requests."""
    return lambda asked: (not method or asked.method == method) and asked.key.startswith(f"backup/{key}")


def page(body: bytes) -> Say:
    return Say(200, body, {"Content-Type": "text/html"})


def nested_header(vault_id: str = "a" * 32) -> bytes:
    deep = b"[" * DEEP + b"]" * DEEP
    return b'{"type":"vaultfs vault","format":1,"slots":%b,"vault_id":"%b","epoch":1}' % (deep, vault_id.encode())


@dataclass(frozen=True)
class Case:
    """What a server does.

    Attributes:
        plan: makes it; called for each command.
        code: the exit code.
        says: a part of the last line.
    """

    plan: Callable[[], Plan]
    code: ExitCode
    says: str


def always(act: Say, method: str = "", key: str = "") -> Callable[[], Plan]:
    return lambda: each(to(method, key), act)


ANY: Final = {
    "unknown access key": Case(always(error(403, "InvalidAccessKeyId")), REFUSED, "does not know the access key"),
    "wrong secret key": Case(always(error(403, "SignatureDoesNotMatch")), REFUSED, "secret key is not the one"),
    "old token": Case(always(error(400, "ExpiredToken")), REFUSED, "too old"),
    "clock": Case(always(error(403, "RequestTimeTooSkewed")), REFUSED, "the clock of this machine is wrong; set it"),
    "no bucket": Case(always(error(404, "NoSuchBucket")), REFUSED, "no such bucket"),
    "other region": Case(always(error(301, "PermanentRedirect")), REFUSED, "another region"),
    "busy": Case(always(error(503, "SlowDown")), AWAY, "busy or broken"),
    "busy for a day": Case(always(error(503, "SlowDown", {"Retry-After": "86400"})), AWAY, "busy or broken"),
    "too many": Case(always(error(429, "TooManyRequests")), AWAY, "busy or broken"),
    "broken proxy": Case(always(Say(502, HTML)), AWAY, "busy or broken"),
    "resets": Case(always(Say(0)), AWAY, "the connection broke"),
    "listing is reset": Case(
        always(Say(200, b"<L", announced=999, is_reset=True), "LIST"), AWAY, "the connection broke"
    ),
    "no HTTP status": Case(always(Say(999)), AWAY, "busy or broken"),
}
"""What every command meets alike."""
SOME: Final = ("unknown access key", "busy", "resets", "listing is reset")
"""Of these, for commands beside sync: they are told apart in one place for all."""

SENDING: Final = {
    "may not write": Case(always(error(403, "AccessDenied"), "PUT"), REFUSED, "may not do this"),
    "may not look": Case(always(Say(403), "HEAD"), REFUSED, "may not do this"),
    "full": Case(always(error(507, "InsufficientStorage"), "PUT"), ERROR, "is full"),
    "over its quota": Case(always(error(403, "QuotaExceeded"), "PUT", "segments/"), ERROR, "is full"),
    "a page for a header": Case(always(page(HTML), "PUT"), ERROR, "what answers there is not S3"),
    "loses vault.json": Case(always(TAKEN, "PUT", "vault.json"), ERROR, "said that it had stored vault.json"),
    "loses segments": Case(always(TAKEN, "PUT", "segments/"), ERROR, "said that it had stored segments/"),
    "loses manifests": Case(always(TAKEN, "PUT", "heads/"), ERROR, "said that it had stored heads/"),
    "bad digest": Case(always(error(400, "BadDigest"), "PUT"), ERROR, "BadDigest"),
    "wrong sizes": Case(always(Say(200, b"", announced=5), "HEAD"), ERROR, "5 bytes of"),
    "a page for all": Case(always(page(HTML)), WRONG, "vault.json on"),
    "nothing for all": Case(always(Say(204)), WRONG, "vault.json on"),
    "a newer header": Case(
        always(Say(200, b'{"type":"vaultfs vault","format":2}'), "GET", "vault.json"), TOO_NEW, "newer"
    ),
    "a deep header": Case(always(Say(200, nested_header()), "GET", "vault.json"), WRONG, "damaged"),
    "another vault": Case(
        always(Say(200, nested_header().replace(b"[" * DEEP + b"]" * DEEP, b"[]")), "GET", "vault.json"),
        ExitCode.USAGE,
        "another vault",
    ),
    "an endless header": Case(always(Say(200, bytes(MIB), announced=TEN_GIB, repeat=10240), "GET"), WRONG, "more than"),
}


def lie(change: Callable[[bytes], bytes], key: str = "segments/") -> Callable[[], Plan]:
    return lambda: each(to("GET", key), Change(change))


FETCHING: Final = {
    "short body": Case(lie(lambda data: data[:-1]), WRONG, "ended after"),
    "no body": Case(lie(lambda _data: b""), WRONG, "ended after 0 of"),
    "long body": Case(lie(lambda data: data + b"x"), WRONG, "longer than"),
    "flipped bit": Case(lie(lambda data: data[:-1] + bytes([data[-1] ^ 1])), WRONG, "not that of its name"),
    "another object": Case(lie(lambda data: bytes(len(data))), WRONG, "not that of its name"),
    "10 GiB": Case(
        always(Say(200, bytes(MIB), announced=TEN_GIB, repeat=10240), "GET", "segments/"), WRONG, "longer than"
    ),
    "cut off": Case(
        always(Say(200, b"x", announced=300_000, is_reset=True), "GET", "segments/"), AWAY, "the connection broke"
    ),
    "page": Case(always(page(HTML), "GET", "segments/"), WRONG, "ended after"),
    "deep header": Case(always(Say(200, nested_header()), "GET", "vault.json"), WRONG, "vault.json on"),
    "newer header": Case(
        always(Say(200, b'{"type":"vaultfs vault","format":2}'), "GET", "vault.json"), TOO_NEW, "newer"
    ),
    "endless header": Case(
        always(Say(200, bytes(MIB), announced=TEN_GIB, repeat=10240), "GET", "vault.json"), WRONG, "more than"
    ),
    "changed manifest": Case(
        lie(lambda data: data[:-1] + bytes([data[-1] ^ 1]), "heads/"), WRONG, "not that of its name"
    ),
    "deep manifest": Case(lie(lambda data: data[:72] + b"\x91" * DEEP, "heads/"), WRONG, "not that of its name"),
    "endless manifest": Case(
        always(Say(200, bytes(MIB), announced=TEN_GIB, repeat=10240), "GET", "heads/"), WRONG, "more than"
    ),
}


PARTS: Final = {"short body", "no body", "long body", "flipped bit", "another object", "10 GiB", "cut off", "page"}


def require_told(said: Said, case: Case) -> None:
    assert said.code == case.code, said
    told = said.err + said.out.decode()
    assert case.says in told
    assert "internal error" not in told
    for secret in ("very-secret", "X-Amz", "Signature=", "Traceback"):
        assert secret not in told


@pytest.mark.parametrize("name", [*ANY, *SENDING])
def test_sync(source: Path, double: S3Double, run: Run, impatient: None, name: str) -> None:
    case = (ANY | SENDING)[name]
    double.plan = case.plan()
    said = run("sync", source, "--quiet", bare=True)
    require_told(said, case)
    assert not [key for key in double.stored() if key.startswith("heads/")] or name == "may not look"
    require_next_is_clean(source, double, run)


@pytest.mark.parametrize("name", [*SOME, *FETCHING])
def test_verify(copied: Path, double: S3Double, run: Run, name: str) -> None:
    case = (ANY | FETCHING)[name]
    double.plan = case.plan()
    require_told(run("verify", copied, "s3", "--read-data", "--quiet", bare=True), case)
    require_next_is_clean(copied, double, run)


@pytest.mark.parametrize(
    ("verb", "name"), [*(("restore", name) for name in (*SOME, *FETCHING)), *(("clone", name) for name in FETCHING)]
)
def test_restore_and_clone(
    copied: Path, double: S3Double, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    case = (ANY | FETCHING)[name]
    back = tmp_path / "back"
    words = [verb, double.url, str(back), *double.options, "--quiet", *(["--fill"] if verb == "clone" else [])]
    double.plan = case.plan()
    said = run(*words)
    if verb == "clone" and name in PARTS:  # it asks for parts of segments, and of these says it in other words
        assert said.code in {case.code, ERROR}
        assert "s3://bucket/backup" in said.err or "does not open" in said.err
        assert "internal error" not in said.err
    else:
        require_told(said, case)
        assert not (back / "heads" / "HEAD").exists(), "it is no vault yet"
    double.heal()
    assert run(*words).code == 0, "the same command goes on"
    require_restored(back)


def test_a_storm_that_ends(
    source: Path, double: S3Double, run: Run, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other request is refused or reset: all goes well, only later."""
    patient = RetryPolicy(tries=50, first_wait_s=0.001, longest_wait_s=0.01)
    monkeypatch.setattr("vaultfs.remotes.urls.RetryPolicy", lambda: patient)

    def storm(asked: Asked) -> Say | None:
        return (error(503, "SlowDown"), None, Say(0), None)[asked.number % 4]

    for words in (["sync", source], ["verify", source, "s3", "--read-data"]):
        double.plan = storm
        assert run(*words, "--quiet", bare=True).code == 0
    assert run("restore", double.url, tmp_path / "back", *double.options, "--quiet").code == 0
    require_restored(tmp_path / "back")
    require_next_is_clean(source, double, run)


# --- listings


def test_a_listing_in_small_pages(source: Path, double: S3Double, run: Run, impatient: None) -> None:
    double.page = 1
    assert run("sync", source, "--quiet", bare=True).code == 0
    require_next_is_clean(source, double, run)


ABSURD: Final = [
    "backup/heads/../../../etc/passwd",
    "backup/heads/" + "a" * 64 + "/../../vault.json",
    "backup/segments/..",
    "backup/segments/aa/..%2f" + "b" * 64,
    "backup/segments/aa/" + "b" * 64,
    "backup//heads/x",
    "elsewhere/heads/" + "a" * 64 + "/0000000001-" + "b" * 64,
    "backup/heads/" + "a" * 64 + "/0000000001-" + "B" * 64,
    "backup/heads/" + "a" * 64 + "/9223372036854775808-" + "b" * 64,
    "backup/heads/\N{PILE OF POO}",
]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_listing_with_names_that_lead_elsewhere(
    source: Path, double: S3Double, run: Run, impatient: None, tmp_path: Path, when: str
) -> None:
    """They are nobody's: neither asked for, nor counted, nor in the way."""
    if when == "after":
        assert run("sync", source, "--quiet", bare=True).code == 0
        double.heal()

    def more(asked: Asked) -> Say | None:
        if asked.method != "LIST":
            return None
        with double.lock:
            true = [(key, len(data)) for key, data in double.objects.items() if key.startswith(asked.key)]
        return listing([*((key, 10) for key in ABSURD if key.startswith(asked.key) or "else" in key), *true])

    double.plan = more
    assert run("sync", source, "--check", "--quiet", bare=True).code == 0
    assert run("verify", source, "s3", "--read-data", "--quiet", bare=True).code == 0
    assert run("restore", double.url, tmp_path / "back", *double.options, "--quiet").code == 0
    require_restored(tmp_path / "back")
    shutil.rmtree(tmp_path / "back")
    assert not [asked.key for asked in double.asked if asked.key in ABSURD]
    require_next_is_clean(source, double, run)


def test_a_listing_that_invents_a_snapshot(copied: Path, double: S3Double, run: Run, tmp_path: Path) -> None:
    """It is not there when it is asked for, which every command says; and none takes another one for it."""
    invented = "backup/heads/" + "a" * 64 + "/0000000009-" + "b" * 64

    def more(asked: Asked) -> Say | None:
        if asked.method != "LIST" or not invented.startswith(asked.key):
            return None
        with double.lock:
            true = [(key, len(data)) for key, data in double.objects.items() if key.startswith(asked.key)]
        return listing([(invented, 100), *true])

    before = double.stored()
    for words, code in (
        (["sync", copied], ERROR),
        (["verify", copied, "s3"], WRONG),
        (["restore", double.url, tmp_path / "back", *double.options], ERROR),
    ):
        double.plan = more
        said = run(*words, "--quiet", bare=words[0] != "restore")
        assert (said.code, "0000000009" in said.err + said.out.decode()) == (code, True), said
    assert double.stored() == before
    assert not (tmp_path / "back").exists()
    said = run("restore", double.url, tmp_path / "back", *double.options, "--snapshot", "1", "--quiet")
    assert said.code == 0
    require_next_is_clean(copied, double, run)
