"""Runs in a guest: covers the screen with a window, and writes down what the pointer does there.

It speaks to the X server by itself, so that what it says owes nothing to who is tested by it.
"""

from __future__ import annotations

import socket
import struct
import sys

_KINDS = {4: "press", 5: "release", 6: "move"}
_OVERRIDE_REDIRECT, _EVENT_MASK = 1 << 9, 1 << 11
_BUTTONS_AND_MOTION = 1 << 2 | 1 << 3 | 1 << 6


def main(log: str) -> None:
    """Write a line for each event, with the place on the screen; never ends."""
    server = socket.socket(socket.AF_UNIX)
    server.connect("/tmp/.X11-unix/X1")
    stream = server.makefile("rwb")
    stream.write(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
    stream.flush()
    (length,) = struct.unpack("<6xH", stream.read(8))
    setup = stream.read(4 * length)
    (base,) = struct.unpack_from("<I", setup, 4)
    vendor, formats = struct.unpack_from("<H3xB", setup, 16)
    (root,) = struct.unpack_from("<I", setup, 32 + (vendor + 3) // 4 * 4 + 8 * formats)
    place = struct.pack("<hhHHHHI", 0, 0, 4000, 4000, 0, 1, 0)
    chosen = struct.pack("<III", _OVERRIDE_REDIRECT | _EVENT_MASK, 1, _BUTTONS_AND_MOTION)
    stream.write(struct.pack("<BBHII", 1, 0, 10, base, root) + place + chosen)
    stream.write(struct.pack("<BxHI", 8, 2, base))
    stream.write(struct.pack("<BxH", 43, 1))  # what is answered once the window is there
    stream.flush()
    with open(log, "w", buffering=1) as file:  # noqa: PTH123 -- as little as can be
        while event := stream.read(32):
            if kind := _KINDS.get(event[0] & 0x7F):
                x, y = struct.unpack_from("<hh", event, 20)
                file.write(f"{kind} {event[1]} {x} {y}\n")
            elif event[0] == 1:
                file.write("ready\n")


if __name__ == "__main__":
    main(sys.argv[1])
