# ruff: noqa: PTH103, PTH104, PTH108, PTH114, PTH116, PTH118, PTH120
"""``file.read`` and ``file.write``: whole files as streams of bytes.

A plain file is read and written in the event loop, a chunk at a time: that ends soon, and
handing each chunk to a thread would cost more.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets

from attrs import frozen

from arrakis_rpc.guest_api import FileRead, FileStat, FileWrite

from .call import Call
from .paths import FileErrors, describe, file_error, require_regular, resolve

_CHANNEL = "data"
_NEW_FILE_MODE = 0o644
# No waiting for the other end of a pipe, and no terminal to take over, should the plain
# file that was there a moment ago have become one.
_SAFELY = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_LONGEST_NAME = 255


class Transfer:
    """Moves the content of files. Relative paths are relative to ``work_dir``."""

    def __init__(self, work_dir: str) -> None:
        self._work_dir = work_dir

    async def read(self, call: Call, params: FileRead) -> FileStat:
        """Send a part of a file, to its end if no length is given."""
        path = resolve(self._work_dir, params.path)
        with FileErrors(path):
            require_regular(path, os.stat(path))
            file = os.open(path, os.O_RDONLY | _SAFELY)
            try:
                status = os.fstat(file)
                require_regular(path, status)
                await _send(call, file, params.offset, params.length)
                return describe(path, status)
            finally:
                os.close(file)

    async def write(self, call: Call, params: FileWrite) -> FileStat:
        """Take the content of a file; it appears when all of it is there."""
        path = resolve(self._work_dir, params.path)
        with FileErrors(path):
            if path.endswith("/"):
                raise file_error(path, errno.EISDIR)
            target = _follow(path)
            if params.parents:
                os.makedirs(os.path.dirname(target), exist_ok=True)
            if params.append:
                await _append(call, target, params)
            else:
                await _replace(call, target, params)
            return describe(target)


async def _send(call: Call, file: int, offset: int, length: int | None) -> None:
    end = None if length is None else offset + length
    while end is None or offset < end:
        room = await call.wait_room(_CHANNEL)
        data = os.pread(file, room if end is None else min(room, end - offset), offset)
        if not data:
            return
        call.send_nowait(_CHANNEL, data)
        offset += len(data)
        await asyncio.sleep(0)  # so that a fast reader does not keep the loop to itself


async def _receive(call: Call, file: int) -> None:
    while (data := await call.receive(_CHANNEL)) is not None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        call.consumed(_CHANNEL, len(data))


async def _append(call: Call, path: str, params: FileWrite) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFELY, _NEW_FILE_MODE)
    try:
        require_regular(path, os.fstat(file))
        await _receive(call, file)
        _finish(file, params, None)
    finally:
        os.close(file)


async def _replace(call: Call, path: str, params: FileWrite) -> None:
    former = _former(path)
    fresh = _sibling(path)
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            await _receive(call, file)
            _finish(file, params, former)
        finally:
            os.close(file)
        os.rename(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


@frozen
class _Former:
    """What is kept of a file that is replaced."""

    uid: int
    gid: int
    mode: int


def _former(path: str) -> _Former | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    require_regular(path, status)
    return _Former(status.st_uid, status.st_gid, status.st_mode & 0o7777)


def _finish(file: int, params: FileWrite, former: _Former | None) -> None:
    """Give a complete file its owner, mode and time, in this order: a new owner costs bits."""
    if former is not None:
        os.fchown(file, former.uid, former.gid)
    if params.mode is not None:
        os.fchmod(file, params.mode)
    elif not params.append:
        os.fchmod(file, _NEW_FILE_MODE if former is None else former.mode)
    if params.mtime is not None:
        os.utime(file, (params.mtime, params.mtime))


def _follow(path: str) -> str:
    """Give where a file is really written: a link stays a link, its target is replaced."""
    return os.path.realpath(path) if os.path.islink(path) else path


def _sibling(path: str) -> str:
    directory, name = os.path.split(path)
    ending = f".arrakis-{secrets.token_hex(4)}"
    kept = os.fsencode(name)[: _LONGEST_NAME - 1 - len(ending)]
    return os.path.join(directory, f".{os.fsdecode(kept)}{ending}")
