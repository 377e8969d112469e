"""The verb on a machine's desktop: screen, mouse and keyboard."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import click

from .common import as_json, sandbox, verb
from .output import print_json, say, write_bytes

if TYPE_CHECKING:
    from arrakis import Desktop

_WHOLE = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)
_USAGE = (
    "after NAME comes 'screenshot FILE.png', 'click X Y', 'move X Y', 'drag X1 Y1 X2 Y2', "
    "'scroll X Y DX DY', 'type TEXT' or 'key COMBO'"
)


@verb(
    "desktop",
    "arrakis desktop box screenshot screen.png\n"
    "arrakis desktop box click 640 400 --button right\n"
    "arrakis desktop box click 640 400 --count 2\n"
    "arrakis desktop box drag 100 100 300 250\n"
    "arrakis desktop box scroll 640 400 0 3\n"
    "arrakis desktop box type 'Grüße'\n"
    "arrakis desktop box key ctrl+shift+t",
)
@click.argument("name", metavar="NAME")
@click.argument("action", metavar="ACTION")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--button", type=click.Choice(("left", "middle", "right")), help="With click.")
@click.option("--count", type=int, metavar="N", help="With click; 2 is a double click.")
@as_json
def desktop(
    name: str,
    action: str,
    words: tuple[str, ...],
    button: str | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Look at the screen of a machine, or use its mouse and keyboard.

    Coordinates are pixels of a screenshot. SCROLL goes DX clicks to the right and DY down, less
    than 0 to the left and up. Write a TEXT that begins with '-' after '--'. With FILE '-' the
    picture goes to the standard output.
    """
    screen = sandbox(name).desktop
    if action != "click" and (button or count is not None):
        raise click.UsageError("--button and --count go with 'click'")
    if action == "screenshot" and len(words) == 1:
        _save(screen, words[0], as_json)
        return
    _act(screen, action, words, button or "left", 1 if count is None else count)
    if as_json:
        print_json({"name": name, "done": action})
    else:
        say(f"done: {action}")


# For numbers below 0, which are no options.
desktop.ignore_unknown_options = True


def _save(screen: Desktop, file: str, as_json: bool) -> None:
    picture = screen.screenshot()
    if file == "-":
        write_bytes("stdout", picture)
        return
    picture.save(file)
    size = {"width": picture.width, "height": picture.height}
    if as_json:
        print_json({"file": file, **size, "bytes": len(picture)})
    else:
        say(f"{file}: {picture.width} x {picture.height} pixels")


def _act(screen: Desktop, action: str, words: tuple[str, ...], button: str, count: int) -> None:
    if action in ("type", "key") and len(words) == 1:
        (screen.type if action == "type" else screen.key)(words[0])
        return
    if not all(_WHOLE.fullmatch(word) for word in words):
        raise click.UsageError(_USAGE)
    numbers = [int(word) for word in words]
    match action, numbers:
        case "click", [x, y]:
            screen.click(x, y, cast("Any", button), count)
        case "move", [x, y]:
            screen.move(x, y)
        case "drag", [x1, y1, x2, y2]:
            screen.drag(x1, y1, x2, y2)
        case "scroll", [x, y, dx, dy]:
            screen.scroll(x, y, dx, dy)
        case _:
            raise click.UsageError(_USAGE)


VERBS: list[click.Command] = [desktop]
