"""How clients come to the server, who is kept out, and what becomes of calls nobody waits for."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import trio
import trustme
from cli_harness import EVERYTHING
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_harness import ARRAKIS, Endless, http_server, on_stdio, read, use
from scripted_daemon import Script, Server, answering

from arrakis.cli.main import run

# The HTTP library under the client leaves that to the garbage collector when it runs on trio.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator object:pytest.PytestUnraisableExceptionWarning"
)

Start = Callable[[Script], Server]

# The command itself never ends; but a busy machine may hold each of us up for some seconds.
SOON = 20.0
MODES = ["auto", "legacy"]
INITIALIZE = (
    b'{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": '
    b'"2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}}'
)
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@pytest.fixture
def url(scripted: Start) -> Iterator[str]:
    """A server over HTTP whose daemon answers everything."""
    with http_server(scripted(answering(**EVERYTHING)).path) as found:
        yield found


def knock(url: str, method: str = "POST", **headers: str) -> tuple[int, str]:
    """Send a request that begins a session, with some headers changed; give status and body."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=60)
    try:
        connection.putrequest(method, place.path, skip_host="Host" in headers)
        for name, value in {**ACCEPT, "Content-Length": str(len(INITIALIZE)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(INITIALIZE)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("mode", MODES)
async def test_the_same_is_served_over_stdio_and_http(url: str, scripted: Start, mode: Any) -> None:
    """Clients of the new and of the former protocol find the same tools, resources and answers."""
    seen = []
    for client in (
        Client(url, mode=mode),
        on_stdio(scripted(answering(**EVERYTHING)).path, mode=mode),
    ):
        async with client:
            tools = (await client.list_tools()).tools
            seen.append(
                (
                    [tool.model_dump() for tool in tools],
                    await use(client, "vm_info", vm_name="box"),
                    await read(client, "arrakis://vms"),
                )
            )
    assert seen[0] == seen[1]
    assert {"start_sandbox", "fork", "screenshot"} <= {tool["name"] for tool in seen[0][0]}
    assert len(seen[0][0]) == 31


async def is_cancelled(command: Endless) -> bool:
    return await trio.to_thread.run_sync(command.cancelled.wait, SOON)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport_of_mcp", ["stdio", "http"])
async def test_a_call_that_is_cancelled_is_cancelled_in_the_daemon(
    scripted: Start, mode: Any, transport_of_mcp: str
) -> None:
    """The daemon is told at once, and the server goes on: others' calls are answered."""
    command = Endless()
    path = scripted(answering(**{**EVERYTHING, "exec_run": command})).path

    async def check(client: Client) -> None:
        async with client:
            with trio.move_on_after(60) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        client.call_tool, "run_command", {"vm_name": "box", "cmd": "sleep 60"}
                    )
                    await trio.to_thread.run_sync(command.begun.wait, 30)
                    nursery.cancel_scope.cancel()
            assert not scope.cancelled_caught
            assert await is_cancelled(command)
            await use(client, "health")

    if transport_of_mcp == "stdio":
        await check(on_stdio(path, mode=mode))
    else:
        with http_server(path) as url:
            await check(Client(url, mode=mode))


@pytest.mark.parametrize("protocol", ["2025-06-18", "2026-07-28"])
def test_a_client_over_http_that_vanishes_ends_its_call(scripted: Start, protocol: str) -> None:
    """Whoever cuts the connection does not want the answer: its command is cancelled."""
    command = Endless()
    path = scripted(answering(**{**EVERYTHING, "exec_run": command})).path
    with http_server(path) as url:
        place = urlsplit(url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=60)
        headers = dict(ACCEPT)
        meta = ""
        if protocol == "2025-06-18":
            connection.request("POST", place.path, INITIALIZE, headers)
            answer = connection.getresponse()
            answer.read()
            headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
        else:
            headers |= {"Mcp-Method": "tools/call", "Mcp-Name": "run_command"}
            meta = (
                ', "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28", '
                '"io.modelcontextprotocol/clientCapabilities": {}, '
                '"io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"}}'
            )
        headers["Mcp-Protocol-Version"] = protocol
        call = (
            '{"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": '
            '"run_command", "arguments": {"vm_name": "box", "cmd": "sleep 60"}' + meta + "}}"
        )
        connection.request("POST", place.path, call, headers)
        assert command.begun.wait(30), connection.getresponse().read()
        connection.close()
        assert command.cancelled.wait(SOON)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_a_server_ends_its_calls(scripted: Start, number: signal.Signals) -> None:
    """However the process ends, the daemon does not go on with what it had begun for it."""
    command = Endless()
    path = scripted(answering(**{**EVERYTHING, "exec_run": command})).path
    with subprocess.Popen(
        [ARRAKIS, "--socket", path, "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        begin_a_command(process, command)
        process.send_signal(number)
        assert command.cancelled.wait(SOON)
        assert process.wait(30) == -number


def test_the_end_of_stdin_ends_the_server(scripted: Start) -> None:
    """A client that goes away leaves neither a process nor a command."""
    command = Endless()
    path = scripted(answering(**{**EVERYTHING, "exec_run": command})).path
    with subprocess.Popen(
        [ARRAKIS, "--socket", path, "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        begin_a_command(process, command)
        assert process.stdin
        process.stdin.close()
        assert command.cancelled.wait(SOON)
        assert process.wait(30) == 0
        assert process.stderr
        assert process.stderr.read() == b""


def begin_a_command(process: subprocess.Popen[bytes], command: Endless) -> None:
    """Speak to a server on its stdin, as far as to a command that does not end."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(INITIALIZE + b"\n")
    process.stdin.flush()
    assert b'"serverInfo"' in process.stdout.readline()
    process.stdin.write(
        b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n'
        b'{"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "run_command", '
        b'"arguments": {"vm_name": "box", "cmd": "sleep 60"}}}\n'
    )
    process.stdin.flush()
    assert command.begun.wait(30)


def test_other_hosts_and_origins_are_refused(url: str) -> None:
    """A page of another site gets in neither by its origin nor by a name that leads here."""
    port = urlsplit(url).port
    assert knock(url)[0] == 200
    assert knock(url, Host=f"localhost:{port}")[0] == 200
    assert knock(url, Origin=f"http://localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""):
        assert knock(url, Host=host)[0] in (400, 421), host
    for origin in ("http://evil.example", "null", f"https://localhost:{port}", "http://localhost"):
        assert knock(url, Origin=origin)[0] == 403, origin
    for method in ("GET", "DELETE"):
        assert knock(url, method, Host="evil.example")[0] == 421
        assert knock(url, method, Origin="http://evil.example")[0] == 403


def test_a_name_of_ones_own_is_let_in(scripted: Start) -> None:
    """For a server behind a proxy."""
    path = scripted(answering()).path
    with http_server(path, "--allow-host", "arrakis.example") as url:
        assert knock(url, Host="arrakis.example", Origin="http://arrakis.example")[0] == 200
        assert knock(url, Host="arrakis.example:80")[0] == 421


async def test_a_token_is_asked_of_everyone(scripted: Start, tmp_path: Path) -> None:
    """With one set, also on loopback, none and a wrong one are refused before anything else."""
    file = tmp_path / "token"
    file.write_text("secret\n")
    path = scripted(answering(**EVERYTHING)).path
    for options, environment in (
        (["--token-file", str(file)], {}),
        ([], {"ARRAKIS_MCP_TOKEN": "secret"}),
    ):
        with http_server(path, *options, **environment) as url:
            assert knock(url)[0] == 401
            assert knock(url, Authorization="Bearer wrong")[0] == 401
            assert knock(url, Authorization="Basic secret")[0] == 401
            assert knock(url, Authorization="Bearer")[0] == 401
            assert knock(url, Host="evil.example", Authorization="Bearer secret")[0] == 421
            async with (
                httpx2.AsyncClient(headers={"Authorization": "Bearer secret"}) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                await use(client, "health")


def certified(directory: Path) -> tuple[trustme.CA, list[str]]:
    """Make a certificate for loopback; give who signed it, and the options that name it."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    (directory / "token").write_text("secret\n")
    options = (("tls-cert", "cert.pem"), ("tls-key", "key.pem"), ("token-file", "token"))
    return ca, [f"--{name}={directory / file}" for name, file in options]


async def test_tls_is_spoken_with_a_certificate(scripted: Start, tmp_path: Path) -> None:
    """A client that trusts who signed it gets in with the token; plain HTTP does not."""
    ca, options = certified(tmp_path)
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    with http_server(scripted(answering(**EVERYTHING)).path, *options) as url:
        assert url.startswith("https://127.0.0.1:")
        with pytest.raises((OSError, http.client.HTTPException)):
            knock(url)
        async with (
            httpx2.AsyncClient(headers={"Authorization": "Bearer secret"}, verify=trust) as web,
            Client(streamable_http_client(url, http_client=web)) as client,
        ):
            await use(client, "health")


def test_with_token_and_certificate_it_serves_others(scripted: Start, tmp_path: Path) -> None:
    """It then listens wherever it is told to, and knows itself by the names it is given."""
    _, options = certified(tmp_path)
    path = scripted(answering()).path
    with http_server(path, *options, at="0.0.0.0:0") as url:
        assert url.startswith("https://0.0.0.0:")


async def test_a_daemon_that_is_reached_by_url_is_served_as_well(
    start_scripted: Callable[[Script, str], Server],
) -> None:
    """Calls and their cancellation go to it as they go to one on a socket."""
    command = Endless()
    daemon = start_scripted(answering(**{**EVERYTHING, "exec_run": command}), "http")
    server = StdioServerParameters(command=ARRAKIS, args=[*daemon.options, "mcp"])
    async with Client(server) as client:
        assert (await use(client, "vm_info", vm_name="box"))["name"] == "box"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call_tool, "run_command", {"vm_name": "box", "cmd": "x"})
            await trio.to_thread.run_sync(command.begun.wait, 30)
            nursery.cancel_scope.cancel()
        assert await is_cancelled(command)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--http", "0.0.0.0:0"], "need a token and a certificate"),
        (["--http", "0.0.0.0:0", "--token-file", "{token}"], "need a certificate"),
        (["--http", "[::]:0"], "need a token and a certificate"),
        (["--http", "example.com:0"], "need a token and a certificate"),
        (["--http", "127.0.0.1:0", "--tls-key", "{token}"], "are given together"),
        (["--http", "127.0.0.1:0", "--token-file", "{empty}"], "holds no token"),
        (["--http", "127.0.0.1:0", "--token-file", "/none"], "/none: No such file"),
        (["--http", "127.0.0.1"], "is not HOST:PORT"),
        (["--token-file", "{token}"], "belong to --http"),
    ],
)
def test_what_would_let_strangers_in_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    """The server does not start, and says why."""
    files = {"token": tmp_path / "token", "empty": tmp_path / "empty"}
    files["token"].write_text("secret")
    files["empty"].write_text("\n")
    monkeypatch.delenv("ARRAKIS_MCP_TOKEN", raising=False)
    assert run(["mcp", *(option.format(**files) for option in options)]) != 0
    assert said in capfd.readouterr().err


def test_a_port_that_is_taken_is_told(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It says which, and why."""
    address = urlsplit(url).netloc
    assert run(["mcp", "--http", address]) == 2
    assert f"cannot listen at {address}: Address already in use" in capfd.readouterr().err


def test_a_body_that_is_too_long_is_refused(url: str) -> None:
    """By what it says of itself, before any of it is kept."""
    assert knock(url, **{"Content-Length": str(17 * 2**20)})[0] == 413


def test_the_server_over_http_ends_when_it_is_told_to(scripted: Start) -> None:
    """Soon, with a command under way, which is cancelled."""
    command = Endless()
    path = scripted(answering(**{**EVERYTHING, "exec_run": command})).path

    async def begin(url: str) -> None:
        with trio.move_on_after(60):
            async with Client(url) as client, trio.open_nursery() as nursery:
                nursery.start_soon(client.call_tool, "run_command", {"vm_name": "b", "cmd": "x"})
                await trio.to_thread.run_sync(command.begun.wait, 30)
                raise EndedError

    with http_server(path) as url, pytest.raises(BaseExceptionGroup):
        trio.run(begin, url)
    assert command.cancelled.wait(SOON)


class EndedError(Exception):
    """A client that ends in the middle of things."""


def test_without_the_extra_the_verb_says_what_to_install(tmp_path: Path) -> None:
    """It is an error of one line with the command that mends it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'mcp' else find(name, *a)\n"
    )
    done = subprocess.run(
        [ARRAKIS, "mcp"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "hint: pip install 'arrakis[mcp]'" in done.stderr


def test_the_help_of_the_command_line_does_not_load_the_library() -> None:
    """The verb is there, and costs nothing until it is used."""
    program = """
import sys
from arrakis.cli.main import run
run(["--help"])
run(["mcp", "--help"])
print([name for name in ("mcp", "anyio", "pydantic", "arrakis.mcp") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "streamable HTTP" in done.stdout
