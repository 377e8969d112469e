"""What a guest's own Python runs, for the daemon to learn what the guest has changed.

This is no part of the daemon: its text is given to a Python in the guest, of any version, where
the disk that the root file system writes to is mounted once more at ``DISK``. It answers each line
of its input with one line.
"""

# ruff: noqa: PTH115, PTH123, PTH208 -- in an emulated guest, pathlib takes its time

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator

DISK = "/run/arrakis-survey"
MOST = 100_000
OPAQUE = "trusted.overlay.opaque"
KERNEL_THREAD = 0x200000  # PF_KTHREAD
LONGEST_COMMAND = 200
BLOCK = 1 << 20


def written(upper: str) -> tuple[list[str], list[str]]:
    """Find what was written since the image, and where something of the image is hidden."""
    paths: list[str] = []
    holes: list[str] = []
    todo = [""]
    while todo:
        directory = todo.pop()
        with os.scandir(upper + directory) as entries:
            for entry in entries:
                path = f"{directory}/{entry.name}"
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
                    holes.append(path)
                    continue
                paths.append(path)
                if stat.S_ISDIR(status.st_mode):
                    todo.append(path)
                    if is_opaque(upper + path):
                        holes.append(path)
        limit(len(paths) + len(holes))
    return paths, holes


def is_opaque(directory: str) -> bool:
    """Tell whether a directory hides that of the image."""
    try:
        return os.getxattr(directory, OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False


def limit(number: int) -> None:
    """End where there is too much."""
    if number > MOST:
        raise SystemExit(f"more than {MOST} files were written")


def below(top: str) -> Iterator[str]:
    """Give a path, and all below it if it is a directory, as the guest sees them."""
    todo = [top]
    while todo:
        path = todo.pop()
        yield path
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode) and not os.path.ismount(path):
                todo += [f"{path}/{name}" for name in os.listdir(path)]
        except OSError:
            continue


def described(paths: list[str], holes: list[str]) -> dict[str, list[object]]:
    """Describe what is at paths, and at all below others; what is not there is left out."""
    found: dict[str, list[object]] = {}
    for path in (*paths, *(one for hole in holes for one in below(hole))):
        try:
            status = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
        except OSError:
            continue
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        found[path] = [status.st_mode, size, status.st_uid, status.st_gid, status.st_rdev, target]
        limit(len(found))
    return found


def digests(paths: list[str]) -> dict[str, str]:
    """Give checksums of files."""
    import hashlib

    found = {}
    for path in paths:
        digest = hashlib.sha256()
        try:
            with open(path, "rb", buffering=0) as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        except OSError as error:
            digest.update(repr(error).encode())
        found[path] = digest.hexdigest()
    return found


def processes() -> list[list[object]]:
    """Give pid, start in ticks since boot, and command of all that runs in user space."""
    found: list[list[object]] = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
            with open(f"/proc/{name}/cmdline", "rb") as file:
                command = file.read(LONGEST_COMMAND).replace(b"\0", b" ").strip()
        except OSError:
            continue
        if fields[0] != b"Z" and not int(fields[6]) & KERNEL_THREAD:
            found.append([int(name), int(fields[19]), command.decode(errors="replace")])
    return found


def main() -> None:
    """Say what there is, then answer questions."""
    running = processes()
    paths, holes = written(f"{DISK}/upper")
    say({"paths": paths, "holes": holes, "processes": running})
    for line in sys.stdin:
        question = json.loads(line)
        if "hash" in question:
            say(digests(question["hash"]))
        else:
            say(described(question["paths"], question["holes"]))


def say(answer: object) -> None:
    """Answer with a line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
