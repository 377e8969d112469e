"""How long a machine may live: the options of new ones, and the verb that changes them."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from typing import Any

import click

from .common import as_json, named, sandbox, verb
from .output import duration_text, print_json, say

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class _Duration(click.ParamType[float]):
    """Seconds, or a number with a unit: 90, 90s, 10m, 1.5h, 2d; "none" lifts a limit."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it."""
        if value == "none":
            return 0.0
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd]?)", str(value))
        if found is None:
            self.fail(f"{value!r} is no duration like 90s, 10m, 1h or 2d, nor 'none'", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


def limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``limits``: what was chosen of how long a machine may live."""

    @click.option("--ttl", type=_Duration(), metavar="TIME", help="How long it may live: 90s, 2h.")
    @click.option(
        "--idle-timeout", type=_Duration(), metavar="TIME", help="How long it may be unused."
    )
    @click.option(
        "--on-timeout",
        type=click.Choice(("suspend", "stop", "destroy")),
        help="What happens then.",
    )
    @click.option(
        "--on-unresponsive",
        type=click.Choice(("leave", "restore", "destroy")),
        help="What happens when it does not answer; restore takes it back to its last snapshot.",
    )
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        ttl: float | None,
        idle_timeout: float | None,
        on_timeout: str | None,
        on_unresponsive: str | None,
        **rest: Any,
    ) -> Any:
        chosen = {
            "ttl": ttl,
            "idle_timeout": idle_timeout,
            "on_timeout": on_timeout,
            "on_unresponsive": on_unresponsive,
        }
        limits = {key: value for key, value in chosen.items() if value is not None}
        return function(*args, limits=limits, **rest)

    return wrapper


def limits_text(limits: dict[str, Any] | None) -> str | None:
    """Say how long a machine may live."""
    if limits is None:
        return None
    ttl, idle, ends = limits["ttl"], limits["idle_timeout"], limits["ends"]
    parts = [
        f"{duration_text(ttl)} to live" if ttl else "",
        f"{duration_text(idle)} unused" if idle else "",
    ]
    texts = []
    if any(parts):
        texts.append(f"{limits['on_timeout']} after {' or '.join(filter(None, parts))}")
    if ends:
        texts.append(f"in {duration_text(max(0.0, ends - time.time()))}")
    if (action := limits["on_unresponsive"]) != "leave":
        texts.append(f"{action} when it does not answer")
    return ", ".join(texts)


@verb(
    "limits",
    "arrakis limits box\n"
    "arrakis limits box --ttl 2h --idle-timeout 10m --on-timeout suspend\n"
    "arrakis limits box --ttl none",
)
@named
@limited
@as_json
def limits(name: str, limits: dict[str, Any], as_json: bool) -> None:
    """Show or change how long a machine may live.

    A TIME is in seconds, or has a unit: 90s, 10m, 2h, 1d; 'none' lifts a limit.
    """
    machine = sandbox(name)
    if limits:
        machine.set_limits(**limits)
    found = machine.info()["limits"]
    if as_json:
        print_json(found)
    else:
        say(limits_text(found) or "no limits")


VERBS = [limits]
