"""The files of a guest that says whatever a test wants it to say."""

from __future__ import annotations

import errno
from typing import Any

from scripted_daemon import Peer, Script, answering

from arrakis_rpc.connection import CallReceived
from arrakis_rpc.errors import FileOperationError


def stat(name: str, kind: str = "file", **changes: Any) -> dict[str, Any]:
    """Describe a file as the guest agent does."""
    return {
        "name": name,
        "kind": kind,
        "size": 0,
        "mode": 0o644,
        "mtime": 1_000_000_000.0,
        "uid": 0,
        "gid": 0,
        "target": None,
        **changes,
    }


class Guest:
    """Files by path, and what is said of directories by path, be it true or not."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.listings: dict[str, list[dict[str, Any]]] = {}
        self.written: dict[str, dict[str, Any]] = {}
        self.lie_about_length = False  # and send all of a file, of which a part was asked for

    @property
    def script(self) -> Script:
        return answering(
            file_read=self._read,
            file_write=self._write,
            file_list=self._list,
            file_stat=self._stat,
            file_mkdir=self._mkdir,
        )

    def add(self, path: str, content: bytes, **changes: Any) -> None:
        """Add a file, to the listing of its directory as well."""
        directory, _, name = path.rpartition("/")
        self.files[path] = content
        self.listings.setdefault(directory, []).append(stat(name, size=len(content), **changes))

    def add_directory(self, path: str, **changes: Any) -> None:
        """Add a directory, to the listing of its parent as well."""
        directory, _, name = path.rpartition("/")
        self.listings.setdefault(path, [])
        self.listings.setdefault(directory, []).append(stat(name, "directory", **changes))

    def _read(self, peer: Peer, call: CallReceived) -> Any:
        args = call.params["args"]
        content = self.files.get(args["path"])
        if content is None:
            return _missing(args["path"])
        is_part = args.get("length") is not None and not self.lie_about_length
        end = args["offset"] + args["length"] if is_part else None
        peer.data(call, "data", content[args["offset"] : end])
        return stat(args["path"].rpartition("/")[2], size=len(content))

    def _write(self, peer: Peer, call: CallReceived) -> Any:
        args = call.params["args"]
        self.files[args["path"]] = peer.read_all(call)
        self.written[args["path"]] = args
        return stat(args["path"].rpartition("/")[2])

    def _list(self, _: Peer, call: CallReceived) -> Any:
        path = call.params["args"]["path"]
        if path not in self.listings:
            return _missing(path)
        return {"entries": self.listings[path], "more": False}

    def _stat(self, _: Peer, call: CallReceived) -> Any:
        path = call.params["args"]["path"]
        if path.removesuffix("/.") in self.listings:
            return stat(path, "directory")
        if path not in self.files:
            return _missing(path)
        directory, _, name = path.rpartition("/")
        told = [entry for entry in self.listings.get(directory, []) if entry["name"] == name]
        return told[0] if told else stat(name, size=len(self.files[path]))

    def _mkdir(self, _: Peer, call: CallReceived) -> Any:
        args = call.params["args"]
        self.listings.setdefault(args["path"], [])
        self.written[args["path"]] = args
        return stat(args["path"], "directory")


def _missing(path: str) -> FileOperationError:
    return FileOperationError(f"{path}: No such file or directory", errno=errno.ENOENT)
