"""What a sandbox may reach, and by which ports it is reached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from arrakis_rpc.converter import unstructure
from arrakis_rpc.daemon_api import PortList
from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.network_api import Forward, PortRequest

from ._client import Client, without_none

_MODES = ("none", "internet")
_PORT = re.compile(r"(?:(\d{1,5}):)?(\d{1,5})", re.ASCII)


class Ports:
    """The ports of a RUNNING or PAUSED sandbox that are forwarded from the daemon's host.

    Ports are those of TCP, 1 to 65535. Every method raises `NotFoundError` or
    `InvalidStateError` when the sandbox is not there or in another state, and
    `UnsupportedError` when the daemon has no network.
    """

    def __init__(self, client: Client, vm: str) -> None:
        self._client = client
        self._vm = vm

    def list(self) -> list[Forward]:
        """Give all forwards: ``guest_port``, ``host_port``, ``description``, ``published``."""
        found: PortList = self._client.call("port.list", {"name": self._vm})
        return found.ports

    def add(
        self,
        guest_port: int,
        host_port: int | None = None,
        description: str = "",
        publish: bool = False,
    ) -> Forward:
        """Forward one more port, until it is removed or the sandbox ends.

        It is reached at 127.0.0.1:``host_port`` of the daemon's host, with ``publish`` also
        at the host's other addresses, from outside. Without a ``host_port`` the daemon
        chooses one that is free; the result says which. A description is up to 100
        characters; ``gui`` is what ``arrakis gui`` looks for. Whether anything listens on
        the guest's port is not checked. Raises `AlreadyExistsError` for a host port that is
        taken, `ExhaustedError` when none is left.
        """
        port = without_none(
            guest_port=guest_port, host_port=host_port, description=description, publish=publish
        )
        added: Forward = self._client.call("port.add", {"vm": self._vm, "port": port})
        return added

    def remove(self, host_port: int) -> None:
        """Forward a port of the host no longer, and cut the connections through it.

        Raises `NotFoundError` for a port that does not lead into this sandbox.
        """
        self._client.call("port.remove", {"vm": self._vm, "host_port": host_port})


def read_port(port: int | str | PortRequest) -> PortRequest:
    """Read a port as users give it: ``GUEST``, ``"HOST:GUEST"``, or all of it.

    Raises `InvalidParamsError` for a text of another form.
    """
    if isinstance(port, PortRequest):
        return port
    if not isinstance(port, str):
        return _request(guest_port=port)
    found = _PORT.fullmatch(port)
    if found is None:
        raise InvalidParamsError(
            f"{port[:100]!r} is neither GUEST nor HOST:GUEST",
            hint="ports are numbers, as in '8000' or '8080:8000'",
        )
    host = int(found[1]) if found[1] else None
    return _request(guest_port=int(found[2]), host_port=host)


def _request(**fields: Any) -> PortRequest:
    try:
        return PortRequest(**fields)
    except ValueError as error:
        raise InvalidParamsError(str(error.args[0])) from error


def egress_params(egress: str | Sequence[str]) -> dict[str, Any]:
    """Give the wire form of an egress policy as users give it; raise `InvalidParamsError`."""
    if isinstance(egress, str):
        if egress not in _MODES:
            raise InvalidParamsError(
                f"egress is 'none', 'internet' or a list of targets, not {egress[:100]!r}",
                hint="a single target is given as a list of one",
            )
        return {"mode": egress, "allow": []}
    allow = list(egress)
    # Who allows nothing allows nothing, and does not ask for the default.
    return {"mode": "allow" if allow else "none", "allow": allow}


def network_params(
    egress: str | Sequence[str] | None, ports: Sequence[int | str | PortRequest] | None
) -> dict[str, Any] | None:
    """Give the wire form of what was chosen of a sandbox's network; None if nothing was."""
    if isinstance(ports, str):
        raise InvalidParamsError("ports is a list", hint=f"for one port: ports=[{ports[:100]!r}]")
    chosen = without_none(
        egress=None if egress is None else egress_params(egress),
        ports=None if ports is None else [unstructure(read_port(port)) for port in ports],
    )
    return chosen or None
