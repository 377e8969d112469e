"""What a tree says about itself, which is whatever a Dockerfile has made of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from arrakis_rootfs.tree import inspect_tree


def _large(path: Path) -> None:
    with path.open("w") as file:
        file.write("ID=tiny\n")
        file.truncate(2**40)


def _late(path: Path) -> None:
    path.write_text("#" * 2**20 + "\nID=tiny\n")


@contextmanager
def _written_to(pipe: Path) -> Iterator[None]:
    """Have something for who reads a pipe, so that this does not wait for ever."""

    def write() -> None:
        with suppress(BrokenPipeError):
            pipe.write_text("ID=piped\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # lets go who waits for a reader
        writer.join()
        os.close(end)


@pytest.mark.parametrize(
    ("make", "distribution"),
    [
        (lambda path: path.write_text('ID=tiny\nVERSION_ID="3"\n'), "tiny 3"),
        (_large, "tiny"),
        (_late, "unknown"),
        (lambda path: path.hardlink_to(path.with_name("pipe")), "unknown"),
        (os.mkdir, "unknown"),
        (lambda path: path.symlink_to("pipe"), "unknown"),
    ],
    ids=["file", "large", "late", "pipe", "directory", "link to a pipe"],
)
async def test_distribution(
    context: Path, make: Callable[[Path], object], distribution: str
) -> None:
    """The name of the distribution is read from a file, its beginning, and from nothing else."""
    tree = context / "tree"
    release = tree / "etc" / "os-release"
    release.unlink()
    pipe = release.with_name("pipe")
    os.mkfifo(pipe)
    make(release)
    with _written_to(pipe):
        assert (await inspect_tree(tree)).distribution == distribution
