"""The QMP client against a real QEMU without a machine, and against one that misbehaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from arrakis_rpc.errors import VmmError
from arrakisd.host.vmm.qmp import QmpClient, QmpClosedError, open_qmp

Events = list[tuple[str, dict[str, Any], float]]


@asynccontextmanager
async def qemu() -> AsyncIterator[tuple[QmpClient, Events, subprocess.Popen[bytes]]]:
    """Run a QEMU that has nothing but a monitor."""
    ours, theirs = socket.socketpair()
    events: Events = []
    with theirs:
        process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-M", "none", "-S", "-nodefaults", "-display", "none"),
                *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
                *("-mon", "chardev=qmp,mode=control"),
            ],
            pass_fds=[theirs.fileno()],
        )
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    try:
        async with open_qmp(stream, lambda *event: events.append(event)) as client:
            yield client, events, process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[QmpClient, trio.abc.Stream]]:
    """Stand in for a QEMU that a guest has taken over."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_qmp(ours, lambda *_: None) as client:
        yield client, theirs


def halt(process: subprocess.Popen[bytes]) -> None:
    """Stop a QEMU, and wait until it has: what is sent after that it does not answer."""
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


async def test_commands() -> None:
    """Commands give what QEMU returns, arguments and all."""
    async with qemu() as (client, _, _):
        assert await client.execute("qmp_capabilities") == {}
        version = (await client.execute("query-version"))["qemu"]
        assert version["major"] >= 5
        assert (await client.execute("query-status"))["running"] is False
        blocks = {"driver": "null-co", "node-name": "nothing", "size": 4096}
        assert await client.execute("blockdev-add", **blocks) == {}
        nodes = await client.execute("query-named-block-nodes")
        assert [node["node-name"] for node in nodes] == ["nothing"]


async def test_refusal() -> None:
    """A refused command is an error with QEMU's own words, and the next one works."""
    async with qemu() as (client, _, _):
        await client.execute("qmp_capabilities")
        with pytest.raises(VmmError, match=r"refused no-such-command: .*no-such-command"):
            await client.execute("no-such-command")
        with pytest.raises(VmmError, match=r"refused blockdev-del: .*'ghost'"):
            await client.execute("blockdev-del", **{"node-name": "ghost"})
        assert (await client.execute("query-status"))["running"] is False


async def test_many_at_once() -> None:
    """Of many commands at once each gets its own answer."""
    answers: dict[int, Any] = {}

    async def run(number: int) -> None:
        command = ("query-version", "query-status", "query-name")[number % 3]
        answers[number] = await client.execute(command)

    async with qemu() as (client, _, _):
        await client.execute("qmp_capabilities")
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(run, number)
    assert len(answers) == 30
    for number, answer in answers.items():
        assert set(answer) & {"qemu", "running"} == ({"qemu"}, {"running"}, set())[number % 3]


async def test_events() -> None:
    """Events go to the callback, with their data and when they happened, in order."""
    began = time.time()
    async with qemu() as (client, events, process):
        await client.execute("qmp_capabilities")
        await client.execute("cont")
        await client.execute("stop")
        await client.execute("quit")
        with trio.fail_after(5):
            await trio.to_thread.run_sync(process.wait)
        await trio.testing.wait_all_tasks_blocked()
    assert [name for name, _, _ in events] == ["RESUME", "STOP", "SHUTDOWN"]
    assert events[-1][1]["reason"] == "host-qmp-quit"
    times = [began, *(happened for _, _, happened in events), time.time()]
    assert times == sorted(times)


@pytest.mark.parametrize("ago", [0.5, 30])
async def test_events_heard_late(ago: float) -> None:
    """An event happened when QEMU says, not when somebody had time to hear of it."""
    then = int((time.time() - ago) * 1e6)
    (happened,) = await times_of({"seconds": then // 10**6, "microseconds": then % 10**6})
    assert happened == pytest.approx(then / 1e6, abs=1e-5)


@pytest.mark.parametrize(
    "stamp",
    [
        None,
        "now",
        {"seconds": -1, "microseconds": -1},
        {"seconds": 1, "microseconds": 0},
        {"seconds": 10**400, "microseconds": 0},
        {"seconds": int(time.time()), "microseconds": 10**400},
        {"seconds": int(time.time()) + 10**6, "microseconds": 0},
    ],
)
async def test_times_that_cannot_be(stamp: Any) -> None:
    """What is no time, or none that an event can have, is not taken from who may be hostile."""
    began = time.time()
    (happened,) = await times_of(stamp)
    assert began <= happened <= time.time()


async def times_of(stamp: Any) -> list[float]:
    """Give when an event with a certain timestamp has happened, for the client."""
    ours, theirs = trio.testing.memory_stream_pair()
    times: list[float] = []
    async with open_qmp(ours, lambda _, __, happened: times.append(happened)):
        line = json.dumps({"event": "STOP", "timestamp": stamp})
        await theirs.send_all(line.encode() + b"\n")
        await trio.testing.wait_all_tasks_blocked()
    return times


async def test_death_of_qemu() -> None:
    """Whoever waits when QEMU dies is told which command it was; later ones fail at once."""
    failures: list[str] = []

    async def run() -> None:
        with pytest.raises(QmpClosedError) as caught:
            await client.execute("query-version")
        failures.append(str(caught.value))

    async with qemu() as (client, _, process):
        await client.execute("qmp_capabilities")
        halt(process)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            process.kill()
        with pytest.raises(QmpClosedError, match="before query-status"):
            await client.execute("query-status")
    assert failures == ["QEMU ended during query-version"] * 3


async def test_cancelled_command() -> None:
    """The late answer to a cancelled command is nobody else's."""
    async with qemu() as (client, _, process):
        await client.execute("qmp_capabilities")
        halt(process)
        with trio.move_on_after(0.05) as scope:
            await client.execute("query-version")
        assert scope.cancelled_caught
        os.kill(process.pid, signal.SIGCONT)
        assert "running" in await client.execute("query-status")


async def test_answers_in_pieces() -> None:
    """Answers that come in pieces, late, out of order or twice go where they belong."""
    results: dict[str, Any] = {}

    async def run(command: str) -> None:
        results[command] = await client.execute(command)

    async with scripted() as (client, far), trio.open_nursery() as nursery:
        for command in ("first", "second"):
            nursery.start_soon(run, command)
        asked: dict[str, int] = {}
        while len(asked) < 2:
            for line in bytes(await far.receive_some()).splitlines():
                request = json.loads(line)
                asked[request["execute"]] = request["id"]
        lines = "".join(
            json.dumps(message) + "\r\n"
            for message in (
                {"return": "stray", "id": 99},
                {"return": "stray"},
                {"return": 2, "id": asked["second"]},
                {"return": "again", "id": asked["second"]},
                {"event": "E"},
                {"return": 1, "id": asked["first"]},
            )
        )
        for character in lines:
            await far.send_all(character.encode())
    assert results == {"first": 1, "second": 2}


@pytest.mark.parametrize(
    "nonsense",
    [
        b"x" * 3_000_000,
        b"no JSON\n",
        b"[1]\n",
        b'"text"\n',
        b"\xff\n",
        b"[" * 200_000 + b"\n",
        b'{"id": []}\n',
    ],
    ids=["endless line", "no JSON", "list", "text", "no UTF-8", "deep", "strange id"],
)
async def test_nonsense(nonsense: bytes) -> None:
    """A QEMU that talks nonsense is a VMM that has failed, in bounded memory."""
    with pytest.RaisesGroup(VmmError, flatten_subgroups=True):
        async with scripted() as (_, far):
            await far.send_all(nonsense)
            await trio.sleep_forever()
