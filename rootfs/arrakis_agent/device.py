"""Finding and opening what leads to the host: a virtio-serial port, or vsock."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from .port import PortLostError

PORT_NAME = "org.arrakis.agent"

_COMMAND_LINE = Path("/proc/cmdline")
_VSOCK_ARGUMENT = "arrakis.vsock="
_PORTS = Path("/sys/class/virtio-ports")
_PATIENCE = 60.0
_PAUSE = 0.05


def vsock_port() -> int | None:
    """Tell on which vsock port the host will connect; None if it does not say so."""
    for argument in _COMMAND_LINE.read_text().split():
        if argument.startswith(_VSOCK_ARGUMENT):
            return int(argument.removeprefix(_VSOCK_ARGUMENT))
    return None


def open_port() -> int:
    """Wait for the port, and open it; raise `PortLostError` after a minute without it.

    It is busy as long as a former agent process has it open.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        problem = f"no virtio port is named {PORT_NAME}"
        for name in _PORTS.glob("*/name"):
            if name.read_text().strip() == PORT_NAME:
                try:
                    return os.open(f"/dev/{name.parent.name}", os.O_RDWR | os.O_CLOEXEC)
                except OSError as error:
                    if error.errno not in (errno.EBUSY, errno.ENOENT):
                        raise
                    problem = str(error)
        if time.monotonic() > deadline:
            raise PortLostError(problem)
        time.sleep(_PAUSE)
