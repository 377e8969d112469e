"""Screen, mouse and keyboard of a VM."""

from __future__ import annotations

from typing import Any

from attrs import asdict
from quart import Response

from . import desktop_models as m
from . import models
from .routes import PNG, Ask, Route, stream

_FAILS = (404, 409, 422, 502, 504)


async def screenshot(ask: Ask) -> Response:
    """Give a picture of the screen, in its full size, without the pointer."""
    call = ask.open("desktop.screenshot", {"vm": ask.name})
    first = await call.data()
    headers = {"Content-Type": PNG, "Cache-Control": "no-store"}
    return stream(call.data_from(first), 200, headers)


async def click(ask: Ask) -> Any:
    """Press a button at a place and let it go; twice for a double click."""
    return await _act(ask, "click")


async def move_pointer(ask: Ask) -> Any:
    """Bring the pointer to a place."""
    return await _act(ask, "move")


async def drag(ask: Ask) -> Any:
    """Press the left button at one place, and let it go at another."""
    return await _act(ask, "drag")


async def scroll(ask: Ask) -> Any:
    """Turn the wheel at a place, ``dx`` clicks to the right, ``dy`` down."""
    return await _act(ask, "scroll")


async def type_text(ask: Ask) -> Any:
    """Type a text, any of Unicode; a line feed is Return, and a tab is Tab."""
    return await _act(ask, "type")


async def press_keys(ask: Ask) -> Any:
    """Press keys together, as in ``ctrl+c`` or ``Return``."""
    return await _act(ask, "key")


async def _act(ask: Ask, action: str) -> Any:
    await ask.call(f"desktop.{action}", vm=ask.name, **asdict(ask.body))
    return {"success": True, "message": f"done on the desktop of {ask.name}: {action}"}


def _action(path: str, handler: Any, summary: str, body: Any) -> Route:
    whole = f"/v1/vms/{{name}}/desktop/{path}"
    return Route("POST", whole, handler, summary, models.VMResponse, body, fails=_FAILS)


ROUTES = [
    Route(
        "GET",
        "/v1/vms/{name}/desktop/screenshot",
        screenshot,
        "A picture of the screen",
        gives=PNG,
        fails=_FAILS,
    ),
    _action("click", click, "Click at a place of the screen", m.ClickRequest),
    _action("move", move_pointer, "Bring the pointer to a place", m.MoveRequest),
    _action("drag", drag, "Drag from one place to another", m.DragRequest),
    _action("scroll", scroll, "Turn the wheel at a place", m.ScrollRequest),
    _action("type", type_text, "Type a text", m.TypeRequest),
    _action("key", press_keys, "Press keys together", m.KeyRequest),
]
