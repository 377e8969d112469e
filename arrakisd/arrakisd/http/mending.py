"""Putting our parts in the place of hypercorn's, which has no settings for it."""

from __future__ import annotations

import importlib.metadata

import hypercorn.protocol
import hypercorn.protocol.h11
import hypercorn.trio.run

from arrakis_rpc.errors import UnsupportedError

from .connection import Connection, PlainHttp1
from .websocket import PiecewiseWebSocket

_KNOWN = "0.18."


def mend_hypercorn() -> None:
    """Replace the three classes; raise `UnsupportedError` for a hypercorn that may differ."""
    version = importlib.metadata.version("hypercorn")
    if not version.startswith(_KNOWN):
        raise UnsupportedError(
            f"hypercorn {version} is installed, and HTTP is known to be safe with {_KNOWN}* only",
            hint=f"pip install 'hypercorn=={_KNOWN}*'",
        )
    hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined, assignment]
    hypercorn.protocol.H11Protocol = PlainHttp1  # type: ignore[attr-defined]
    hypercorn.protocol.h11.WSStream = PiecewiseWebSocket  # type: ignore[attr-defined, assignment]
