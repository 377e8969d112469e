"""What of an identity lives in the kernel, apart from the files."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from typing import Protocol

# _IOW('R', 0x03, int[2]) and _IO('R', 0x07) of <linux/random.h>
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


class Kernel(Protocol):
    """The effects on the running kernel that an identity has."""

    def set_hostname(self, name: str) -> None:
        """Set the host name."""

    def set_realtime(self, nanoseconds: int) -> None:
        """Set the wall clock."""

    def advance_realtime(self, nanoseconds: int) -> None:
        """Set the wall clock forward, or back."""

    def add_entropy(self, entropy: bytes) -> None:
        """Mix secret bytes into the random pool, and derive what it gives out anew."""


class LinuxKernel:
    """The kernel that runs."""

    def set_hostname(self, name: str) -> None:
        """Set the host name."""
        socket.sethostname(name)

    def set_realtime(self, nanoseconds: int) -> None:
        """Set the wall clock."""
        time.clock_settime_ns(time.CLOCK_REALTIME, nanoseconds)

    def advance_realtime(self, nanoseconds: int) -> None:
        """Set the wall clock forward, or back."""
        self.set_realtime(time.time_ns() + nanoseconds)

    def add_entropy(self, entropy: bytes) -> None:
        """Mix secret bytes into the random pool, and derive what it gives out anew.

        Without the second step siblings would draw the same numbers until the kernel
        reseeds by itself, up to a minute later.
        """
        device = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
        try:
            header = struct.pack("ii", len(entropy) * 8, len(entropy))
            fcntl.ioctl(device, _RNDADDENTROPY, header + entropy)
            fcntl.ioctl(device, _RNDRESEEDCRNG)
        finally:
            os.close(device)
