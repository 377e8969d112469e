"""Pixels as a PNG file."""

from __future__ import annotations

import struct
import zlib

# Each picture is looked at once: to make it quickly is worth more than to make it small.
_COMPRESSION = 1
_RGB = 2


def png(width: int, height: int, pixels: bytes) -> bytes:
    """Make a PNG file of pixels, each of which is four bytes: blue, green, red, nothing."""
    colours = bytearray(width * height * 3)
    colours[0::3], colours[1::3], colours[2::3] = pixels[2::4], pixels[1::4], pixels[0::4]
    row = 3 * width
    starts = range(0, len(colours), row)
    unfiltered = b"".join(b"\0" + colours[start : start + row] for start in starts)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(unfiltered, _COMPRESSION)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
