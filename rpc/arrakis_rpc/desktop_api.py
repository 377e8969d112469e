"""What can be done to the desktop of a VM: parameters and results.

Coordinates are pixels of the screen, from its upper left corner, and so those of a screenshot.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, le, max_len, min_len

from .daemon_api import vm_name

Button = Literal["left", "middle", "right"]

MOST_TEXT = 10_000
MOST_PIXELS = 16_383  # of a side
MOST_CLICKS = 100  # of a wheel

TYPEABLE = r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*"
COMBINATION = r"[^\x00-\x20\x7f-\xa0]+"

PIXEL = [ge(0), le(MOST_PIXELS)]
COUNT = [ge(1), le(10)]
CLICKS = [ge(-MOST_CLICKS), le(MOST_CLICKS)]


def typeable(_: object, attribute: Attribute[str], value: str) -> None:
    """Validate a text that has a key for each character."""
    if not re.fullmatch(TYPEABLE, value):
        raise ValueError(f"{attribute.name} has a control character; press keys for what it means")


def combination(_: object, attribute: Attribute[str], value: str) -> None:
    """Validate what may be names of keys; which there are, the desktop knows."""
    if not re.fullmatch(COMBINATION, value):
        raise ValueError(f"{attribute.name} is names of keys with '+' between them: ctrl+c, Return")


TEXT: list[Any] = [max_len(MOST_TEXT), typeable]
COMBO: list[Any] = [min_len(1), max_len(100), combination]


@frozen
class DesktopScreenshot:
    """``desktop.screenshot``: the screen as a PNG file, which comes on channel ``data``."""

    vm: str = field(validator=vm_name)


@frozen
class ScreenSize:
    """How large the screen is, and a picture of it, in pixels."""

    width: int
    height: int


@frozen
class DesktopMove:
    """``desktop.move``: the pointer to a place."""

    vm: str = field(validator=vm_name)
    x: int = field(validator=PIXEL)
    y: int = field(validator=PIXEL)


@frozen
class DesktopClick:
    """``desktop.click``: press a button at a place and let it go; twice for a double click."""

    vm: str = field(validator=vm_name)
    x: int = field(validator=PIXEL)
    y: int = field(validator=PIXEL)
    button: Button = "left"
    count: int = field(default=1, validator=COUNT)


@frozen
class DesktopDrag:
    """``desktop.drag``: press the left button at one place, and let it go at another."""

    vm: str = field(validator=vm_name)
    x1: int = field(validator=PIXEL)
    y1: int = field(validator=PIXEL)
    x2: int = field(validator=PIXEL)
    y2: int = field(validator=PIXEL)


@frozen
class DesktopScroll:
    """``desktop.scroll``: turn the wheel at a place, ``dx`` clicks to the right, ``dy`` down.

    Less than 0 is to the left, and up.
    """

    vm: str = field(validator=vm_name)
    x: int = field(validator=PIXEL)
    y: int = field(validator=PIXEL)
    dx: int = field(default=0, validator=CLICKS)
    dy: int = field(default=0, validator=CLICKS)


@frozen
class DesktopType:
    """``desktop.type``: any text; a line feed is Return, and a tab is Tab."""

    vm: str = field(validator=vm_name)
    text: str = field(repr=False, validator=TEXT)


@frozen
class DesktopKey:
    """``desktop.key``: keys together, each by its character, the name that X has, or another.

    As ``ctrl+c``, ``Return`` or ``enter``, ``alt+F4``, ``ctrl+shift+plus``. Of letters after
    ctrl, alt or super the case does not count.
    """

    vm: str = field(validator=vm_name)
    combo: str = field(validator=COMBO)
