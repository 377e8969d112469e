import random
import stat
import subprocess
from pathlib import Path

from arrakis_kernel import cpio

ENTRIES = [
    cpio.directory("bin"),
    cpio.regular("bin/program", b"#!/bin/sh\n", executable=True),
    cpio.symlink("bin/alias", "program"),
    cpio.regular("odd length", b"12345"),
    cpio.regular("empty", b""),
    cpio.directory("dev"),
    cpio.character_device("dev/null-like", 1, 3),
]


def extract(archive: bytes, directory: Path) -> list[str]:
    done = subprocess.run(
        ["busybox", "cpio", "-i", "-v"],
        cwd=directory,
        input=archive,
        capture_output=True,
        check=True,
    )
    return (done.stdout + done.stderr).decode().splitlines()


def test_archive_is_read_by_another_implementation(tmp_path: Path) -> None:
    """Busybox finds every entry with its type, mode, content, target and device numbers."""
    names = extract(cpio.write_archive(ENTRIES), tmp_path)
    assert {entry.path for entry in ENTRIES} <= set(names)
    assert stat.S_IMODE((tmp_path / "bin/program").stat().st_mode) == 0o755
    assert (tmp_path / "bin/alias").readlink() == Path("program")
    assert (tmp_path / "odd length").read_bytes() == b"12345"
    assert (tmp_path / "empty").read_bytes() == b""
    device = (tmp_path / "dev/null-like").lstat()
    assert stat.S_ISCHR(device.st_mode)
    assert device.st_rdev == 0x103


def test_same_entries_make_the_same_bytes() -> None:
    """The order in which entries are given does not show in the archive."""
    shuffled = list(ENTRIES)
    random.Random(1).shuffle(shuffled)
    assert cpio.write_archive(shuffled) == cpio.write_archive(ENTRIES)


def test_directory_comes_before_what_it_holds() -> None:
    """The kernel unpacks in order, so a directory is there before its files."""
    archive = cpio.write_archive(reversed(ENTRIES))
    assert archive.index(b"bin\0") < archive.index(b"bin/program\0")
