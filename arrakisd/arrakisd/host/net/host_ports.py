"""Ports of this host that are given to VMs."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TypeVar

from arrakis_rpc.errors import AlreadyExistsError

from .leases import Leases

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 -- only where a caller asks to publish
_BACKLOG = 64


class PortTakenError(Exception):
    """Something else on this host listens on the port."""


def claim_port(
    leases: Leases, vm: str, wanted: int | None, open_port: Callable[[int], T]
) -> tuple[int, T]:
    """Lease a port and open it; give both. One that somebody else uses is passed over.

    Raises `AlreadyExistsError` if ``wanted`` cannot be had, `ExhaustedError` if none is left.
    """
    refused: list[int] = []
    while True:
        port = leases.take(vm, wanted, refused)
        try:
            return port, open_port(port)
        except PortTakenError as error:
            leases.give_back(port)
            if wanted is not None:
                raise AlreadyExistsError(
                    f"port {port} of this host cannot be had: {error}",
                    hint="choose another one, or none, to be given one that is free",
                ) from error
            refused.append(port)
        except BaseException:
            leases.give_back(port)
            raise


def listen(address: str, port: int) -> socket.socket:
    """Listen at an address of this host; raise `PortTakenError` if that port cannot be had."""
    try:
        return socket.create_server((address, port), backlog=_BACKLOG)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise PortTakenError(error.strerror) from error
        raise


def require_free(address: str, port: int) -> None:
    """Raise `PortTakenError` if a port of this host cannot be had at this moment."""
    listen(address, port).close()
