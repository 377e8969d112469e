"""Who may ask: names of hosts, origins, tokens. Free of input and output.

A browser on this machine will send anybody's requests to loopback. The name that it gives in
Host betrays a name that was rebound to our address, and Origin a page of somebody else's.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias

from attrs import define, frozen

from arrakis_rpc.errors import ArrakisError

from ..settings.http import HttpConfig

Headers: TypeAlias = tuple[tuple[str, str], ...]

_PORT = re.compile(r":\d{1,5}\Z")
_BURST = 10
_SECONDS_PER_TRY = 6.0
_MOST_ADDRESSES = 4096


class TokenVerifier(Protocol):
    """Knows the tokens."""

    def verify(self, token: str) -> str | None:
        """Give the name of a token that is good, in a time that tells nothing of others."""

    def while_valid(self, name: str) -> AbstractContextManager[object]:
        """Cancel the block when that token is revoked."""


class RefusedError(ArrakisError):
    """An answer of HTTP in place of what was asked for."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@define
class _Failures:
    tries: float
    last: float


class FailedLogins:
    """How often each address has failed of late.

    A token has 256 bits and is not guessed, however often one tries: the limit keeps the
    log and the processor from being flooded. A good token is let in all the same, since
    whoever shares an address with a failing client should not be locked out by it.
    """

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()

    def failed(self, address: str, now: float) -> float | None:
        """Count a failure; give for how many seconds to wait, if there were too many."""
        known = self._addresses.pop(address, None) or _Failures(float(_BURST), now)
        known.tries = min(_BURST, known.tries + (now - known.last) / _SECONDS_PER_TRY)
        known.last = now
        self._addresses[address] = known
        if len(self._addresses) > _MOST_ADDRESSES:
            self._addresses.popitem(last=False)
        if known.tries < 1:
            return (1 - known.tries) * _SECONDS_PER_TRY
        known.tries -= 1
        return None


@frozen
class Asked:
    """What guards look at in a request."""

    headers: Mapping[str, str]
    server: str
    client: str


class Gate:
    """Decides who gets in."""

    def __init__(self, config: HttpConfig, tokens: TokenVerifier) -> None:
        self._tokens = tokens if config.auth == "token" else None
        self._hosts = {_bare(host) for host in config.allowed_hosts}
        self._origins = {origin.lower() for origin in config.allowed_origins}
        self._failed = FailedLogins()

    def check_place(self, asked: Asked) -> None:
        """Raise a `RefusedError` for the name of a host, or an origin, that is none of ours."""
        host = asked.headers.get("host", "")
        if not self._is_our_host(host, asked.server):
            raise RefusedError(403, "this is not the host that was asked for; see allowed_hosts")
        origin = asked.headers.get("origin")
        if origin is not None and not self.is_our_origin(origin, host):
            raise RefusedError(403, "pages of that origin may not ask; see allowed_origins")
        site = asked.headers.get("sec-fetch-site", "none")
        if origin is None and site not in ("none", "same-origin"):
            raise RefusedError(403, "pages of other sites may not ask; see allowed_origins")

    def admit(self, asked: Asked, now: float) -> str:
        """Give the name of who asks; raise a `RefusedError` without a good token."""
        if self._tokens is None:
            return "anyone"
        token = _token_in(asked.headers.get("authorization", ""))
        if token is not None and (name := self._tokens.verify(token)) is not None:
            return name
        if token is not None and (wait := self._failed.failed(asked.client, now)) is not None:
            retry = (("Retry-After", str(int(wait) + 1)),)
            raise RefusedError(429, "too many wrong tokens from this address", retry)
        challenges = (
            ("WWW-Authenticate", 'Bearer realm="arrakis"'),
            ("WWW-Authenticate", 'Basic realm="arrakis", charset="UTF-8"'),
        )
        said = "a token is needed" if token is None else "no such token"
        raise RefusedError(401, f"{said}; 'arrakis token create NAME' makes one", challenges)

    def while_valid(self, name: str) -> AbstractContextManager[object]:
        """Cancel the block when whom `admit` named is to be let in no more."""
        return nullcontext() if self._tokens is None else self._tokens.while_valid(name)

    def allows_pages_of(self, origin: str) -> bool:
        """Whether the administrator has named this origin."""
        return origin.lower() in self._origins

    def _is_our_host(self, host: str, server: str) -> bool:
        name = _bare(_PORT.sub("", host))
        if name in ("localhost", server) or name in self._hosts:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def is_our_origin(self, origin: str, host: str) -> bool:
        """Whether an origin is a page of our own, or one that the administrator has named."""
        _, _, place = origin.lower().partition("://")
        return self.allows_pages_of(origin) or (place != "" and place == host.lower())


def _bare(host: str) -> str:
    return host.lower().strip("[]").rstrip(".")


def _token_in(authorization: str) -> str | None:
    """Find the token: after Bearer, or as the password of Basic."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return None


def plain_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Give headers as text. Of two of one name the values are joined, and so fit nothing."""
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.decode("latin1").lower()
        text = value.decode("latin1").strip()
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found
