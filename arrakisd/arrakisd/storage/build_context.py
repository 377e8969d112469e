"""Unpacking a build context that a client sent: every entry of it is hostile.

The standard library's own filter came with Python 3.11.4; Debian 12 has 3.11.2.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from arrakis_rpc.errors import ExhaustedError, InvalidParamsError

_MODE = 0o755  # no more than this; the owner may always read and write


def unpack(archive: Path, target: Path) -> None:
    """Unpack files, directories and links that stay inside a new directory. Blocks.

    Raises `InvalidParamsError` for anything else in the archive, `ExhaustedError` if it does
    not fit on the disk.
    """
    target.mkdir()
    root = target.resolve()
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                _unpack_entry(tar, entry, root)
    except tarfile.TarError as error:
        raise InvalidParamsError(f"the build context is no tar archive: {error}") from error
    except OSError as error:
        raise ExhaustedError(
            f"the build context cannot be stored in {target}: {error.strerror}",
            hint="make room, then build again",
        ) from error


def _unpack_entry(tar: tarfile.TarFile, entry: tarfile.TarInfo, root: Path) -> None:
    place = root / entry.name
    parent = place.parent.resolve()
    if ".." in Path(entry.name).parts or not parent.is_relative_to(root):
        raise InvalidParamsError(f"the build context leaves its directory: {entry.name!r}")
    parent.mkdir(parents=True, exist_ok=True)
    if entry.isdir():
        place.mkdir(exist_ok=True)
    elif entry.isfile():
        content = tar.extractfile(entry)
        assert content is not None
        place.unlink(missing_ok=True)  # never write through a link
        with content, place.open("wb") as file:
            shutil.copyfileobj(content, file)
        place.chmod(entry.mode & _MODE | 0o600)
    elif entry.issym():
        if not (parent / entry.linkname).resolve().is_relative_to(root):
            raise InvalidParamsError(f"a link in the build context leaves it: {entry.name!r}")
        place.unlink(missing_ok=True)
        place.symlink_to(entry.linkname)
    else:
        raise InvalidParamsError(f"the build context has a special file: {entry.name!r}")
