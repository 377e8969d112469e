"""The desktop of a sandbox: looked at, and used with mouse and keyboard."""

from __future__ import annotations

import os
from pathlib import Path

from arrakis_rpc.connection import DataReceived
from arrakis_rpc.desktop_api import Button, ScreenSize
from arrakis_rpc.errors import ProtocolError

from ._client import Client

_MOST_BYTES = 64 * 2**20


class Screenshot(bytes):
    """A picture of the screen: the bytes of a PNG file, ``width`` and ``height`` in pixels."""

    width: int
    height: int

    def __new__(cls, data: bytes, width: int, height: int) -> Screenshot:
        """Make it of a PNG file of that size."""
        picture = super().__new__(cls, data)
        picture.width, picture.height = width, height
        return picture

    def __repr__(self) -> str:
        return f"<Screenshot {self.width}x{self.height}, {len(self)} bytes>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the PNG file."""
        Path(path).write_bytes(self)


class Desktop:
    """The desktop of a RUNNING VM of the image ``desktop``, or one that descends from it.

    Coordinates are pixels of the screen as it is now, from its upper left corner, and so those
    of a screenshot. What is outside raises `InvalidParamsError`, which names the size. Every
    method raises `UnsupportedError` where there is no desktop, and `GuestError` while it is
    not up. When one returns it has happened; what programs make of it may take a moment.
    """

    def __init__(self, client: Client, vm: str) -> None:
        self._client = client
        self._vm = vm

    def screenshot(self) -> Screenshot:
        """Take a picture of the screen, in its full size; the pointer is not in it."""
        call = self._client.open("desktop.screenshot", {"vm": self._vm})
        data = bytearray()
        try:
            while (item := call.take()) is not None:
                if isinstance(item, DataReceived):
                    data += item.data
                if len(data) > _MOST_BYTES:
                    raise ProtocolError("a screenshot is larger than any can be")
            size: ScreenSize = call.result()
        finally:
            call.close()
        return Screenshot(bytes(data), size.width, size.height)

    def click(self, x: int, y: int, button: Button = "left", count: int = 1) -> None:
        """Press a button at a place and let it go; ``count`` 2 is a double click."""
        self._act("click", x=x, y=y, button=button, count=count)

    def move(self, x: int, y: int) -> None:
        """Bring the pointer to a place."""
        self._act("move", x=x, y=y)

    def drag(self, x1: int, y1: int, x2: int, y2: int) -> None:
        """Press the left button at one place, and let it go at another."""
        self._act("drag", x1=x1, y1=y1, x2=x2, y2=y2)

    def scroll(self, x: int, y: int, dx: int = 0, dy: int = 0) -> None:
        """Turn the wheel at a place, ``dx`` clicks to the right, ``dy`` down; both up to 100.

        Less than 0 is to the left, and up.
        """
        self._act("scroll", x=x, y=y, dx=dx, dy=dy)

    def type(self, text: str) -> None:
        """Type a text of up to 10000 characters, any of Unicode, where the focus is.

        A line feed is Return, and a tab is Tab; other control characters are refused.
        """
        self._act("type", text=text)

    def key(self, combo: str) -> None:
        """Press keys together: ``ctrl+c``, ``Return`` or ``enter``, ``alt+F4``, ``ctrl+plus``.

        A key is called by its character, or by the name that X has for it; case counts for
        neither in common names, nor in letters after ctrl, alt and super. Raises
        `InvalidParamsError` for a key that there is not.
        """
        self._act("key", combo=combo)

    def _act(self, action: str, **params: object) -> None:
        self._client.call(f"desktop.{action}", {"vm": self._vm, **params})
