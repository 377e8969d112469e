"""Does one thing to the desktop, or takes a picture of it.

What to do is asked on the standard input: a word, and what that needs, with NUL between them.
Coordinates are pixels of the screen as it is now, and so of a picture of it. What cannot be done
is told on the standard error, in words for the daemon: ``outside WIDTH HEIGHT``, ``key NAME``.
"""

from __future__ import annotations

import sys
import time

import keysyms
from x11 import BUTTON_PRESS, BUTTON_RELEASE, MOTION, Display

TYPE_CHECKING = False  # as `typing` has it, whose import takes its time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# By hand, a drag takes some time, too: programs look where the pointer is meanwhile.
_DRAG_STEPS = 12
_DRAG_SECONDS = 0.3

_BUTTONS = {"left": 1, "middle": 2, "right": 3}
_UP, _DOWN, _LEFT, _RIGHT = 4, 5, 6, 7
_CASELESS = {keysyms.CONTROL, keysyms.ALT, keysyms.SUPER}


def screenshot(display: Display) -> None:
    """Write a picture of the screen to the standard output."""
    from pictures import png

    sys.stdout.buffer.write(png(*display.picture()))


def move(display: Display, x: str, y: str) -> None:
    """Bring the pointer to a place."""
    display.fake(MOTION, 0, *_place(display, x, y))
    display.flush()


def click(display: Display, x: str, y: str, button: str, count: str) -> None:
    """Press a button at a place and let it go, so many times."""
    display.fake(MOTION, 0, *_place(display, x, y))
    for _ in range(int(count)):
        _press(display, _BUTTONS[button])
    display.flush()


def drag(display: Display, x1: str, y1: str, x2: str, y2: str) -> None:
    """Press the left button at one place, and let it go at another."""
    (left, top), (right, bottom) = _place(display, x1, y1), _place(display, x2, y2)
    display.fake(MOTION, 0, left, top)
    display.fake(BUTTON_PRESS, _BUTTONS["left"])
    for step in range(1, _DRAG_STEPS + 1):
        display.flush()
        time.sleep(_DRAG_SECONDS / _DRAG_STEPS)
        x = left + (right - left) * step // _DRAG_STEPS
        y = top + (bottom - top) * step // _DRAG_STEPS
        display.fake(MOTION, 0, x, y)
    display.flush()
    display.fake(BUTTON_RELEASE, _BUTTONS["left"])
    display.flush()


def scroll(display: Display, x: str, y: str, dx: str, dy: str) -> None:
    """Turn the wheel at a place, so many clicks to the right and down."""
    display.fake(MOTION, 0, *_place(display, x, y))
    for amount, back, on in ((int(dx), _LEFT, _RIGHT), (int(dy), _UP, _DOWN)):
        for _ in range(abs(amount)):
            _press(display, on if amount > 0 else back)
    display.flush()


def write(display: Display, text: str) -> None:
    """Type a text, whatever its characters are."""
    from keyboard import Keyboard

    meant = [keysyms.of_character(one) for one in text.replace("\r\n", "\n")]
    Keyboard(display).type(meant)


def key(display: Display, combo: str) -> None:
    """Press keys together, as in ``ctrl+shift+t``."""
    from keyboard import Keyboard

    names = [*combo[:-1].rstrip("+").split("+"), "+"] if combo[-1] == "+" else combo.split("+")
    names = [name for name in names if name]
    meant = [keysyms.of_name(name) for name in names]
    for name, keysym in zip(names, meant, strict=True):
        if not keysym:
            _refuse(f"key {name}")
    if _CASELESS.intersection(meant) and len(names[-1]) == 1:
        # Capitals are on the keys, and in what people write: Ctrl+C is ctrl and c.
        meant[-1] = keysyms.of_character(names[-1].lower())
    Keyboard(display).press(meant)


def _place(display: Display, x: str, y: str) -> tuple[int, int]:
    width, height = display.size()
    place = int(x), int(y)
    if place[0] >= width or place[1] >= height:
        _refuse(f"outside {width} {height}")
    return place


def _press(display: Display, button: int) -> None:
    display.fake(BUTTON_PRESS, button)
    display.fake(BUTTON_RELEASE, button)


def _refuse(reason: str) -> NoReturn:
    sys.stderr.write(f"{reason}\n")
    sys.exit(2)


_ACTIONS: dict[str, Callable[..., None]] = {
    "screenshot": screenshot,
    "move": move,
    "click": click,
    "drag": drag,
    "scroll": scroll,
    "type": write,
    "key": key,
}


def main() -> None:
    """Do what is asked; end when it has happened."""
    word, *needed = sys.stdin.buffer.read().decode().split("\0")
    try:
        display = Display()
    except OSError as error:
        sys.stderr.write(f"display {error}\n")
        sys.exit(2)
    _ACTIONS[word](display, *needed)
