"""What a peer remembers of a vault beside its objects, and how that is written down.  Pure.

- Devices: who signed manifests, and since when this peer knows them, because only some may order deletions.  Time alone
  lets in only a device whose manifest came from the vault's owner: the identity that stored here first.  Others who may
  store in the vault, as all do that were accepted for any vault, can sign manifests with a key of their own; those
  never delete, unless a person confirms them.
- The newest heads ever accepted, also those that were deleted: what the peer is asked about as a witness.
- Revisions of ``vault.json``.  Up to two are kept, by the hash of the file: the new one is written down before the file
  is replaced, so whichever file a crash leaves, its revision is known.  A file that is neither, such as one from an
  older backup of the disk, has revision 0, which says nothing.
- The epoch of ``vault.json`` never goes down as long as there is one.  Who takes the file away, by an order that a
  device of the vault has signed or as a person at the peer, has the next one accepted whatever its epoch.
- Who stored here, in the order of their first object.

Clocks are wrong at times.  The highest time ever seen is kept, and a new device counts from that time if the clock says
less: one that was set back, as of a machine without battery at its start, makes nobody old at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec

from vaultfs.errors import FormatTooNewError, IntegrityError, NoSpaceError
from vaultfs.ids import PeerId
from vaultfs.mesh.witness import MOST_HEADS, Head, newest_first

FORMAT: Final = 2
"""2 has `of_owner`; what is of format 1 counts as if it was."""
LARGEST_RECORD_BYTES: Final = 1 << 20
MOST_DEVICES: Final = 256
MOST_WRITERS: Final = 64
DEVICE_WAIT_NS: Final = 7 * 24 * 3600 * 10**9

_KEPT_HEADS: Final = MOST_HEADS // 2
"""Of devices that may delete, and as many of others: somebody who stole a grant and signs manifests with a key of his
own and huge numbers crowds out none of the vault's."""
_LIMIT: Final = 1 << 63

_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=_LIMIT - 1)]


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: _Hex
    first_seen_ns: _Number
    confirmed: bool
    of_owner: bool = True


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seq: Annotated[int, msgspec.Meta(ge=1, le=_LIMIT - 1)]
    hash: _Hex
    device: _Hex


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hash: _Hex
    revision: Annotated[int, msgspec.Meta(ge=1, le=_LIMIT - 1)]


class _Version(msgspec.Struct, frozen=True):
    format: Annotated[int, msgspec.Meta(ge=1)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Annotated[int, msgspec.Meta(ge=1, le=FORMAT)]
    newest_time_ns: _Number
    epoch: _Number
    headers: Annotated[tuple[_Header, ...], msgspec.Meta(max_length=2)]
    devices: Annotated[tuple[_Device, ...], msgspec.Meta(max_length=MOST_DEVICES)]
    heads: Annotated[tuple[_Head, ...], msgspec.Meta(max_length=MOST_HEADS)]
    writers: Annotated[tuple[_Hex, ...], msgspec.Meta(max_length=MOST_WRITERS)]


@dataclass(frozen=True)
class Device:
    """Who signed a manifest.

    Attributes:
        first_seen_ns: when this peer first accepted one, since 1970; if it is the owner's, from the owner.
        is_confirmed: it was the first of the vault, or a person said so.
        is_of_owner: the identity that stored here first has stored a manifest of it.
    """

    first_seen_ns: int
    is_confirmed: bool
    is_of_owner: bool


@dataclass
class VaultRecord:
    """What is remembered of a vault.  Not thread-safe.

    Attributes:
        newest_time_ns: the highest that the clock ever said when something was remembered.
        epoch: the highest of any ``vault.json`` that was accepted.
        headers: hash (32 bytes) and revision of the last ones that were accepted, at most two, the newest last.
        devices: by their keys, 32 bytes.
        heads: of the highest numbers, in the order of statements.
        writers: who stored here, in order.
    """

    newest_time_ns: int = 0
    epoch: int = 0
    headers: list[tuple[bytes, int]] = field(default_factory=list)
    devices: dict[bytes, Device] = field(default_factory=dict)
    heads: list[Head] = field(default_factory=list)
    writers: list[PeerId] = field(default_factory=list)

    def encode(self) -> bytes:
        """The bytes of its file: JSON, so that a person can look at it."""
        content = _File(
            format=FORMAT,
            newest_time_ns=self.newest_time_ns,
            epoch=self.epoch,
            headers=tuple(_Header(digest.hex(), revision) for digest, revision in self.headers),
            devices=tuple(
                _Device(key.hex(), device.first_seen_ns, device.is_confirmed, device.is_of_owner)
                for key, device in self.devices.items()
            ),
            heads=tuple(_Head(head.seq, head.hash.hex(), head.device.hex()) for head in self.heads),
            writers=tuple(peer.hex() for peer in self.writers),
        )
        return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> VaultRecord:
        """Read a file.

        Raises:
            FormatTooNewError: a newer vaultfs wrote it.
            IntegrityError: it is damaged.
        """
        try:
            if len(data) > LARGEST_RECORD_BYTES:
                raise ValueError(f"it has more than {LARGEST_RECORD_BYTES} bytes")
            if (version := msgspec.json.decode(data, type=_Version).format) > FORMAT:
                raise FormatTooNewError(f"it has format {version}, newer than this vaultfs knows")
            content = msgspec.json.decode(data, type=_File)
            record = cls(
                content.newest_time_ns,
                content.epoch,
                [(bytes.fromhex(header.hash), header.revision) for header in content.headers],
                {
                    bytes.fromhex(device.key): Device(device.first_seen_ns, device.confirmed, device.of_owner)
                    for device in content.devices
                },
                [Head(head.seq, bytes.fromhex(head.hash), bytes.fromhex(head.device)) for head in content.heads],
                [PeerId(bytes.fromhex(writer)) for writer in content.writers],
            )
            if (len(record.devices), len(set(record.heads)), len(set(record.writers))) != (
                len(content.devices),
                len(content.heads),
                len(content.writers),
            ):
                raise ValueError("something occurs twice")
        except (ValueError, RecursionError) as error:  # msgspec's DecodeError is a ValueError
            raise IntegrityError(f"it is damaged: {error}") from error
        record.heads.sort(key=newest_first)
        return record

    def may_delete(self, device: bytes, now_ns: int) -> bool:
        """Whether a device may order deletions.

        Args:
            device: its key, 32 bytes.
            now_ns: since 1970, by this machine's clock.
        """
        known = self.devices.get(device)
        return known is not None and (
            known.is_confirmed or (known.is_of_owner and now_ns - known.first_seen_ns >= DEVICE_WAIT_NS)
        )

    def has_remembered(self, head: Head, *, is_of_owner: bool = False) -> bool:
        """Whether nothing changes if this head is remembered."""
        known = self.devices.get(head.device)
        if known is None or (is_of_owner and not known.is_of_owner):
            return False
        return head in self.heads or head not in self._newest([*self.heads, head], self.newest_time_ns)

    def remember(self, head: Head, now_ns: int, *, is_of_owner: bool = True, may_be_first: bool = True) -> None:
        """Note a manifest that was accepted.

        Args:
            head: what it is.
            now_ns: since 1970, by this machine's clock.
            is_of_owner: it came from the identity that stored here first.
            may_be_first: if that is so and no device is known yet, this one may delete at once.

        Raises:
            NoSpaceError: there are too many devices already.
        """
        if head.device not in self.devices and len(self.devices) >= MOST_DEVICES:
            raise NoSpaceError(
                f"this peer knows {MOST_DEVICES} devices of the vault, as many as it may; confirm the right one there"
            )
        self.newest_time_ns = max(self.newest_time_ns, now_ns, 0)
        known = self.devices.get(head.device)
        if known is None:
            self.devices[head.device] = Device(
                self.newest_time_ns, is_of_owner and may_be_first and not self.devices, is_of_owner
            )
        elif is_of_owner and not known.is_of_owner:
            self.devices[head.device] = Device(self.newest_time_ns, known.is_confirmed, is_of_owner=True)
        if head not in self.heads:
            self.heads = self._newest([*self.heads, head], now_ns)

    def confirm(self, device: bytes, now_ns: int) -> None:
        """A person says that a device is the vault's; it takes the place of an unconfirmed one if there are too many.

        Args:
            device: its key, 32 bytes.
            now_ns: since 1970, by this machine's clock.

        Raises:
            NoSpaceError: there are too many confirmed ones.
        """
        if device not in self.devices and len(self.devices) >= MOST_DEVICES:
            others = [key for key, known in self.devices.items() if not known.is_confirmed]
            if not others:
                raise NoSpaceError(
                    f"{MOST_DEVICES} devices of the vault are confirmed already, the most that there may be"
                )
            del self.devices[max(others, key=lambda key: self.devices[key].first_seen_ns)]
        known = self.devices.get(device)
        first_seen_ns = known.first_seen_ns if known is not None else max(self.newest_time_ns, now_ns, 0)
        self.devices[device] = Device(
            first_seen_ns, is_confirmed=True, is_of_owner=known is not None and known.is_of_owner
        )

    def revision_of(self, digest: bytes) -> int:
        """The revision of a ``vault.json``; 0 if this peer never accepted it.

        Args:
            digest: of the file, 32 bytes.
        """
        return dict(self.headers).get(digest, 0)

    def expect_header(self, current: bytes | None, digest: bytes, revision: int, epoch: int) -> None:
        """Note that ``vault.json`` is about to be replaced, or to get another revision.

        Args:
            current: the hash of what lies there now; None if nothing does.
            digest: of what will.
            revision: of what will.
            epoch: of what will.
        """
        kept = [header for header in self.headers if header[0] == current and current != digest]
        self.headers = [*kept[:1], (digest, revision)]
        self.epoch = epoch if current is None else max(self.epoch, epoch)

    def _newest(self, heads: list[Head], now_ns: int) -> list[Head]:
        ranked = sorted(heads, key=newest_first)
        trusted = [head for head in ranked if self.may_delete(head.device, now_ns)]
        others = [head for head in ranked if not self.may_delete(head.device, now_ns)]
        return sorted(trusted[:_KEPT_HEADS] + others[:_KEPT_HEADS], key=newest_first)
