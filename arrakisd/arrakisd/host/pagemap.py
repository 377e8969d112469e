"""Which pages of a private file mapping a process has made its own, by writing to them.

They are anonymous then: present or swapped out, and not the file's. The kernel says so in
``/proc/PID/pagemap`` (Documentation/admin-guide/mm/pagemap.rst). Since Linux 6.7 it can be asked
for just those; what that takes does not grow with the memory that was never touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from array import array
from collections.abc import Iterator

from .page_files import PAGE, Run, marked

# PAGEMAP_SCAN, struct pm_scan_arg and the categories of pages in <linux/fs.h>. The fields: size,
# flags, begin, end, where the scan has ended, address and length of the vector, most pages,
# categories that are inverted, those that all must apply, of which any must, and to be told of.
_SCAN = 0xC0606610
_SCAN_ARGUMENT = struct.Struct("=12Q")
_IS_FILE, _IS_PRESENT, _IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
_REGION = 3  # begin, end, categories
_REGIONS = 2048

# The flags of the top byte of an entry, where it is little-endian.
_PRESENT, _SWAPPED, _FILE = 0x80, 0x40, 0x20
_OWN = bytes(
    1 if value & (_PRESENT | _SWAPPED) and not value & _FILE else 0 for value in range(256)
)


def own_pages(pagemap: int, address: int, pages: int) -> Iterator[Run]:
    """Give, as (number of the first, count), which pages of a mapping are the process's own.

    ``pagemap`` is the open file of the process. Raises `OSError`, or `EOFError` once it has ended.
    """
    try:
        yield from _scanned(pagemap, address, pages)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        yield from _read(pagemap, address, pages)


def _scanned(pagemap: int, address: int, pages: int) -> Iterator[Run]:
    regions = array("Q", bytes(8 * _REGION * _REGIONS))
    begin, end = address, address + pages * PAGE
    where, _ = regions.buffer_info()
    while begin < end:
        argument = bytearray(
            _SCAN_ARGUMENT.pack(
                *(_SCAN_ARGUMENT.size, 0, begin, end, 0, where, _REGIONS, 0),
                *(_IS_FILE, _IS_FILE, _IS_PRESENT | _IS_SWAPPED, _IS_FILE),
            )
        )
        found = fcntl.ioctl(pagemap, _SCAN, argument)
        for at in range(0, found * _REGION, _REGION):
            yield (regions[at] - address) // PAGE, (regions[at + 1] - regions[at]) // PAGE
        begin = _SCAN_ARGUMENT.unpack(argument)[4]
    if not os.pread(pagemap, 8, address // PAGE * 8):  # of one that has ended, nothing is found
        raise EOFError


def _read(pagemap: int, address: int, pages: int) -> Iterator[Run]:
    entries = os.pread(pagemap, pages * 8, address // PAGE * 8)
    if len(entries) != pages * 8:
        raise EOFError
    yield from marked(entries[7::8].translate(_OWN))
