"""One request: its body, its time, and an answer that comes before its end."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from arrakis_rpc.errors import ConnectionLostError, InvalidParamsError
from arrakisd.http.exchange import MOST_JSON, Exchange
from arrakisd.http.guards import RefusedError
from arrakisd.wire.budget import Budget

GONE = {"type": "http.disconnect"}


class Client:
    """The server's side of ASGI: what is put into it arrives, what is answered is kept."""

    def __init__(self) -> None:
        self.put, self._arriving = trio.open_memory_channel[dict[str, Any]](math.inf)
        self.answered: list[tuple[float, dict[str, Any]]] = []

    def send(self, body: bytes, more: bool = True) -> None:
        self.put.send_nowait({"type": "http.request", "body": body, "more_body": more})

    async def receive(self) -> dict[str, Any]:
        return await self._arriving.receive()

    async def answer(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        self.answered.append((trio.current_time(), message))


@asynccontextmanager
async def exchanging(
    client: Client, budget: Budget | None = None, length: str = "9"
) -> AsyncIterator[Exchange]:
    """An exchange whose client is heard, as the framework does it."""
    scope = {"http_version": "1.1", "headers": [(b"content-length", length.encode())]}
    async with trio.open_nursery() as nursery:
        exchange = Exchange(
            scope, client.receive, client.answer, nursery, budget or Budget(2 * MOST_JSON)
        )
        nursery.start_soon(exchange.receive)
        yield exchange
        nursery.cancel_scope.cancel()


async def test_a_body_that_trickles_is_given_up(autojump_clock: MockClock) -> None:
    """After a minute in all, however often something comes."""
    client = Client()

    async def trickle() -> None:
        while True:
            client.send(b" ")
            await trio.sleep(5)

    async with exchanging(client) as exchange:
        exchange.nursery.start_soon(trickle)
        began = trio.current_time()
        with pytest.raises(RefusedError) as refused:
            await exchange.json()
        assert refused.value.status == 408
        assert trio.current_time() - began == pytest.approx(60)


async def test_a_piece_that_does_not_come_is_given_up(autojump_clock: MockClock) -> None:
    """After half a minute; a long file may take any time as long as it goes on."""
    client = Client()

    async def send_slowly() -> None:
        for _ in range(20):
            client.send(b"piece")
            await trio.sleep(20)

    async with exchanging(client) as exchange:
        exchange.nursery.start_soon(send_slowly)
        assert [await exchange.piece() for _ in range(20)] == [b"piece"] * 20
        with pytest.raises(RefusedError) as refused:
            await exchange.piece()
        assert refused.value.status == 408


async def test_a_client_that_leaves_in_the_middle_is_not_taken_for_the_end() -> None:
    """Half a body is none."""
    client = Client()
    client.send(b'{"a": 1}')
    client.put.send_nowait(GONE)
    async with exchanging(client) as exchange:
        with pytest.raises(ConnectionLostError):
            await exchange.json()


async def test_a_body_is_taken_no_faster_than_it_is_read() -> None:
    """Of a hundred pieces that have arrived, one is in hand."""
    client = Client()
    for _ in range(100):
        client.send(b"x" * 1000)
    async with exchanging(client) as exchange:
        await exchange.piece()
        await trio.testing.wait_all_tasks_blocked()
        assert client._arriving.statistics().current_buffer_used >= 97


async def test_all_bodies_together_have_a_bound() -> None:
    """One that does not fit is refused, and what is forgotten makes room."""
    budget = Budget(10)
    first, second = Client(), Client()
    first.send(b'"12345"', more=False)
    second.send(b'"12345"', more=False)
    async with exchanging(first, budget) as one, exchanging(second, budget) as other:
        assert await one.json() == "12345"
        with pytest.raises(RefusedError) as refused:
            await other.json()
        assert refused.value.status == 503
        one.forget()
        other.forget()
        budget.take(10)


@pytest.mark.parametrize(
    ("text", "value"), [(b"2.0", 2), (b"2.5", 2.5), (b"-1e3", -1000), (b'"\\u00e9"', "é")]
)
async def test_numbers_are_what_json_says(text: bytes, value: object) -> None:
    """A whole number may have a point."""
    client = Client()
    client.send(text, more=False)
    async with exchanging(client) as exchange:
        found = await exchange.json()
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b"1e999x", b'"\\ud800"', b"\xff", b"[" * 9999])
async def test_what_is_no_json_is_refused(text: bytes) -> None:
    """Also what only Python takes for it."""
    client = Client()
    client.send(text, more=False)
    async with exchanging(client) as exchange:
        with pytest.raises(InvalidParamsError):
            await exchange.json()


async def test_an_early_answer_is_sent_at_once_and_ends_the_connection(
    autojump_clock: MockClock,
) -> None:
    """While the rest of the body is thrown away, for two seconds at the most."""
    client = Client()
    async with exchanging(client) as exchange:
        for _ in range(1000):
            client.send(b"x")
        began = trio.current_time()
        await exchange.send({"type": "http.response.start", "status": 404, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"no", "more_body": False})
    (start, head), (body, content), (end, last) = client.answered
    assert (b"connection", b"close") in head["headers"]
    assert (content["body"], content["more_body"], body - began) == (b"no", True, 0)
    assert (last["body"], last["more_body"], end - began) == (b"", False, pytest.approx(2))
    assert start == body
    assert client._arriving.statistics().current_buffer_used == 0


async def test_an_answer_to_a_whole_request_keeps_the_connection() -> None:
    """And is sent as it is."""
    client = Client()
    async with exchanging(client, length="0") as exchange:
        for message in (
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"yes", "more_body": False},
        ):
            await exchange.send(message)
            assert client.answered[-1][1] == message


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 2**20,
        b'"' + b"\\n" * 2**20 + b'"',
        b'"' + b"a" * 2**21,
        b'["' + b"\\\\" * 2**20,
    ],
    ids=["quotes", "escapes", "open", "backslashes"],
)
def test_strings_that_are_hard_to_find_the_end_of(body: bytes) -> None:
    """How long a body takes to be looked at depends on its size, and on nothing else."""
    look = "from arrakisd.http.exchange import _parse\n_parse(open({!r}, 'rb').read())"
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        argv = [sys.executable, "-c", look.format(file.name)]
        # In a process of its own: what looks for days cannot be told to stop.
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    last = (done.stderr.splitlines() or [""])[-1]
    assert done.returncode == 0 or "InvalidParamsError" in last
