"""Verbs that copy files: cp, upload, download."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import click

from .common import as_json, named, sandbox, verb
from .output import complain, is_stdout, print_json, say, size_text, warn
from .progress import Copying

if TYPE_CHECKING:
    from arrakis import Files, Transfer

_REMOTE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*):(.*)", re.DOTALL)


@verb("cp", "arrakis cp ./project box:/root/\narrakis cp box:/var/log/dpkg.log .")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@as_json
def cp(source: str, target: str, as_json: bool) -> None:
    """Copy files and directories between this host and a machine.

    A machine's path is written NAME:PATH, and is below /tmp/server_files unless it begins
    with '/'. As with cp, what is copied goes into a TARGET that is a directory or ends
    with '/'. Of a SOURCE that ends with '/.' the contents are copied. A local path with a
    colon is written ./PATH. Symbolic links are not copied.
    """
    from_machine, to_machine = _REMOTE.fullmatch(source), _REMOTE.fullmatch(target)
    if (from_machine is None) == (to_machine is None):
        raise click.UsageError("one of SOURCE and TARGET is NAME:PATH, the other a local path")
    with Copying() as progress:
        if from_machine is not None:
            files = sandbox(from_machine[1]).files
            path = from_machine[2] or "."
            target = _local_target(path, target)
            done = files.download(path, target, progress)
        elif to_machine is not None:
            files = sandbox(to_machine[1]).files
            remote = _remote_target(files, source, to_machine[2] or ".")
            done = files.upload(source, remote, progress)
    if to_machine is not None or not is_stdout(target):  # there it would end up in the file
        _report(done, as_json)


def _local_target(source: str, target: str) -> str:
    into = target.endswith("/") or os.path.isdir(target)  # noqa: PTH112 -- text throughout
    return _into(target, source) if into else target


def _remote_target(files: Files, source: str, target: str) -> str:
    if target.endswith("/") or _is_remote_directory(files, target):
        # As in the shell, "." has a name when it is to become a directory elsewhere.
        return _into(target, source)
    return target


def _into(directory: str, source: str) -> str:
    name = source.rstrip("/").rpartition("/")[2]
    if name in ("", "."):
        return directory  # the contents
    if name == "..":
        raise click.UsageError(f"'{source}' has no name that it could be copied to")
    return f"{directory.rstrip('/')}/{name}"


def _is_remote_directory(files: Files, path: str) -> bool:
    from arrakis import FileOperationError

    try:
        files.stat(f"{path.rstrip('/')}/.")
    except FileOperationError as error:
        if error.detail.get("errno") in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    return True


def _report(done: Transfer, as_json: bool) -> None:
    if as_json:
        print_json(
            {"files": done.files, "bytes": done.bytes, "skipped": done.skipped},
        )
        return
    for path in done.skipped:
        warn(f"not copied, because it is neither a file nor a directory: {path}")
    files = "1 file" if done.files == 1 else f"{done.files} files"
    say(f"copied {files}, {size_text(done.bytes)}")


@verb("upload", "arrakis upload -n box -f ./main.py,/tmp/server_files/main.py")
@named
@click.option(
    "-f",
    "--file",
    "specifications",
    multiple=True,
    required=True,
    metavar="SOURCE,TARGET",
    help="A local file and where it goes; repeatable.",
)
@as_json
def upload(name: str, specifications: tuple[str, ...], as_json: bool) -> None:
    """Copy local files to a machine; see also 'cp'."""
    paths = ",".join(specifications).split(",")
    if len(paths) % 2:
        raise click.UsageError("give each file as SOURCE,TARGET")
    files = sandbox(name).files
    targets = []
    with Copying() as progress:
        for source, target in zip(paths[::2], paths[1::2], strict=True):
            files.upload(source, target, progress)
            targets.append(target)
    if as_json:
        print_json(targets)
    else:
        say(f"uploaded {len(targets)} to {name}")


@verb("download", "arrakis download -n box -p /var/log/dpkg.log -o logs")
@named
@click.option(
    "-p", "--path", "paths", multiple=True, required=True, metavar="PATH", help="Repeatable."
)
@click.option("-o", "--output", default=".", metavar="DIR", help="Where to put them.  [default: .]")
@as_json
def download(name: str, paths: tuple[str, ...], output: str, as_json: bool) -> int:
    """Copy files of a machine into a directory here; see also 'cp'."""
    from arrakis import FileOperationError

    files = sandbox(name).files
    results: list[dict[str, str]] = []
    with Copying() as progress:
        for path in ",".join(paths).split(","):
            target = _into(output, path)
            try:
                files.download(path, target, progress)
                results.append({"path": path, "file": target})
            except FileOperationError as error:
                results.append({"path": path, "error": str(error)})
    if as_json:
        print_json(results)
    for result in results:
        if "error" in result:
            complain(f"{result['path']}: {result['error']}")
        elif not as_json:
            say(f"downloaded {result['file']}")
    return 1 if any("error" in result for result in results) else 0


VERBS = [cp, upload, download]
