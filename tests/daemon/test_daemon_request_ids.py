"""Which call a log line, an error or a number belongs to."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from small_service import small_service

from arrakis_rpc.connection import CallFailed
from arrakis_rpc.errors import (
    ArrakisError,
    CancelledError,
    ExhaustedError,
    InternalError,
    InvalidParamsError,
    InvalidStateError,
    NotFoundError,
    UnknownMethodError,
)
from arrakisd import rpc_session
from arrakisd.logs.configure import configure_logs
from arrakisd.logs.request_id import (
    acceptable_request_id,
    current_request_id,
    new_request_id,
    request,
)
from arrakisd.rpc_session import RpcSessions
from arrakisd.service import Call
from arrakisd.wire.peer import CallerPeer

Lines = Callable[[], list[dict[str, Any]]]
HELLO = {"versions": [1], "client": "test"}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Log as the daemon does; gives what was logged."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logs("json", "debug")
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    structlog.reset_defaults()


def a_call(request_id: str) -> Call:
    """Make a call that has no use for streams."""
    return Call(None, "test", request_id=request_id)  # type: ignore[arg-type]


@pytest.mark.parametrize("wish", ["a", "7f3a", "trace-1_2.3", "x" * 64])
def test_an_id_that_a_client_chose(wish: str) -> None:
    """What can stand in a log and in a header is taken as it is."""
    assert acceptable_request_id(wish) == wish


@pytest.mark.parametrize(
    "wish", [None, "", "x" * 65, "a b", "a\n", "a\r\nx: y", "\x1b[31m", "é", "٣", "-a", "a\0", "{}"]
)
def test_an_id_that_nobody_should_have(wish: str | None) -> None:
    """Anything else is replaced, and each time by another."""
    given = acceptable_request_id(wish)
    assert given not in {wish, acceptable_request_id(wish)}
    assert acceptable_request_id(given) == given


async def test_tasks_of_a_call(lines: Lines) -> None:
    """A call's tasks have its id, in whatever nursery, and lose it when the call is over."""
    log = structlog.get_logger()
    over = trio.Event()

    async def live(task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as inner:
            await inner.start(watch)
            log.info("starting")
            task_status.started()
            await over.wait()
            log.info("living")

    async def watch(task_status: trio.TaskStatus[None]) -> None:
        log.info("watching")
        task_status.started()
        await over.wait()
        log.info("still watching")

    async with trio.open_nursery() as machines:
        with request("first"):
            await machines.start(live)
            log.info("started")
            with request("second"):
                log.info("inner")
        log.info("between")
        with request("third"):
            over.set()
            await trio.testing.wait_all_tasks_blocked()
            log.info("another")
    assert {line["event"]: line.get("request_id") for line in lines()} == {
        "starting": "first",
        "watching": "first",
        "started": "first",
        "inner": "second",
        "between": None,
        "living": None,
        "still watching": None,
        "another": "third",
    }


async def test_calls_side_by_side() -> None:
    """Each of many calls at once has its own id, and none is left afterwards."""
    seen = {}

    async def one(request_id: str) -> None:
        with request(request_id):
            await trio.sleep(0)
            seen[request_id] = current_request_id()

    ids = [new_request_id() for _ in range(20)]
    async with trio.open_nursery() as nursery:
        for request_id in ids:
            nursery.start_soon(one, request_id)
    assert seen == {request_id: request_id for request_id in ids}
    assert len(set(ids)) == 20
    assert current_request_id() is None


@pytest.mark.parametrize(
    ("method", "params", "kind"),
    [
        ("vm.info", {"name": "absent"}, NotFoundError),
        ("exec.run", {"vm": "absent", "args": {"argv": ["true"]}}, NotFoundError),
        ("vm.info", {"name": "a/b"}, InvalidParamsError),
        ("no.such", {}, UnknownMethodError),
    ],
)
async def test_a_refused_call(
    tmp_path: Path, lines: Lines, method: str, params: dict[str, Any], kind: type[ArrakisError]
) -> None:
    """Its error has the id, a line of the log too, and it is counted."""
    async with small_service(tmp_path) as (service, metrics):
        with pytest.raises(kind) as caught:
            await service.handle(method, params, a_call("quoted"))
        errors = metrics.registry.get_sample_value(
            "arrakis_errors_total",
            {
                "method": "unknown" if kind is UnknownMethodError else method,
                "code": str(kind.code),
                "error": kind.__name__,
            },
        )
    assert caught.value.detail == {"request_id": "quoted"}
    (line,) = [line for line in lines() if line["event"] == "call refused"]
    assert (line["request_id"], line["method"]) == ("quoted", method)
    assert line["reason"] == caught.value.message
    assert errors == 1


async def test_a_defect(tmp_path: Path, lines: Lines) -> None:
    """The log has the traceback under the id that the caller gets."""
    async with small_service(tmp_path, health=None) as (service, metrics):
        with pytest.raises(InternalError) as caught:
            await service.handle("system.health", {}, a_call("quoted"))
        errors = metrics.registry.get_sample_value(
            "arrakis_errors_total",
            {"method": "system.health", "code": "-32603", "error": "InternalError"},
        )
    assert caught.value.detail == {"request_id": "quoted"}
    assert "quoted" in (caught.value.hint or "")
    (line,) = [line for line in lines() if line["event"] == "call failed"]
    assert line["request_id"] == "quoted"
    assert "AttributeError" in line["exception"]
    assert errors == 1


async def test_lines_of_a_call_name_its_vm(tmp_path: Path, lines: Lines) -> None:
    """Whoever logs on behalf of a call need not say which VM and which call it is about."""
    async with small_service(tmp_path) as (service, _):
        with pytest.raises(NotFoundError):
            await service.handle("vm.pause", {"name": "box"}, a_call("one"))
        with pytest.raises(NotFoundError):
            await service.handle("port.list", {"name": "box"}, a_call("two"))
        await service.handle("system.health", {}, a_call("three"))
    begun = [line for line in lines() if line["event"] == "call"]
    assert [(line["request_id"], line.get("vm")) for line in begun] == [
        ("one", "box"),
        ("two", "box"),
        ("three", None),
    ]


@pytest.mark.parametrize(
    ("method", "args", "level"),
    [
        ("exec.run", {"argv": ["true"]}, "info"),
        ("file.write", {"path": "/a"}, "info"),
        ("file.remove", {"path": "/a"}, "info"),
        ("file.read", {"path": "/a"}, "debug"),
        ("file.list", {"path": "/a"}, "debug"),
    ],
)
async def test_who_changes_a_guest_is_logged(
    tmp_path: Path, lines: Lines, method: str, args: dict[str, Any], level: str
) -> None:
    """With what is logged by default; who only looks is seen by those who look closely."""
    async with small_service(tmp_path) as (service, _):
        with pytest.raises(NotFoundError):
            await service.handle(method, {"vm": "box", "args": args}, a_call("one"))
    (line,) = [line for line in lines() if line["event"] == "call"]
    assert (line["level"], line["caller"], line["vm"]) == (level, "test", "box")


@asynccontextmanager
async def conversation(root: Path) -> AsyncIterator[tuple[CallerPeer, RpcSessions]]:
    """Give a client's end of a connection to a small service."""
    near, far = trio.testing.memory_stream_pair()
    async with small_service(root) as (service, _), trio.open_nursery() as nursery:
        sessions = RpcSessions(service)
        nursery.start_soon(sessions.serve, far, "test")
        client = CallerPeer(near)
        nursery.start_soon(client.run)
        yield client, sessions
        nursery.cancel_scope.cancel()


async def test_ids_on_the_wire(tmp_path: Path, lines: Lines) -> None:
    """A client gets a new id with each error, and finds it in the log."""
    async with conversation(tmp_path) as (client, sessions):
        await client.call("system.hello", HELLO)
        assert sessions.connections == 1
        ids = []
        for _ in range(2):
            with pytest.raises(NotFoundError) as caught:
                await client.call("vm.info", {"name": "absent"})
            ids.append(caught.value.detail["request_id"])
    assert ids[0] != ids[1]
    logged = [line["request_id"] for line in lines() if line["event"] == "call refused"]
    assert logged == ids


async def test_a_cancelled_call(tmp_path: Path) -> None:
    """The error that says so has the id of the call too."""
    async with conversation(tmp_path) as (client, _):
        await client.call("system.hello", HELLO)
        call_id, frame = client.connection.start_call("events.subscribe", {})
        streams = client.open_streams(call_id)
        client.queue(frame)
        await trio.testing.wait_all_tasks_blocked()
        client.queue(client.connection.cancel_call(call_id))
        answer = await streams.receive()
    assert isinstance(answer, CallFailed)
    assert isinstance(answer.error, CancelledError)
    assert acceptable_request_id(answer.error.detail["request_id"])


async def test_a_call_before_the_greeting(tmp_path: Path) -> None:
    """What a transport itself refuses is named as well."""
    async with conversation(tmp_path) as (client, _):
        with pytest.raises(InvalidStateError) as caught:
            await client.call("vm.list", {})
    assert len(caught.value.detail["request_id"]) == 16


async def test_a_call_that_does_not_fit(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused because a client holds too much has an id, in its error and in the log."""
    async with conversation(tmp_path) as (client, _):
        await client.call("system.hello", HELLO)
        monkeypatch.setattr(rpc_session, "memory_of", lambda _: 2**40)
        with pytest.raises(ExhaustedError) as caught:
            await client.call("vm.list", {})
    (line,) = [line for line in lines() if line["event"] == "call refused"]
    assert line["request_id"] == caught.value.detail["request_id"]
    assert line["method"] == "vm.list"


def test_secrets_inside_of_what_is_logged(lines: Lines) -> None:
    """Nothing named like a secret is logged, however deep; nor one in a URL or a traceback."""
    log = structlog.get_logger()
    log.info("nested", params={"vm": "a", "env": [{"API_KEY": "s3cret"}], "password": "s3cret"})
    log.info("text", url="http://user:s3cret@host:7000/x", header="Authorization: Bearer s3cret")
    try:
        raise ValueError("cannot reach http://x:s3cret@host")
    except ValueError:
        log.exception("problem")
    nested, text, problem = lines()
    assert "s3cret" not in str([nested, text, problem])
    assert nested["params"]["vm"] == "a"
    assert text["url"].endswith("@host:7000/x")
    assert "ValueError" in problem["exception"]
