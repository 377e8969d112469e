"""A writer for the one archive format that the kernel reads its initramfs from: cpio "newc".

Written here instead of calling `cpio` because the result has to be the same bytes for the same
input (entries sorted, no times, no inode numbers of the building host), and because device
nodes can be entries without anybody being root.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_HEADER = "070701" + "{:08X}" * 13
_TRAILER = "TRAILER!!!"
_BLOCK = 512


@dataclass(frozen=True)
class Entry:
    """One file of an archive: `mode` holds type and permissions as in `stat`."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    """A directory, readable by all."""
    return Entry(path, stat.S_IFDIR | 0o755)


def regular(path: str, data: bytes, *, executable: bool = False) -> Entry:
    """A regular file with its content."""
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    """A character device node."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def write_archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive; a directory sorts before what it holds, as the kernel needs."""
    archive = bytearray()
    for inode, entry in enumerate(sorted(entries, key=lambda entry: entry.path), start=1):
        _append(archive, entry, inode)
    _append(archive, Entry(_TRAILER, 0), 0)
    archive += bytes(-len(archive) % _BLOCK)
    return bytes(archive)


def _append(archive: bytearray, entry: Entry, inode: int) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    uid = gid = mtime = checksum = 0
    header = _HEADER.format(
        inode, entry.mode, uid, gid, links, mtime, len(entry.data), 0, 0, *entry.device,
        len(name), checksum,
    )  # fmt: skip
    for part in (header.encode() + name, entry.data):
        archive += part
        archive += bytes(-len(archive) % 4)
