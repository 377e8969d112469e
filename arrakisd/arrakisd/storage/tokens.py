"""Tokens: what a client that does not come by the Unix socket shows to be let in.

Each is a file in the state directory, named like the token, that holds a digest and no secret.
A file each, because a token must be revocable when the disk is full. When a token was last used
is its file's modification time: to note that needs no room either, and replaces nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
import trio
from attrs import define, field

from arrakis_rpc.daemon_api import TokenInfo
from arrakis_rpc.errors import AlreadyExistsError, NotFoundError

from ..host.files import room_needed, sync

# What a secret scanner can look for; and a token never begins with "-", like an option.
_PREFIX = "ark_"
_SECRET_BYTES = 32
_NEVER = 0.0
_NOTE_USE_EVERY = 60.0

log = structlog.get_logger()


@define(eq=False)
class _Token:
    name: str
    digest: bytes
    created: float
    used: float = _NEVER
    scopes: set[trio.CancelScope] = field(factory=set)


class TokenStore:
    """The tokens of a daemon. A directory that is not there holds none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tokens: dict[str, _Token] = {}
        self._reserved: set[str] = set()

    def load(self) -> None:
        """Read what an earlier daemon kept. Blocks.

        A damaged file lets nobody in, and can be revoked.
        """
        for file in sorted(self._directory.glob("*")):
            if file.name.startswith("."):
                file.unlink()  # a crash was faster than its rename
                continue
            self._tokens[file.name] = _read(file)

    async def create(self, name: str) -> str:
        """Make a token and give its secret, which is kept nowhere. Raises `AlreadyExistsError`."""
        if name in self._tokens or name in self._reserved:
            raise AlreadyExistsError(
                f"a token '{name}' exists already",
                hint="choose another name, or revoke that token first",
            )
        secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        token = _Token(name, _digest(secret), time.time())
        self._reserved.add(name)
        try:
            await trio.to_thread.run_sync(self._write, token)
            self._tokens[name] = token
        finally:
            self._reserved.discard(name)
        return secret

    def list(self) -> list[TokenInfo]:
        """Give what is known of all tokens, by name; their secrets are not."""
        by_name = sorted(self._tokens.values(), key=lambda token: token.name)
        return [
            TokenInfo(name=one.name, created=one.created, used=one.used or None) for one in by_name
        ]

    async def revoke(self, name: str) -> None:
        """Let nobody in with a token any more, and cut off who is. Raises `NotFoundError`."""
        token = self._tokens.pop(name, None)
        if token is None:
            raise NotFoundError(f"there is no token '{name}'", hint="'arrakis token list'")
        for scope in token.scopes:
            scope.cancel()
        with trio.CancelScope(shield=True):  # it is revoked now, or it would come back
            await trio.to_thread.run_sync(self._remove, name)

    def verify(self, secret: str) -> str | None:
        """Give the name of the token with this secret; None if there is none."""
        digest, found = _digest(secret), None
        for token in self._tokens.values():
            if hmac.compare_digest(token.digest, digest):
                found = token
        if found is None:
            return None
        self._note_use(found)
        return found.name

    @contextmanager
    def while_valid(self, name: str) -> Iterator[trio.CancelScope]:
        """Cancel the block when the token is revoked, or if it is already."""
        with trio.CancelScope() as scope:
            token = self._tokens.get(name)
            if token is None:
                scope.cancel()
                yield scope
                return
            token.scopes.add(scope)
            try:
                yield scope
            finally:
                token.scopes.discard(scope)

    def _note_use(self, token: _Token) -> None:
        now = time.time()
        if abs(now - token.used) < _NOTE_USE_EVERY:
            return
        token.used = now
        with suppress(OSError):  # nobody is kept out because of it
            os.utime(self._directory / token.name, (now, now))

    def _write(self, token: _Token) -> None:
        with room_needed(self._directory):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            file = self._directory / token.name
            new = file.with_name(f".{token.name}")
            kept = {"digest": token.digest.hex(), "created": token.created}
            try:
                with open(new, "x", opener=_private) as stream:
                    json.dump(kept, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.utime(new, (_NEVER, _NEVER))
                new.rename(file)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
            sync(self._directory)

    def _remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)
        sync(self._directory)


def _read(file: Path) -> _Token:
    try:
        kept = json.loads(file.read_text())
        digest = bytes.fromhex(kept["digest"])
        return _Token(file.name, digest, float(kept["created"]), file.stat().st_mtime)
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("a token is damaged and lets nobody in", file=str(file), reason=repr(error))
        return _Token(file.name, b"", 0.0)


def _digest(secret: str) -> bytes:
    # Not a slow hash: nobody guesses 256 random bits, and each request pays for it.
    return hashlib.sha256(secret.encode("utf-8", "backslashreplace")).digest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
