"""Answers that are HTTP, but not S3: pages instead of listings, lengths and entries that are missing, no end of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import Run

from vaultfs.errors import ExitCode

from .conftest import require_next_is_clean
from .s3_double import XML, Act, Asked, S3Double, Say, each, error, listing

HTML = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>"
XHTML = b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><body><h1>Log in</h1></body></html>"


def entry(content: str) -> Say:
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents>{content}</Contents></ListBucketResult>"
    return Say(200, body.encode(), XML)


def is_list(asked: Asked) -> bool:
    return asked.method == "LIST"


LISTINGS = {
    "a page": Say(200, HTML, {"Content-Type": "text/html"}),
    "an XHTML page": Say(200, XHTML, {"Content-Type": "text/html"}),
    "nothing": Say(200, b""),
    "no content": Say(204),
    "without sizes": entry("<Key>backup/heads/x</Key>"),
    "without keys": entry("<Size>1</Size>"),
    "sizes in words": entry("<Key>backup/heads/x</Key><Size>many</Size>"),
    "the same token": listing([("backup/heads/x", 1)], ["token"]),
    "a token for nothing": Say(200, b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", XML),
}


def commands(vault: Path, double: S3Double, back: Path) -> list[tuple[str | Path, ...]]:
    return [
        ("sync", vault),
        ("verify", vault, "s3", "--read-data"),
        ("restore", double.url, back, *double.options),
        ("clone", double.url, back, *double.options),
    ]


def require_refused(vault: Path, double: S3Double, run: Run, tmp_path: Path, plan: Callable[[Asked], Act]) -> None:
    before = double.stored()
    for words in commands(vault, double, tmp_path / "back"):
        double.heal()
        double.plan = plan
        said = run(*words, "--quiet", bare=words[0] in {"sync", "verify"})
        assert said.code == ExitCode.ERROR, (words[0], said)
        assert "internal error" not in said.err
        assert "not S3" in said.err, (words[0], said)
        assert len(double.asked) < 300
    assert double.stored() == before
    assert not (tmp_path / "back").exists()
    require_next_is_clean(vault, double, run)


@pytest.mark.parametrize("name", LISTINGS)
def test_a_listing_that_is_none(copied: Path, double: S3Double, run: Run, tmp_path: Path, name: str) -> None:
    """It must not be taken for an empty one: then a verification would find nothing wrong."""
    require_refused(copied, double, run, tmp_path, each(is_list, LISTINGS[name]))


@pytest.mark.parametrize(
    "objects", [[], [("backup/heads/../x", 1)], [("elsewhere/x", 1)]], ids=["none", "odd", "others"]
)
def test_a_listing_that_never_ends(
    copied: Path, double: S3Double, run: Run, tmp_path: Path, objects: list[tuple[str, int]]
) -> None:
    """Every page has another token, and none has an object."""
    require_refused(
        copied, double, run, tmp_path, lambda asked: listing(objects, [f"{asked.number}"]) if is_list(asked) else None
    )


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_answer_without_a_length(source: Path, double: S3Double, run: Run, impatient: None, method: str) -> None:
    if method == "GET":
        assert run("sync", source, "--quiet", bare=True).code == 0
        double.heal()
    double.plan = each(lambda asked: asked.method == method, Say(200, b"x" * 10, announced=-1))
    said = run("sync", source, "--quiet", bare=True)
    assert (said.code, "internal error" in said.err, "length" in said.err) == (ExitCode.ERROR, False, True), said
    require_next_is_clean(source, double, run)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects(copied: Path, double: S3Double, run: Run, status: int) -> None:
    """None is followed for ever, nor to anywhere else."""
    for code in ("TemporaryRedirect", "PermanentRedirect"):
        for where in (f"{double.endpoint}/bucket/backup/vault.json", "http://127.0.0.1:9/elsewhere"):
            double.heal()
            answer = error(status, code, {"Location": where})
            double.plan = lambda _asked, answer=answer: answer  # type: ignore[misc]
            said = run("verify", copied, "s3", "--quiet", bare=True)
            assert said.code in {ExitCode.REMOTE_REFUSED, ExitCode.ERROR}, said
            assert "internal error" not in said.err
            assert len(double.asked) < 100
    require_next_is_clean(copied, double, run)


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
def test_a_conflict_is_no_other_device(source: Path, double: S3Double, run: Run, impatient: None, code: str) -> None:
    """S3 answers so to one of two conditional requests at once, and wants it repeated."""
    double.plan = each(lambda asked: asked.method == "PUT", error(409, code), times=1)
    assert run("sync", source, "--quiet", bare=True).code == 0
    double.objects.clear()
    double.plan = each(lambda asked: asked.method == "PUT" and "vault.json" in asked.key, error(409, code))
    require_not_there = run("sync", source, "--quiet", bare=True)
    assert require_not_there.code == ExitCode.REMOTE_UNREACHABLE
    assert "another device" not in require_not_there.err
    require_next_is_clean(source, double, run)
