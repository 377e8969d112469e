"""The service manager's side: what systemd hands over, and what it is told.

The protocols are those of sd_listen_fds(3) and sd_notify(3): environment variables, inherited
descriptors and one datagram each. A library for them would be a dependency for less than it is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

_FIRST_FD = 3
_LISTENING = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_sockets(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Take over the sockets that were opened for this process; once, and not for its children."""
    handed = {name: environment.pop(name, "") for name in _LISTENING}
    if handed["LISTEN_PID"] != str(os.getpid()) or not handed["LISTEN_FDS"].isdecimal():
        return []
    numbers = range(_FIRST_FD, _FIRST_FD + int(handed["LISTEN_FDS"]))
    for number in numbers:
        os.set_inheritable(number, False)
    return [socket.socket(fileno=number) for number in numbers]


def is_watching() -> bool:
    """Whether somebody wants to be told how this process is."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def tell(**assignments: str | int) -> None:
    """Tell the service manager, where there is one; nothing is said twice if it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in assignments.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        sender.send(message.encode())


def watchdog_seconds() -> float | None:
    """Give how often the service manager wants a sign of life at least; None if it wants none."""
    wanted, whose = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not is_watching() or not wanted.isdecimal() or whose not in (None, str(os.getpid())):
        return None
    return int(wanted) / 1e6 or None
