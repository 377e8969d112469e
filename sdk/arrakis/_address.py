"""Where the daemon is: its Unix socket, or a URL and what it takes to be let in there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlsplit

from attrs import field, frozen

from arrakis_rpc.errors import InvalidParamsError

DEFAULT_SOCKET = "/run/arrakis/arrakisd.sock"
_ENDPOINT = "/v1/rpc"
_PORTS = {"http": 80, "https": 443}
# What a header, and a shell, take as it is. The daemon's own tokens have fewer characters.
_TOKEN = re.compile(r"[!-~]{1,512}")


@frozen
class UnixAddress:
    """The daemon on this host."""

    path: str

    def __str__(self) -> str:
        return self.path


@frozen
class HttpAddress:
    """A daemon that is reached by HTTP. As text it has no secrets."""

    scheme: str
    host: str
    port: int
    prefix: str
    token: str | None = field(repr=False)
    ca_file: str | None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """Host and port, as in the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """The path at which the daemon speaks our protocol."""
        return self.prefix + _ENDPOINT


Address = UnixAddress | HttpAddress


def find_address(
    base_url: str | None = None,
    token: str | None = None,
    *,
    socket: str | os.PathLike[str] | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Address:
    """Find the daemon: what is given, else what the environment names, else the usual socket.

    What goes with a URL, token and certificates, comes from the environment as well, unless it
    is given. Raises `InvalidParamsError` for what does not go together.
    """
    if base_url is not None and socket is not None:
        raise InvalidParamsError("a daemon is reached by a URL or a socket, not by both")
    url = base_url if socket is not None or base_url else environment.get("ARRAKIS_URL")
    if url:
        return _http_address(
            url,
            token or environment.get("ARRAKIS_TOKEN"),
            ca_file or environment.get("ARRAKIS_CA_FILE"),
            given=token is not None,
        )
    if token is not None or ca_file is not None or base_url is not None:
        raise InvalidParamsError(
            "a base_url begins with http:// or https://, and a token or a ca_file belongs to it",
            hint="for a Unix socket, use SandboxManager(socket=PATH)",
        )
    return UnixAddress(os.fspath(socket or environment.get("ARRAKIS_SOCKET") or DEFAULT_SOCKET))


def _http_address(
    url: str, token: str | None, ca_file: str | os.PathLike[str] | None, *, given: bool
) -> HttpAddress:
    parts, port = _split(url)
    if not given and parts.password:
        token = unquote(parts.password)
    if token and not _TOKEN.fullmatch(token):
        raise InvalidParamsError(
            "what was given as a token is none",
            hint="it is the last line of 'arrakis token create NAME'",
        )
    return HttpAddress(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=port or _PORTS[parts.scheme],
        prefix=parts.path.rstrip("/"),
        token=token or None,
        ca_file=os.fspath(ca_file) if ca_file else None,
    )


def _split(url: str) -> tuple[SplitResult, int | None]:
    # The URL is not shown: there may be a token in it.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _no_url("it cannot be read") from None
    if parts.scheme not in _PORTS:
        raise _no_url("it does not begin with http:// or https://")
    if not parts.hostname:
        raise _no_url("it names no host")
    if parts.query or parts.fragment:
        raise _no_url("it has a query or a fragment")
    if not re.fullmatch(r"[!-~]*", url):
        raise _no_url("it has characters that must be escaped")
    return parts, port


def _no_url(reason: str) -> InvalidParamsError:
    return InvalidParamsError(
        f"what was given is not the URL of a daemon: {reason}",
        hint="a base_url is like http://127.0.0.1:7000; "
        "for a Unix socket, use SandboxManager(socket=PATH)",
    )
