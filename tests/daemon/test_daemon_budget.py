"""What one client can make the daemon hold, through a real socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from raw_client import RawClient
from real_daemon import Daemon, wait_until

from arrakis import SandboxManager
from arrakis_rpc.errors import ExhaustedError
from arrakis_rpc.framing import encode_frame
from arrakisd.wire.budget import Budget, memory_of

_MOST_MIB = 128
_CALLS = 250


@pytest.fixture
def hostile(manager: SandboxManager, daemon: Daemon) -> Iterator[RawClient]:
    """A raw client beside a VM called box; the daemon is well afterwards."""
    manager.start_sandbox("box")
    client = RawClient(daemon.socket)
    yield client
    client.close()
    assert manager.get("box").run_cmd("echo fine")["output"] == "fine\n"


def note(call_id: int, method: str, **params: object) -> bytes:
    return encode_frame({"jsonrpc": "2.0", "method": method, "params": {"id": call_id, **params}})


def growth(daemon: Daemon, before: float, seconds: float) -> float:
    """Watch the daemon's memory; give by how many MiB it grew at most."""
    most, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, daemon.memory_mib() - before)
        time.sleep(0.05)
    return most


def codes(client: RawClient, count: int) -> list[int | None]:
    """Take answers, passing over all else; give their error codes."""
    found: list[int | None] = []
    while len(found) < count:
        answer = client.answer()
        if "method" not in answer:
            found.append(answer["error"]["code"] if "error" in answer else None)
    return found


def test_budget() -> None:
    """Exactly as much as there is can be taken; what was refused is not held."""
    budget = Budget(100)
    budget.take(60)
    with pytest.raises(ExhaustedError, match="60 of 100"):
        budget.take(41)
    budget.take(40)
    budget.give_back(60)
    budget.take(60)


def test_memory_of_small_things() -> None:
    """A message of many small values takes what they take, not what they took on the wire."""
    assert memory_of(b"x" * 1000) > 1000
    assert memory_of({"a": [{} for _ in range(1000)]}) > 64_000
    assert memory_of({"k" * 5000: None}) > 5000
    assert memory_of([[[b"x" * 1000]]]) > 1000


@pytest.mark.vm
def test_input_that_nobody_reads(hostile: RawClient, daemon: Daemon) -> None:
    """Calls whose input waits are so many as fit; the next are refused, and the others go on."""
    hostile.hello()
    before = daemon.memory_mib()
    args = {"argv": ["sleep", "1000"], "stdin": True}
    for number in range(2, 2 + _CALLS):
        hostile.call(number, "exec.run", {"vm": "box", "args": args})
    for number in range(2, 2 + _CALLS):
        for _ in range(8):
            hostile.send(note(number, "stream.data", channel="stdin", data=bytes(2**17)))
    refused = codes(hostile, _CALLS - 41)  # three windows each
    assert set(refused) == {ExhaustedError.code}
    assert growth(daemon, before, 2) < _MOST_MIB + 32
    hostile.call(1000, "system.health")
    assert codes(hostile, 1) == [None]
    hostile.send(note(2, "call.cancel"))
    assert codes(hostile, 1) != [None]
    hostile.call(1001, "exec.run", {"vm": "box", "args": {"argv": ["true"]}})
    assert codes(hostile, 1) == [None]


@pytest.mark.vm
def test_output_that_nobody_reads(hostile: RawClient, daemon: Daemon) -> None:
    """The output of all commands that a client does not read takes bounded memory."""
    with SandboxManager(socket=daemon.socket) as manager:
        manager.get("box").run(["truncate", "--size=1G", "/var/tmp/zeros"], check=True)
    hostile.hello()
    before = daemon.memory_mib()
    for number in range(2, 2 + _CALLS):
        hostile.call(number, "file.read", {"vm": "box", "args": {"path": "/var/tmp/zeros"}})
    assert growth(daemon, before, 3) < _MOST_MIB + 64
    assert set(codes(hostile, _CALLS - 127)) == {ExhaustedError.code}  # a window each


def test_parameters_of_calls_that_wait(daemon: Daemon) -> None:
    """Calls sent before the greeting are kept until it, as far as they are small."""
    client = RawClient(daemon.socket)
    before = daemon.memory_mib()
    with suppress(OSError):
        for number in range(1, 60):
            method = "system.hello" if number == 1 else "vm.start"
            client.call(number, method, {"versions": [], "x": [{}] * 100_000})
    assert growth(daemon, before, 2) < _MOST_MIB + 64
    client.close()


@pytest.mark.vm
def test_long_notifications(hostile: RawClient, daemon: Daemon) -> None:
    """Notifications that nobody has used yet are bounded in bytes, not in number alone."""
    hostile.hello()
    before = daemon.memory_mib()
    hostile.call(2, "exec.run", {"vm": "box", "args": {"argv": ["sleep", "1000"]}})
    with suppress(OSError):
        for _ in range(30):
            hostile.send(note(2, "exec.signal", signal=0, junk=bytes(900_000)))
    wait_until(hostile.is_closed, 10)
    assert daemon.memory_mib() - before < 32


@pytest.mark.vm
def test_undeclared_channel(hostile: RawClient) -> None:
    """Data on a channel that the operation does not have ends the connection."""
    hostile.hello()
    hostile.call(2, "exec.run", {"vm": "box", "args": {"argv": ["sleep", "9"], "stdin": True}})
    hostile.send(note(2, "stream.data", channel="more", data=b"x"))
    assert hostile.is_closed()
