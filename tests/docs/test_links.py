"""The documents lead nowhere wrong, and tell of every verb and option that there is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vaultfs.cli.parsing import command_app
from vaultfs.cli.secret_sources import NewPasswordOptions, SecretOptions
from vaultfs.cli.verbs import VERBS, Command
from vaultfs.errors import ExitCode
from vaultfs.fuse.session import Tricks

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "cli"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

COMMON = {
    f"--{field.name.replace('_', '-')}"
    for options in (SecretOptions, NewPasswordOptions)
    for field in dataclasses.fields(options)
}
"""Where secrets come from: described once, for all verbs."""


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def prose_of(document: Path) -> str:
    """A document without its code."""
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors_of(document: Path) -> set[str]:
    """The fragments that GitHub makes of headings."""
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def links_of(document: Path) -> list[str]:
    text = prose_of(document)
    return re.findall(r"\]\(\s*<?([^)>\s]+)>?[^)]*\)", text) + re.findall(r"^\[[^]]+\]:\s*(\S+)", text, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    broken = []
    for link in links_of(document):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, fragment = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        is_there = target.exists() and target.is_relative_to(ROOT)
        if not is_there or (fragment and target.suffix == ".md" and fragment not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_links_are_found() -> None:
    """Or the test above would test nothing."""
    assert {"docs/format.md", "LICENSE", "CHANGELOG.md"} <= set(links_of(ROOT / "README.md"))
    assert "4-vaultjson" in anchors_of(ROOT / "docs" / "format.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_document_can_be_reached_from_the_readme(document: Path) -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in links_of(page) if ":" not in link)
        todo += [target for target in targets if target.suffix == ".md" and target.is_file()]
    assert document in seen


# --- verbs


def commands(verb: str) -> Iterator[tuple[str, Command]]:
    loaded = VERBS[verb].load()
    if isinstance(loaded, Mapping):
        for name, command in loaded.items():
            yield f"{verb} {name}", command
    else:
        yield verb, loaded


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page_with_all_its_options(verb: str) -> None:
    page = text_of(PAGES / f"{verb}.md")
    assert page.startswith(f"# vaultfs {verb}\n")
    for name, command in commands(verb):
        assert name in page
        for argument in command_app(f"vaultfs {name}", command).assemble_argument_collection(parse_docstring=True):
            names = {each for each in argument.names if each.startswith("-")}
            if argument.show and names and not names & COMMON:
                assert any(re.search(rf"(?<![\w-]){each}(?![\w-])", page) for each in names), f"{name}: {names}"


def test_the_common_options_stand_on_the_first_page() -> None:
    page = text_of(PAGES / "README.md")
    assert {option for option in COMMON if option not in page} == set()


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_every_page_is_of_a_verb(page: Path) -> None:
    assert page.stem in {*VERBS, "README"}


def test_the_first_page_lists_verbs_and_exit_codes() -> None:
    page = text_of(PAGES / "README.md")
    assert [verb for verb in VERBS if f"]({verb}.md)" not in page] == []
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert codes == {int(code) for code in ExitCode}


def test_every_switch_is_in_the_table_of_tricks() -> None:
    text = text_of(ROOT / "docs" / "architecture.md")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(field.name for field in dataclasses.fields(Tricks))


def test_the_readme_shows_verbs_that_exist() -> None:
    shown = re.findall(r"\.venv/bin/vaultfs (\w+)", text_of(ROOT / "README.md"))
    assert shown
    assert set(shown) <= set(VERBS)


def test_the_table_of_the_bench_has_its_place() -> None:
    assert re.search(r"<!-- bench table -->\n.+?<!-- /bench table -->", text_of(ROOT / "README.md"), re.DOTALL)
