"""The one place where errors become HTTP statuses."""

from __future__ import annotations

import errno

from arrakis_rpc import errors as e

from .guards import RefusedError

_STATUSES: dict[type[e.ArrakisError], int] = {
    e.ProtocolError: 400,
    e.InvalidParamsError: 400,
    e.AccessDeniedError: 403,
    e.NotFoundError: 404,
    e.UnknownMethodError: 404,
    e.AlreadyExistsError: 409,
    e.InvalidStateError: 409,
    e.UnsupportedError: 422,
    e.ImageBuildError: 422,
    e.InternalError: 500,
    e.IntegrityError: 500,
    e.GuestError: 502,
    e.VmmError: 502,
    e.ConnectionLostError: 502,
    e.ExhaustedError: 503,
    e.CancelledError: 503,
    e.DeadlineError: 504,
}

# What a guest's system says of a path, in terms of HTTP; all else is 422.
_ERRNO_STATUSES = {
    errno.ENOENT: 404,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EROFS: 403,
    errno.EEXIST: 409,
    errno.EISDIR: 409,
    errno.ENOTDIR: 409,
    errno.ENOTEMPTY: 409,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
}


def status_of(error: e.ArrakisError) -> int:
    """Give the HTTP status of an error."""
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, e.FileOperationError):
        return _ERRNO_STATUSES.get(error.detail.get("errno", 0), 422)
    return _STATUSES.get(type(error), 500)
