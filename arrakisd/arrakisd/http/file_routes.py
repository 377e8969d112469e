"""Files of any size as bytes, and directories."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from quart import Response

from arrakis_rpc.daemon_api import SnapshotImported
from arrakis_rpc.errors import GuestError, InternalError
from arrakis_rpc.guest_api import FileListResult, FileStat

from . import models as m
from .json_form import MOST, public
from .local_call import LocalCall
from .ranges import Part, chosen_part
from .routes import BYTES, Ask, Route, stream

_FILE = (403, 404, 409, 422, 502, 504)


async def read_file(ask: Ask) -> Response:
    """Give a file, or one range of it."""
    stat = await ask.in_guest("file.read", {"path": ask.query.path, "length": 0}).result()
    if not 0 <= stat["size"] <= MOST:
        raise GuestError(f"the guest says that the file has {stat['size']} bytes")
    etag = f'"{stat["size"]:x}-{stat["mtime"]:.6f}"'
    part = chosen_part(ask.headers, stat["size"], etag)
    headers = {
        "Content-Type": BYTES,
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Content-Disposition": "attachment",
        **part.headers,
    }
    args = {"path": ask.query.path, "offset": part.offset, "length": part.length}
    call = ask.in_guest("file.read", args)
    first = await call.data()
    return stream(_bytes_of(first, call, part), part.status, headers)


async def export_snapshot(ask: Ask) -> Response:
    """Give a snapshot, its ancestors and its template as one archive."""
    call = ask.open("snapshot.export", {"id": ask.path["id"]})
    first = await call.data()
    headers = {"Content-Type": BYTES, "Content-Disposition": "attachment"}
    return stream(call.data_from(first), 200, headers)


async def import_snapshot(ask: Ask) -> Any:
    """Take an archive; what is here already stays."""
    call = ask.open("snapshot.import", {}, "data", ask.exchange.piece)
    return public(await call.result(), SnapshotImported)


async def write_file(ask: Ask) -> Any:
    """Write a file with the bytes of the body; it appears whole or not at all."""
    query: m.FileWriteQuery = ask.query
    args = {"path": query.path, "mode": query.mode, "append": query.append}
    call = ask.in_guest("file.write", args, "data", ask.exchange.piece)
    stat = await call.result()
    return {"path": query.path, "size": stat["size"]}


async def _bytes_of(first: bytes | None, call: LocalCall, part: Part) -> AsyncIterator[bytes]:
    sent, data = 0, first
    while data is not None:
        sent += len(data)
        yield data
        data = await call.data()
    if part.length is not None and sent != part.length:
        raise InternalError("the file became shorter while it was read")


async def remove_file(ask: Ask) -> Any:
    """Remove a file or a directory."""
    args = {"path": ask.query.path, "recursive": ask.query.recursive}
    await ask.in_guest("file.remove", args).result()
    return {"success": True, "message": f"{ask.query.path} is removed"}


async def stat_file(ask: Ask) -> Any:
    """Describe a file; a symlink is described itself, not what it points to."""
    return public(await ask.in_guest("file.stat", {"path": ask.query.path}).result(), FileStat)


async def list_directory(ask: Ask) -> Any:
    """Give a page of a directory's entries by name."""
    query: m.DirectoryQuery = ask.query
    args = {"path": query.path, "after": query.after, "limit": query.limit}
    return public(await ask.in_guest("file.list", args).result(), FileListResult)


async def make_directory(ask: Ask) -> Any:
    """Make a directory."""
    query: m.MakeDirectoryQuery = ask.query
    args = {"path": query.path, "mode": query.mode, "parents": query.parents}
    return public(await ask.in_guest("file.mkdir", args).result(), FileStat)


ROUTES = [
    Route(
        "GET",
        "/v1/snapshots/{id}/archive",
        export_snapshot,
        "Export a snapshot, its ancestors and its template",
        gives=BYTES,
        fails=(404,),
    ),
    Route(
        "POST",
        "/v1/snapshots",
        import_snapshot,
        "Import what was exported",
        SnapshotImported,
        takes=BYTES,
        fails=(409, 422),
    ),
    Route(
        "GET",
        "/v1/vms/{name}/file",
        read_file,
        "Read a file, or one range of it",
        query=m.FileQuery,
        gives=BYTES,
        partial=True,
        fails=_FILE,
    ),
    Route(
        "PUT",
        "/v1/vms/{name}/file",
        write_file,
        "Write a file of any size",
        m.FileWritten,
        query=m.FileWriteQuery,
        takes=BYTES,
        fails=(*_FILE, 507),
    ),
    Route(
        "DELETE",
        "/v1/vms/{name}/file",
        remove_file,
        "Remove a file or a directory",
        m.VMResponse,
        query=m.FileRemoveQuery,
        fails=_FILE,
    ),
    Route(
        "GET",
        "/v1/vms/{name}/stat",
        stat_file,
        "Describe a file",
        FileStat,
        query=m.FileQuery,
        fails=_FILE,
    ),
    Route(
        "GET",
        "/v1/vms/{name}/directory",
        list_directory,
        "List a directory, a page at a time",
        FileListResult,
        query=m.DirectoryQuery,
        fails=_FILE,
    ),
    Route(
        "PUT",
        "/v1/vms/{name}/directory",
        make_directory,
        "Make a directory",
        FileStat,
        query=m.MakeDirectoryQuery,
        fails=(*_FILE, 507),
    ),
]
