"""Waits until the desktop is on the screen, and does once what its users will do first.

A VNC client of its own looks at the screen, because that is what counts. Runs in the guest, as
root, while the template is made: what it has used is in the memory of every machine.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time

_ADDRESS = ("127.0.0.1", 5901)
_PASSWORD = "/usr/lib/arrakis-desktop/password"  # noqa: S105 -- the program that tells it
_TERMINAL = ("runuser", "-u", "elara", "--", "x-terminal-emulator", "-e", "true")
_SETTLED_SECONDS = 2.0
_RETRY_SECONDS = 0.2

_VNC_AUTH = 2
_RAW, _TIGHT, _ZRLE = 0, 7, 16


class Viewer:
    """A connection to the VNC server on this machine."""

    def __init__(self, password: str) -> None:
        self._socket = socket.create_connection(_ADDRESS)
        self._receive(12)
        self._socket.sendall(b"RFB 003.008\n")
        self._authenticate(password)
        self._socket.sendall(b"\1")
        self._width, self._height = struct.unpack(">HH", self._receive(4))
        self._receive(16)
        self._receive_text()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def use(self, *encodings: int) -> None:
        """Say in which encodings the screen may be sent."""
        wanted = struct.pack(f">{len(encodings)}i", *encodings)
        self._socket.sendall(struct.pack(">BxH", 2, len(encodings)) + wanted)

    def ask(self, *, incremental: bool) -> None:
        """Ask for the screen, or for what has changed when something has."""
        area = struct.pack(">HHHH", 0, 0, self._width, self._height)
        self._socket.sendall(struct.pack(">BB", 3, incremental) + area)

    def is_silent(self, seconds: float) -> bool:
        """Tell whether nothing comes for so long; nothing is taken."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(None)
        return False

    def drain(self) -> None:
        """Take everything until nothing more comes."""
        while not self.is_silent(_SETTLED_SECONDS):
            self._socket.recv(1 << 20)

    def update(self) -> bytes:
        """Take an update that was asked for in the raw encoding; give its pixels."""
        while (kind := self._receive(1)[0]) != 0:
            if kind == 3:  # the clipboard
                self._receive(3)
                self._receive_text()
            elif kind != 2:  # the bell
                raise ValueError(f"unexpected message {kind}")
        (rectangles,) = struct.unpack(">xH", self._receive(3))
        pixels = []
        for _ in range(rectangles):
            width, height = struct.unpack(">4xHH4x", self._receive(12))
            pixels.append(self._receive(width * height * 4))
        return b"".join(pixels)

    def _authenticate(self, password: str) -> None:
        kinds = self._receive(self._receive(1)[0])
        if _VNC_AUTH not in kinds:
            raise PermissionError(f"the server offers no password, but {list(kinds)}")
        self._socket.sendall(bytes([_VNC_AUTH]))
        self._socket.sendall(_encrypt(self._receive(16), password))
        if self._receive(4) != bytes(4):
            raise PermissionError(self._receive_text())

    def _receive_text(self) -> str:
        (length,) = struct.unpack(">I", self._receive(4))
        return self._receive(length).decode(errors="replace")

    def _receive(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                raise ConnectionError("the VNC server closed the connection")
            view = view[count:]
        return bytes(data)


def _encrypt(challenge: bytes, password: str) -> bytes:
    """Answer a challenge: DES, its key the password with the bits of each byte reversed."""
    padded = password.encode()[:8].ljust(8, b"\0")
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in padded).hex()
    providers = ("-provider", "legacy", "-provider", "default")
    command = ["openssl", "enc", "-des-ecb", "-nopad", "-K", key, *providers]
    return subprocess.run(command, input=challenge, stdout=subprocess.PIPE, check=True).stdout


def _connect(password: str) -> Viewer:
    while True:
        try:
            return Viewer(password)
        except ConnectionError:
            time.sleep(_RETRY_SECONDS)


def _wait_for_desktop(viewer: Viewer) -> None:
    """Wait for a screen of more than one colour on which nothing changes any more."""
    viewer.use(_RAW)
    while True:
        viewer.ask(incremental=False)
        colours = set(memoryview(viewer.update()).cast("I")[::101])
        viewer.ask(incremental=True)
        settled = viewer.is_silent(_SETTLED_SECONDS)
        if settled and len(colours) > 1:
            return
        if not settled:
            viewer.update()


def main() -> None:
    """Return when the desktop is up."""
    password = subprocess.run([_PASSWORD], stdout=subprocess.PIPE, check=True, text=True).stdout
    viewer = _connect(password.strip())
    _wait_for_desktop(viewer)
    subprocess.run(_TERMINAL, env={**os.environ, "DISPLAY": ":1"}, check=True)
    viewer.close()
    viewer = _connect(password.strip())
    # In what viewers like best, so that the encoders have run, too.
    for encoding in (_TIGHT, _ZRLE):
        viewer.use(encoding)
        viewer.ask(incremental=False)
        viewer.drain()
    viewer.close()
    # Machines are woken from this one: what they all had would be no password.
    subprocess.run([_PASSWORD, "--forget"], check=True)


if __name__ == "__main__":
    main()
