"""Errors in words, and as exit codes."""

from __future__ import annotations

import errno
import os

from .output import complain

_BY_CLASS = {
    "InvalidParamsError": 2,
    "NotFoundError": 3,
    "AlreadyExistsError": 4,
    "InvalidStateError": 4,
    "ExhaustedError": 5,
    "ConnectionLostError": 6,
    "ProtocolError": 6,
    "GuestError": 7,
    "VmmError": 7,
    "AccessDeniedError": 8,
    "DeadlineError": 124,
    "CancelledError": 130,
}


def failed(error: Exception) -> int:
    """Tell of an error on stderr; give the exit code for it."""
    from arrakis_rpc.errors import ArrakisError, FileOperationError

    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
        return 3 if error.errno == errno.ENOENT else 1
    if not isinstance(error, ArrakisError):
        if "ARRAKIS_TRACEBACK" in os.environ:
            raise error
        complain(
            f"a defect of arrakis: {type(error).__name__}: {error}",
            "set ARRAKIS_TRACEBACK=1 to see where, and report it",
        )
        return 1
    output = error.detail.get("output")
    complain(f"{error}\n{output}" if isinstance(output, str) else str(error), error.hint)
    if isinstance(error, FileOperationError) and error.detail.get("errno") == errno.ENOENT:
        return 3
    return _BY_CLASS.get(type(error).__name__, 1)
