"""Listening for HTTP, with hypercorn."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve

from arrakis_rpc.errors import UnsupportedError

from ..rpc_session import RpcSessions
from ..service import Service
from ..settings.http import HttpConfig
from .app import make_app
from .connection import cut, have_clients_watched
from .front import App, Front
from .guards import Gate, TokenVerifier
from .mending import mend_hypercorn
from .websocket import serve_rpc

_HEADERS_DEADLINE = 5
_HANDSHAKE_DEADLINE = 10
_GRACE = 1.0
_MOST_HEADER_BYTES = 32 * 1024
_PING_EVERY = 20

log = structlog.get_logger()


class HttpServer:
    """Serves one listening socket."""

    def __init__(self, listening: socket.socket, config: HypercornConfig, front: Front) -> None:
        self._listening = listening
        self._config = config
        self._front = front
        self._ending = trio.Event()
        self._accepting = trio.Event()
        self._port = listening.getsockname()[1]

    async def serve(self) -> None:
        """Serve clients until drained.

        A connection that hypercorn fails over ends all others of HTTP, but no VM.
        """
        while not self._ending.is_set():
            # hypercorn closes what it is given; the socket stays open as long as the daemon's.
            self._config.bind = [f"fd://{os.dup(self._listening.fileno())}"]
            try:
                await serve(
                    self._front,  # type: ignore[arg-type]  # its types are narrower than ASGI
                    self._config,
                    shutdown_trigger=self._ending.wait,
                    task_status=self,
                    mode="asgi",
                )
            except Exception:
                log.exception("HTTP failed and begins anew")

    def started(self, _binds: list[str] | None = None) -> None:
        """Hear from hypercorn, each time that it begins anew, that it accepts."""
        self._accepting.set()

    async def wait_accepting(self) -> None:
        """Return once clients are accepted."""
        await self._accepting.wait()

    async def drain(self, deadline: float) -> None:
        """Accept no more, and let requests in flight finish; at most ``deadline`` seconds."""
        self._ending.set()
        with trio.move_on_after(deadline):
            await self._front.wait_idle()

    def cut(self) -> None:
        """End all connections at once."""
        cut(self._port)


@asynccontextmanager
async def open_http_server(
    config: HttpConfig, service: Service, sessions: RpcSessions, tokens: TokenVerifier
) -> AsyncIterator[HttpServer]:
    """Listen for the length of a block, on the address that the settings must have.

    Raises `UnsupportedError` where nobody can listen, or TLS has no good certificate.
    """
    settings = _settings(config)
    mend_hypercorn()
    with _bound(config) as listening:
        app = make_app(service)
        serve_rpc(app, sessions)
        front = Front(Gate(config, tokens), cast(App, app))
        yield HttpServer(listening, settings, front)


def _bound(config: HttpConfig) -> socket.socket:
    host, port = config.bind
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        have_clients_watched(listening)
        listening.bind((host, port))
        listening.listen(128)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise UnsupportedError(
            f"cannot listen on {config.address} for HTTP: {error.strerror}",
            hint="choose another address with --http",
        ) from error
    return listening


def _settings(config: HttpConfig) -> HypercornConfig:
    settings = HypercornConfig()
    settings.errorlog = _logger()
    settings.loglevel = "WARNING"
    settings.include_server_header = False
    settings.keep_alive_timeout = _HEADERS_DEADLINE
    settings.ssl_handshake_timeout = _HANDSHAKE_DEADLINE
    settings.graceful_timeout = _GRACE
    settings.h11_max_incomplete_size = _MOST_HEADER_BYTES
    settings.websocket_ping_interval = _PING_EVERY
    settings.alpn_protocols = ["http/1.1"]
    if config.tls_certificate:
        _check_certificate(config)
        settings.certfile, settings.keyfile = config.tls_certificate, config.tls_key
    return settings


def _check_certificate(config: HttpConfig) -> None:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(config.tls_certificate or "", config.tls_key)
    except OSError as error:
        raise UnsupportedError(
            f"no TLS with {config.tls_certificate} and {config.tls_key}: {error.strerror or error}",
            hint="both are files in PEM form, that the daemon may read and that belong together",
        ) from error


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Log what hypercorn has to say, like everything else."""
        exception: Any = record.exc_info if record.exc_info and record.exc_info[0] else None
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=exception)


def _logger() -> logging.Logger:
    logger = logging.getLogger("arrakisd.hypercorn")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_ToStructlog())
    return logger
