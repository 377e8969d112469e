"""What one call is called in the log, in errors and in the headers of HTTP."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from attrs import define

_ACCEPTABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@define(eq=False)
class _Request:
    id: str
    is_over: bool = False


_current: ContextVar[_Request | None] = ContextVar("arrakis_request", default=None)


def new_request_id() -> str:
    """Make an id that no other call has."""
    return secrets.token_hex(8)


def acceptable_request_id(wish: str | None) -> str:
    """Give the id that a client chose, if it is one that can stand in a log; else a new one.

    That is up to 64 letters, digits, ``.``, ``_`` and ``-``, beginning with a letter or digit.
    """
    return wish if wish is not None and _ACCEPTABLE.fullmatch(wish) else new_request_id()


def current_request_id() -> str | None:
    """Give the id of the call on whose behalf this runs; None if there is none, or no more.

    A task that a call started belongs to it too, in whatever nursery it lives, until the
    call is over. What a VM's own tasks do later is nobody's call.
    """
    request = _current.get()
    return None if request is None or request.is_over else request.id


@contextmanager
def request(request_id: str) -> Iterator[None]:
    """Run a block as one call."""
    # Trio's tasks copy the context in which they were started, and keep the copy. So the end
    # of a call must be seen through it: resetting the variable here does not reach them.
    made = _Request(request_id)
    token = _current.set(made)
    try:
        yield
    finally:
        made.is_over = True
        _current.reset(token)
