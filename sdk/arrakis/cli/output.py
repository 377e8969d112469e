"""What is printed, and how.

Names, messages and events may hold what a guest chose, so what is printed for people is
stripped of whatever could move the cursor or rename the window. The output of a guest's
own commands is not text of ours: it is passed on as it came, in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import IO, Any

import click


def printable(value: object) -> str:
    """Give a value as one line of text with escapes in place of control characters."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(value)
    )


def say(text: str) -> None:
    """Print a line."""
    click.echo(printable(text))


def complain(message: str, hint: str | None = None) -> None:
    """Print an error, and what can be done about it, to stderr."""
    first, *rest = [printable(line) for line in message.splitlines()] or [""]
    click.echo(f"error: {first}", err=True)
    for line in rest:
        click.echo(f"  {line}", err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)


def warn(message: str) -> None:
    """Print to stderr what was not done, when the rest was."""
    click.echo(f"warning: {printable(message)}", err=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a result, an object of the SDK or plain data, as JSON."""
    from arrakis_rpc.converter import unstructure

    click.echo(json.dumps(unstructure(value), indent=indent))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns, the same on a terminal and in a pipe."""
    cells = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one thing's properties, a line each."""
    shown = [(label, printable(value)) for label, value in fields if value not in (None, "")]
    width = max(len(label) for label, _ in shown) + 1
    for label, value in shown:
        click.echo(f"{label + ':':<{width}} {value}")


def write_bytes(stream: str, data: bytes) -> None:
    """Write output of a command, untouched and at once."""
    out = sys.stdout if stream == "stdout" else sys.stderr
    if out is not None:  # or there is nobody to see it
        out.buffer.write(data)
        out.buffer.flush()


def is_terminal(stream: IO[str] | None) -> bool:
    """Tell whether one of our streams is a terminal; it is None where it was closed."""
    return stream is not None and stream.isatty()


def is_stdout(path: str) -> bool:
    """Tell whether a path, as ``/dev/stdout``, leads to where this program prints."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(1))  # noqa: PTH116 -- text throughout
    return False


def size_text(size: int) -> str:
    """Give a number of bytes in a readable unit."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration_text(seconds: float) -> str:
    """Give a duration in its largest whole unit."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def age_text(moment: float) -> str:
    """Give how long ago a Unix time was."""
    return f"{duration_text(time.time() - moment)} ago"
