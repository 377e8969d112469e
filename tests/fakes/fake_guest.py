"""What a fake hypervisor runs: real memory, a real disk, and nobody who executes anything.

It answers lines on vsock port 5000, or is an agent on another socket.
"""

from __future__ import annotations

import mmap
import os
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

PAGE = 4096
AGENT_PORT = 5000


class Guest:
    """What a machine consists of, and what it does while its vCPUs run."""

    def __init__(
        self, memory: mmap.mmap, disk: Path, agent: str | None, *, stale: int, farewell: str
    ) -> None:
        self.memory = memory
        self.disk = disk.open("r+b", buffering=0)
        self.agent = agent
        self.stale = stale
        self.farewell = farewell
        self.running = threading.Event()
        self.connections: set[socket.socket] = set()

    def listen(self, path: Path) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def reset_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):  # its other end may have gone
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            if self.stale > 0:
                self.stale -= 1
                self.connections.add(connection)  # whom the guest takes for somebody it knows
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            self.connections.add(connection)
            try:
                with connection.makefile("rwb", buffering=0) as stream:
                    asked = re.fullmatch(rb"CONNECT (\d+)\n", stream.readline())
                    self.running.wait()
                    if asked is None or int(asked[1]) != AGENT_PORT:
                        return
                    if self.agent is None:
                        stream.write(b"OK 1073741824\n")
                        while line := stream.readline():
                            self.running.wait()
                            stream.write(f"{self.obey(*line.decode().split())}\n".encode())
                        return
                with socket.socket(socket.AF_UNIX) as guest_end:
                    guest_end.connect(self.agent)
                    connection.sendall(b"OK 1073741824\n")
                    _bridge(connection, guest_end)
            except OSError:
                pass  # one end is gone, which is the end of it
            finally:
                self.connections.discard(connection)

    def obey(self, verb: str, *numbers: str) -> str:
        at, *rest = map(int, numbers or "0")
        match verb:
            case "poke":
                self.memory[at * PAGE : (at + 1) * PAGE] = bytes([rest[0]]) * PAGE
            case "peek":
                return str(self.memory[at * PAGE])
            case "write":
                os.pwrite(self.disk.fileno(), bytes([rest[0]]) * PAGE, at * PAGE)
            case "read":
                return str(os.pread(self.disk.fileno(), 1, at * PAGE)[0])
            case "exit":
                os._exit(at)
            case "poweroff" | "reboot":
                if verb == self.farewell:
                    os._exit(0)
                self.running.clear()
        return "done"


def _bridge(left: socket.socket, right: socket.socket) -> None:
    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    other = threading.Thread(target=pump, args=(right, left), daemon=True)
    other.start()
    pump(left, right)
    other.join()
