"""What the stand-ins for cloud-hypervisor and Firecracker have in common: HTTP, phases, mishaps.

They speak the real protocols: HTTP over a Unix socket, ``CONNECT`` on the vsock socket, files
of a snapshot. Each keeps to the phases of the real one, and refuses what `api_tables` does not
have. A directory has the settings (``settings``) and gets every request and answer (``calls``).
"""

from __future__ import annotations

import array
import json
import mmap
import os
import re
import signal
import socket
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import h11
from api_tables import problem
from fake_guest import PAGE, Guest


class RefusedError(Exception):
    """The answer is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class FakeVmm(ABC):
    """One process: its phase, and its guest."""

    table: ClassVar[dict[str, Any]]
    prefix: ClassVar[str] = ""
    farewell: ClassVar[str] = "poweroff"

    def __init__(self, directory: Path, api_socket: Path) -> None:
        self.directory = directory
        self.calls = (directory / "calls").open("a")
        self.api_socket = api_socket
        self.phase = "new"
        self.guest: Guest | None = None
        self.fds: list[int] = []

    @property
    def settings(self) -> dict[str, Any]:
        """What it is told now; a test changes its mind."""
        return json.loads((self.directory / "settings").read_text())

    def say(self, *words: object) -> None:
        print(*words, flush=True)

    def serve(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.api_socket))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                self._serve_one(connection)

    def _serve_one(self, connection: socket.socket) -> None:
        http, body, request = h11.Connection(h11.SERVER), b"", None
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(64))
                for _, _, rights in ancillary:
                    self.fds += array.array("i", rights)
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return
        method, target = request.method.decode(), request.target.decode()
        content = json.loads(body) if body else None
        name = f"{method} {target.removeprefix(self.prefix)}"
        if self.settings.get("die_at") == name:
            self.say("fake: dying as told")
            os.kill(os.getpid(), signal.SIGKILL)
        if self.settings.get("silent_at") == name:
            time.sleep(3600)
        try:
            if self.settings.get("refuse_at") == name:
                raise RefusedError(500, "refused as told")
            status, answer = 200, self._answer(name, target, content)
        except RefusedError as refused:
            status, answer = refused.status, self.refusal(refused.message)
        print(json.dumps([method, target, content, status, answer]), file=self.calls, flush=True)
        content = b"" if answer is None else json.dumps(answer).encode()
        status = 204 if answer is None else status
        headers = [("Server", "fake"), ("Connection", "keep-alive")]
        if content:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        connection.sendall(
            (http.send(h11.Response(status_code=status, headers=headers)) or b"")
            + (http.send(h11.Data(content)) or b"")
            + (http.send(h11.EndOfMessage()) or b"")
        )
        if self.settings.get("die_after") == name:
            self.say("fake: dying afterwards as told")
            os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, name: str, target: str, content: Any) -> Any:
        for known, schema in self.table.items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[a-z]+", known), name):
                if wrong := problem(schema, content):
                    raise RefusedError(400, f"{name}: {wrong}")
                verb = re.sub(r"\W+", "_", known.lower()).strip("_")
                return getattr(self, verb)(content or {})
        raise RefusedError(404, f"there is no {name}")

    def require(self, *phases: str, status: int) -> None:
        if self.phase not in phases:
            raise RefusedError(status, f"not while {self.phase}")

    @abstractmethod
    def refusal(self, message: str) -> Any:
        """What the API says of a request that it refuses."""

    def start_guest(self, memory: mmap.mmap, disk: Path, vsock: Path, *, booting: bool) -> None:
        if booting:
            memory[:PAGE] = b"k" * PAGE
            self.say("fake guest: booted")
        self.guest = Guest(
            memory,
            disk,
            self.settings.get("agent"),
            stale=0 if booting else int(self.settings.get("stale", 0)),
            farewell=self.farewell,
        )
        self.guest.listen(vsock)

    def set_running(self, running: bool) -> None:
        assert self.guest is not None
        self.phase = "running" if running else "paused"
        if running:
            self.guest.running.set()
        else:
            self.guest.running.clear()


def map_file(path: Path, size: int, *, shared: bool) -> mmap.mmap:
    flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    with path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise RefusedError(500, f"{path} has not the size of the memory")
        return mmap.mmap(file.fileno(), size, flags)
