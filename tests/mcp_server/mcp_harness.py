"""`arrakis mcp` as a process, and clients of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import mcp_types
from mcp import Client, StdioServerParameters
from scripted_daemon import Peer

from arrakis import SandboxManager
from arrakis.mcp.server import build_server
from arrakis_rpc.connection import CallCancelled, CallReceived

ARRAKIS = str(Path(sys.executable).with_name("arrakis"))


def on_stdio(socket: Path, **options: Any) -> Client:
    """Give a client that starts a server of its own for a daemon's socket."""
    return Client(
        StdioServerParameters(command=ARRAKIS, args=["--socket", str(socket), "mcp"]), **options
    )


@asynccontextmanager
async def inside(socket: Path) -> AsyncIterator[Client]:
    """Give a client of a server in this process, for what no transport changes."""
    with SandboxManager(socket=socket) as manager:
        async with Client(build_server(manager)) as client:
            yield client


@contextmanager
def http_server(
    socket: Path, *options: str, at: str = "127.0.0.1:0", **environment: str
) -> Iterator[str]:
    """Run a server on a port of its choice; give its URL."""
    argv = [ARRAKIS, "--socket", str(socket), "mcp", "--http", at, *options]
    with subprocess.Popen(
        argv, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        assert process.stderr
        try:
            told = process.stderr.readline()
            assert told.startswith("MCP at http"), told + process.stderr.read()
            yield told.split()[-1]
        finally:
            process.terminate()
            _, rest = process.communicate(timeout=60)
        assert "Traceback" not in rest, rest


def text_of(result: mcp_types.CallToolResult) -> str:
    """Give the text that a tool gave."""
    [content] = result.content
    assert isinstance(content, mcp_types.TextContent)
    return content.text


async def use(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool that must succeed; give its structured result, which its text says, too."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content == json.loads(text_of(result))
    return dict(result.structured_content)


async def fail(client: Client, tool: str, **arguments: Any) -> str:
    """Call a tool that must fail; give what it says."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    return text_of(result)


async def read(client: Client, uri: str) -> Any:
    """Read a resource of JSON."""
    [content] = (await client.read_resource(uri)).contents
    assert isinstance(content, mcp_types.TextResourceContents)
    assert content.mime_type == "application/json"
    return json.loads(content.text)


class Endless:
    """A command that writes nothing and does not end, until its call is cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    def __call__(self, peer: Peer, call: CallReceived) -> None:
        self.begun.set()
        try:
            while not isinstance(peer.event(), CallCancelled):
                pass
        finally:  # or the connection was closed
            self.cancelled.set()
