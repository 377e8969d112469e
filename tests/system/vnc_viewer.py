"""A person at the screen of a machine, by means of a VNC client library."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from vncdotool import api
from vncdotool.client import AuthenticationError

PICTURES = Path(__file__).parents[2] / "build"
"""Where what was seen is kept, to be looked at."""

BAR = 32
"""Height of the bar at the lower edge."""

_DEADLINE = 120.0
_PERIOD = 0.5


class Viewer:
    """A connection to a VNC server."""

    def __init__(self, client: api.ThreadedVNCClientProxy) -> None:
        self._client = client

    def look(self, name: str) -> Image.Image:
        """Fetch the whole screen; keep it under a name."""
        PICTURES.mkdir(exist_ok=True)
        picture = PICTURES / f"{name}.png"
        self._client.captureScreen(str(picture))
        with Image.open(picture) as image:
            return image.convert("RGB")

    def look_until_changed(self, name: str, before: Image.Image) -> Image.Image:
        """Look until the desktop above the bar differs from an earlier picture, and stays so."""
        end = time.monotonic() + _DEADLINE
        last = before
        while True:
            assert time.monotonic() < end, f"nothing settled that differs from before {name}"
            image = self.look(name)
            if _above_bar(image) == _above_bar(last) != _above_bar(before):
                return image
            last = image
            time.sleep(_PERIOD)

    def press(self, keys: str) -> None:
        """Press keys together, as in ``ctrl-alt-t``."""
        self._client.keyPress(keys)

    def type(self, text: str) -> None:
        """Press one key after the other."""
        for key in text:
            self._client.keyPress({"\n": "enter", " ": "space"}.get(key, key))


@contextlib.contextmanager
def viewing(address: tuple[str, int], password: str) -> Iterator[Viewer]:
    """Look at a screen for the length of a block; raises when it is not let in."""
    host, port = address
    client = api.connect(f"{host}::{port}", password=password, timeout=_DEADLINE)
    try:
        yield Viewer(client)
    finally:
        # Without a session it would wait for the end of one.
        if client.protocol is not None:
            client.disconnect()


def lets_in(address: tuple[str, int], password: str) -> bool:
    """Tell whether a password is taken; raises when something else is wrong."""
    try:
        with viewing(address, password) as viewer:
            viewer.look("desktop-let-in")
    except AuthenticationError:
        return False
    return True


def is_there(address: tuple[str, int]) -> bool:
    """Tell whether a VNC server greets."""
    try:
        with socket.create_connection(address, timeout=_PERIOD) as client:
            return client.recv(4) == b"RFB "
    except OSError:
        return False


def _above_bar(image: Image.Image) -> bytes:
    return image.crop((0, 0, image.width, image.height - BAR)).tobytes()


def colours(image: Image.Image) -> int:
    """Count the colours of a picture."""
    found = image.getcolors(image.width * image.height)
    assert found is not None
    return len(found)
