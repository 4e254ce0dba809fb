"""What a store shows after a crash, and what many such inspections say together."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .stores import Tree
from .workload import Expectation

MOST_PROBLEMS = 100
_NUMBERS = re.compile(r"[0-9a-f]{8,}|\d+")


@dataclass(slots=True)
class Inspection:
    """What a store shows after a crash.

    Attributes:
        tree: everything visible.
        problems: broken invariants, a line each.
    """

    tree: Tree
    problems: list[str] = field(default_factory=list)


Inspect = Callable[[Path], Inspection]
"""Opens what lies in a directory, checks it, and closes it; an exception is a problem like any other."""


@dataclass(slots=True)
class Report:
    """The result of many cuts."""

    points: int = 0
    states: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The counts, and one example of each kind of problem."""
        kinds: dict[str, list[str]] = {}
        for problem in self.problems:
            kinds.setdefault(_NUMBERS.sub("#", problem.partition(": ")[2]), []).append(problem)
        lines = [f"{len(each)} times: {each[0]}" for each in kinds.values()]
        return "\n".join([f"{self.states} states at {self.points} points, {len(self.problems)} problems", *lines[:20]])

    def inspected(self, inspect: Inspect, root: Path, expectation: Expectation, survivors: range, where: str) -> None:
        """Inspect what lies in ``root``, count it, and note what is wrong with it.

        Args:
            inspect: opens it.
            root: holds it.
            expectation: what it should be,
            survivors: after as many operations.
            where: names the crash.
        """
        self.states += 1
        place = f"{where}, operations {list(survivors)}"
        try:
            found = inspect(root)
        except Exception as error:
            self.problems.append(f"{place}: cannot be opened: {error!r}")
            return
        self.problems += [f"{place}: {problem}" for problem in found.problems]
        mismatch = expectation.mismatch(found.tree, survivors)
        if mismatch:
            self.problems.append(f"{place}: {mismatch}")

    @property
    def is_hopeless(self) -> bool:
        """Whether more problems would tell nothing new."""
        return len(self.problems) >= MOST_PROBLEMS

    def verify(self, least_points: int) -> None:
        """Fail if there was a problem, or if there were fewer points than a test means to have."""
        if self.problems or self.points < least_points:
            raise AssertionError(str(self))

    def add(self, other: Report) -> None:
        """Take in what another report says."""
        self.points += other.points
        self.states += other.states
        self.problems += other.problems
