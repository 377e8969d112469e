"""The settings in the table ``[http]``."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Literal

from attrs import field, frozen
from attrs.validators import optional

_HOST = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.IGNORECASE)


def _address(_: object, __: Any, value: str) -> None:
    parse_address(value)


def parse_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, the host an IP address or ``localhost``; raise `ValueError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} has no port; try 127.0.0.1:7000")
    if host.startswith("[") != (":" in host):
        raise ValueError(f"{text!r} lacks the brackets of an IPv6 address; [::1]:7000 has them")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address with a port; try 127.0.0.1:7000") from None
    return host, int(port)


def _hosts(_: object, attribute: Any, value: list[str]) -> None:
    for host in value:
        if not _HOST.fullmatch(host):
            raise ValueError(f"{attribute.name}: {host!r} is no name of a host; leave the port out")


def _origins(_: object, attribute: Any, value: list[str]) -> None:
    for origin in value:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{attribute.name}: {origin!r} is no origin; https://example.com is")


@frozen
class HttpConfig:
    """The table ``[http]``. Without an ``address`` there is no HTTP."""

    address: str | None = field(default=None, validator=optional(_address))
    auth: Literal["token", "none"] = "token"
    tls_certificate: str | None = None
    tls_key: str | None = None
    allowed_hosts: list[str] = field(factory=list, validator=_hosts)
    allowed_origins: list[str] = field(factory=list, validator=_origins)

    def __attrs_post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together")
        if self.address is None or ipaddress.ip_address(self.bind[0]).is_loopback:
            return
        missing = [
            *([] if self.tls_certificate else ["tls_certificate and tls_key"]),
            *([] if self.auth == "token" else ['auth = "token"']),
        ]
        if missing:
            raise ValueError(
                f"address {self.address} can be reached from other machines, and who reaches it "
                f"is root in every VM: that needs {' and '.join(missing)}, or a loopback address"
            )

    @property
    def bind(self) -> tuple[str, int]:
        """Address and port to listen on."""
        return parse_address(self.address or "")
