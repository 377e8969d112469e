"""``clock.set``: the wall clock of a guest that stood still for a while, or for years."""

from __future__ import annotations

from arrakis_rpc.guest_api import Clock, Nothing

from .call import Call
from .kernel import Kernel


class ClockSetter:
    """Sets the clock of ``kernel``."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def set(self, _call: Call, clock: Clock) -> Nothing:
        """Set the wall clock to what the host's is at this moment."""
        self._kernel.set_realtime(clock.realtime)
        return Nothing()
