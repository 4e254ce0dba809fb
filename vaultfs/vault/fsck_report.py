"""What fsck found: findings, each with what it concerns and what was done about it, and the verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vaultfs.errors import ExitCode

Severity = Literal["note", "warning", "error"]
"""note: nothing is wrong; warning: wrong, but without harm to data; error: something is lost, or not to be trusted."""

MOST_FINDINGS_OF_A_KIND: Final = 1000
"""More of one code are counted, not kept: a destroyed disk shall not fill the memory."""


@dataclass(frozen=True)
class ByteRange:
    """A part of a file, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: a word for programs; docs/cli/fsck.md lists them.
        severity: how bad it is.
        message: one sentence or two for people.
        paths: the files concerned, by all their names.
        ranges: the bytes of each of these files that are damaged; none: not known, or not in the data.
        saved: what can be saved, or where it was put.
        is_repaired: the vault is consistent again in this respect.
        is_lost: data or names are gone for good, unless a backup has them.
    """

    code: str
    severity: Severity
    message: str
    paths: tuple[str, ...] = ()
    ranges: tuple[ByteRange, ...] = ()
    saved: str = ""
    is_repaired: bool = False
    is_lost: bool = False


@dataclass
class FsckReport:
    """The outcome of one run.

    Attributes:
        vault: the directory.
        is_repair: whether it was allowed to change anything.
        findings: in the order of the checks; at most so many of one code.
        omitted: how many more there were of a code.
        inodes: in the vault when it was checked.
        chunks: likewise.
        segments: likewise.
        read_bytes: of sealed chunks that were opened.
        elsewhere_segments: are not on this disk, but may be on a remote; they were not looked at.
        elsewhere_bytes: of these.
    """

    vault: str
    is_repair: bool = False
    findings: list[Finding] = field(default_factory=list)
    omitted: dict[str, int] = field(default_factory=dict)
    inodes: int = 0
    chunks: int = 0
    segments: int = 0
    read_bytes: int = 0
    elsewhere_segments: int = 0
    elsewhere_bytes: int = 0
    _kept: Counter[str] = field(default_factory=Counter, repr=False)
    _problems: int = field(default=0, repr=False)
    _unrepaired: int = field(default=0, repr=False)
    _lost: int = field(default=0, repr=False)

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it unless there are too many of its kind."""
        if finding.severity != "note":
            self._problems += 1
            self._unrepaired += not finding.is_repaired
            self._lost += finding.is_lost
        self._kept[finding.code] += 1
        if self._kept[finding.code] <= MOST_FINDINGS_OF_A_KIND:
            self.findings.append(finding)
        else:
            self.omitted[finding.code] = self.omitted.get(finding.code, 0) + 1

    @property
    def problems(self) -> int:
        """Findings that are more than notes."""
        return self._problems

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing but notes."""
        return not self._problems

    @property
    def unrepaired(self) -> int:
        """Problems that are still there."""
        return self._unrepaired

    @property
    def losses(self) -> int:
        """Problems with which something is gone for good."""
        return self._lost

    @property
    def exit_code(self) -> ExitCode:
        """0: clean, or all put right; 3: put right in part, or with a loss; 15: damage found and not repaired."""
        if self.is_clean:
            return ExitCode.OK
        if not self.is_repair or self._unrepaired == self._problems:
            return ExitCode.INTEGRITY
        return ExitCode.PARTIAL if self._unrepaired or self._lost else ExitCode.OK

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "vault": self.vault,
            "repair": self.is_repair,
            "clean": self.is_clean,
            "problems": self.problems,
            "exit_code": int(self.exit_code),
            "inodes": self.inodes,
            "chunks": self.chunks,
            "segments": self.segments,
            "read_bytes": self.read_bytes,
            "elsewhere_segments": self.elsewhere_segments,
            "elsewhere_bytes": self.elsewhere_bytes,
            "omitted": self.omitted,
            "findings": [
                {
                    "code": each.code,
                    "severity": each.severity,
                    "message": each.message,
                    "paths": list(each.paths),
                    "ranges": [{"offset": part.offset, "length": part.length} for part in each.ranges],
                    "saved": each.saved,
                    "repaired": each.is_repaired,
                    "lost": each.is_lost,
                }
                for each in self.findings
            ],
        }
