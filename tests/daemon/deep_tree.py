"""Directories as only somebody makes them who wants to do harm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEPTH = 1500  # more than Python calls itself
MIB = 2**20


@contextmanager
def deep_tree(top: Path, name: str = "further") -> Iterator[None]:
    """Make a directory with others in each other for a block, and a file of 1 MiB in the last.

    With a short ``name`` there is a path to all of them, with others the system knows none.
    """
    top.mkdir(parents=True)
    place = os.open(top, os.O_RDONLY)
    try:
        for _ in range(DEPTH):
            os.mkdir(name, dir_fd=place)
            below = os.open(name, os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = below
        file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=place)
        os.write(file, bytes(MIB))
        os.close(file)
        yield
    finally:
        os.close(place)
        subprocess.run(["rm", "-rf", "--", top], check=True)
