import shutil
from functools import partial
from pathlib import Path

import pytest
import trio
from image_helpers import TINY, Builder

from arrakis_kernel import cache_directory
from arrakis_rootfs import Image, ImageStore, ensure_base


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """An empty store of this test's own."""
    return ImageStore(tmp_path / "images")


@pytest.fixture(scope="session")
def base() -> Image:
    """The machine's base image, as scripts/setup makes it."""
    cache = cache_directory()
    store = ImageStore(cache / "images")
    return trio.run(partial(ensure_base, store, cache, lambda step: print(step.text)))


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A build context that holds the tree of the tiny image."""
    tree = tmp_path / "context" / "tree"
    for directory in ("bin", "sbin", "etc", "dev", "proc", "sys", "tmp", "usr/lib/arrakis"):
        (tree / directory).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None, "scripts/setup installs busybox-static"
    shutil.copy(busybox, tree / "bin" / "busybox")
    for name in ("sh", "chmod", "sleep", "echo", "test", "ls", "cat"):
        (tree / "bin" / name).symlink_to("busybox")
    shutil.copy(busybox, tree / "bin" / "su")
    (tree / "sbin" / "init").symlink_to("/bin/busybox")
    (tree / "usr/lib/arrakis/arrakis-agent").write_text("#!/bin/sh\n")
    (tree / "etc/os-release").write_text('ID=tiny\nVERSION_ID="3"\n')
    (tree.parent / "Dockerfile").write_text(TINY)
    return tree.parent


@pytest.fixture
def build(store: ImageStore, context: Path) -> Builder:
    return Builder(store, context)
