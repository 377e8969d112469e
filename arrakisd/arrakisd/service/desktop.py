"""The operations on what a person would use screen, mouse and keyboard for."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

import trio

from arrakis_rpc import desktop_api as api
from arrakis_rpc.guest_api import Nothing

from ..guest.agent import GuestAgent
from ..guest.desktop import act, take_picture
from ..machines.supervisor import Supervisor
from .call import Call


class DesktopOperations:
    """``desktop.*``."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        # There is one pointer and one keyboard: one who acts waits for the other.
        self._hands: WeakKeyDictionary[GuestAgent, trio.Lock] = WeakKeyDictionary()

    async def desktop_screenshot(self, params: api.DesktopScreenshot, call: Call) -> api.ScreenSize:
        """Send a picture of the screen."""
        agent = self._supervisor.get(params.vm).agent
        return await take_picture(agent, partial(call.streams.send, "data"))

    async def desktop_click(self, params: api.DesktopClick, _: Call) -> Nothing:
        """Press a button at a place and let it go."""
        return await self._act(params.vm, "click", params.x, params.y, params.button, params.count)

    async def desktop_move(self, params: api.DesktopMove, _: Call) -> Nothing:
        """Bring the pointer to a place."""
        return await self._act(params.vm, "move", params.x, params.y)

    async def desktop_drag(self, params: api.DesktopDrag, _: Call) -> Nothing:
        """Press the left button at one place, and let it go at another."""
        return await self._act(params.vm, "drag", params.x1, params.y1, params.x2, params.y2)

    async def desktop_scroll(self, params: api.DesktopScroll, _: Call) -> Nothing:
        """Turn the wheel at a place."""
        return await self._act(params.vm, "scroll", params.x, params.y, params.dx, params.dy)

    async def desktop_type(self, params: api.DesktopType, _: Call) -> Nothing:
        """Type a text."""
        return await self._act(params.vm, "type", params.text)

    async def desktop_key(self, params: api.DesktopKey, _: Call) -> Nothing:
        """Press keys together."""
        return await self._act(params.vm, "key", params.combo)

    async def _act(self, vm: str, *words: str | int) -> Nothing:
        agent = self._supervisor.get(vm).agent
        async with self._hands.setdefault(agent, trio.Lock()):
            await act(agent, *words)
        return Nothing()
