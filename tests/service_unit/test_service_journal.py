"""Log entries as journald takes them."""

from __future__ import annotations

import array
import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from arrakisd.logs.journal import JournalLogger


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket like journald's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "socket"))
        receiving.settimeout(10)
        yield receiving


def fields_of(entry: bytes) -> dict[str, str]:
    """Read an entry as the protocol's description says, not as it is written here."""
    fields = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, is_short, value = line.partition(b"=")
        if not is_short:
            size = int.from_bytes(entry[:8], "little")
            value, entry = entry[8 : 8 + size], entry[8 + size + 1 :]
        fields[name.decode()] = value.decode()
    return fields


def test_fields(journald: socket.socket, tmp_path: Path) -> None:
    """An event's parts are fields of their own, and its message can be read without them."""
    event = {"event": "VM started", "level": "warning", "vm": "one", "request_id": "7", "took": 2}
    JournalLogger(tmp_path / "socket").msg({**event, "timestamp": "now", "odd name": "a\nb=c"})
    assert fields_of(journald.recv(65536)) == {
        "MESSAGE": "VM started vm=one request_id=7 took=2 odd name=a\nb=c",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "arrakisd",
        "ARRAKIS_VM": "one",
        "ARRAKIS_REQUEST_ID": "7",
        "ARRAKIS_TOOK": "2",
        "ARRAKIS_ODD_NAME": "a\nb=c",
    }


def test_long_entry(journald: socket.socket, tmp_path: Path) -> None:
    """An entry that no datagram can hold comes as a sealed file."""
    trace = "x" * 2**20
    JournalLogger(tmp_path / "socket").msg({"event": "failed", "exception": trace})
    data, parts, _, _ = journald.recvmsg(1, socket.CMSG_SPACE(4))
    assert data == b""
    file = array.array("i", parts[0][2])[0]
    with os.fdopen(file, "rb") as stream, mmap.mmap(file, 0, prot=mmap.PROT_READ) as content:
        assert fields_of(content[:])["MESSAGE"] == f"failed\n{trace}"
        with pytest.raises(OSError):
            stream.truncate(0)


def test_no_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the journal does not take is on stderr."""
    JournalLogger(tmp_path / "nobody").msg({"event": "lost", "vm": "one"})
    assert '"event": "lost"' in capsys.readouterr().err
