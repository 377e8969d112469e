"""What HTTP takes for the desktop of a VM. Coordinates are pixels of a screenshot."""

from __future__ import annotations

from attrs import field, frozen

from arrakis_rpc.desktop_api import CLICKS, COMBO, COUNT, PIXEL, TEXT, Button


@frozen
class MoveRequest:
    """Where the pointer is to be."""

    x: int = field(validator=PIXEL)
    y: int = field(validator=PIXEL)


@frozen
class ClickRequest:
    """Which button to press, where, and how often."""

    x: int = field(validator=PIXEL)
    y: int = field(validator=PIXEL)
    button: Button = "left"
    count: int = field(default=1, validator=COUNT)


@frozen
class DragRequest:
    """Where to press the left button, and where to let it go."""

    x1: int = field(validator=PIXEL)
    y1: int = field(validator=PIXEL)
    x2: int = field(validator=PIXEL)
    y2: int = field(validator=PIXEL)


@frozen
class ScrollRequest:
    """Where to turn the wheel, how many clicks to the right and down; less than 0: left and up."""

    x: int = field(validator=PIXEL)
    y: int = field(validator=PIXEL)
    dx: int = field(default=0, validator=CLICKS)
    dy: int = field(default=0, validator=CLICKS)


@frozen
class TypeRequest:
    """A text to type, without control characters other than tab and line feed."""

    text: str = field(validator=TEXT)


@frozen
class KeyRequest:
    """Keys to press together, by their characters or names, with "+" between them."""

    combo: str = field(validator=COMBO)
