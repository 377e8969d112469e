"""Serving over stdio, and over HTTP with what keeps strangers out."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from attrs import frozen
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from arrakis import SandboxManager
from arrakis_rpc.errors import InvalidParamsError

from .server import build_server

PATH = "/mcp"
BODY_BYTES = 16 * 1024 * 1024
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_SHUTDOWN_SECONDS = 2


@frozen
class HttpOptions:
    """Where to listen, and for whom.

    ``allowed_hosts`` are names under which clients reach the server, besides those of where
    it listens, each with its port unless that is the scheme's own. ``token`` is asked of all
    clients. ``certificate`` and ``key`` are files in PEM.
    """

    host: str
    port: int
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    allowed_hosts: Sequence[str] = ()

    @property
    def scheme(self) -> str:
        """``https`` or ``http``."""
        return "http" if self.certificate is None else "https"

    def check(self) -> None:
        """Raise `InvalidParamsError` if this would let strangers in."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidParamsError("a certificate and its key are given together")
        if is_loopback(self.host):
            return
        missing = [
            what
            for what, given in (("a token", self.token), ("a certificate", self.certificate))
            if not given
        ]
        if missing:
            raise InvalidParamsError(
                f"{self.host} is not loopback, and clients from elsewhere need "
                + " and ".join(missing),
                hint="give --token-file, --tls-cert and --tls-key, or listen on 127.0.0.1",
            )


def is_loopback(host: str) -> bool:
    """Tell whether only programs of this host reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve_stdio(manager: SandboxManager) -> None:
    """Serve one client on stdin and stdout, until it closes them."""
    # A thread that waits for stdin cannot be interrupted, so Ctrl+C ends the process: the
    # daemon sees the connections close, and cancels what runs on them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    anyio.run(build_server(manager).run_stdio_async)


def serve_http(manager: SandboxManager, options: HttpOptions) -> None:
    """Serve any number of clients over HTTP, until SIGINT or SIGTERM."""
    options.check()
    listener = _listen(options)
    port = listener.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(
            http_app(build_server(manager), options, port),
            log_config=None,
            access_log=False,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.key,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            server_header=False,
            ws="none",
        )
    )
    url = f"{options.scheme}://{_bracketed(options.host)}:{port}{PATH}"
    sys.stderr.write(f"MCP at {url}\n")
    sys.stderr.flush()
    with listener:
        anyio.run(server.serve, [listener])


def http_app(server: MCPServer[Any], options: HttpOptions, port: int) -> ASGIApp:
    """Give the application that ``serve_http`` serves on a port."""
    names = [_bracketed(options.host)]
    if is_loopback(options.host):
        names = [*_LOOPBACK_NAMES, *names]
    hosts = [*(f"{name}:{port}" for name in names), *options.allowed_hosts]
    app: ASGIApp = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=BODY_BYTES,
        transport_security=TransportSecuritySettings(
            allowed_hosts=hosts,
            allowed_origins=[f"{options.scheme}://{host}" for host in hosts],
        ),
    )
    return app if options.token is None else _TokenRequired(app, options.token)


class _TokenRequired:
    """Lets requests through that bear the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._digest = _digest(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_borne(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        refusal = PlainTextResponse(
            "a bearer token is required\n", 401, {"www-authenticate": "Bearer"}
        )
        await refusal(scope, receive, send)

    def _is_borne(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Of digests, which are equally long whatever was sent.
        equal = hmac.compare_digest(_digest(token.strip()), self._digest)
        return equal and scheme.lower() == "bearer"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _listen(options: HttpOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InvalidParamsError(
            f"cannot listen at {options.host}:{options.port}: {error.strerror or error}"
        ) from error
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
