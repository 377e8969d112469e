"""Answers that stream: commands and events as server-sent events."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import AsyncIterator
from typing import Any

import trio
from quart import Response

from arrakis_rpc.connection import (
    CallFailed,
    CallNotified,
    CallSucceeded,
    DataReceived,
    Event,
)
from arrakis_rpc.daemon_api import Event as DaemonEvent
from arrakis_rpc.errors import ArrakisError

from . import models as m
from .failures import failure_body
from .json_form import public
from .local_call import LocalCall, pieces_of
from .routes import EVENTS, Ask, Route, stream
from .vm_routes import ending

# A command that cannot be started says so by a status, if it says so within this time.
_FIRST_WORD = 0.5
_KEEP_ALIVE = 15.0
_IN_VM = (404, 409, 502, 504)


async def exec_command(ask: Ask) -> Response:
    """Run a command; its output comes as events while it runs."""
    body: m.ExecRequest = ask.body
    args = {
        "shell": body.cmd,
        "argv": body.argv,
        "cwd": body.cwd,
        "env": body.env,
        "user": body.user,
        "timeout": body.timeout,
        "merge_output": body.mergeOutput,
        "stdin": body.stdin is not None,
    }
    call = ask.in_guest("exec.run", args, "stdin", pieces_of((body.stdin or "").encode()))
    return await _answer_with(call, _tell_command(call, body.encoding == "base64"))


async def events(ask: Ask) -> Response:
    """Give all that happens, from now on."""
    call = ask.open("events.subscribe", {})
    return await _answer_with(call, _tell_events(call))


async def _tell_command(call: LocalCall, as_base64: bool) -> AsyncIterator[bytes]:
    decoders: dict[str, codecs.IncrementalDecoder] = {}
    utf8 = codecs.getincrementaldecoder("utf-8")
    while True:
        event = await _next_of(call)
        match event:
            case None:
                yield b": still there\n\n"
            case DataReceived(_, channel, data) if as_base64:
                yield _told(channel, {"base64": base64.b64encode(data).decode()})
            case DataReceived(_, channel, data):
                decoder = decoders.setdefault(channel, utf8(errors="replace"))
                if text := decoder.decode(data):
                    yield _told(channel, {"text": text})
            case CallSucceeded(_, result):
                for channel, decoder in decoders.items():
                    if text := decoder.decode(b"", final=True):
                        yield _told(channel, {"text": text})
                yield _told("exit", _exit_of(result))
                return
            case CallFailed(_, error):
                raise error


async def _tell_events(call: LocalCall) -> AsyncIterator[bytes]:
    while True:
        match await _next_of(call):
            case None:
                yield b": still there\n\n"
            case CallNotified(_, "event", params):
                yield _told(params["kind"], public(params, DaemonEvent))
            case CallFailed(_, error):
                raise error
            case CallSucceeded():
                return


async def _next_of(call: LocalCall) -> Event | None:
    with trio.move_on_after(_KEEP_ALIVE):
        return await call.receive()
    return None


def _exit_of(result: dict[str, Any]) -> dict[str, Any]:
    told = {
        "exitCode": result["exit_code"],
        "signal": result["signal"],
        "timedOut": result["timed_out"],
        "duration": result["duration"],
        "error": ending(result),
    }
    return {key: value for key, value in told.items() if value is not None}


def _told(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


async def _answer_with(call: LocalCall, parts: AsyncIterator[bytes]) -> Response:
    """Begin to answer with events; what fails before the first of them has a status."""
    await call.begin(_FIRST_WORD)
    return stream(_until_failure(parts), 200, {"Content-Type": EVENTS})


async def _until_failure(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b": begun\n\n"
    try:
        async for part in parts:
            yield part
    except ArrakisError as error:
        yield _told("error", failure_body(error))


ROUTES = [
    Route(
        "POST",
        "/v1/vms/{name}/exec",
        exec_command,
        "Run a command; events stdout, stderr and exit come as it runs",
        body=m.ExecRequest,
        gives=EVENTS,
        fails=_IN_VM,
    ),
    Route("GET", "/v1/events", events, "All that happens, from now on", gives=EVENTS),
]
