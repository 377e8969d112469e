"""The build context of an image, as a tar stream made while it is sent.

The same files give the same bytes, whoever owns them and whenever they were checked out,
so that a build can be recognised as one already done.
"""

# paths in an archive are text, and so are all here.
# ruff: noqa: PTH115, PTH118, PTH123

from __future__ import annotations

import os
import re
import stat as modes
import tarfile
from collections.abc import Iterator

from arrakis_rpc.errors import InvalidParamsError

_CHUNK = 128 * 1024
# The oldest day that zip archives can hold, in every time zone: Python puts modules into them.
_MTIME = 315_619_200


def tar_context(context: str, dockerfile: str) -> Iterator[bytes]:
    """Yield a tar archive of a directory, without what its ``.dockerignore`` excludes.

    The Dockerfile and the ``.dockerignore`` itself are always part of it. Symbolic links
    stay links; sockets, pipes and devices are left out.
    """
    ignored = Ignore.of(context, keep=(os.path.normpath(dockerfile), ".dockerignore"))
    for path in _walk(context, "", ignored):
        yield from _member(context, path)
    yield bytes(2 * tarfile.BLOCKSIZE)


class Ignore:
    """The patterns of a ``.dockerignore``: the last one that matches a path decides.

    ``*`` and ``?`` stay within one directory, ``**`` crosses them, ``!`` takes back. A
    pattern that matches a directory holds for all below it.
    """

    def __init__(self, lines: list[str], keep: tuple[str, ...] = ()) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        self._keep = keep
        for line in lines:
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            included = pattern.startswith("!")
            pattern = os.path.normpath(pattern.removeprefix("!").strip()).lstrip("/")
            self._rules.append((included, _translate(pattern)))

    @classmethod
    def of(cls, context: str, keep: tuple[str, ...]) -> Ignore:
        """Read the patterns of a context; none if it has no ``.dockerignore``."""
        try:
            with open(os.path.join(context, ".dockerignore"), encoding="utf-8") as file:
                return cls(file.read().splitlines(), keep)
        except FileNotFoundError:
            return cls([], keep)

    def excludes(self, path: str) -> bool:
        """Tell whether a path, relative to the context, is left out."""
        if path in self._keep:
            return False
        excluded = False
        for included, pattern in self._rules:
            if pattern.fullmatch(path):
                excluded = not included
        return excluded

    def may_hold_kept(self, directory: str) -> bool:
        """Tell whether something below an excluded directory may still be included."""
        return any(included for included, _ in self._rules) or any(
            path.startswith(f"{directory}/") for path in self._keep
        )


def _translate(pattern: str) -> re.Pattern[str]:
    pieces = []
    for token in re.findall(r"\*\*/?|\*|\?|\[[^\]]+\]|\\.|.", pattern):
        match token:
            case "**/":
                pieces.append("(?:.*/)?")
            case "**":
                pieces.append(".*")
            case "*":
                pieces.append("[^/]*")
            case "?":
                pieces.append("[^/]")
            case _ if len(token) > 2 and token[0] == "[":
                pieces.append(token)
            case _:
                pieces.append(re.escape(token[-1]))
    return re.compile("".join(pieces) + "(?:/.*)?", re.DOTALL)


def _walk(context: str, directory: str, ignored: Ignore) -> Iterator[str]:
    with os.scandir(os.path.join(context, directory)) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        path = f"{directory}/{entry.name}" if directory else entry.name
        excluded = ignored.excludes(path)
        if not excluded:
            yield path
        if entry.is_dir(follow_symlinks=False) and (not excluded or ignored.may_hold_kept(path)):
            yield from _walk(context, path, ignored)


def _member(context: str, path: str) -> Iterator[bytes]:
    full = os.path.join(context, path)
    info = tarfile.TarInfo(path)
    info.mtime = _MTIME
    stat = os.lstat(full)
    info.mode = modes.S_IMODE(stat.st_mode)
    if modes.S_ISDIR(stat.st_mode):
        info.type = tarfile.DIRTYPE
        yield _header(info)
    elif modes.S_ISLNK(stat.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(full)
        yield _header(info)
    elif modes.S_ISREG(stat.st_mode):
        yield from _file(info, full)


def _file(info: tarfile.TarInfo, full: str) -> Iterator[bytes]:
    with open(full, "rb") as file:
        info.size = os.fstat(file.fileno()).st_size
        yield _header(info)
        missing = info.size
        while missing:
            data = file.read(min(missing, _CHUNK))
            if not data:
                raise InvalidParamsError(f"{full} became shorter while it was read")
            missing -= len(data)
            yield data
    yield bytes(-info.size % tarfile.BLOCKSIZE)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
