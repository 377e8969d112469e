"""Tools on the desktop of a sandbox: its screen, its mouse, its keyboard.

The docstring of a tool is what the model is told of it.
"""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from mcp_types import ContentBlock, ImageContent, TextContent
from pydantic import Field

from arrakis_rpc.desktop_api import MOST_CLICKS, MOST_PIXELS, MOST_TEXT

from .jobs import Job
from .machine_tools import VmName, sandbox
from .results import Acted

Pixel = Annotated[int, Field(ge=0, le=MOST_PIXELS, description="in pixels of the screenshot")]
Clicks = Annotated[int, Field(ge=-MOST_CLICKS, le=MOST_CLICKS)]


def screenshot(job: Job, vm_name: VmName) -> list[ContentBlock]:
    """Take a picture of the screen of a sandbox that has one: image 'desktop'.

    Coordinates for all other tools are pixels of this picture, from its upper left corner. If it
    is shown to you in another size than it says, scale them. The pointer is not in it.
    """
    picture = sandbox(job, vm_name).desktop.screenshot()
    data = base64.b64encode(picture).decode()
    size = f"The screen is {picture.width} x {picture.height} pixels."
    return [
        ImageContent(type="image", data=data, mime_type="image/png"),
        TextContent(type="text", text=size),
    ]


def click(
    job: Job,
    vm_name: VmName,
    x: Pixel,
    y: Pixel,
    button: Literal["left", "middle", "right"] = "left",
    count: Annotated[int, Field(ge=1, le=10, description="2 is a double click")] = 1,
) -> Acted:
    """Click at a place of the screen. What comes of it is seen in the next screenshot."""
    sandbox(job, vm_name).desktop.click(x, y, button, count)
    return Acted(vm_name=vm_name, done="click")


def move_pointer(job: Job, vm_name: VmName, x: Pixel, y: Pixel) -> Acted:
    """Bring the pointer to a place of the screen, and press nothing."""
    sandbox(job, vm_name).desktop.move(x, y)
    return Acted(vm_name=vm_name, done="move")


def drag(job: Job, vm_name: VmName, x1: Pixel, y1: Pixel, x2: Pixel, y2: Pixel) -> Acted:
    """Press the left button at x1, y1, and let it go at x2, y2."""
    sandbox(job, vm_name).desktop.drag(x1, y1, x2, y2)
    return Acted(vm_name=vm_name, done="drag")


def scroll(
    job: Job,
    vm_name: VmName,
    x: Pixel,
    y: Pixel,
    dy: Annotated[Clicks, Field(description="clicks of the wheel down; less than 0: up")] = 0,
    dx: Annotated[Clicks, Field(description="to the right; less than 0: to the left")] = 0,
) -> Acted:
    """Turn the wheel of the mouse at a place of the screen."""
    sandbox(job, vm_name).desktop.scroll(x, y, dx, dy)
    return Acted(vm_name=vm_name, done="scroll")


def type_text(
    job: Job,
    vm_name: VmName,
    text: Annotated[str, Field(max_length=MOST_TEXT, description="a line feed is Return")],
) -> Acted:
    """Type a text, any of Unicode, where the focus of the desktop is."""
    sandbox(job, vm_name).desktop.type(text)
    return Acted(vm_name=vm_name, done="type")


def press_key(
    job: Job,
    vm_name: VmName,
    combo: Annotated[str, Field(description="'Return', 'ctrl+c', 'alt+F4', 'Page_Down'")],
) -> Acted:
    """Press a key of the desktop, or several together with '+' between them."""
    sandbox(job, vm_name).desktop.key(combo)
    return Acted(vm_name=vm_name, done="key")
