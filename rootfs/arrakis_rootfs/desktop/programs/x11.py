"""As much of the X protocol as somebody needs who looks at a screen and acts on it.

Spoken to the socket without a library: that the image would have to hold, and load each time.
"""

from __future__ import annotations

# Of the library's `socket` alone the import takes as long as all else together.
import _socket
import struct

SOCKET = "/tmp/.X11-unix/X1"  # noqa: S108 -- where X has it

KEY_PRESS, KEY_RELEASE, BUTTON_PRESS, BUTTON_RELEASE, MOTION = 2, 3, 4, 5, 6
LOCK_MASK = 1 << 1

_ERROR, _REPLY = 0, 1
_GET_GEOMETRY, _QUERY_POINTER, _GET_INPUT_FOCUS, _GET_IMAGE = 14, 38, 43, 73
_QUERY_EXTENSION, _CHANGE_KEYBOARD_MAPPING, _GET_KEYBOARD_MAPPING = 98, 100, 101
_XTEST_FAKE_INPUT = 2
_Z_PIXMAP = 2
_ALL_PLANES = 0xFFFFFFFF
_BAD_MATCH = 8
_BYTES_PER_PIXEL = 4


class XError(Exception):
    """The server refused a request."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the X server refused a request: error {code}")
        self.code = code


class Display:
    """A connection to the X server."""

    def __init__(self) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX)
        self._socket.connect(SOCKET)
        self._socket.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
        status, length = struct.unpack("<Bx4xH", self._receive(8))
        setup = self._receive(4 * length)
        if status != _REPLY:
            raise ConnectionError("the X server lets nobody in")
        vendor, formats = struct.unpack_from("<H3xB", setup, 16)
        self._first_key, self.last_key = setup[26], setup[27]
        screen = 32 + (vendor + 3) // 4 * 4 + 8 * formats
        (self._root,) = struct.unpack_from("<I", setup, screen)
        self._waiting = bytearray()
        self._input = self._extension(b"XTEST")

    def size(self) -> tuple[int, int]:
        """Give width and height of the screen as they are now."""
        reply = self._ask(struct.pack("<BxHI", _GET_GEOMETRY, 2, self._root))
        width, height = struct.unpack_from("<HH", reply, 16)
        return width, height

    def picture(self) -> tuple[int, int, bytes]:
        """Give width and height of the screen, and its pixels: blue, green, red, nothing."""
        while True:
            width, height = self.size()
            area = struct.pack("<hhHHI", 0, 0, width, height, _ALL_PLANES)
            try:
                reply = self._ask(struct.pack("<BBHI", _GET_IMAGE, _Z_PIXMAP, 5, self._root) + area)
            except XError as error:
                if error.code == _BAD_MATCH:  # it has become smaller in between
                    continue
                raise
            return width, height, reply[32 : 32 + width * height * _BYTES_PER_PIXEL]

    def modifiers(self) -> int:
        """Give the mask of modifiers and buttons that are down or locked."""
        reply = self._ask(struct.pack("<BxHI", _QUERY_POINTER, 2, self._root))
        (mask,) = struct.unpack_from("<H", reply, 24)
        return int(mask)

    def keys(self) -> dict[int, tuple[int, ...]]:
        """Give the keysyms of each key: alone, with Shift, and others."""
        count = self.last_key - self._first_key + 1
        asked = struct.pack("<BxHBBxx", _GET_KEYBOARD_MAPPING, 2, self._first_key, count)
        reply = self._ask(asked)
        width = reply[1]
        rows = struct.iter_unpack(f"<{width}I", reply[32 : 32 + count * width * 4])
        return dict(enumerate(rows, self._first_key))

    def assign(self, key: int, alone: int, shifted: int) -> None:
        """Let a key mean one thing, and another with Shift."""
        head = struct.pack("<BBHBBxx", _CHANGE_KEYBOARD_MAPPING, 1, 4, key, 2)
        self._socket.sendall(head + struct.pack("<II", alone, shifted))

    def fake(self, kind: int, detail: int, x: int = 0, y: int = 0) -> None:
        """Say that a key or a button went down or up, or (MOTION) the pointer to a place."""
        self._waiting += struct.pack(
            "<BBHBBxxII8xhh7xx", self._input, _XTEST_FAKE_INPUT, 9, kind, detail, 0, 0, x, y
        )

    def flush(self) -> None:
        """Let happen what was said since the last time, all at once; return when it has."""
        self._socket.sendall(self._waiting)
        self._waiting.clear()
        self._ask(struct.pack("<BxH", _GET_INPUT_FOCUS, 1))

    def _extension(self, name: bytes) -> int:
        length = 2 + (len(name) + 3) // 4
        asked = struct.pack("<BxHHxx", _QUERY_EXTENSION, length, len(name))
        reply = self._ask(asked + name.ljust(4 * (length - 2), b"\0"))
        if not reply[8]:
            raise ConnectionError(f"the X server has no {name.decode()}")
        return reply[9]

    def _ask(self, request: bytes) -> bytes:
        """Send a request; give its reply, and pass over events."""
        self._socket.sendall(request)
        while True:
            head = self._receive(32)
            if head[0] == _ERROR:
                raise XError(head[1])
            if head[0] == _REPLY:
                return head + self._receive(4 * struct.unpack_from("<I", head, 4)[0])

    def _receive(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                raise ConnectionError("the X server closed the connection")
            view = view[count:]
        return bytes(data)
