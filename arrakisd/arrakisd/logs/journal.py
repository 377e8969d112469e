"""Log lines for systemd's journal, with fields of their own to search by.

The protocol is journald's native one (https://systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of
fields, or, if it is too large for one, a sealed memory file that holds them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

_SOCKET = Path("/run/systemd/journal/socket")
_PREFIX = "ARRAKIS_"
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_PATIENCE = 1.0
_LONGEST_NAME = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
# The journal has its own time, and these make up the message itself.
_NO_FIELDS = ("event", "level", "timestamp", "exception")


def is_journal(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether stderr leads to the journal (JOURNAL_STREAM in systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def render_for_journal(
    _: object, __: str, event: MutableMapping[str, Any]
) -> tuple[tuple[()], dict[str, Any]]:
    """Hand the whole event to the `JournalLogger`; the last of structlog's processors."""
    return (), {"event": dict(event)}


class JournalLogger:
    """Writes each event as one entry of the journal."""

    def __init__(self, path: Path = _SOCKET) -> None:
        self._path = str(path)

    def __call__(self, *_: object) -> JournalLogger:
        """Be the factory of the one logger there is."""
        return self

    def msg(self, event: dict[str, Any]) -> None:
        """Write an event. Blocks no longer than a moment; what the journal refuses goes to stderr.

        That leads to the journal too, as text, and by another way.
        """
        entry = _entry(event)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_PATIENCE)
                sender.connect(self._path)
                _send(sender, entry)
        except OSError:
            sys.stderr.write(f"{json.dumps(event, default=repr)}\n")

    debug = info = warning = error = critical = exception = msg


def _send(sender: socket.socket, entry: bytes) -> None:
    try:
        sender.send(entry)
    except OSError as error:
        if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
            raise
        _send_file(sender, entry)


def _send_file(sender: socket.socket, entry: bytes) -> None:
    file = os.memfd_create("journal-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        with os.fdopen(file, "wb", closefd=False) as stream:
            stream.write(entry)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        socket.send_fds(sender, [], [file])
    finally:
        os.close(file)


def _entry(event: Mapping[str, Any]) -> bytes:
    fields = {name: value for name, value in event.items() if name not in _NO_FIELDS}
    said = " ".join(f"{name}={_text(value)}" for name, value in fields.items())
    message = f"{event.get('event', '')} {said}".strip()
    if trace := event.get("exception"):
        message = f"{message}\n{trace}"
    lines = [
        _field("MESSAGE", message),
        _field("PRIORITY", str(_PRIORITIES.get(str(event.get("level")), 6))),
        _field("SYSLOG_IDENTIFIER", "arrakisd"),
        *(_field(_name(name), _text(value)) for name, value in fields.items()),
    ]
    return b"".join(lines)


def _name(key: str) -> str:
    return (_PREFIX + re.sub(r"[^A-Z0-9_]", "_", key.upper()))[:_LONGEST_NAME]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
