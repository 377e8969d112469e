"""Where a session begins and ends in the byte stream; see `arrakis_rpc.resync`.

Every byte from the host passes through a scanner for the current token. When it is seen,
all that belongs to the former session is dropped, its commands are killed, and only then
the nonce is answered: whatever the host receives after it belongs to the new session.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from arrakis_rpc.resync import FIRST_TOKEN, NONCE_SIZE, TOKEN_SIZE, MarkerScanner

from .port import Output, Port, PortLostError
from .session import Handler, Session


class TokenFile:
    """Keeps the token of the next session, for an agent that is started again.

    The file is made once and then overwritten in place. So a guest that has filled its
    memory can still be reached; and 32 bytes in one page are replaced all or none.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(directory / "token", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not os.fstat(self._file).st_size:
            self.store(FIRST_TOKEN)

    def load(self) -> bytes:
        """Give the token; the first one when none was ever kept in this boot."""
        return os.pread(self._file, TOKEN_SIZE, 0)

    def store(self, token: bytes) -> None:
        """Replace the token."""
        os.pwrite(self._file, token, 0)


class Sessions:
    """Serves one session after the other on a port."""

    def __init__(self, port: Port, tokens: TokenFile, handlers: Mapping[str, Handler]) -> None:
        self._port = port
        self._tokens = tokens
        self._handlers = handlers
        self._scanner = MarkerScanner(tokens.load())
        self._nonce: bytes | None = None
        self._session: Session | None = None
        self._lost: PortLostError | None = None
        self._preamble: asyncio.Future[tuple[bytes, bytes]]

    async def serve(self) -> NoReturn:
        """Serve until cancelled; raise `PortLostError` when the port is gone."""
        self._expect_preamble()
        self._port.start(self)
        try:
            nonce, rest = await self._preamble
            while True:
                nonce, rest = await self._serve_one(nonce, rest)
        finally:
            self._port.stop()

    async def _serve_one(self, nonce: bytes, rest: bytes) -> tuple[bytes, bytes]:
        """Serve a session until the next preamble, which is returned."""
        self._expect_preamble()
        async with asyncio.TaskGroup() as tasks:
            output = Output(self._port)
            session = Session(output, tasks, self._handlers, self._keep_token)
            self._session = session
            output.send(nonce)
            self._port.resume()
            self.data_received(rest)
            try:
                # Only waited for: a group would wrap the error that it may hold.
                await asyncio.wait([self._preamble])
            finally:
                session.close()
        return self._preamble.result()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the host."""
        while data:
            if self._nonce is None:
                ordinary, rest = self._scanner.feed(data)
                after = self._session.receive(ordinary) if self._session and ordinary else b""
                if after:
                    # A host that got no answer has begun again with the token that it gave.
                    data = data[len(ordinary) - len(after) :]
                    continue
                if rest is None:
                    return
                self._close_session()
                self._nonce, data = b"", rest
            missing = NONCE_SIZE - len(self._nonce)
            self._nonce += data[:missing]
            if len(self._nonce) == NONCE_SIZE:
                self._port.pause()
                self._preamble.set_result((self._nonce, data[missing:]))
                self._nonce = None
                return
            data = b""

    def hung_up(self) -> None:
        """Drop the session: a host that comes back begins a new one."""
        self._nonce = None
        self._close_session()

    def port_lost(self, error: PortLostError) -> None:
        """Give up."""
        self._lost = error
        if not self._preamble.done():
            self._preamble.set_exception(error)

    def _expect_preamble(self) -> None:
        self._preamble = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            self._preamble.set_exception(self._lost)

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _keep_token(self, token: bytes) -> None:
        self._tokens.store(token)
        self._scanner = MarkerScanner(token)
