"""Which of the peers that are known a person means by an id, or by the beginning of one.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vaultfs.errors import UsageError
from vaultfs.ids import PeerId
from vaultfs.mesh.identity import format_peer_id

SHORTEST_PREFIX: Final = 8
"""One group of a printed id, 40 bits: those of a few peers do not share it by chance."""


def meant_peer(word: str, known: Iterable[PeerId], where: str) -> PeerId:
    """The peer that is meant.

    Only for peers that a person has chosen to trust before: among strangers anybody can make himself an id that begins
    like another.

    Args:
        word: an id, or its first characters: at least `SHORTEST_PREFIX`; case, dashes and spaces do not count.
        known: the peers, each once.
        where: they are known, for messages, as in "the list of peers".

    Raises:
        UsageError: it means none of these, or several.
    """
    start = "".join(character for character in word if character not in "- ").lower()
    shown = "".join(character if " " <= character <= "~" else "?" for character in word[:100])
    if len(start) < SHORTEST_PREFIX:
        raise UsageError(f"{shown!r}: write at least the first {SHORTEST_PREFIX} characters of the peer's id")
    found = [peer for peer in known if format_peer_id(peer).replace("-", "").startswith(start)]
    if not found:
        raise UsageError(f"there is no peer {shown!r} in {where}")
    if len(found) > 1:
        raise UsageError(f"{shown!r} is the beginning of {len(found)} peers' ids; write more of it")
    return found[0]
